"""What is fuzzed: each grader through its verdicts, each parser through a stand-in grader that checks what it returns.

A parser may refuse its input with a UserError, nothing else; what it returns must have the type and range that it
documents. Parsers run in the caller's own process in real use, so one that takes longer than the deadline has failed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import re
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from eval_harness.errors import UserError
from eval_harness.fuzz import generate
from eval_harness.fuzz.generate import Draw, Input
from eval_harness.graders.base import UNFINISHED, Mark, Verdict

REASONS = frozenset({"match", "mismatch", "no_answer", "bad_gold", *UNFINISHED})
STRICT_REASONS = REASONS | {"wrong_unit", "unknown_option", "inverted_box", "out_of_range"}
MAX_EXTRACTED = 500


@dataclass(frozen=True)
class Target:
    """Something to fuzz."""

    grader: str
    """Name for the grading pool."""
    draw: Callable[[Draw, Sequence[str]], Input]
    weight: int = 1
    """Share of the inputs."""
    judges: bool = True
    """A grader; False: a parser, for which ``match`` means that it read something, and a timeout is a failure."""
    honest: tuple[str, ...] = ()
    """Marks that an honest statement of the gold must have: ``correct``, ``correct_strict``."""
    symmetric: tuple[str, ...] = ()
    """Marks that white space around the answer may not move."""
    numeric: bool = False
    """Golds are numbers, so an answer without any digit, letter or symbol of a number is wrong."""


_BOTH = ("correct", "correct_strict")


def _graders() -> dict[str, Target]:
    math_golds = {
        "math_expression_gold": generate.math_input("number"),
        "math_latex_gold": generate.math_input("latex"),
        "boxed": generate.math_input("latex"),
        "boxed_in_place": generate.math_input("boxed"),
        "boxed_answer": generate.math_input("plain"),
    }
    targets = {
        name: Target(name, draw, 6, honest=_BOTH, symmetric=_BOTH, numeric=True) for name, draw in math_golds.items()
    }
    quantities = generate.tag_input(generate.QUANTITIES)
    strict = ("correct_strict",)
    return targets | {
        "choice": Target("choice", generate.choice_input, 5, honest=strict, symmetric=strict),
        "number": Target("number", quantities, 6, honest=strict, symmetric=strict, numeric=True),
        "default_extraction": Target("default_extraction", quantities, 4, numeric=True),
        "class_name": Target("class_name", generate.tag_input(generate.CLASSES, "type %s"), 3, True, _BOTH, _BOTH),
        "box": Target("box", generate.box_input, 3, honest=_BOTH, symmetric=_BOTH),
    }


def _parsers() -> dict[str, Target]:
    draws = {
        "tags": generate.text_input,
        "read_quantity": generate.text_input,
        "strict_math": generate.text_input,
        "strict_choice": generate.text_input,
        "strict_number": generate.text_input,
        "strict_class_name": generate.text_input,
        "strict_box": generate.text_input,
        "boxes": generate.text_input,
        "jsonl": generate.file_input(_ROWS, lines=True),
        "annotation": generate.file_input(_ANNOTATIONS, lines=False),
        "item_lines": generate.file_input(_ITEMS, lines=True),
        "sample_lines": generate.file_input(_SAMPLES, lines=True),
        "run_record": generate.file_input([_run_record(), _training_record()], lines=False),
        "steps": generate.file_input(_STEPS, lines=True),
        "checkpoint": generate.file_input(_CONFIGS, lines=False),
        "yaml": generate.yaml_input(_CONFIGS),
        "lm_eval": generate.file_input(_LM_EVAL, lines=True),
        "lighteval": generate.file_input(_LIGHTEVAL, lines=True),
        "inspect": generate.file_input([_INSPECT], lines=False),
        "user_turn": generate.file_input(_CHATS, lines=False),
        "server_reply": generate.file_input(_REPLIES, lines=False),
        "server_models": generate.file_input(_MODELS, lines=False),
        "server_bytes": generate.packed_input(_REPLIES),
        "picture": generate.bytes_input(_pictures),
    }
    slow = {"inspect": 1}
    return {
        name: Target(f"{__name__}:Parser:{name}", draw, slow.get(name, 2), judges=False) for name, draw in draws.items()
    }


def all_targets() -> dict[str, Target]:
    """Name -> target: every grader, and every parser of this package."""
    return _graders() | _parsers()


# --- what must hold for any verdict --------------------------------------------------------------------------------


def problem_of(verdict: Verdict, target: Target) -> str | None:
    """What is wrong with the form of a verdict; None: nothing."""
    marks = (verdict.correct, verdict.correct_strict, verdict.gold_fallback)
    if not all(isinstance(mark, bool) for mark in marks):
        return f"marks are {marks}, not bools"
    reason_strict = verdict.reason_strict or verdict.reason
    if verdict.reason not in STRICT_REASONS or reason_strict not in STRICT_REASONS:
        return f"unknown reason: {verdict.reason}, {verdict.reason_strict}"
    if (verdict.reason == "match") is not verdict.correct:
        return f"correct is {verdict.correct} for the reason {verdict.reason}"
    # where the strict rule is a mark of its own it has a reason of its own; lighteval's fallback has none
    if verdict.reason_strict is not None and (reason_strict == "match") is not verdict.correct_strict:
        return f"correct_strict is {verdict.correct_strict} for the reason {reason_strict}"
    for text in (verdict.extracted, verdict.extracted_strict):
        if text is not None and not (isinstance(text, str) and len(text) <= MAX_EXTRACTED):
            return f"extracted is {type(text).__name__} of length {len(text)}"
    for score in (verdict.score, verdict.score_strict, *verdict.extra.values()):
        if score is not None and not (isinstance(score, float) and 0 <= score <= 1):
            return f"a score is {score!r}"
    if verdict.reason in UNFINISHED and (verdict.correct or verdict.correct_strict):
        return "an unfinished grading has a mark"
    return None


_NUMBERLIKE = re.compile(r"[^\W_]|[π∞√\\]")
"""Anything that could be read as a number or a name of one: letters and digits of any script."""


def says_nothing(text: str) -> bool:
    """Whether a text holds nothing that anyone could read as a number."""
    return _NUMBERLIKE.search(text) is None


# --- parsers -------------------------------------------------------------------------------------------------------


class Parser:
    """A parser as a grader: ``match`` when it returned something, ``no_answer`` when it refused or found nothing."""

    def __init__(self, name: str):
        self._parse: Callable[[str], Any] = globals()[f"_parse_{name}"]

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Parse the prediction; raises what the parser should not have raised, and AssertionError for bad results."""
        try:
            found = self._parse(prediction) if gold == "" else self._parse(prediction, gold)
        except UserError as error:
            assert str(error), "a UserError without a message"
            return Verdict(False, False, str(error)[:MAX_EXTRACTED], "no_answer")
        right = bool(found)
        return Verdict(right, right, repr(found)[:MAX_EXTRACTED], "match" if right else "no_answer")


