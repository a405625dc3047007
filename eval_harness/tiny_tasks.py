"""The tiny world's tasks: five suites of arithmetic and reasoning problems with one verifiable answer each.

Every suite is a finite, enumerable set of problems in a few difficulty levels. A problem is a pure function of its
*key* (the numbers in it, in canonical order), so `38+47` and `47+38` are one problem, not two. A hash of the key says
whether the problem belongs to the train or to the test split; the splits are therefore disjoint by construction,
whatever is sampled. Randomness comes only from seeds (`random.Random` seeded with text, `hashlib`), so that a sample
is the same in every process and on every platform.

The suites are no benchmarks and borrow no benchmark's name. This module needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest

SPLITS = ("train", "test")
TEST_SHARE = 0.2
"""Share of the problems of a suite that the hash sends to the test split."""

Key = tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """One problem with a model solution.

    Attributes:
        id: stable name, `<suite>-<12 hex digits of the key's hash>`; the same problem always has the same id.
        question: what the user asks, for example `47+38=?`.
        reasoning: a short correct chain of thought, without think tags.
        answer: the bare answer, a non-negative integer in decimal digits.
        suite: name of the suite it belongs to.
        difficulty: level inside the suite, 1 is the easiest.
    """

    id: str
    question: str
    reasoning: str
    answer: str
    suite: str
    difficulty: int

    @property
    def solution(self) -> str:
        """The model completion after a generation prompt that has opened `<think>` (without an end-of-turn token)."""
        return f"{self.reasoning}\n</think>\n\n\\boxed{{{self.answer}}}"


@dataclass(frozen=True)
class Level:
    """One difficulty level: `all_keys` enumerates it, `write` makes a key (question, reasoning, answer).

    `write` gets a generator seeded by the problem itself, for choices that do not change the problem (the order of
    two addends, the letters of a chain).
    """

    difficulty: int
    all_keys: Callable[[], Iterator[Key]]
    write: Callable[[Key, random.Random], tuple[str, str, str]]


@dataclass(frozen=True)
class Suite:
    """A named set of problems in levels of rising difficulty."""

    name: str
    title: str
    description: str
    levels: tuple[Level, ...]

    @property
    def difficulties(self) -> tuple[int, ...]:
        """The difficulty levels, easiest first."""
        return tuple(level.difficulty for level in self.levels)

    @property
    def capacity(self) -> int:
        """Number of distinct problems in both splits together."""
        return sum(self.num_problems(split) for split in SPLITS)

    def num_problems(self, split: str) -> int:
        """Number of distinct problems in `split`; ValueError for an unknown split."""
        return sum(len(keys) for keys in _keys_by_level(self.name, _checked_split(split)))

    def sample(self, split: str, num: int, seed: int, difficulty: int | None = None) -> list[Problem]:
        """Draw `num` distinct problems, of one difficulty or spread evenly over all as far as each one's supply goes.

        Raises:
            ValueError: unknown split or difficulty, or `num` negative or above the number of problems there are.
        """
        pools = [
            (level, keys)
            for level, keys in zip(self.levels, _keys_by_level(self.name, _checked_split(split)), strict=True)
            if difficulty is None or level.difficulty == difficulty
        ]
        if not pools:
            raise ValueError(f"suite {self.name!r} has difficulties {self.difficulties}, not {difficulty!r}")
        available = sum(len(keys) for _, keys in pools)
        if not 0 <= num <= available:
            where = self.name if difficulty is None else f"{self.name}/{difficulty}"
            raise ValueError(
                f"{where} holds {available} distinct {split} problems, but {num} were asked for; "
                f"ask for 0 to {available}"
            )
        rng = random.Random(f"sample/{self.name}/{split}/{seed}")
        shuffled = [[(level, key) for key in rng.sample(keys, len(keys))] for level, keys in pools]
        in_turn = [item for row in zip_longest(*shuffled) for item in row if item is not None]
        picked = in_turn[:num]
        rng.shuffle(picked)
        return [_problem(self.name, level, key) for level, key in picked]


def mixture(weights: Mapping[str, float], split: str, num: int, seed: int) -> list[Problem]:
    """Draw `num` distinct problems in proportion to `weights`, in random order.

    `weights` maps parts to weights; a part is a suite (`tiny_sums`) or one difficulty of it (`tiny_sums/2`). Counts
    follow the weights by largest remainder (ties to the part named first), so they add up to `num` exactly.

    Raises:
        ValueError: an unknown part or split, a suite named both whole and in part, weights that are negative or all
            zero, or a part's share of `num` larger than what the part holds.
    """
    parts = {part: _parse_part(part) for part in weights}
    whole = {suite.name for suite, difficulty in parts.values() if difficulty is None}
    if twice := sorted({suite.name for suite, difficulty in parts.values() if difficulty is not None} & whole):
        raise ValueError(f"the mixture names {twice} both whole and by difficulty; choose one way for each suite")
    total = sum(weights.values())
    if not total > 0 or min(weights.values()) < 0:
        raise ValueError(f"mixture weights must be non-negative with a positive sum, got {dict(weights)}")
    exact = {part: num * weight / total for part, weight in weights.items()}
    counts = {part: int(share) for part, share in exact.items()}
    by_remainder = sorted(exact, key=lambda part: counts[part] - exact[part])
    for part in by_remainder[: num - sum(counts.values())]:
        counts[part] += 1
    problems = []
    for part, (suite, difficulty) in parts.items():
        problems += suite.sample(split, counts[part], seed, difficulty)
    random.Random(f"mixture/{split}/{seed}").shuffle(problems)
    return problems


def _parse_part(part: str) -> tuple[Suite, int | None]:
    """`tiny_sums` -> (suite, None); `tiny_sums/2` -> (suite, 2)."""
    name, _, level = part.partition("/")
    if name not in SUITES or (level and level not in map(str, SUITES[name].difficulties)):
        known = ", ".join(f"{suite.name}[/{'|'.join(map(str, suite.difficulties))}]" for suite in SUITES.values())
        raise ValueError(f"unknown part {part!r} of a mixture; known: {known}")
    return SUITES[name], int(level) if level else None


# --- keys, splits and hashes --------------------------------------------------------------------------------------


def _digest(suite: str, difficulty: int, key: Key) -> str:
    return hashlib.sha256(f"{suite}/{difficulty}/{','.join(map(str, key))}".encode()).hexdigest()


def _split_of(digest: str) -> str:
    return "test" if int(digest[:8], 16) < TEST_SHARE * 16**8 else "train"


def _checked_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    return split


@cache
def _keys_by_level(suite: str, split: str) -> tuple[list[Key], ...]:
    """The keys of one split, one list per level. Cached: enumerating and hashing all suites takes about 0.2 s."""
    return tuple(
        [key for key in level.all_keys() if _split_of(_digest(suite, level.difficulty, key)) == split]
        for level in SUITES[suite].levels
    )


def _problem(suite: str, level: Level, key: Key) -> Problem:
    digest = _digest(suite, level.difficulty, key)
    question, reasoning, answer = level.write(key, random.Random(digest))
    return Problem(f"{suite}-{digest[:12]}", question, reasoning, answer, suite, level.difficulty)


# --- the five suites ----------------------------------------------------------------------------------------------
# Written column by column, least significant digit first, as on paper: every step is small, the chain is short.


def _digits(number: int) -> list[int]:
    """Decimal digits, least significant first: 47 -> [7, 4]."""
    return [int(digit) for digit in reversed(str(number))]


def _pairs(larger: range, smaller: range) -> Callable[[], Iterator[Key]]:
    """All (a, b) with a from `larger`, b from `smaller` and a > b."""
    return lambda: ((a, b) for a in larger for b in smaller if a > b)


def _write_sum(key: Key, rng: random.Random) -> tuple[str, str, str]:
    """47+38 -> `7+8=15 4+3+1=8`."""
    first, second = rng.sample(key, 2)
    columns = list(zip_longest(_digits(first), _digits(second)))
    steps, carry = [], 0
    for column in columns:
        terms = [digit for digit in column if digit is not None] + ([1] if carry else [])
        steps.append(f"{'+'.join(map(str, terms))}={sum(terms)}")
        carry = sum(terms) // 10
    return f"{first}+{second}=?", " ".join(steps), str(first + second)


def _write_difference(key: Key, rng: random.Random) -> tuple[str, str, str]:
    """43-28 -> `13-8=5 4-2-1=1`: a borrowed ten is written into its column and taken off the next."""
    a, b = key
    steps, borrow = [], 0
    for top, bottom in zip_longest(_digits(a), _digits(b)):
        terms = ([bottom] if bottom is not None else []) + ([1] if borrow else [])
        borrow = int(top < sum(terms))
        top += 10 * borrow
        steps.append(f"{'-'.join(map(str, [top, *terms]))}={top - sum(terms)}")
    return f"{a}-{b}=?", " ".join(steps), str(a - b)


def _write_product(key: Key, rng: random.Random) -> tuple[str, str, str]:
    """27*4 -> `7*4=28 2*4+2=10`."""
    a, b = key
    steps, carry = [], 0
    for digit in _digits(a):
        value = digit * b + carry
        steps.append(f"{digit}*{b}{f'+{carry}' if carry else ''}={value}")
        carry = value // 10
    return f"{a}*{b}=?", " ".join(steps), str(a * b)


def _write_remainder(key: Key, rng: random.Random) -> tuple[str, str, str]:
    """147 mod 6 -> `14-12=2 27-24=3`: long division, one step per digit of the quotient."""
    a, b = key
    steps, rest = [], 0
    for digit in reversed(_digits(a)):
        rest = 10 * rest + digit
        if rest >= b or steps:
            steps.append(f"{rest}-{rest - rest % b}={rest % b}")
            rest %= b
    return f"{a} mod {b}=?", " ".join(steps), str(a % b)


def _chain_keys(num_links: int) -> Callable[[], Iterator[Key]]:
    """(start, change, change, ...) with start in 1..9, changes in -9..9 without 0, all values in 0..20."""

    def keys(prefix: Key, value: int) -> Iterator[Key]:
        if len(prefix) == num_links + 1:
            yield prefix
            return
        for change in range(-9, 10):
            if change and 0 <= value + change <= 20:
                yield from keys((*prefix, change), value + change)

    return lambda: (key for start in range(1, 10) for key in keys((start,), start))


def _write_chain(key: Key, rng: random.Random) -> tuple[str, str, str]:
    """p=7, q=p+5, r=q-3. r=? -> `p=7 q=7+5=12 r=12-3=9`."""
    value, *changes = key
    letters = rng.sample("abcdefghkmnpqrstuvwxyz", len(key))
    facts, steps = [f"{letters[0]}={value}"], [f"{letters[0]}={value}"]
    for previous, letter, change in zip(letters, letters[1:], changes, strict=False):
        facts.append(f"{letter}={previous}{change:+d}")
        steps.append(f"{letter}={value}{change:+d}={value + change}")
        value += change
    return f"{', '.join(facts)}. {letters[-1]}=?", " ".join(steps), str(value)


def _suite(name: str, title: str, description: str, write: Callable, *keys: Callable[[], Iterator[Key]]) -> Suite:
    return Suite(name, title, description, tuple(Level(i, level_keys, write) for i, level_keys in enumerate(keys, 1)))


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        _suite(
            "tiny_sums",
            "Tiny Sums",
            "two numbers added: two digits and one, two and two, three and two",
            _write_sum,
            _pairs(range(10, 100), range(1, 10)),
            _pairs(range(10, 100), range(10, 100)),
            _pairs(range(100, 300), range(10, 100)),
        ),
        _suite(
            "tiny_differences",
            "Tiny Differences",
            "a smaller number taken from a larger: two digits and one, two and two, three and two",
            _write_difference,
            _pairs(range(10, 100), range(1, 10)),
            _pairs(range(10, 100), range(10, 100)),
            _pairs(range(100, 300), range(10, 100)),
        ),
        _suite(
            "tiny_products",
            "Tiny Products",
            "a number of two or three digits times a digit",
            _write_product,
            _pairs(range(11, 100), range(2, 10)),
            _pairs(range(100, 1000), range(2, 10)),
        ),
        _suite(
            "tiny_chains",
            "Tiny Chains",
            "the value of a letter defined through two, three or four others",
            _write_chain,
            _chain_keys(1),
            _chain_keys(2),
            _chain_keys(3),
        ),
        _suite(
            "tiny_remainders",
            "Tiny Remainders",
            "what is left of a number of two or three digits divided by a digit",
            _write_remainder,
            _pairs(range(10, 100), range(3, 10)),
            _pairs(range(100, 1000), range(3, 10)),
        ),
    )
}
