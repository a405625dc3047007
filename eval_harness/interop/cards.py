"""A model card (``README.md``) that is not ours: two places of it are written, all else stays byte for byte.

The places are the key ``model-index`` of the front matter and the block between two markers in the text. A byte order
mark, the kind of line ends and a missing last newline stay as they are.

Front matter is what stands between a line ``---`` at the very beginning (blank lines may be before it) and the next
such line, if that is YAML with keys, comments alone or nothing. A beginning that is a sentence or a list is text
between two thematic breaks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from eval_harness.errors import UserError

SECTION = ("<!-- eval_harness: begin -->", "<!-- eval_harness: end -->")
_INDEX = "model-index"
_BOM = "\ufeff"
_END = r"(?:\r\n|\r|\n)"
_HEAD = re.compile(
    rf"(?P<open>(?:[ \t]*{_END})*---[ \t]*{_END})(?P<yaml>(?:[^\r\n]*{_END})*?)(?P<close>---[ \t]*(?:{_END}|\Z))"
)


@dataclass(frozen=True)
class Card:
    """A card in pieces that, put together, are its text."""

    open: str
    """All up to the front matter, its opening line included; empty (or a byte order mark) where there is none."""
    head: str
    """The YAML between the lines ``---``."""
    close: str
    body: str

    @cached_property
    def data(self) -> dict[str, Any]:
        """The metadata."""
        return yaml.safe_load(self.head) or {}

    @property
    def has_head(self) -> bool:
        """Whether it has front matter."""
        return bool(self.close)

    def text(self) -> str:
        """The whole card."""
        return self.open + self.head + self.close + self.body

    @cached_property
    def line_end(self) -> str:
        """The line end that the card has most of."""
        text = self.text()
        crlf = text.count("\r\n")
        counts = {"\n": text.count("\n") - crlf, "\r\n": crlf, "\r": text.count("\r") - crlf}
        return max(counts, key=lambda end: counts[end])

    def lines(self, text: str) -> str:
        """Text of ours with this card's line ends."""
        return text.replace("\n", self.line_end)

    def line_of(self, place: int) -> int:
        """Number of the line, from 1, that holds a character of the text."""
        return len(re.findall(_END, self.text()[:place])) + 1

    def with_model_index(self, index: list[dict[str, Any]], path: Path) -> Card:
        """The card with this ``model-index``, other keys and comments as they were; unchanged where it holds it.

        Raises:
            UserError: the key stands where it cannot be replaced alone.
        """
        if self.data.get(_INDEX) == index:
            return self
        block = self.lines(yaml.safe_dump({_INDEX: index}, sort_keys=False, allow_unicode=True, width=1000))
        if not self.has_head:
            mark = self.open  # a byte order mark stays in front
            rule, blank = f"---{self.line_end}", "" if re.match(_END, self.body) else self.line_end
            return replace(self, open=mark + rule, head=block, close=rule, body=blank + self.body)
        changed = replace(self, head=self._head_with(block, index))
        try:
            found = yaml.safe_load(changed.head)
        except yaml.YAMLError:
            found = None
        if found != {**self.data, _INDEX: index}:
            raise UserError(
                f"{path}, line {self.line_of(len(self.open))}: {_INDEX} cannot be set in this front matter without "
                "touching what else is in it. Write the metadata as plain `key: value` lines. Nothing was written."
            )
        return changed

    def _head_with(self, block: str, index: list[dict[str, Any]]) -> str:
        root = yaml.compose(self.head, Loader=yaml.SafeLoader)
        if root is None:  # nothing, or comments alone
            return self.head + block
        own = next(((key, value) for key, value in root.value if key.value == _INDEX), None)
        if own and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(self.head, Loader=yaml.SafeLoader)):
            return ""  # what an alias stands for may be inside, or be used elsewhere
        if root.flow_style:
            text, end = json.dumps(index, ensure_ascii=False, default=str), root.end_mark.index - 1
            if own:
                return self.head[: own[1].start_mark.index] + text + self.head[own[1].end_mark.index :]
            comma = ", " if root.value else ""
            return f'{self.head[:end]}{comma}"{_INDEX}": {text}{self.head[end:]}'
        if own is None:
            last = re.search(rf"(?<=[\r\n])\.\.\.[ \t]*{_END}\Z", self.head)  # the end of a document, which is rare
            place = len(self.head) if last is None else last.start()
            return self.head[:place] + block + self.head[place:]
        end = _end_of(own[1])
        if self.head[end - 1] not in "\r\n":  # of a text in lines (|) the end is a line's beginning already
            end = re.compile(rf"[^\r\n]*{_END}").match(self.head, end).end()
        return self.head[: own[0].start_mark.index] + block + self.head[end:]

    def with_section(self, section: str, path: Path) -> Card:
        """The card with this text between the markers, in place of what was there, else at its end.

        Raises:
            UserError: a marker is missing, there twice, or the two are in the wrong order.
        """
        begin, end = SECTION
        block = self.lines(f"{begin}\n{section}\n{end}")
        places = {marker: [match.start() for match in re.finditer(re.escape(marker), self.body)] for marker in SECTION}
        if [len(found) for found in places.values()] == [1, 1] and places[begin] < places[end]:
            stop = places[end][0] + len(end)
            return replace(self, body=self.body[: places[begin][0]] + block + self.body[stop:])
        if any(places.values()):
            before = len(self.text()) - len(self.body)
            shown = [
                f"{name} in line {', '.join(str(self.line_of(before + place)) for place in found) or '(none)'}"
                for name, found in zip(("begin", "end"), places.values(), strict=True)
            ]
            raise UserError(
                f"{path}: the markers {begin} and {end} do not stand there once each, in order ({'; '.join(shown)}); "
                "remove them. Nothing was written."
            )
        ended = not self.body or re.search(rf"{_END}\Z", self.body)
        gap = self.line_end * (1 if ended else 2) if self.text() else ""
        return replace(self, body=self.body + gap + block + self.line_end)


