"""Pets37: 3,669 photographs of 37 breeds of cats and dogs (Parkhi et al. 2012), the official test split."""

from eval_harness.benchmarks._species import classification

BENCHMARK = classification(
    "pets37",
    "Pets37",
    3_669,
    37,
    "oxford_pets37",
    noun="a pet",
    kind="species of the pet",
    obtain="Put images.tar.gz of the Oxford-IIIT Pet page, under oxford_pets37 (oxford_pets37/images/...).",
)
