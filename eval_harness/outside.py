"""The door for text from outside: replies of servers, arguments, data files.

Python's strings hold what no file of ours can: half a surrogate pair (``"\\ud800"`` in JSON, a byte of an argument that
is no UTF-8) is no UTF-8, and a NUL ends names of files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from eval_harness.errors import UserError
from eval_harness.markup import shown

MAX_DEPTH = 100
"""Lists and objects inside each other; no file or reply that is read here needs more than ten."""
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
"""Control characters, terminal escapes among them, and what reorders or hides text."""
_PLAIN = (int, float, bool, type(None))


class TooDeep(ValueError):
    """More lists and objects inside each other than are read."""

    def __init__(self) -> None:
        super().__init__("lists or objects are nested too deeply")


def clean(text: str) -> str:
    """The text with U+FFFD for every lone surrogate and NUL."""
    return _NO_TEXT.sub("\ufffd", text)


def cleaned(value: Any, depth: int = MAX_DEPTH) -> Any:
    """The same for every text of a JSON value, keys included.

    Raises:
        TooDeep: more than ``depth`` lists and objects inside each other.
    """
    if isinstance(value, str):
        return clean(value)
    if not isinstance(value, (dict, list)):
        return value
    if depth == 0:
        raise TooDeep
    if isinstance(value, list):
        return [each if type(each) in _PLAIN else cleaned(each, depth - 1) for each in value]
    return {clean(key): cleaned(each, depth - 1) for key, each in value.items()}


def parse_json(text: str, depth: int = MAX_DEPTH) -> Any:
    """A JSON value with clean texts.

    Raises:
        TooDeep: more than ``depth`` lists and objects inside each other.
        ValueError: no JSON, or a number of thousands of digits.
    """
    try:
        return cleaned(json.loads(text), depth)
    except RecursionError:
        raise TooDeep from None


def for_message(text: str, limit: int = 500) -> str:
    """Text for a message: white space folded, what cannot be seen as an escape, cut at ``limit`` characters."""
    return shown(" ".join(clean(text).split())[:limit])[:limit]


def check_arguments(given: Mapping[str, Any]) -> None:
    """:func:`check_argument` for everything on a command line, by the names of its options."""
    for name, value in given.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, (str, os.PathLike)):
                check_argument(name.replace("_", "-"), each, lines=True)


def check_argument(name: str, value: str | os.PathLike | None, lines: bool = False) -> None:
    """Refuse an argument that could not be written into a record or a file's name.

    Args:
        name: what to call it; its value is not shown, which may be secret.
        value: None passes.
        lines: a text, in which line breaks and tabs mean something.

    Raises:
        UserError: it holds bytes that are no UTF-8, a NUL, or (of a name) another control character.
    """
    if value is None:
        return
    text = os.fspath(value)
    if found := _NO_TEXT.search(text) or (None if lines else _UNSEEN.search(text)):
        what = "a byte that is no UTF-8" if "\ud800" <= found.group() <= "\udfff" else "a character that cannot be seen"
        raise UserError(f"{name} holds {what} ({ascii(found.group())}, at place {found.start() + 1}). Give it without.")
