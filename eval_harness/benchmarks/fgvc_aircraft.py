"""FGVC-Aircraft: 3,333 photographs of 100 aircraft variants (Maji et al. 2013), the official test split of 2013b."""

from eval_harness.benchmarks._species import classification

BENCHMARK = classification(
    "fgvc_aircraft",
    "FGVC",
    3_333,
    100,
    "fgvc_aircraft100",
    noun="an aircraft",
    kind="model of the aircraft",
    obtain="Put data/images of fgvc-aircraft-2013b.tar.gz under fgvc_aircraft100 (fgvc_aircraft100/images/...).",
)
