"""Model cards that are there already: whatever they look like, the user's text stays byte for byte."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, strategies
from interop_logs import write_run

from eval_harness.errors import UserError
from eval_harness.interop import cards, exporters
from eval_harness.interop.cards import SECTION, read_card

INDEX = [{"name": "m", "results": [{"task": {"type": "t"}, "dataset": {"type": "d"}, "metrics": [{"value": 1.5}]}]}]
BOM = b"\xef\xbb\xbf"
HEADS = {
    "none": b"",
    "nothing in it": b"---\n---\n",
    "plain": b"---\nlicense: mit\ntags: [a, b]\n---\n",
    "rules in strings": b'---\ntitle: "a --- b"\nnote: |\n  text\n  ---\n  more\n---\n',
    "rules in comments": b"---\n# --- not the end ---\nlicense: mit # ---\n---\n",
    "comments alone": b"---\n# nothing yet\n---\n",
    "blank lines before": b"\n \n---\nlicense: mit\n---\n",
    "blanks behind the rules": b"---  \nlicense: mit\n---\t\n",
    "CRLF": b"---\r\nlicense: mit\r\n---\r\n",
    "CR": b"---\rlicense: mit\r---\r",
    "in braces": b"---\n{license: mit, tags: [a]}\n---\n",
    "empty braces": b"---\n{}\n---\n",
    "a thematic break": b"---\n",
    "text between breaks": b"---\n\nHello, this is text.\n\n---\n",
    "a list between breaks": b"---\n- one\n- two\n---\n",
}
BODIES = {
    "text": b"# Mine\n\nMy words.\n",
    "no last newline": b"My words.",
    "nothing": b"",
    "breaks in the middle": b"One\n\n---\n\nTwo\n---\nThree\n\n***\n",
    "many blank lines": b"One\n\n\n\n",
    "CRLF": b"One\r\n\r\nTwo\r\n",
    "trailing blanks": b"  indented  \n\ttab\t\n",
    "front matter shown": b"```yaml\n---\nlicense: mit\n---\n```\n",
    "more than ASCII": "α — β 漢 🙂\u2028\x0b\n".encode(),
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """AIME24 whole: there are results for the metadata."""
    return write_run(tmp_path_factory.mktemp("run"), {"aime24": [[i < 10] for i in range(30)]})


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny suite: the metadata is not touched."""
    return write_run(tmp_path_factory.mktemp("tiny"), {"tiny_sums": [[True]] * 8})


def _without_ours(text: bytes) -> bytes:
    """A written card without the block and its gap, and without the lines of ``model-index``."""
    begin, end = (marker.encode() for marker in SECTION)
    before, rest = text.split(begin)
    _, after = rest.split(end)
    before = re.sub(rb"(?:\A|(?<=[\r\n]))model-index:(?:\r\n|\r|\n)(?:(?: |- )[^\r\n]*(?:\r\n|\r|\n))*", b"", before)
    before = re.sub(rb'(?:, )?"model-index": \[.*\](?=\})', b"", before)
    return before + after


@pytest.mark.parametrize("mark", [b"", BOM], ids=["", "byte order mark"])
@pytest.mark.parametrize(
    ("head", "body"),
    [
        *((head, body) for head in HEADS for body in ("text", "no last newline", "breaks in the middle")),
        *((head, body) for head in ("none", "plain", "CRLF") for body in BODIES),
    ],
)
def test_the_users_text_stays_byte_for_byte(run_folder, tiny_folder, tmp_path, mark, head, body):
    path, text = tmp_path / "README.md", mark + HEADS[head] + BODIES[body]
    path.write_bytes(text)
    exporters.model_card(tiny_folder, tmp_path)
    assert path.read_bytes().startswith(text)  # a block at the end, and nothing else
    path.write_bytes(text)
    exporters.model_card(run_folder, tmp_path)
    once = path.read_bytes()
    exporters.model_card(run_folder, tmp_path)
    assert path.read_bytes() == once
    left = _without_ours(once)
    before = read_card(_written(tmp_path / "before.md", text))
    if not before.has_head:  # ours was put in front of it, behind the byte order mark
        rule = rb"---(\r\n|\r|\n)"
        left = mark + re.sub(rb"\A" + re.escape(mark) + rule + rule + rb"(\r\n|\r|\n)?", b"", left)
    assert left.startswith(text) and not left[len(text) :].strip()
    assert set(re.findall(rb"\r\n|\r|\n", once)) <= (set(re.findall(rb"\r\n|\r|\n", text)) or {b"\n"})
    metadata = read_card(path).data
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 33.33
    assert {**metadata, "model-index": None} == {**before.data, "model-index": None}
    if not mark and head not in (
        "CR",
        "blanks behind the rules",
    ):  # its reader wants bare rules
        assert ModelCard.load(path).data.to_dict()["model-index"] == metadata["model-index"]


def _written(path: Path, text: bytes) -> Path:
    path.write_bytes(text)
    return path