def read_card(path: Path) -> Card:
    """A card from its file.

    Raises:
        UserError: it is not UTF-8, or its front matter is not valid YAML; the message names the line.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(re.findall(_END.encode(), data[: error.start])) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}). Nothing was written.") from None
    mark, text = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
    match = _HEAD.match(text)
    if match is None:
        return Card(mark, "", "", text)
    first = len(re.findall(_END, match["open"])) + 1
    try:
        found = yaml.safe_load(match["yaml"])
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise UserError(
            f"{path}, line {_line(error, match['yaml'], first)}: its metadata cannot be read ({_problem(error)}). Mend "
            "the block between the ---. Nothing was written."
        ) from None
    if found is not None and not isinstance(found, Mapping):
        return Card(mark, "", "", text)  # text between two thematic breaks
    root = yaml.compose(match["yaml"], Loader=yaml.SafeLoader) if found else None
    if root is not None and [key.value for key, _ in root.value].count(_INDEX) > 1:
        raise UserError(f"{path}, line {first}: its metadata has {_INDEX} twice. Keep one. Nothing was written.")
    return Card(mark + match["open"], match["yaml"], match["close"], text[match.end() :])


def _end_of(node: yaml.Node) -> int:
    """Where the last character of a value stands; a block's own end mark is behind the comments that follow it."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        return node.end_mark.index
    last = node.value[-1]
    return max(_end_of(last[1]), last[1].start_mark.index) if isinstance(last, tuple) else _end_of(last)


def _line(error: Exception, text: str, first: int) -> int:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return first + error.problem_mark.line
    if isinstance(error, yaml.reader.ReaderError):
        return first + len(re.findall(_END, text[: error.position]))
    return first


def _problem(error: Exception) -> str:
    return getattr(error, "problem", None) or next(iter(str(error).splitlines()), type(error).__name__)