def _parse_tags(text: str) -> Any:
    from eval_harness.graders.tags import careful_answer, first_tag, tag_flags

    inside = first_tag(text)
    if len(text) < 2000:  # the released pattern takes quadratic time
        found = re.search(r"<answer>(.*?)</answer>", text)
        assert inside == (found and found.group(1)), "first_tag is not the released pattern"
    careful = careful_answer(text)
    assert careful is None or careful == careful.strip()
    assert set(tag_flags(text)) <= {"empty_answer", "several_answers"}
    return inside


def _parse_read_quantity(text: str) -> Any:
    from eval_harness.graders.number import read_quantity

    found = read_quantity(text)
    if found is not None:
        assert isinstance(found.value, float) and math.isfinite(found.value), found
        assert found.equals(found), "a quantity differs from itself"
        assert math.isfinite(found.size) and found.size > 0
    return found


def _parse_strict_math(text: str) -> Any:
    from eval_harness.graders import strict_math

    found = strict_math.mark("7", text)
    assert found.correct is (found.reason == "match") and found.reason in STRICT_REASONS
    assert len(found.said) <= MAX_EXTRACTED and (found.reason == "no_answer") is (found.said == "")
    stated = strict_math.find_answer(text).text
    for reading in strict_math.readings(stated):
        assert strict_math.equal(reading, reading) is not False, f"{reading} differs from itself"
    return stated