def test_what_was_in_model_index_stays(run_folder, tmp_path):
    """Comments, order and entries of others; only ours is replaced, where it stands."""
    head = (
        "---\nlicense: mit # mine\n# before\nmodel-index: # here\n- name: mine\n  extra: kept\n  results:\n"
        "  - task: {type: x}\n    dataset: {type: openai/gsm8k, name: GSM8K}\n    metrics:\n    - {type: acc}\n"
        "    note: of mine\n# behind\n\ntags: # all\n- a\n---\nText\n"
    )
    path = _written(tmp_path / "README.md", head.encode())
    exporters.model_card(run_folder, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("---\nlicense: mit # mine\n# before\nmodel-index:\n- name: mine\n  extra: kept\n")
    assert "\n# behind\n\ntags: # all\n- a\n---\nText\n\n<!-- eval_harness: begin -->" in text
    (entry,) = read_card(path).data["model-index"]
    assert entry["results"][0] == yaml.safe_load(head.split("---\n")[1])["model-index"][0]["results"][0]
    assert [result["dataset"]["type"] for result in entry["results"]] == ["openai/gsm8k", "HuggingFaceH4/aime_2024"]
    better = write_run(tmp_path / "better", {"aime24": [[True]] * 30})
    exporters.model_card(better, tmp_path)
    again = path.read_text(encoding="utf-8")
    assert again.count("HuggingFaceH4/aime_2024") == 1 and "100.0" in again and "33.33" not in again
    assert "# before" in again and "\n# behind\n\ntags: # all\n" in again


def test_a_block_that_is_there_is_replaced_in_its_place(run_folder, tmp_path):
    begin, end = SECTION
    path = _written(tmp_path / "README.md", f"One\r\n{begin}\r\nold\r\n{end} behind\r\n\r\n---\r\nTwo".encode())
    exporters.model_card(run_folder, tmp_path)
    text = path.read_bytes().decode()
    assert text.count(begin) == text.count(end) == 1 and "old" not in text and "AIME24" in text
    assert f"---\r\n\r\nOne\r\n{begin}\r\n" in text and text.endswith(f"{end} behind\r\n\r\n---\r\nTwo")
    assert "\n" not in text.replace("\r\n", "")


B, E = SECTION
REFUSED = {
    "two blocks": (f"{B}\n{E}\nx\n{B}\n{E}\n", "begin in line 1, 4; end in line 2, 5"),
    "no end": (f"x\n{B}\ntext\n", r"begin in line 2; end in line \(none\)"),
    "no beginning": (f"x\n\n{E}\n", r"begin in line \(none\); end in line 3"),
    "the wrong order": (f"---\na: 1\n---\n{E}\n{B}\n", "begin in line 5; end in line 4"),
    "invalid YAML": ("---\nlicense: mit\ntags: [a\n---\nText\n", "README.md, line 4: its metadata cannot be read"),
    "invalid YAML behind blank lines": ("\n\n---\na: b: c\n---\n", "README.md, line 4: its metadata cannot be read"),
    "a tab": ("---\na: 1\nb:\n\t- 2\n---\n", "README.md, line 4: its metadata cannot be read"),
    "a character YAML does not take": ("---\na: 1\nb: \x07\n---\n", "README.md, line 3: its metadata cannot be read"),
    "no date": ("---\na: 2026-99-99\n---\n", "README.md, line 2: its metadata cannot be read"),
    "two documents": ("---\na: 1\n--- # b\nc: 1\n---\n", "README.md, line 3: its metadata cannot be read"),
    "model-index twice": ("---\nmodel-index: []\nmodel-index: []\n---\n", "model-index twice"),
    "model-index of another shape": ("---\nmodel-index: 5\n---\n", "model-index is not a list of models"),
    "an alias": (
        "---\na: &x {type: t}\nmodel-index:\n- name: m\n  results: []\n  task: *x\n---\n", "model-index cannot be set"
    ),
    "a comma at the end of braces": ("---\n{a: 1,}\n---\n", "model-index cannot be set"),
    "no UTF-8": (b"One\nTwo \xff\n", "README.md, line 2: not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_is_refused_and_nothing_written(run_folder, tmp_path, text, message):
    data = text if isinstance(text, bytes) else text.encode()
    path = _written(tmp_path / "README.md", data)
    with pytest.raises(UserError, match=message) as refused:
        exporters.model_card(run_folder, tmp_path)
    assert "README.md" in str(refused.value) and "Nothing was written" in str(refused.value)
    assert path.read_bytes() == data and [p.name for p in tmp_path.iterdir()] == ["README.md"]


PIECES = strategies.sampled_from(
    [
        *("---", "--- ", "- a", "a: 1", "a: b: c", "# h", "text", "'", '"', "{", "}", "[", "|", "&x", "*x", "..."),
        *("model-index:", "model-index: []", "  results: []", "- name: m"),
        *("\ufeff", "\x85", "\u2028", "\t", " ", "", "é", B, E),
    ]
)
ENDS = strategies.sampled_from(["\n", "\r\n", "\r", "\n\n", ""])
TEXTS = strategies.lists(strategies.tuples(PIECES, ENDS), max_size=12).map(lambda of: "".join(map("".join, of)))


@given(text=TEXTS | TEXTS.map("---\n".__add__) | strategies.text(max_size=60))
def test_twice_is_once_and_the_rest_stays(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "hypothesis.md"
    _written(path, text.encode("utf-8", "surrogatepass"))

    def export(path: Path) -> cards.Card:
        return read_card(path).with_section("Our table", path).with_model_index(INDEX, path)

    try:
        before = read_card(path)
        after = export(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    assert before.text() == text
    _written(path, after.text().encode())
    again = export(path)
    assert again.text() == after.text()
    assert again.data == {**before.data, "model-index": INDEX}
    body = again.body
    start, stop = body.index(B), body.index(E) + len(E)
    if B in before.body:
        assert body[:start].endswith(before.body[: before.body.index(B)])
        assert body[stop:] == before.body[before.body.index(E) + len(E) :]
    else:
        assert body[:start].strip("\r\n").endswith(before.body.strip("\r\n")) and before.body in body[:start]
    if before.has_head and "model-index" not in before.head:
        inserted = len(again.head) - len(before.head)
        assert inserted > 0 and any(
            again.head[:i] + again.head[i + inserted :] == before.head for i in range(len(before.head) + 1)
        )
        assert again.open == before.open and again.close.startswith(before.close)
