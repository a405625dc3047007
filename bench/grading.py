"""Grading throughput: killable workers against lighteval's metric called serially, on the same answers, same verdicts.

Ends in one JSON line; ``ratio`` is ours over lighteval's (answers per second, median over rounds, higher is better),
``strict_cost`` the time of both rules over that of lighteval's alone, in one process (lower is better, at most 1.5).
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import time

from eval_harness.graders.pool import GradingPool, available_cores
from eval_harness.graders.strict_math import mark


def answers(num: int, seed: int) -> list[tuple[str, str]]:
    """Short solutions with distinct numbers, half of them right, in the published answer format."""
    rng = random.Random(seed)
    pairs = []
    for i in range(num):
        a, b, c = rng.randrange(2, 999), rng.randrange(2, 99), rng.randrange(2, 99)
        gold, wrong = rf"\frac{{{a}}}{{{b}}}+\sqrt{{{c}}}", rf"\frac{{{a + 1}}}{{{b}}}+\sqrt{{{c}}}"
        text = (
            f"We add the two parts, step {i}. Therefore, the final answer is: $\\boxed{{{wrong if i % 2 else gold}}}$."
        )
        pairs.append(
            (f"Adding both parts gives ${gold}$, so the answer is $\\boxed{{{gold}}}$.", f"{text} I hope it is correct")
        )
    return pairs


def serial(pairs: list[tuple[str, str]]) -> list[float]:
    """lighteval's own metric, one answer after the other."""
    from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
    from lighteval.metrics.utils.extractive_match_utils import ExprExtractionConfig, LatexExtractionConfig
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.requests import Doc

    metric = MultilingualExtractiveMatchMetric(
        gold_extraction_target=(LatexExtractionConfig(),),
        pred_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig(boxed_match_priority=0)),
        precision=5,
    )
    return [metric.compute(Doc(query="", choices=[g], gold_index=0), ModelResponse(text=[p])) for g, p in pairs]


def main() -> None:
    """Time both, in turn, on fresh answers every round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    serial(answers(50, seed=-1))
    ratios, ours, theirs, costs, identical = [], [], [], [], True
    with GradingPool() as pool:
        pool.grade("math_latex_gold", answers(200, seed=-2))  # workers up and warm
        for round_number in range(args.rounds):
            pairs = answers(args.answers, seed=round_number)
            start = time.perf_counter()
            verdicts = pool.grade("math_latex_gold", pairs)
            middle = time.perf_counter()
            marks = serial(pairs)
            end = time.perf_counter()
            for gold, prediction in pairs:
                mark(gold, prediction)
            costs.append(1 + (time.perf_counter() - end) / (end - middle))
            ours.append(len(pairs) / (middle - start))
            theirs.append(len(pairs) / (end - middle))
            ratios.append(ours[-1] / theirs[-1])
            identical &= [float(v.correct) for v in verdicts] == marks
            print(f"round {round_number}: {ours[-1]:.0f}/s, lighteval {theirs[-1]:.0f}/s, ratio {ratios[-1]:.2f}")
    print(
        json.dumps(
            {
                "bench": "grading",
                "ratio": round(statistics.median(ratios), 3),
                "better": "higher",
                "target": 1.0,
                "answers_per_s": round(statistics.median(ours)),
                "lighteval_answers_per_s": round(statistics.median(theirs)),
                "strict_cost": round(statistics.median(costs), 3),
                "verdicts_identical": identical,
                "answers": args.answers,
                "rounds": args.rounds,
                "cores": available_cores(),
            }
        )
    )


if __name__ == "__main__":
    main()