def _checked_mark(grader: str, gold: str, text: str, context: Mapping[str, Any]) -> Mark:
    """The strict mark of a text, bare, in a tag and as one that was cut."""
    mark = importlib.import_module(f"eval_harness.graders.{grader}").mark
    cut = {**context, "finish_reason": "length"}
    for said, known in ((f"<answer>{text}</answer>", context), (text, cut), (text, context)):
        found = mark(gold, said, known)
        assert found.correct is (found.reason == "match") and found.reason in STRICT_REASONS, found
        assert len(found.said) <= MAX_EXTRACTED and (found.reason == "no_answer") is (found.said == ""), found
        assert found.gold and found.detail, "a mark without its reason"
    return found


def _parse_strict_choice(text: str) -> Any:
    from eval_harness.graders.choice import stated_option

    choices = ["the chair", "2", "left", "red lamp"]
    marks = [_checked_mark("choice", f"({letter})", text, {"choices": choices}) for letter in "ABCD"]
    assert sum(mark.correct for mark in marks) <= 1, "two options are right"
    option, _, other = stated_option(text, tuple(choices))
    assert (option is None or re.fullmatch("[A-Z]", option)) and not (option and other)
    return option


def _parse_strict_number(text: str) -> Any:
    marks = [_checked_mark("number", gold, text, {}) for gold in ("7", "8", "-7", "7√{2}cm")]
    assert sum(mark.correct for mark in marks) <= 1, "two numbers are right"
    return marks[0].said


def _parse_strict_class_name(text: str) -> Any:
    classes = ["rose", "lenten rose", "737-800", "737-200", "Cessna 172", "american_bulldog"]
    marks = [_checked_mark("class_name", gold, text, {"classes": classes}) for gold in classes]
    assert sum(mark.correct for mark in marks) <= 1, "two classes are right"
    return marks[0].said


def _parse_strict_box(text: str) -> Any:
    mark = _checked_mark("box", "(100,100),(400,400)", text, {})
    assert 0 <= (mark.score or 0) <= 1
    return mark.said


def _parse_boxes(text: str) -> Any:
    from eval_harness.graders import box

    found = [*box.all_boxes(text), *filter(None, [box.first_box(text), box.strict_box(text)])]
    for one in found:
        assert len(one) == 4 and all(isinstance(side, float) and math.isfinite(side) for side in one), one
        assert box.iou(one, found[0]) >= 0 or box.problem(one) or box.problem(found[0])
        assert math.isfinite(box.giou(one, found[0]))
    strict = box.strict_box(text)
    assert strict is None or box.iou(strict, strict) in (0.0, 1.0)
    return found


@contextlib.contextmanager
def _file(text: str, name: str = "") -> Iterator[Path]:
    """A text as a file that is read once: workers cannot write any. Lone surrogates make bytes that are no UTF-8."""
    reader, writer = os.pipe()

    def fill() -> None:
        data = memoryview(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(writer, data) :]
        os.close(writer)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        yield Path(f"/dev/fd/{reader}{name}")
    finally:
        os.close(reader)
        thread.join()


def _parse_jsonl(text: str) -> Any:
    from eval_harness.sources import read_jsonl

    with _file(text) as path:
        rows = read_jsonl(path, ("gold",))
    assert all(isinstance(row, dict) and "gold" in row for row in rows)
    return rows


def _parse_annotation(text: str) -> Any:
    from eval_harness.graders.box import polygon_box, target_polygons
    from eval_harness.reasonseg import read_annotation, thousandths

    with _file(text) as path:
        annotation = read_annotation(path)
    assert annotation["text"] and all(isinstance(each, str) and each.strip() for each in annotation["text"])
    for polygon in annotation["polygons"]:
        box = polygon_box(polygon["points"], 640, 480)
        assert all(map(math.isfinite, box)) and box[0] <= box[2] and box[1] <= box[3]
        assert thousandths(box).count(",") == 3
    target_polygons(annotation["polygons"])
    return annotation


def _parse_lines(text: str, kind: type) -> Any:
    from eval_harness.records import lines_of

    return list(lines_of(io.BytesIO(text.encode("utf-8", "surrogatepass")), kind, "text"))


def _parse_item_lines(text: str) -> Any:
    from eval_harness.records import Item

    return _parse_lines(text, Item)


def _parse_sample_lines(text: str) -> Any:
    from eval_harness.records import Sample

    samples = _parse_lines(text, Sample)
    assert all(0 <= sample.mark <= 1 and 0 <= sample.mark_strict <= 1 for sample in samples if sample.score is None)
    return samples


