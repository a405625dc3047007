"""Flowers102: 2,463 photographs of 102 flowers (Nilsback and Zisserman 2008), in the split of CoOp.

Not the official test split, which has 6,149. In six pairs one class name holds the other (rose, lenten rose).
"""

from eval_harness.benchmarks._species import classification

BENCHMARK = classification(
    "flowers102",
    "Flower102",
    2_463,
    102,
    "flowers102",
    noun="a plant",
    kind="species of the plant",
    obtain="Put 102flowers.tgz of the Oxford Flowers page, under flowers102 (flowers102/jpg/image_00001.jpg).",
)
