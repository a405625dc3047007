"""Fresh problems: every answer found again by brute force, from the text alone; determinism; distance to real sets."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from eval_harness.benchmarks import get_benchmark, prompts_hash
from eval_harness.errors import UserError
from eval_harness.fresh_tasks import FAMILIES, LEVELS, MAX_DENOMINATOR, default_seed, fresh_problems
from eval_harness.graders import get_grader

ROOT = Path(__file__).resolve().parent.parent
SEEDS = range(25)


@cache
def drawn(seed: int):
    return fresh_problems(seed)


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", text)]


# Each oracle reads the question as a reader would and counts, searches or iterates.


def powers(text: str) -> int:
    terms, modulus = re.findall(r"(\d+)\^\{(\d+)\}", text), int(re.search(r"divided by \$(\d+)\$\?", text)[1])
    whole = 0
    for base, exponent in terms:
        value = 1
        for _ in range(int(exponent)):
            value = value * int(base) % modulus
        whole += value
    return whole % modulus


def congruences(text: str) -> int:
    pairs = [(int(r), int(m)) for r, m in re.findall(r"remainder of \$(\d+)\$ when divided by \$(\d+)\$", text)]
    return next(n for n in itertools.count(1) if all(n % m == r for r, m in pairs))


def divisors(text: str) -> int:
    factors = [(int(p), int(e)) for p, e in re.findall(r"(\d+)\^\{(\d+)\}", text)]
    choices = itertools.product(*([p**k for k in range(e + 1)] for p, e in factors))
    found = [math.prod(choice) for choice in choices]
    if "sum of all" in text:
        return sum(found)
    if "multiples" in text:
        factor = int(re.search(r"multiples of \$(\d+)\$", text)[1])
        return sum(d % factor == 0 for d in found)
    assert "not perfect squares" in text
    return sum(math.isqrt(d) ** 2 != d for d in found)


def solutions(text: str) -> int:
    total = int(re.search(r"= (\d+)\$ together", text)[1])
    ways = Counter({0: 1})
    for low, high in re.findall(r"(\d+) \\le \w \\le (\d+)", text):
        ways = convolved(ways, range(int(low), int(high) + 1))
    return ways[total]


def convolved(ways: Counter, values) -> Counter:
    after: Counter = Counter()
    for value, (sums, count) in itertools.product(values, ways.items()):
        after[sums + value] += count
    return after


def paths(text: str) -> int:
    start, goal, *avoided = [(int(x), int(y)) for x, y in re.findall(r"\((\d+),(\d+)\)", text)]
    assert start == (0, 0)

    @cache
    def ways(x: int, y: int) -> int:
        if min(x, y) < 0 or (x, y) in avoided:
            return 0
        return 1 if (x, y) == (0, 0) else ways(x - 1, y) + ways(x, y - 1)

    return ways(*goal)


def arrangements(text: str) -> int:
    letters = re.search(r"text\{([A-E]+)\}\$ be arranged", text)[1]
    assert f"${len(letters)}$ letters" in text

    @cache
    def ways(left: tuple[int, ...], last: int) -> int:
        """Words from what is left, letter by letter; 0 is A."""
        if not any(left):
            return 1
        return sum(
            ways(tuple(n - (i == letter) for i, n in enumerate(left)), letter)
            for letter, count in enumerate(left)
            if count and not letter == last == 0
        )

    return ways(tuple(letters.count(letter) for letter in "ABCDE"), -1)


def dice(text: str) -> Fraction:
    faces = numbers(re.search(r"have (.*?) faces", text)[1])
    assert {2: "Two", 3: "Three", 4: "Four"}[len(faces)] == text.split()[0]
    kind, total = re.search(r"(exactly|at least) \$(\d+)\$", text).groups()
    rolls = [sum(roll) for roll in itertools.product(*(range(1, n + 1) for n in faces))]
    right = sum(s == int(total) if kind == "exactly" else s >= int(total) for s in rolls)
    return Fraction(right, len(rolls))


def roots(text: str) -> Fraction:
    """Power sums as traces of powers of the companion matrix."""
    import sympy

    x = sympy.symbols("x")
    polynomial = re.search(r"of \$(.*?) = 0\$", text)[1]
    expression = sympy.sympify(re.sub(r"(\d)x", r"\1*x", polynomial).replace("^", "**"))
    coefficients = sympy.Poly(expression, x).all_coeffs()
    assert coefficients[0] == 1
    n = len(coefficients) - 1
    companion = sympy.zeros(n, n)
    for i in range(n):
        companion[i, n - 1] = -coefficients[n - i]
        if i:
            companion[i, i - 1] = 1
    asked = re.search(r"value of \$(.*?)\$", text)[1]
    power = {"r^3 + s^3": 3, r"\frac{1}{r^2} + \frac{1}{s^2}": -2, "r^4 + s^4 + t^4": 4}[asked]
    assert len(sympy.roots(expression, x)) == n if n == 2 else sympy.discriminant(expression, x) != 0
    value = (companion**power).trace()
    return Fraction(int(value.p), int(value.q))


def recurrences(text: str) -> int:
    first, second = (int(re.search(rf"\$a_{i} = (\d+)\$", text)[1]) for i in (1, 2))
    p, sign, q = re.search(r"a_n = (\d*)a_\{n-1\} ([+-]) (\d*)a_\{n-2\}", text).groups()
    p, q = int(p or 1), int(q or 1) * (-1 if sign == "-" else 1)
    index = int(re.search(r"(?:Find|when) \$a_\{(\d+)\}\$", text)[1])
    modulus = re.search(r"divided by \$(\d+)\$", text)
    before, now = first, second
    for _ in range(index - 2):
        before, now = now, p * now + q * before
        if modulus:
            before, now = before % int(modulus[1]), now % int(modulus[1])
    return now % int(modulus[1]) if modulus else now


def lattice_points(text: str) -> int:
    corners = [(int(x), int(y)) for x, y in re.findall(r"\((-?\d+),(-?\d+)\)", text)]
    sides = list(zip(corners, corners[1:] + corners[:1], strict=True))
    xs, ys = zip(*corners, strict=True)

    def inside(x: int, y: int) -> bool:
        turns = [(b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) for a, b in sides]
        return all(t > 0 for t in turns) or all(t < 0 for t in turns)

    return sum(inside(x, y) for x in range(min(xs), max(xs) + 1) for y in range(min(ys), max(ys) + 1))


ORACLES = {f.__name__: f for f in (powers, congruences, divisors, solutions, paths, arrangements, dice, roots,
                                   recurrences, lattice_points)}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_found_again_by_brute_force(family):
    slow = family in ("recurrences", "dice", "roots")
    problems = [p for seed in (SEEDS[:12] if slow else SEEDS) for p in drawn(seed) if p.family == family]
    assert len(problems) >= 120 and {p.level for p in problems} == set(LEVELS)
    for problem in problems:
        assert ORACLES[family](problem.question) == problem.answer, problem.question


def test_a_set_is_balanced_distinct_and_within_what_the_grader_tells_apart():
    for seed in SEEDS:
        problems = drawn(seed)
        assert len({p.question for p in problems}) == 100
        assert set(Counter(p.family for p in problems).values()) == {10}
        assert Counter(p.level for p in problems) == {1: 40, 2: 30, 3: 30}
        assert all(p.answer.denominator <= MAX_DENOMINATOR for p in problems)
        answers = Counter(p.answer for p in problems)
        assert answers.most_common(1)[0][1] <= 6  # no answer is worth guessing
    assert any(p.answer.denominator > 1 for p in drawn(0))


def test_latex_of_answers():
    problem = drawn(0)[0]
    shown = {Fraction(42): "42", Fraction(-7): "-7", Fraction(3, 7): r"\frac{3}{7}", Fraction(-3, 7): r"-\frac{3}{7}"}
    for value, text in shown.items():
        assert type(problem)(problem.family, 1, "?", value).latex == text


def test_the_same_seed_gives_the_same_set_in_any_process():
    code = "from eval_harness.fresh_tasks import *; print([p.question for p in fresh_problems(5)])"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
    ).stdout  # fmt: skip
    assert told.strip() == str([p.question for p in fresh_problems(5)])
    shorter = fresh_problems(5, 37)
    assert shorter == fresh_problems(5)[:37]


def test_sets_of_different_seeds_are_different():
    """Chance meetings stay rare: on average below one problem in a hundred."""
    own = {p.question for p in fresh_problems(default_seed())}
    shared = [sum(p.question in own for p in drawn(seed)) for seed in SEEDS]
    assert max(shared) <= 4 and sum(shared) / len(shared) < 1


def test_refusals():
    with pytest.raises(ValueError, match="at least 0"):
        fresh_problems(-1)
    with pytest.raises(ValueError, match="ask for fewer"):
        fresh_problems(0, 40_000)


def test_the_benchmark_and_its_seeds():
    """The default set to the byte: another set under this name and version would be another benchmark."""
    fresh = get_benchmark("fresh_math")
    items = fresh.load()
    assert prompts_hash(items) == "6ed12b0bd85d3251" and fresh.version == 1
    assert default_seed() == 0x81754B28  # sha256("fresh_math/1") begins so
    assert fresh.prompt == get_benchmark("math500").prompt and fresh.decoding == get_benchmark("math500").decoding
    other = get_benchmark("fresh_math_seed7")
    assert other.name == "fresh_math_seed7" and "seed 7" in other.source.describe() and other.load() != items
    assert get_benchmark(f"fresh_math_seed{default_seed()}").load() == items
    with pytest.raises(UserError, match="no seeds"):
        get_benchmark("aime24_seed1")
    with pytest.raises(UserError, match="unknown benchmark"):
        get_benchmark("fresh_math_seed007")  # one set, one name


def test_the_grader_accepts_the_gold_and_rejects_a_wrong_answer():
    fresh, grader = get_benchmark("fresh_math"), get_grader("math_latex_gold")
    problems = fresh_problems(default_seed())
    for item, problem in list(zip(fresh.load(), problems, strict=True))[::2]:
        right, wrong = (
            rf"Therefore, the final answer is: $\boxed{{{latex}}}$. I hope it is correct"
            for latex in (problem.latex, type(problem)("", 1, "", problem.answer + Fraction(1, MAX_DENOMINATOR)).latex)
        )
        for said, mark in ((right, True), (wrong, False)):
            verdict = grader.grade(item.gold, said)
            assert (verdict.correct, verdict.correct_strict, verdict.gold_fallback) == (mark, mark, False), said


REAL_QUESTIONS = dict.fromkeys(("aime_2024", "math_500", "amc_23", "minerva_math", "train/math_train"), "problem")
REAL_QUESTIONS["olympiad_bench"] = "question"


@pytest.mark.real_data("no fresh problem in a real set", *(f"{name}.jsonl" for name in REAL_QUESTIONS))
def test_no_problem_of_a_real_set(data_root):
    """No shared text, and no real question that is one of ours but for its numbers."""

    def skeleton(text: str) -> str:
        return re.sub(r"[\d\s$\\{}]+", "", text).lower()

    ours = {skeleton(p.question) for seed in SEEDS for p in drawn(seed)}
    lines = {name: (data_root / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in REAL_QUESTIONS}
    theirs = {skeleton(json.loads(line)[column]) for name, column in REAL_QUESTIONS.items() for line in lines[name]}
    assert len(theirs) > 5000 and not ours & theirs