def _parse_run_record(text: str) -> Any:
    from eval_harness import records

    with in_every_file(text):
        return records.read_run(Path("run"))


@contextlib.contextmanager
def in_every_file(text: str) -> Iterator[None]:
    """Inside, whatever :mod:`eval_harness.inputs` opens holds this text."""
    from eval_harness import inputs

    data = text.encode("utf-8", "surrogatepass")
    with mock.patch.object(inputs, "open_regular", lambda path, remedy="": contextlib.nullcontext(io.BytesIO(data))):
        yield


def _parse_steps(text: str) -> Any:
    from eval_harness import records

    with in_every_file(text), mock.patch.object(records, "read_run", lambda folder: None):
        return len(records.steps_frame(Path("run")))


def _parse_checkpoint(text: str) -> Any:
    """One text as each of the JSON files that are read of a checkpoint."""
    from eval_harness import adapters, models

    found, folder = [], Path("checkpoint")
    no_code = mock.patch.object(models, "_refuse_code")  # asks transformers, whose import takes seconds
    with in_every_file(text), no_code, mock.patch.object(adapters, "check_files"):
        for read in (
            lambda: models.read_config(folder / "config.json")["model_type"],
            lambda: models.shards_of(folder / "model.safetensors.index.json"),
            lambda: adapters.read_config(folder)["peft_type"],
        ):
            with contextlib.suppress(UserError):
                found.append(read())
    assert all(isinstance(one, str | set) for one in found), found
    return found


def _parse_yaml(text: str) -> Any:
    from eval_harness.inputs import read_yaml_mapping

    with in_every_file(text):
        return read_yaml_mapping(Path("a.yaml"), "file")


def _parse_lm_eval(text: str) -> Any:
    from eval_harness.interop.importers import read_lm_eval

    with _file(text) as path:
        return _checked(read_lm_eval(path))


def _parse_lighteval(text: str) -> Any:
    """Rows as pyarrow would read them from the file, then the file's bytes themselves."""
    import pyarrow.parquet

    from eval_harness.interop.importers import read_lighteval

    with contextlib.suppress(ValueError, RecursionError):
        table = mock.Mock(to_pylist=lambda: [json.loads(line) for line in text.split("\n") if line.strip()])
        with mock.patch.object(pyarrow.parquet, "read_table", lambda path: table):
            return _checked(read_lighteval(Path("details_x_2026-01-01T00-00-00.parquet")))
    data = pyarrow.BufferReader(text.encode("utf-8", "surrogatepass"))
    original = pyarrow.parquet.read_table
    with mock.patch.object(pyarrow.parquet, "read_table", lambda path: original(data)):
        return _checked(read_lighteval(Path("x.parquet")))


def _parse_inspect(text: str) -> Any:
    from eval_harness.interop import importers

    try:
        from inspect_ai import log
    except ImportError:
        raise UserError("inspect_ai is not installed") from None

    def from_text(path: str, resolve_attachments: bool = True) -> Any:
        return log.EvalLog.model_validate_json(text.encode("utf-8", "surrogatepass"))

    with mock.patch.object(log, "read_eval_log", from_text):
        return _checked(importers.read_inspect(Path("x.json")))


def _checked(log: Any) -> Any:
    """A log has the types that matching and grading take for granted."""
    for row in log.rows:
        assert isinstance(row.prompt, str) and all(isinstance(text, str) for text in row.texts), row
        assert row.gold is None or isinstance(row.gold, str), row
        assert row.index is None or isinstance(row.index, int), row
        assert row.seed is None or isinstance(row.seed, int), row
        for answer in row.answers:
            assert answer.text is None or isinstance(answer.text, str), row
            assert answer.error is None or isinstance(answer.error, str), row
    assert all(math.isfinite(score) for score in log.scores.values())
    assert log.model is None or isinstance(log.model, str)
    return log.rows


def _parse_user_turn(text: str) -> Any:
    from eval_harness.interop.importers import _user_turn

    turns = [_user_turn(text), _user_turn([text])]
    with contextlib.suppress(ValueError, RecursionError):
        turns.append(_user_turn(json.loads(text)))
    assert all(isinstance(turn, str) for turn in turns), turns
    return turns


