"""The tiny visual world: drawings of 112 x 112 pixels with one verifiable answer each.

Four families: scenes (how many, where, which is nearer), figures (geometry with a numeric answer), species (four sets
of made-up classes) and grounding (a box around what the instruction names). A *task* is a pure function of its key; a
hash of the key sends it to the train or to the test split, so that the splits are disjoint by construction, whatever
is sampled. Randomness comes only from seeds, so that a sample is the same in every process and on every platform. A
task holds no pixels but a list of shapes; `draw` paints them.

The sets are no benchmarks and borrow no benchmark's name. Standard library, Pillow and numpy only.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import combinations, cycle, product
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIDE = 112
"""Width and height of every drawing, in pixels."""
CELL = 28
"""Pixels of a cell of the 4 x 4 grid that scenes stand on; the tiny models see one cell as one token."""
UNIT = 14
"""Pixels of a unit of length in figures and of the grid that grounding scenes stand on."""
SPLITS = ("train", "test")
TEST_SHARE = 0.3
"""Share of the tasks that the hash sends to the test split."""
_OVERSAMPLING = 2
_FADE = 34
"""Levels of red and of blue that the paper loses from one side to the other."""

Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "blue": (40, 70, 214),
    "green": (30, 150, 60),
    "gold": (230, 170, 20),
    "pink": (240, 120, 190),
}
HUES = ["red", "blue", "green"]
"""Colours that questions name."""
BLACK: Colour = (30, 30, 30)
GREY: Colour = (205, 205, 205)
PAPER: Colour = (250, 250, 250)

Shape = tuple[str, Colour, tuple[float, ...]]
"""Kind (`ellipse`, `polygon` or `line`), colour, and numbers in pixels: the box of an ellipse, the corners of a
polygon, the two ends and the width of a line."""


@dataclass(frozen=True)
class Task:
    """One drawing with a question and a model solution.

    Attributes:
        key: what makes this task another task than the next; equal keys are one task.
        part: the part of the set it belongs to (a group of scenes, a kind of figure, a class, a kind of reference).
        question: what is asked, without options.
        reasoning: a short correct chain of thought, without think tags.
        answer: the bare answer, without answer tags.
        shapes: what is drawn, back to front.
        ground: background colour.
        grain: seed of pixel noise, or None for flat colours.
        guesses: the answers a hasty solver would pick from, the right one among them.
        facts: further columns of the set (options, source, polygons).
        id: stable name, `<set>-<12 hex digits of the key's hash>`; empty until the task is sampled from a set.
    """

    key: str
    part: str
    question: str
    reasoning: str
    answer: str
    shapes: tuple[Shape, ...]
    guesses: tuple[str, ...]
    ground: Colour = PAPER
    grain: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    def draw(self) -> Image.Image:
        """The drawing, RGB, 112 x 112; the same pixels for the same task."""
        scale = _OVERSAMPLING
        image = Image.fromarray(_lit(self.ground, SIDE * scale))
        pen = ImageDraw.Draw(image)
        for kind, colour, numbers in self.shapes:
            scaled = [number * scale for number in numbers]
            if kind == "ellipse":
                pen.ellipse(scaled, fill=colour)
            elif kind == "polygon":
                pen.polygon(scaled, fill=colour)
            else:
                pen.line(scaled[:4], fill=colour, width=round(scaled[4]))
        image = image.reduce(scale)
        if self.grain is None:
            return image
        noise = np.random.default_rng(self.grain).integers(-12, 13, (SIDE, SIDE, 1))
        return Image.fromarray(np.clip(np.asarray(image, dtype=np.int16) + noise, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class VisionSet:
    """A named set of tasks: `parts` maps each part to a maker of one random task."""

    name: str
    title: str
    description: str
    parts: Mapping[str, Callable[[random.Random], Task]]

    def stream(self, split: str, seed: int | str) -> Iterator[Task]:
        """Random tasks of `split` without end, the parts in turn; a task may come again.

        Raises:
            ValueError: unknown split.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        return self._stream(split, random.Random(f"sample/{self.name}/{split}/{seed}"))

    def _stream(self, split: str, rng: random.Random) -> Iterator[Task]:
        for part, make in cycle(self.parts.items()):
            while True:
                task = make(rng)
                digest = hashlib.sha256(f"{self.name}/{part}/{task.key}".encode()).hexdigest()
                if ("test" if int(digest[:8], 16) < TEST_SHARE * 16**8 else "train") == split:
                    break
            yield replace(task, id=f"{self.name}-{digest[:12]}")

    def sample(self, split: str, num: int, seed: int) -> list[Task]:
        """Draw `num` distinct tasks, in random order; the numbers of the parts differ by one at most.

        Raises:
            ValueError: unknown split, negative `num`, or a part that has too few distinct tasks.
        """
        if num < 0:
            raise ValueError(f"the number of tasks must not be negative, got {num}")
        wanted = {part: (num + index) // len(self.parts) for index, part in enumerate(reversed(self.parts))}
        found: dict[str, dict[str, Task]] = {part: {} for part in self.parts}
        for turn, task in enumerate(self.stream(split, seed)):
            if all(len(found[part]) == wanted[part] for part in wanted):
                break
            if turn > 50 * (num + 1000):
                short = [part for part in wanted if len(found[part]) < wanted[part]]
                raise ValueError(f"{self.name} ran out of distinct {split} tasks at {num} in {short}; ask for fewer")
            if len(found[task.part]) < wanted[task.part]:
                found[task.part].setdefault(task.id, task)
        tasks = [task for part in found.values() for task in part.values()]
        random.Random(f"order/{self.name}/{split}/{seed}").shuffle(tasks)
        return tasks


@cache
def _lit(ground: Colour, side: int) -> np.ndarray:
    """The empty paper [side, side, 3], uint8: red fades from left to right, blue from top to bottom.

    The vision tower of a Qwen2-VL knows relative places only; the light tells a tiny one where a patch lies.
    """
    fade = np.arange(side) * _FADE / side
    paper = np.tile(np.array(ground, dtype=float), (side, side, 1))
    paper[:, :, 0] -= fade[None, :]
    paper[:, :, 2] -= fade[:, None]
    return paper.round().astype(np.uint8)


# --- prompts ------------------------------------------------------------------------------------------------------

_CHAT = "{problem} <think> </think> <answer> </answer>"
PROMPTS = {
    "tiny_scenes": "<image>User: {problem} \nAssistant: Look.\n<think>",
    "tiny_figures": _CHAT,
    **dict.fromkeys(("tiny_blossoms", "tiny_critters", "tiny_gliders", "tiny_carts"), "<image>\n" + _CHAT),
    "tiny_grounding": "Box: {problem} <think> </think> <answer>(x1,y1),(x2,y2)</answer>",
}
"""The text beside the image, by set: the paper's prompts cut short. That of the scenes is the whole prompt of a
pretrained model and opens the reasoning; the others are user turns."""


def lettered(task: Task) -> str:
    """A scene's question with lettered options, as an evaluation asks it."""
    options = "\n".join(f"({letter}) {choice}" for letter, choice in zip("ABCD", task.facts["choices"], strict=False))
    return f"{task.question}\n{options}"


def in_words(task: Task) -> str:
    """A scene's question as a training set asks it: options in a row, to be answered in words."""
    *first, last = task.facts["choices"]
    return f" Answer in words. {task.question} Options: {', '.join(first)} or {last}"


# --- shapes -------------------------------------------------------------------------------------------------------


def _disc(colour: Colour, x: float, y: float, radius: float) -> Shape:
    return "ellipse", colour, (x - radius, y - radius, x + radius, y + radius)


def _box(colour: Colour, left: float, top: float, right: float, bottom: float) -> Shape:
    return "polygon", colour, (left, top, right, top, right, bottom, left, bottom)


def _line(x0: float, y0: float, x1: float, y1: float, width: float = 2, colour: Colour = BLACK) -> Shape:
    return "line", colour, (x0, y0, x1, y1, width)


def _polygon(colour: Colour, points: Sequence[tuple[float, float]]) -> Shape:
    return "polygon", colour, tuple(round(number, 2) for point in points for number in point)


def _oval(x: float, y: float, long: float, short: float, turn: float, num: int = 20) -> list[tuple[float, float]]:
    """Points of an ellipse with half axes `long` and `short`, turned by `turn` radians."""
    points = []
    for k in range(num):
        u, v = long * math.cos(2 * math.pi * k / num), short * math.sin(2 * math.pi * k / num)
        points.append((x + u * math.cos(turn) - v * math.sin(turn), y + u * math.sin(turn) + v * math.cos(turn)))
    return points


# --- scenes -------------------------------------------------------------------------------------------------------

FLAT_SOURCES = ("ink", "felt")
DEEP_SOURCE = "floor"
_GROUNDS: dict[str, Colour] = {"ink": PAPER, "felt": (222, 234, 214), "floor": (236, 228, 212)}
_SKY: Colour = (206, 222, 240)
_RADIUS = {1: 18, 2: 14, 3: 10, 4: 7}
"""Radius of a ball by its depth, 1 nearest."""
_FOOT = {1: 106, 2: 88, 3: 74, 4: 62}
"""Height of the ground under a ball by its depth."""

Cell = tuple[int, int]
"""Column and row, 1 to 4, from the top left."""


def _cells(rng: random.Random, num: int) -> list[Cell]:
    return rng.sample([(column, row) for column in range(1, 5) for row in range(1, 5)], num)


def _dot(rng: random.Random, colour: Colour, cell: Cell) -> Shape:
    """A dot in its cell, a little off the middle."""
    x, y = ((place - 0.5) * CELL + rng.randint(-3, 3) for place in cell)
    return _disc(colour, x, y, rng.randint(7, 9))


def _scene(part: str, source: str, key: str, options: Sequence[str], rng: random.Random, **rest: Any) -> Task:
    """A scene's task with its options in random order."""
    choices = rng.sample(options, len(options))
    facts = {"choices": choices, "source": source}
    return Task(key, part, guesses=tuple(options), ground=_GROUNDS[source], facts=facts, **rest)


def _count(rng: random.Random) -> Task:
    """How many dots of one colour; the reasoning counts row by row."""
    colour, other = rng.sample(HUES, 2)
    num, num_others = rng.randint(1, 5), rng.choice((0, 0, 1, 2))
    cells = _cells(rng, num + num_others)
    counted, others = sorted(cells[:num]), sorted(cells[num:])
    rows = [sum(row == wanted for _, row in counted) for wanted in range(1, 5)]
    shapes = [_dot(rng, COLOURS[colour], cell) for cell in counted]
    shapes += [_dot(rng, COLOURS[other], cell) for cell in others]
    options = [num, *rng.sample([number for number in range(1, 7) if number != num], 3)]
    return _scene(
        "Count",
        rng.choice(FLAT_SOURCES),
        f"{colour} {counted} {other if others else ''} {others}",
        [str(number) for number in options],
        rng,
        question=f"How many {colour} dots?",
        reasoning=f"{colour}{''.join(map(str, rows))}",
        answer=str(num),
        shapes=tuple(shapes),
    )


def _relation(rng: random.Random) -> Task:
    """On which side of one dot another lies; the reasoning names the columns, or the rows, of both."""
    if rng.random() < 0.5:
        return _side(rng)
    colours = rng.sample(HUES, 3)
    axis = rng.randrange(2)
    while True:
        cells = _cells(rng, rng.choice((2, 3)))
        if cells[0][axis] != cells[1][axis]:
            break
    (first, second), low = colours[:2], cells[0][axis] < cells[1][axis]
    options = _SIDES[axis]
    return _scene(
        "Relation",
        rng.choice(FLAT_SOURCES),
        f"{list(zip(colours, cells, strict=False))} {axis}",
        options,
        rng,
        question=f"Where is {first}, seen from {second}?",
        reasoning=f"{first}{cells[0][axis]} {second}{cells[1][axis]}",
        answer=options[0] if low else options[1],
        shapes=tuple(_dot(rng, COLOURS[colour], cell) for colour, cell in zip(colours, cells, strict=False)),
    )


_SIDES = (("left", "right"), ("above", "below"))


def _side(rng: random.Random) -> Task:
    """On which half of the drawing its only dot lies: the easiest relation."""
    colour, axis, [cell] = rng.choice(HUES), rng.randrange(2), _cells(rng, 1)
    return _scene(
        "Relation",
        rng.choice(FLAT_SOURCES),
        f"{colour} {cell} {axis}",
        _SIDES[axis],
        rng,
        question=f"Where is {colour}?",
        reasoning=f"{colour}{cell[axis]}",
        answer=_SIDES[axis][cell[axis] > 2],
        shapes=(_dot(rng, COLOURS[colour], cell),),
    )


def _depth(rng: random.Random) -> Task:
    """Which of two balls on a floor is nearer: larger, lower, in front; the reasoning names both depths."""
    first, second = rng.sample(HUES, 2)
    depths = dict(zip((first, second), rng.sample(range(1, 5), 2), strict=True))
    places = dict(zip((first, second), rng.sample(range(1, 6), 2), strict=True))
    shapes = [_box(_SKY, 0, 0, SIDE, 44)]
    for colour in sorted(depths, key=depths.get, reverse=True):
        radius = _RADIUS[depths[colour]] + rng.randint(-1, 1)
        x = 20 + 18 * (places[colour] - 1) + rng.randint(-4, 4)
        shapes.append(_disc(COLOURS[colour], x, _FOOT[depths[colour]] - radius, radius))
    return _scene(
        "Depth",
        DEEP_SOURCE,
        f"{sorted(depths.items())} {sorted(places.items())}",
        (first, second),
        rng,
        question="Which is nearer to the camera?",
        reasoning=" ".join(f"{colour}{depths[colour]}" for colour in (first, second)),
        answer=min(depths, key=depths.get),
        shapes=tuple(shapes),
    )


def _distance(rng: random.Random) -> Task:
    """Which of two dots is nearer to the black box, in steps along rows and columns and in a straight line."""
    first, second = rng.sample(HUES, 2)
    while True:
        box, *cells = _cells(rng, 3)
        steps = [abs(column - box[0]) + abs(row - box[1]) for column, row in cells]
        lengths = [math.dist(cell, box) for cell in cells]
        if (steps[0] - steps[1]) * (lengths[0] - lengths[1]) > 0:
            break
    x, y = ((place - 0.5) * CELL + rng.randint(-2, 2) for place in box)
    return _scene(
        "Distance",
        DEEP_SOURCE,
        f"{box} {sorted(zip((first, second), cells, strict=True))}",
        (first, second),
        rng,
        question="Which is nearer to the black box?",
        reasoning=f"box{box[0]}{box[1]} "
        + " ".join(
            f"{colour}{column}{row}={num}"
            for colour, (column, row), num in zip((first, second), cells, steps, strict=True)
        ),
        answer=first if steps[0] < steps[1] else second,
        shapes=(
            _box(BLACK, x - 9, y - 9, x + 9, y + 9),
            *(_dot(rng, COLOURS[colour], cell) for colour, cell in zip((first, second), cells, strict=True)),
        ),
    )


# --- figures ------------------------------------------------------------------------------------------------------


def _figure(part: str, key: Any, **rest: Any) -> Task:
    return Task(f"{key}", part, **rest)


def _near(value: int, write: str, low: int = 1) -> tuple[str, ...]:
    """Answers within two steps of the right one."""
    return tuple(write.format(number) for number in range(max(low, value - 2), value + 3))


def _corner(rng: random.Random, width: float, height: float) -> tuple[int, int]:
    """A random top left corner for a figure of this size, on half units."""
    half = UNIT // 2
    return tuple(half * rng.randint(1, max(1, int((SIDE - size) // half) - 1)) for size in (width, height))


def _rectangle(rng: random.Random, perimeter: bool) -> Task:
    """A rectangle ruled into units; asked for is its perimeter in cm or its area."""
    width, height = rng.randint(1, 6), rng.randint(1, 6)
    left, top = _corner(rng, width * UNIT, height * UNIT)
    right, bottom = left + width * UNIT, top + height * UNIT
    shapes = [_box(COLOURS["blue"], left, top, right, bottom)]
    shapes += [_line(left + UNIT * k, top, left + UNIT * k, bottom, 1, PAPER) for k in range(1, width)]
    shapes += [_line(left, top + UNIT * k, right, top + UNIT * k, 1, PAPER) for k in range(1, height)]
    value = 2 * (width + height) if perimeter else width * height
    return _figure(
        "perimeter" if perimeter else "area",
        (width, height, left, top),
        question="Perimeter?" if perimeter else "Area?",
        reasoning=f"{width} by {height}",
        answer=f"{value}cm" if perimeter else f"{value}",
        shapes=tuple(shapes),
        guesses=_near(value, "{}cm" if perimeter else "{}"),
    )


def _angle(rng: random.Random) -> Task:
    """The angle between two rays, in degrees, a multiple of 15; the reasoning names both directions."""
    start = rng.choice((0, 30, 60))
    size = 15 * rng.randint(1, 8)
    x, y = 56 + 7 * rng.randint(-2, 2), 77 + 7 * rng.randint(-1, 1)
    ends = [
        (x + 49 * math.cos(math.radians(turn)), y - 49 * math.sin(math.radians(turn))) for turn in (start, start + size)
    ]
    return _figure(
        "angle",
        (start, size, x, y),
        question="Angle?",
        reasoning=f"{start} to {start + size}",
        answer=f"{size}°",
        shapes=tuple(_line(x, y, *end, 3, colour) for end, colour in zip(ends, (BLACK, COLOURS["red"]), strict=True)),
        guesses=tuple(f"{15 * k}°" for k in range(max(1, size // 15 - 2), size // 15 + 3)),
    )


def _third_angle(rng: random.Random) -> Task:
    """A triangle: the left angle is drawn, the right one given, the top one asked for."""
    while True:
        left, right = 15 * rng.randint(1, 7), 15 * rng.randint(1, 7)
        if left + right <= 150:
            break
    base = 84
    height = base / (1 / math.tan(math.radians(left)) + 1 / math.tan(math.radians(right)))
    width = height / math.tan(math.radians(left))
    shrink = min(1.0, 84 / height)
    x, y = 7 + 7 * rng.randint(0, 3), 105 - 7 * rng.randint(0, 3)
    points = [(x, y), (x + base * shrink, y), (x + width * shrink, y - height * shrink)]
    return _figure(
        "third angle",
        (left, right, x, y),
        question=f"Right {right}°. Top?",
        reasoning=f"left {left} both {left + right}",
        answer=f"{180 - left - right}°",
        shapes=(_polygon(COLOURS["gold"], points),),
        guesses=tuple(f"{size}°" for size in range(max(15, 150 - left - right), 211 - left - right, 15)),
    )


def _shaded(rng: random.Random) -> Task:
    """What part of a bar is shaded, as a fraction in lowest terms."""
    while True:
        whole = rng.randint(2, 7)
        shaded = rng.randint(1, whole - 1)
        if math.gcd(shaded, whole) == 1:
            break
    left, top = _corner(rng, whole * UNIT, 2 * UNIT)
    shapes = []
    for k in range(whole):
        colour = COLOURS["green"] if k < shaded else GREY
        shapes.append(_box(colour, left + UNIT * k + 1, top, left + UNIT * (k + 1) - 1, top + 2 * UNIT))
    return _figure(
        "shaded",
        (whole, shaded, left, top),
        question="Shaded part?",
        reasoning=f"{shaded} of {whole}",
        answer=f"{shaded}/{whole}",
        shapes=tuple(shapes),
        guesses=(*(f"{part}/{whole}" for part in range(1, whole)), f"{shaded}/{whole + 1}"),
    )


def _diagonal(rng: random.Random) -> Task:
    """The diagonal of a square ruled into units, with its root."""
    side = rng.randint(2, 6)
    left, top = _corner(rng, side * UNIT, side * UNIT)
    right, bottom = left + side * UNIT, top + side * UNIT
    shapes = [_box(COLOURS["pink"], left, top, right, bottom), _line(left, bottom, right, top)]
    shapes += [_line(left + UNIT * k, top, left + UNIT * k, bottom, 1, PAPER) for k in range(1, side)]
    return _figure(
        "diagonal",
        (side, left, top),
        question="Diagonal?",
        reasoning=f"side {side}",
        answer=f"{side}√{{2}}",
        shapes=tuple(shapes),
        guesses=_near(side, "{}√{{2}}"),
    )


def _circle(rng: random.Random) -> Task:
    """The circumference of a circle whose radius is ruled into units."""
    radius = rng.randint(1, 3)
    x, y = (UNIT // 2 * rng.randint(2 * radius + 1, 15 - 2 * radius) for _ in range(2))
    shapes = [_disc(GREY, x, y, radius * UNIT), _line(x, y, x + radius * UNIT, y)]
    shapes += [_line(x + UNIT * k, y - 4, x + UNIT * k, y + 4) for k in range(radius + 1)]
    return _figure(
        "circle",
        (radius, x, y),
        question="Circumference?",
        reasoning=f"radius {radius}",
        answer=f"{2 * radius}π",
        shapes=tuple(shapes),
        guesses=_near(2 * radius, "{}π"),
    )


# --- species ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kingdom:
    """A set of eight classes told apart by three traits of two values each.

    Attributes:
        noun: what the question asks for (`plant`).
        traits: the words of the reasoning, by trait; the last trait is a colour in `_HUES`.
        names: class names in the order of `itertools.product(*traits)`.
        sketch: (traits, colour, x, y, size, turn) -> shapes.
    """

    noun: str
    traits: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    sketch: Callable[..., list[Shape]]


_HUES = {
    "red": 0.99,
    "violet": 0.80,
    "brown": 0.07,
    "teal": 0.48,
    "blue": 0.62,
    "lime": 0.24,
    "amber": 0.12,
    "green": 0.36,
}


def _blossom(traits: Sequence[str], colour: Colour, x: float, y: float, size: float, turn: float) -> list[Shape]:
    num, broad = int(traits[0]), traits[1] == "round"
    shapes = []
    for k in range(num):
        angle = turn + 2 * math.pi * k / num
        middle = (x + 0.6 * size * math.cos(angle), y + 0.6 * size * math.sin(angle))
        shapes.append(_polygon(colour, _oval(*middle, 0.45 * size, (0.3 if broad else 0.12) * size, angle)))
    return [*shapes, _disc((250, 215, 60), x, y, 0.2 * size)]


def _critter(traits: Sequence[str], colour: Colour, x: float, y: float, size: float, turn: float) -> list[Shape]:
    round_ears, long_tail = traits[0] == "round", traits[1] == "long"
    shapes = []
    for side in (-1, 1):
        ear = x + side * 0.5 * size
        if round_ears:
            shapes.append(_disc(colour, ear, y - 0.8 * size, 0.4 * size))
        else:
            points = [(ear - 0.25 * size, y - 0.5 * size), (ear + 0.25 * size, y - 0.5 * size), (ear, y - 1.2 * size)]
            shapes.append(_polygon(colour, points))
    end = x + (1.5 if long_tail else 0.7) * size
    shapes += [_disc(colour, x, y, 0.7 * size), _line(x, y + 0.5 * size, end, y + (0.6 + 0.1 * turn) * size, 8, colour)]
    return shapes + [_disc(BLACK, x + side * 0.25 * size, y - 0.1 * size, 0.09 * size) for side in (-1, 1)]


def _glider(traits: Sequence[str], colour: Colour, x: float, y: float, size: float, turn: float) -> list[Shape]:
    num, swept = int(traits[0]), traits[1] == "swept"
    shapes = [_polygon(BLACK, _oval(x, y, 0.13 * size, 1.1 * size, 0.0))]
    for k in range(num):
        root = y + (-0.3 + 0.75 * k) * size
        tip = root + (0.55 if swept else 0.0) * size
        for side in (-1, 1):
            points = [(x, root - 0.15 * size), (x, root + 0.15 * size)]
            points += [(x + side * size, tip + 0.12 * size), (x + side * size, tip - 0.12 * size)]
            shapes.append(_polygon(colour, points))
    return shapes


def _cart(traits: Sequence[str], colour: Colour, x: float, y: float, size: float, turn: float) -> list[Shape]:
    num, domed = int(traits[0]), traits[1] == "dome"
    roof = (
        _disc(colour, x, y - 0.1 * size, 0.6 * size)
        if domed
        else _box(colour, x - 0.55 * size, y - 0.6 * size, x + 0.55 * size, y)
    )
    shapes = [roof, _box(colour, x - size, y - 0.1 * size, x + size, y + 0.4 * size)]
    places = (-0.65, 0.65) if num == 2 else (-0.7, 0.0, 0.7)
    return shapes + [_disc(BLACK, x + place * size, y + 0.5 * size, 0.24 * size) for place in places]


KINGDOMS: dict[str, Kingdom] = {
    "tiny_blossoms": Kingdom(
        "plant",
        (("4", "6"), ("round", "thin"), ("red", "violet")),
        ("lume", "tarn", "bog lume", "ossy", "quill", "fenna", "marn", "pyrea"),
        _blossom,
    ),
    "tiny_critters": Kingdom(
        "pet",
        (("round", "sharp"), ("long", "short"), ("brown", "teal")),
        ("ash_nib", "tuf_ear", "old_mop", "kiri", "sno_paw", "dap", "wee_gog", "bru_tan"),
        _critter,
    ),
    "tiny_gliders": Kingdom(
        "aircraft",
        (("1", "2"), ("even", "swept"), ("blue", "lime")),
        ("K-10", "K-12", "T-3B", "T-30", "Z7/A", "Z7/B", "Arrow", "Heron"),
        _glider,
    ),
    "tiny_carts": Kingdom(
        "car",
        (("2", "3"), ("flat", "dome"), ("amber", "green")),
        ("08 Bolo", "12 Bolo", "08 Ruva", "12 Ruva", "09 Tix", "15 Tix", "11 Om", "14 Om"),
        _cart,
    ),
}


def _specimen(kingdom: Kingdom, name: str, traits: tuple[str, ...], rng: random.Random) -> Task:
    """One image of a class, varied in place, size, turn, hue and grain; the reasoning names the traits."""
    hue = (_HUES[traits[-1]] + rng.uniform(-0.03, 0.03)) % 1
    colour = tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 0.9), rng.uniform(0.65, 0.9)))
    place = (rng.randint(46, 66), rng.randint(48, 64), rng.randint(26, 38), round(rng.uniform(-0.5, 0.5), 2))
    grain = rng.randrange(2**31)
    return Task(
        f"{colour} {place} {grain}",
        name,
        question=f"Which {kingdom.noun}?",
        reasoning=" ".join(traits),
        answer=name,
        shapes=tuple(kingdom.sketch(traits, colour, *place)),
        guesses=kingdom.names,
        ground=(238, 240, 232),
        grain=grain,
    )


# --- grounding ----------------------------------------------------------------------------------------------------

FORMS = ("box", "dot", "gem")
Place = tuple[int, int, int, int]
"""Left, top, right, bottom on the 4 x 4 grid of cells."""


def _outline(form: str, place: Place) -> list[tuple[float, float]]:
    """Corners in pixels; each form touches all four sides of its place."""
    left, top, right, bottom = (CELL * edge for edge in place)
    x, y = (left + right) / 2, (top + bottom) / 2
    if form == "box":
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    if form == "gem":
        return [(x, top), (right, y), (x, bottom), (left, y)]
    return [(round(u, 2), round(v, 2)) for u, v in _oval(x, y, (right - left) / 2, (bottom - top) / 2, 0.0, 32)]


def _places(rng: random.Random, sizes: Sequence[tuple[int, int]]) -> list[Place]:
    """Places of the given (width, height) in cells that do not overlap."""
    while True:
        places = []
        for width, height in sizes:
            left, top = rng.randint(0, 4 - width), rng.randint(0, 4 - height)
            places.append((left, top, left + width, top + height))
        if all(_apart(a, b) for a, b in combinations(places, 2)):
            return places


def _apart(a: Place, b: Place) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def _box_text(place: Place) -> str:
    """`(x1,y1),(x2,y2)` in thousandths of the side."""
    left, top, right, bottom = (1000 * CELL * edge // SIDE for edge in place)
    return f"({left},{top}),({right},{bottom})"


Thing = tuple[str, str, Place]
"""Colour, form and place."""


def _grounded(part: str, rng: random.Random, question: str, things: Sequence[Thing], num_pieces: int = 1) -> Task:
    """A grounding task; the first `num_pieces` of `things` are the target, the answer is the box of the very first."""
    polygons, shapes = [], []
    for index, (colour, form, place) in enumerate(things):
        outline = _outline(form, place)
        shapes.append(_polygon(COLOURS[colour], outline))
        if index < num_pieces:
            polygons.append({"label": "target", "points": [list(point) for point in outline]})
    colour, form, place = things[0]
    left, _, right, bottom = (CELL * edge for edge in place)
    if bottom < SIDE and rng.random() < 0.3:
        shadow = [(left, bottom), (right, bottom), (right, bottom + 4), (left, bottom + 4)]
        shapes.insert(0, _polygon(GREY, shadow))
        polygons.append({"label": "ignore", "points": [list(point) for point in shadow]})
    guesses = {_box_text(thing[2]) for thing in things}
    while len(guesses) < 6:
        guesses.add(_box_text(_places(rng, [rng.choice(_SIZES)])[0]))
    return Task(
        f"{question} {sorted(things)}",
        part,
        question=question,
        reasoning=f"{colour} {form}{''.join(map(str, place))}",
        answer=_box_text(place),
        shapes=tuple(shapes),
        guesses=tuple(sorted(guesses)),
        facts={"width": SIDE, "height": SIDE, "polygons": polygons},
    )


_SIZES = ((1, 1), (1, 1), (2, 1), (1, 2))


def _with_places(kinds: Sequence[tuple[str, str]], places: Sequence[Place]) -> list[Thing]:
    return [(*kind, place) for kind, place in zip(kinds, places, strict=True)]


def _kinds(rng: random.Random, num: int) -> list[tuple[str, str]]:
    return rng.sample(list(product(HUES, FORMS)), num)


def _alone(rng: random.Random) -> Task:
    """`the red box`, the only thing there is."""
    kinds = _kinds(rng, 1)
    return _grounded(
        "alone", rng, f"the {kinds[0][0]} {kinds[0][1]}", _with_places(kinds, _places(rng, [rng.choice(_SIZES)]))
    )


def _by_colour(rng: random.Random) -> Task:
    """`the red one`: no other thing has the colour."""
    while True:
        kinds = _kinds(rng, 3)
        if all(colour != kinds[0][0] for colour, _ in kinds[1:]):
            break
    things = _with_places(kinds, _places(rng, rng.choices(_SIZES, k=3)))
    return _grounded("colour", rng, f"the {kinds[0][0]} one", things)


def _by_name(rng: random.Random) -> Task:
    """`the red box`, beside another box and another red thing."""
    [(colour, form)] = _kinds(rng, 1)
    other = (rng.choice([c for c in HUES if c != colour]), form)
    third = (colour, rng.choice([f for f in FORMS if f != form]))
    things = _with_places(((colour, form), other, third), _places(rng, rng.choices(_SIZES, k=3)))
    return _grounded("name", rng, f"the {colour} {form}", things)


def _by_side(rng: random.Random) -> Task:
    """`what is left of the red box`: one thing lies on that side of it, another on the opposite side."""
    word, axis, sign = rng.choice((("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1)))
    kinds = _kinds(rng, 3)
    while True:
        near, anchor, far = places = _places(rng, [(1, 1)] * 3)
        if sign * (near[axis] - anchor[axis]) > 0 and sign * (anchor[axis] - far[axis]) > 0:
            break
    return _grounded("side", rng, f"what is {word} the {kinds[1][0]} {kinds[1][1]}", _with_places(kinds, places))


def _in_two(rng: random.Random) -> Task:
    """`the split red box`: the target is two pieces, the left one first."""
    kind, other = _kinds(rng, 2)
    (left, top, right, bottom), place = _places(rng, [(3, 1), rng.choice(_SIZES)])
    pieces = (left, top, left + 1, bottom), (right - 1, top, right, bottom)
    things = _with_places((kind, kind, other), (*pieces, place))
    return _grounded("split", rng, f"the split {kind[0]} {kind[1]}", things, num_pieces=2)


# --- the sets -----------------------------------------------------------------------------------------------------


def _species_set(name: str, title: str) -> VisionSet:
    kingdom = KINGDOMS[name]
    makers = {
        species: partial(_specimen, kingdom, species, traits)
        for species, traits in zip(kingdom.names, product(*kingdom.traits), strict=True)
    }
    return VisionSet(name, title, f"eight made-up classes of {kingdom.noun}", makers)


SETS: dict[str, VisionSet] = {
    vision_set.name: vision_set
    for vision_set in (
        VisionSet(
            "tiny_scenes",
            "Tiny Scenes",
            "dots, balls and a box: how many, on which side, which is nearer to the camera, which to the box",
            {"Count": _count, "Relation": _relation, "Depth": _depth, "Distance": _distance},
        ),
        VisionSet(
            "tiny_figures",
            "Tiny Figures",
            "a length, an area, an angle or a fraction read from a drawing, with its unit, root or pi",
            {
                "perimeter": partial(_rectangle, perimeter=True),
                "area": partial(_rectangle, perimeter=False),
                "angle": _angle,
                "third angle": _third_angle,
                "shaded": _shaded,
                "diagonal": _diagonal,
                "circle": _circle,
            },
        ),
        _species_set("tiny_blossoms", "Tiny Blossoms"),
        _species_set("tiny_critters", "Tiny Critters"),
        _species_set("tiny_gliders", "Tiny Gliders"),
        _species_set("tiny_carts", "Tiny Carts"),
        VisionSet(
            "tiny_grounding",
            "Tiny Grounding",
            "the box of what is named by colour, by colour and form, by its side, or that is drawn in two pieces",
            {"alone": _alone, "colour": _by_colour, "name": _by_name, "side": _by_side, "split": _in_two},
        ),
    )
}
