r"""Freshly drawn competition problems: ten families, three levels, one exact answer each. The benchmark ``fresh_math``.

A model cannot have seen what did not exist when it was trained. A problem is a pure function of its numbers, a set of
the seed; the answers come from closed forms in integers and fractions (the tests find each one again by brute force,
reading the numbers out of the text). The families are ours; no problem of a real set is copied or reworded.

Changing anything here that could move a problem or an answer raises ``GENERATOR``. Randomness comes from
`random.Random` seeded with text, so that a set is the same in every process and on every platform. This module needs
nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

GENERATOR = 1
"""Version of families, wording and ranges."""
NUM_PROBLEMS = 100
LEVELS = (1, 2, 3)
MAX_DENOMINATOR = 10_000
"""The published rule compares numbers at five decimals; fractions of such denominators lie further apart."""
MAX_INTEGER = 10**12
_MAX_DRAWS = 10_000


def default_seed(generator: int = GENERATOR) -> int:
    """The seed nobody chose: the first four bytes of SHA-256 of ``fresh_math/<generator>``, as a big-endian number."""
    return int.from_bytes(hashlib.sha256(f"fresh_math/{generator}".encode()).digest()[:4], "big")


@dataclass(frozen=True)
class FreshProblem:
    """One problem.

    Attributes:
        family: name in `FAMILIES`.
        level: 1 is the easiest.
        question: the text, formulas in LaTeX.
        answer: an integer, or a fraction in lowest terms.
    """

    family: str
    level: int
    question: str
    answer: Fraction

    @property
    def latex(self) -> str:
        r"""The answer in LaTeX: ``42`` or ``-\frac{3}{7}``."""
        sign, size = ("-" if self.answer < 0 else ""), abs(self.answer)
        if size.denominator == 1:
            return f"{sign}{size.numerator}"
        return rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}"


Write = Callable[[random.Random, int], tuple[str, "int | Fraction"] | None]
"""(generator, level) -> question and answer; None: these numbers make no good problem, draw again."""


def fresh_problems(seed: int, num: int = NUM_PROBLEMS) -> list[FreshProblem]:
    """Draw distinct problems, families in turn and levels in turn within a family.

    Args:
        seed: any integer of at least 0; another seed is another set.
        num: how many; 100 are ten of each family.

    Raises:
        ValueError: a negative seed or number.
    """
    if seed < 0 or num < 0:
        raise ValueError(f"seed {seed}, num {num}: both must be at least 0")
    names, seen, problems = list(FAMILIES), set(), []
    rngs = {name: random.Random(f"fresh_math/{GENERATOR}/{seed}/{name}") for name in names}
    for index in range(num):
        name = names[index % len(names)]
        level = LEVELS[index // len(names) % len(LEVELS)]
        for _ in range(_MAX_DRAWS):
            written = FAMILIES[name](rngs[name], level)
            if written is None or written[0] in seen:
                continue
            question, answer = written[0], Fraction(written[1])
            if answer.denominator <= MAX_DENOMINATOR and abs(answer) < MAX_INTEGER:
                break
        else:
            raise ValueError(
                f"{name}, level {level}: no further problem in {_MAX_DRAWS} draws; ask for fewer than {num}"
            )
        seen.add(question)
        problems.append(FreshProblem(name, level, question, answer))
    return problems


# --- number theory ------------------------------------------------------------------------------------------------


def _powers(rng: random.Random, level: int) -> tuple[str, int]:
    """A power's remainder, by repeated squaring; from level 2 on a sum of two."""
    modulus = rng.randrange(*((7, 50), (50, 300), (300, 1000))[level - 1])
    terms = [(rng.randrange(2, 30), rng.randrange(*((10, 60), (60, 500), (500, 5000))[level - 1])) for _ in "ab"]
    terms = terms[: 1 if level == 1 else 2]
    text = " + ".join(f"{base}^{{{exponent}}}" for base, exponent in terms)
    remainder = sum(pow(base, exponent, modulus) for base, exponent in terms) % modulus
    return f"What remainder does ${text}$ leave when it is divided by ${modulus}$?", remainder