_KEY = "key-of-the-fuzzer"
"""As if it were in use; some of the replies hold it."""


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What the reader of replies refuses, as the UserError that an engine makes of it."""
    from eval_harness import private
    from eval_harness.engines import replies

    private.remember(_KEY)
    try:
        yield
    except (replies.Nonsense, replies.ReportedError, replies.NoChoices) as error:
        raise UserError(str(error) or "no choices") from None


def _parse_server_reply(text: str) -> Any:
    """Whatever is read of a reply can be written into a record, and read again."""
    from eval_harness import records
    from eval_harness.engines import replies
    from eval_harness.markup import shown

    wanted = 1 + len(text) % 3
    with _refusals():
        answer = replies.parse(text.encode("utf-8", "surrogatepass"))
        replies.check_error(answer)
        assert replies.is_broken_off(answer) in (True, False)
        reply = replies.read(answer, wanted, 16)
    assert 1 <= len(reply.completions) <= wanted
    assert all(isinstance(n, int) and n > 0 for n in reply.remarks.values())
    assert reply.model is None or len(reply.model) <= 200
    for one in reply.completions:
        assert (
            one.finish_reason is None
            or 1 <= len(one.finish_reason) <= 40
            and one.finish_reason == shown(one.finish_reason)
        ), one
        sample = records.Sample(
            item_id="0", sample=0, seed=0, status="scored", completion=one.text, finish_reason=one.finish_reason,
            num_prompt_tokens=reply.prompt_tokens, num_completion_tokens=one.num_tokens, correct=False,
            correct_strict=False, extracted=None, reason="mismatch", gold_fallback=False,
        )  # fmt: skip
        line = records.json_line(sample)
        assert records.Sample.model_validate_json(line) == sample and _KEY.encode() not in line
    assert _KEY not in (reply.model or "")
    return reply.completions


def _parse_server_models(text: str) -> Any:
    from eval_harness.engines import replies

    with _refusals():
        cards = replies.read_models(replies.parse(text.encode("utf-8", "surrogatepass")), "served")
    for card in cards:
        told = (replies.name(card.id), card.owned_by or "")
        assert all(len(name) <= 200 and name.encode() is not None and _KEY not in name for name in told), told
        assert card.context is None or 2 <= card.context <= replies.MAX_CONTEXT
    return cards


def _parse_server_bytes(text: str, coding: str = "gzip") -> Any:
    from eval_harness.engines import replies

    data, most = text.encode("latin-1", "replace"), 4096

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    reading = replies.read_body(pieces(), coding, most)
    with _refusals():
        try:
            reading.send(None)  # it waits for nothing, so that no loop is needed, which workers could not have
            raise AssertionError("it waited")
        except StopIteration as ended:
            found, whole = ended.value
    assert len(found) <= most and (whole or max(len(found), len(data)) >= most)
    return found


def _parse_picture(text: str) -> Any:
    """Under limits that fit a worker; what is within them is decoded as what it says it is."""
    from eval_harness import images

    data, pixels = text.encode("latin-1", "replace"), 1 << 20
    limits = mock.patch.multiple(images, MAX_PIXELS=pixels, MAX_MEMORY_BYTES=8 * pixels)
    with limits, _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            size = images.size_of(data, "a picture")
            shown = images.decode(data, "a picture")
        except images.ImageError as error:
            assert "a picture" in str(error)
            raise UserError(str(error)) from None
    assert shown.mode == "RGB" and shown.size == size and math.prod(size) <= pixels
    return shown.size


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What libtiff prints goes nowhere; a worker cannot open /dev/null."""
    kept, ends = os.dup(2), os.pipe()
    os.dup2(ends[0], 2)  # an end that nothing can be written to
    try:
        yield
    finally:
        os.dup2(kept, 2)
        for end in (kept, *ends):
            os.close(end)


@cache
def _pictures() -> list[bytes]:
    """A small one of each format and of several modes."""
    from PIL import Image

    kinds = (
        ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "P", {"transparency": 0}), ("PNG", "I;16", {}),
        ("JPEG", "RGB", {}), ("JPEG", "CMYK", {"progressive": True}), ("WEBP", "RGB", {}), ("GIF", "P", {}),
        ("BMP", "RGB", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "F", {}), ("EPS", "RGB", {}),
    )  # fmt: skip
    found = []
    for format, mode, options in kinds:
        stream = io.BytesIO()
        image = Image.linear_gradient("L").resize((24, 16)).convert("I" if mode == "I;16" else mode)
        (image.convert(mode) if mode == "I;16" else image).save(stream, format, **options)
        found.append(stream.getvalue())
    return found


