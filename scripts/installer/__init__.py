"""The parts of `make install`: plan (what belongs on this machine), pip (progress and diagnosis), repair and cures."""