def _congruences(rng: random.Random, level: int) -> tuple[str, int] | None:
    """Smallest positive integer with given remainders, by the Chinese remainder theorem."""
    moduli = sorted(rng.sample(range(3, (12, 20, 30)[level - 1]), (2, 3, 3)[level - 1]))
    if math.lcm(*moduli) != math.prod(moduli):
        return None
    remainders = [rng.randrange(1, modulus) for modulus in moduli]
    whole = math.prod(moduli)
    found = sum(r * (whole // m) * pow(whole // m, -1, m) for r, m in zip(remainders, moduli, strict=True)) % whole
    parts = [f"a remainder of ${r}$ when divided by ${m}$" for r, m in zip(remainders, moduli, strict=True)]
    text = f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"Find the smallest positive integer that leaves {text}.", found


def _divisors(rng: random.Random, level: int) -> tuple[str, int]:
    """Positive divisors of a factored number, counted or summed, with a condition from level 2 on."""
    primes = sorted(rng.sample((2, 3, 5, 7, 11), (2, 3, 4)[level - 1]))
    powers = [rng.randrange(1, (6, 6, 8)[level - 1]) for _ in primes]
    number = r" \cdot ".join(f"{p}^{{{e}}}" for p, e in zip(primes, powers, strict=True))
    if level == 1:
        return (
            f"What is the sum of all positive divisors of ${number}$?",
            math.prod((p ** (e + 1) - 1) // (p - 1) for p, e in zip(primes, powers, strict=True)),
        )
    if level == 2:
        least = [rng.randrange(0, e) for e in powers]
        least[0] = max(least[0], 1)
        factor = math.prod(p**e for p, e in zip(primes, least, strict=True))
        count = math.prod(e - f + 1 for e, f in zip(powers, least, strict=True))
        return f"How many positive divisors of ${number}$ are multiples of ${factor}$?", count
    squares = math.prod(e // 2 + 1 for e in powers)
    count = math.prod(e + 1 for e in powers) - squares
    return f"How many positive divisors of ${number}$ are not perfect squares?", count


# --- counting -----------------------------------------------------------------------------------------------------


def _bounded_sums(lows: Sequence[int], highs: Sequence[int], total: int) -> int:
    """Integers x_i with lows_i <= x_i <= highs_i that add up to ``total``: stars and bars, too large x_i taken out by
    inclusion and exclusion."""
    count = 0
    for beyond in itertools.product((False, True), repeat=len(lows)):
        starts = [high + 1 if past else low for past, low, high in zip(beyond, lows, highs, strict=True)]
        rest = total - sum(starts)
        if rest >= 0:
            count += (-1) ** sum(beyond) * math.comb(rest + len(lows) - 1, len(lows) - 1)
    return count


def _solutions(rng: random.Random, level: int) -> tuple[str, int] | None:
    """Bounded integer solutions of a sum."""
    names = ("xyz", "wxyz", "vwxyz")[level - 1]
    lows = [rng.randrange(0, 4) for _ in names]
    highs = [low + rng.randrange(4, (9, 11, 14)[level - 1]) for low in lows]
    total = rng.randrange(sum(lows) + 3, sum(highs) - 2)
    bounds = [rf"${low} \le {name} \le {high}$" for name, low, high in zip(names, lows, highs, strict=True)]
    kind = {3: "triples", 4: "quadruples", 5: "quintuples"}[len(names)]
    return (
        f"How many ordered {kind} $({', '.join(names)})$ of integers satisfy ${' + '.join(names)} = {total}$ together "
        f"with {', '.join(bounds[:-1])} and {bounds[-1]}?",
        _bounded_sums(lows, highs, total),
    )


def _paths(rng: random.Random, level: int) -> tuple[str, int] | None:
    """Lattice paths that avoid one or two points: all paths less those through them."""
    low, high = ((3, 7), (5, 9), (7, 12))[level - 1]
    goal = (rng.randrange(low, high), rng.randrange(low, high))

    def ways(start: tuple[int, int], end: tuple[int, int]) -> int:
        right, up = end[0] - start[0], end[1] - start[1]
        return 0 if min(right, up) < 0 else math.comb(right + up, up)

    inner = [(x, y) for x in range(goal[0] + 1) for y in range(goal[1] + 1) if (x, y) not in ((0, 0), goal)]
    avoided = sorted(rng.sample(inner, 1 if level < 3 else 2))
    count = ways((0, 0), goal) - sum(ways((0, 0), p) * ways(p, goal) for p in avoided)
    if level == 3:
        first, second = avoided
        count += ways((0, 0), first) * ways(first, second) * ways(second, goal)
    if count == 0:
        return None
    text = " and ".join(f"$({x},{y})$" for x, y in avoided)
    return (
        f"A path starts at $(0,0)$ and ends at $({goal[0]},{goal[1]})$. Each step goes one unit to the right or one "
        f"unit up. How many such paths avoid the point{'s' if len(avoided) > 1 else ''} {text}?",
        count,
    )


def _arrangements(rng: random.Random, level: int) -> tuple[str, int] | None:
    """Words from given letters in which no two A's stand together: the others first, the A's into the gaps."""
    num_a = rng.randrange(2, (4, 5, 6)[level - 1])
    counts = [rng.randrange(1, (5, 4, 6)[level - 1]) for _ in range((3, 4, 4)[level - 1])]
    others = sum(counts)
    if num_a > others + 1:
        return None
    words = math.factorial(others) // math.prod(map(math.factorial, counts))
    letters = "A" * num_a + "".join(letter * count for letter, count in zip("BCDE", counts, strict=False))
    return (
        rf"In how many distinct ways can the ${len(letters)}$ letters $\text{{{letters}}}$ be arranged in a row so "
        r"that no two letters $\text{A}$ are next to each other?",
        words * math.comb(others + 1, num_a),
    )


def _dice(rng: random.Random, level: int) -> tuple[str, Fraction]:
    """The sum of fair dice with different numbers of faces."""
    most = (20, 12, 9)[level - 1]
    faces = sorted(rng.randrange(4, most + 1) for _ in range((2, 3, 4)[level - 1]))
    ones, total = [1] * len(faces), rng.randrange(len(faces) + 1, sum(faces))
    at_least = level > 1 and rng.random() < 0.5
    sums = range(total, sum(faces) + 1) if at_least else (total,)
    word = {2: "Two", 3: "Three", 4: "Four"}[len(faces)]
    shown = ", ".join(f"${n}$" for n in faces[:-1]) + f" and ${faces[-1]}$"
    return (
        f"{word} fair dice have {shown} faces. The faces of each die are numbered $1, 2, 3, \\dots$ without a gap. All "
        "the dice are rolled once. What is the probability that the numbers rolled add up to "
        f"{'at least' if at_least else 'exactly'} ${total}$? Give your answer as a fraction in lowest terms.",
        Fraction(sum(_bounded_sums(ones, faces, wanted) for wanted in sums), math.prod(faces)),
    )


# --- algebra and geometry -----------------------------------------------------------------------------------------


def _roots(rng: random.Random, level: int) -> tuple[str, Fraction] | None:
    """Symmetric functions of a polynomial's roots, by Newton's identities."""
    signs = (-1, 1)
    if level < 3:
        a, b = (rng.choice(signs) * rng.randrange(1, 13) for _ in "ab")
        if a * a == 4 * b:
            return None  # the two roots would be one
        total, product = -a, b
        polynomial = f"x^2 {a:+d}x {b:+d}"
        if level == 1:
            asked, value = "r^3 + s^3", Fraction(total**3 - 3 * total * product)
        else:
            asked = r"\frac{1}{r^2} + \frac{1}{s^2}"
            value = Fraction(total**2 - 2 * product, product**2)
        names = "$r$ and $s$"
    else:
        a, b, c = (rng.choice(signs) * rng.randrange(1, 10) for _ in "abc")
        if a * a * b * b - 4 * b**3 - 4 * a**3 * c - 27 * c * c + 18 * a * b * c == 0:
            return None  # a double root
        polynomial = f"x^3 {a:+d}x^2 {b:+d}x {c:+d}"
        e1, e2, e3 = -a, b, -c
        p1, p2 = e1, e1 * e1 - 2 * e2
        p3 = e1 * p2 - e2 * p1 + 3 * e3
        asked, value = "r^4 + s^4 + t^4", Fraction(e1 * p3 - e2 * p2 + e3 * p1)
        names = "$r$, $s$ and $t$"
    text = polynomial.replace("+1x", "+x").replace("-1x", "-x").replace(" +", " + ").replace(" -", " - ")
    return f"Let {names} be the complex roots of ${text} = 0$. Find the value of ${asked}$.", value


def _recurrences(rng: random.Random, level: int) -> tuple[str, int]:
    """A term of a_n = p a_(n-1) + q a_(n-2), by powers of its matrix; from level 2 on its remainder."""
    p, q = rng.randrange(1, 6), rng.choice((-1, 1)) * rng.randrange(1, 6)
    first, second = rng.randrange(1, 10), rng.randrange(1, 10)
    index = rng.randrange(*((6, 11), (20, 61), (1000, 100_000))[level - 1])
    modulus = None if level == 1 else rng.randrange(7, (200, 100)[level - 2])
    term = _term(p, q, first, second, index, modulus)
    rule = f"a_n = {_coefficient(p)}a_{{n-1}} {'-' if q < 0 else '+'} {_coefficient(abs(q))}a_{{n-2}}"
    asked = f"Find $a_{{{index}}}$."
    if modulus is not None:
        asked = f"Find the remainder when $a_{{{index}}}$ is divided by ${modulus}$."
    return (
        f"A sequence has $a_1 = {first}$, $a_2 = {second}$ and ${rule}$ for every integer $n \\ge 3$. {asked}",
        term,
    )


def _coefficient(number: int) -> str:
    return "" if number == 1 else str(number)


def _term(p: int, q: int, first: int, second: int, index: int, modulus: int | None) -> int:
    """a_index of the recurrence, reduced if a modulus is given."""

    def times(m: tuple[int, ...], n: tuple[int, ...]) -> tuple[int, ...]:
        a, b, c, d = m
        e, f, g, h = n
        product = (a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h)
        return product if modulus is None else tuple(value % modulus for value in product)

    power, square, steps = (1, 0, 0, 1), (p, q, 1, 0), index - 1
    while steps:
        if steps & 1:
            power = times(power, square)
        square, steps = times(square, square), steps >> 1
    value = power[2] * second + power[3] * first
    return value if modulus is None else value % modulus


def _lattice_points(rng: random.Random, level: int) -> tuple[str, int] | None:
    """Points inside a polygon with integer corners, by Pick's theorem."""
    size = (8, 15, 30)[level - 1]
    corners = [(rng.randrange(0, size + 1), rng.randrange(0, size + 1)) for _ in range(3)]
    if level == 3:
        # the fourth corner mirrors the first in the middle of the opposite side: a parallelogram is always convex
        (ax, ay), (bx, by), (cx, cy) = corners
        corners = [(ax, ay), (bx, by), (cx, cy), (ax + cx - bx, ay + cy - by)]
    sides = list(zip(corners, corners[1:] + corners[:1], strict=True))
    doubled = abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in sides))
    border = sum(math.gcd(b[0] - a[0], b[1] - a[1]) for a, b in sides)
    inside = (doubled - border + 2) // 2
    if doubled == 0 or inside < 5:
        return None
    shape = "triangle" if level < 3 else "parallelogram"
    text = ", ".join(f"$({x},{y})$" for x, y in corners[:-1]) + f" and $({corners[-1][0]},{corners[-1][1]})$"
    return (
        "How many points with integer coordinates lie strictly inside (not on the boundary of) the "
        f"{shape} whose vertices are, in order, {text}?",
        inside,
    )


FAMILIES: dict[str, Write] = {
    "powers": _powers,
    "congruences": _congruences,
    "divisors": _divisors,
    "solutions": _solutions,
    "paths": _paths,
    "arrangements": _arrangements,
    "dice": _dice,
    "roots": _roots,
    "recurrences": _recurrences,
    "lattice_points": _lattice_points,
}