# --- what files look like when they are well-formed ----------------------------------------------------------------

_ROWS = [
    {"gold": "1", "prediction": "so \\boxed{1}", "id": 7},
    {"gold": "(B)", "prediction": "", "choices": ["a", "b"]},
]
_ANNOTATIONS = [
    {
        "text": ["where is the dog?", "what barks?"],
        "is_sentence": True,
        "shapes": [
            {"label": "target", "points": [[1, 2], [30.5, 4], [5, 60]]},
            {"label": "ignore", "points": [[0, 0]]},
        ],
    },
    {"text": "the cup", "shapes": [{"label": "flag", "points": [[1, 1], [2, 2]]}]},
]
_ITEMS = [
    {"item_id": "0", "prompt": "1+1?", "gold": "2"},
    {
        "item_id": "1",
        "prompt": "which?",
        "gold": "(A)",
        "images": ["1.jpg"],
        "group": "2D",
        "context": {"choices": ["a"]},
    },
]
_SAMPLES = [
    {
        "item_id": "0",
        "sample": 0,
        "seed": 3,
        "status": "scored",
        "completion": "so $\\boxed{2}$",
        "finish_reason": "stop",
        "num_prompt_tokens": 5,
        "num_completion_tokens": 4,
        "correct": True,
        "correct_strict": True,
        "extracted": "2",
        "reason": "match",
        "gold_fallback": False,
        "flags": ["empty_answer"],
        "extra": {"tag": 1.0},
    }
]
_LM_EVAL = [
    {
        "doc_id": i,
        "doc": {"Problem": f"What is {i} + {i}?", "Answer": str(2 * i)},
        "target": str(2 * i),
        "arguments": arguments,
        "resps": [[f"It is {2 * i}"]],
        "filter": "none",
        "metrics": ["exact_match"],
        "exact_match": 1.0,
    }
    for i, arguments in enumerate(
        (
            {"gen_args_0": {"arg_0": "Question: 0 + 0?", "arg_1": {"temperature": 0.0, "max_gen_toks": 64}}},
            [['[{"role": "user", "content": "1 + 1?"}]', {"do_sample": True, "temperature": 0.6, "top_p": 0.9}]],
        )
    )
]
_LIGHTEVAL = [
    {
        "doc": {
            "id": "0",
            "query": "1+1?",
            "choices": ["2"],
            "gold_index": [0],
            "task_name": "x",
            "generation_size": 9,
        },
        "model_response": {"text": ["so 2", "so 3"]},
        "metric": {"extractive_match": 1.0},
    },
    {
        "doc": {
            "id": "1",
            "query": "2+2?",
            "choices": [["4"]],
            "gold_index": 0,
            "task_name": "x",
            "generation_size": None,
            "specific": {
                "eval_harness": json.dumps(
                    {
                        "error": None,
                        "finish_reasons": ["stop"],
                        "num_prompt_tokens": 3,
                        "num_completion_tokens": [2],
                        "seed": 1,
                        "decoding": {"temperature": 0.6, "top_p": 0.9, "top_k": 0, "max_new_tokens": 8, "seed": 0},
                    }
                )
            },
        },
        "model_response": {"text": ["4"]},
        "metric": None,
    },
]
_INSPECT = {
    "version": 2,
    "status": "success",
    "eval": {
        "task": "x",
        "model": "m",
        "created": "2026-01-01T00:00:00+00:00",
        "dataset": {"sample_ids": [1, 2]},
        "config": {},
        "packages": {"inspect_ai": "0.3"},
        "model_generate_config": {"temperature": 0.6},
    },
    "samples": [
        {
            "id": i,
            "epoch": 1,
            "input": f"{i} + 1?",
            "target": str(i + 1),
            "messages": [{"role": "user", "content": f"{i} + 1?"}, {"role": "assistant", "content": "so"}],
            "output": {
                "model": "m",
                "choices": [{"message": {"role": "assistant", "content": f"so {i + 1}"}, "stop_reason": "stop"}],
                "usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
            },
            "scores": {"match": {"value": "C"}},
        }
        for i in (1, 2)
    ],
}
_CHATS = [
    [{"role": "system", "content": "s"}, {"role": "user", "content": "1 + 1?"}],
    ["1 + 1?", {"max_gen_toks": 3}],
    "1 + 1?",
]


_CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
_REPLIES = [
    {
        "id": "x",
        "model": f"served {_KEY}",
        "choices": [
            {"index": 1 - i, "finish_reason": end, "message": {"role": "assistant", "content": f"It is {i} {_KEY}"}}
            for i, end in enumerate(("stop", "length"))
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 12},
    },
    {"choices": [{"index": 0, "finish_reason": "stop", "text": "4", "token_ids": [1, 2]}], "usage": None},
    {
        "choices": [
            {
                "index": 0,
                "finish_reason": f"\ud800 {_KEY}",
                "message": {"content": [{"type": "text", "text": "\ud800\0"}, {"type": "thinking", "thinking": "so"}]},
            },
            {"index": 0, "finish_reason": None, "message": {"content": None, "reasoning_content": f"2 + 2 {_KEY}"}},
            {"index": 2, "finish_reason": "length", "message": {"content": "", "reasoning": "2 + 2"}},
            {"index": 3, "finish_reason": "stop", "message": {"content": None, "refusal": "No."}},
            {"index": 4, "finish_reason": "tool_calls", "message": {"content": None, "tool_calls": [_CALL]}},
        ],
    },
    {"error": {"message": "overloaded", "code": 503}},
    {"object": "error", "message": "full", "code": "400"},
    {"choices": []},
]
_MODELS = [
    {"object": "list", "data": [{"id": "served", "owned_by": f"vllm {_KEY}", "max_model_len": 512}, {"id": _KEY}]},
    {"data": [{"id": "other", "max_model_len": -1}, {"id": "served", "max_model_len": None}]},
]


_STEPS = [{"step": 1, "reward": 0.5, "alpha": 1.5, "loss": None}, {"step": 2, "reward": 1.0, "alpha": 2.0}]
_CONFIGS = [
    {"model_type": "qwen2", "max_position_embeddings": 64, "vocab_size": 9, "auto_map": {"AutoConfig": "a.B"}},
    {"model_type": "qwen2_5_vl", "text_config": {"max_position_embeddings": 64}, "vision_config": {"depth": 1}},
    {"metadata": {"total_size": 8}, "weight_map": {"a.weight": "model-1.safetensors", "b": "model-2.safetensors"}},
    {"peft_type": "LORA", "r": 8, "rank_pattern": {"q": 4}, "base_model_name_or_path": "a/b", "task_type": "CAUSAL_LM"},
]


def _training_record() -> dict[str, Any]:
    return {
        "schema_version": 4,
        "kind": "training",
        "run_id": "r",
        "fingerprint": "0",
        "status": "finished",
        "created": "2026-01-01T00:00:00+00:00",
        "finished": None,
        "recipe": {"name": "n", "seed": 0, "method": "gpg", "fidelity": "ours", "scale": "tiny"},
        "base": {"name": "b", "weights": "0", "revision": None},
        "checkpoint": "checkpoint",
        "num_steps": 2,
        "timings": {"train_s": 1.0},
        "environment": {"commit": "0", "python": "3.11", "packages": {"torch": "2"}},
    }


def _run_record() -> dict[str, Any]:
    score = {"mean": 0.5, "se": 0.1, "low": 0.3, "high": 0.7}
    counts = {"num_items": 2, "asked": 2, "scored": 2, "failed": 0, "score": score, "score_strict": score}
    decoding = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 8, "samples": 1, "seed": 0}
    result = {
        "version": 1,
        "source": "generated",
        "prompts_hash": "0",
        "decoding": decoding | {"system_prompt": None},
        "num_gold_fallback": 0,
        "num_truncated": 0,
        "num_no_answer": 0,
        "num_timeout": 0,
        "mean_completion_tokens": 3.0,
        **counts,
    }
    return {
        "schema_version": 5,
        "kind": "evaluation",
        "run_id": "r",
        "fingerprint": "0",
        "status": "finished",
        "created": "2026-01-01T00:00:00+00:00",
        "finished": None,
        "model": {"name": "m"},
        "engine": {},
        "settings": {},
        "benchmarks": {"tiny_sums": result},
        "average": score,
        "timings": {"generate_and_grade_s": 1.0},
        "environment": {},
    }
