"""Kill runs at random and at chosen moments, start them again, and compare with undisturbed ones: ``make torture``."""
