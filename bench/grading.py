"""Grading throughput: killable workers against lighteval's metric called serially, on the same answers, same verdicts.

Ends in one JSON line; ``ratio`` is ours over lighteval's (answers per second, median over rounds, higher is better),
``strict_cost`` the time of both rules over that of lighteval's alone, in one process (lower is better, at most 1.5);
``visual_strict_cost`` the same for choices, numbers, names of classes and boxes together, as many answers of each.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import time
from unittest import mock

from eval_harness.graders import box, choice, class_name, number
from eval_harness.graders.base import Mark, get_grader
from eval_harness.graders.pool import GradingPool, available_cores
from eval_harness.graders.strict_math import mark

VISUAL = {"choice": choice, "number": number, "class_name": class_name, "box": box}


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


def visual_answers(num: int, seed: int) -> dict[str, list[tuple[str, str, dict]]]:
    """Gold, answer and context by grader: short thoughts and an answer in the tag, half of them right."""
    rng = random.Random(seed)
    names = [f"{family}-{variant}" for family in range(700, 800, 10) for variant in range(100, 1000, 100)]
    found: dict[str, list[tuple[str, str, dict]]] = {name: [] for name in VISUAL}
    for i in range(num):
        options = [str(n) for n in rng.sample(range(100), 4)]
        letter = "ABCD"[rng.randrange(4)]
        factor, radicand, x, y = rng.randrange(2, 999), rng.randrange(2, 99), rng.randrange(400), rng.randrange(400)
        class_, corners = rng.choice(names), f"({x},{y}),({x + 300},{y + 400})"
        said = {
            "choice": (f"({letter})", f"({letter if i % 2 else 'A'}) {options['ABCD'.index(letter)]}"),
            "number": (f"{factor}√{{{radicand}}}cm", rf"{factor + i % 2}\sqrt{{{radicand}}} cm"),
            "class_name": (class_, f"Boeing {class_ if i % 2 else rng.choice(names)}"),
            "box": (corners, corners if i % 2 else f"[{x}, {y}, {x + 90}, {y + 90}]"),
        }
        contexts = {"choice": {"choices": options}, "class_name": {"classes": names}}
        for name, (gold, answer) in said.items():
            text = f"<think>First we look at the picture, step {i}.</think><answer>{answer}</answer>"
            found[name].append((gold, text, contexts.get(name, {})))
    return found


def visual_costs(num: int, seed: int) -> dict[str, float]:
    """Seconds of the published and of the strict rule of each grader, and of all: ``choice``, ``choice_strict``, ..."""
    spent = dict.fromkeys(("all", "all_strict"), 0.0)
    for name, rows in visual_answers(num, seed).items():
        grader, module = get_grader(name), VISUAL[name]
        with mock.patch.object(module, "mark", return_value=Mark(False, "no_answer", "", "")):
            start = time.perf_counter()
            for row in rows:
                grader.grade(*row)
        middle = time.perf_counter()
        for row in rows:
            module.mark(*row)
        spent |= {name: middle - start, f"{name}_strict": time.perf_counter() - middle}
        spent["all"] += spent[name]
        spent["all_strict"] += spent[f"{name}_strict"]
    return spent


def main() -> None:
    """Time both, in turn, on fresh answers every round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    serial(answers(50, seed=-1))
    visual_costs(50, seed=-1)
    ratios, ours, theirs, costs, identical, visual = [], [], [], [], True, []
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
            visual.append(visual_costs(args.answers // 4, seed=round_number))
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
                "visual_strict_cost": round(statistics.median(1 + v["all_strict"] / v["all"] for v in visual), 3),
                "visual_us": {
                    name: round(1e6 * statistics.median(v[name] for v in visual) / (args.answers // 4))
                    for name in visual[0]
                },
                "verdicts_identical": identical,
                "answers": args.answers,
                "rounds": args.rounds,
                "cores": available_cores(),
            }
        )
    )


if __name__ == "__main__":
    main()
