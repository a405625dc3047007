"""Cars196: 8,041 photographs of 196 car models (Krause et al. 2013), the official test split; the year comes first."""

from eval_harness.benchmarks._species import classification

BENCHMARK = classification(
    "cars196",
    "Cars196",
    8_041,
    196,
    "stanford_cars196",
    noun="a car",
    kind="model of the car",
    obtain="Put cars_test.tgz of Stanford Cars, under stanford_cars196 (stanford_cars196/cars_test/00001.jpg).",
)
