"""Files of strangers: regular files up to a size, JSON up to a depth, YAML that does not unfold. All else is one line.

What is opened may be a pipe, a device or a link that leads in a circle; nothing here waits for one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from eval_harness.errors import UserError
from eval_harness.outside import MAX_DEPTH, TooDeep, parse_json

_MAX_YAML_BYTES, _MAX_YAML_DEPTH, _MAX_YAML_NODES = 1 << 20, 30, 100_000
_KINDS = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
_READ_ERRORS = {
    errno.ELOOP: "is a link that leads in a circle",
    errno.ENAMETOOLONG: "has too long a name",
    errno.ENXIO: "is no regular file, but a socket or a pipe",
}


class Unreadable(UserError):
    """A file that is there and cannot be read as what it should be; ``problem`` is the sentence without its name."""

    def __init__(self, path: object, problem: str, remedy: str):
        super().__init__(f"{path} {problem}. {remedy}.")
        self.problem = problem


@contextmanager
def open_regular(path: str | Path, remedy: str = "Put the file itself there") -> Iterator[BinaryIO]:
    """A regular file, open for reading; links are followed.

    Raises:
        FileNotFoundError: nothing is there.
        UserError: it is something else, or may not be read. Nothing is waited for.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except ValueError as error:  # a NUL in the name
        raise Unreadable(repr(str(path)), f"is no name of a file ({error})", remedy) from None
    except OSError as error:
        raise Unreadable(path, _READ_ERRORS.get(error.errno, f"cannot be read ({error.strerror})"), remedy) from None
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        kind = next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "a device")
        raise Unreadable(path, f"is no regular file, but {kind}", remedy)
    with open(number, "rb") as file:
        yield file


def read_text(path: str | Path, max_bytes: int, remedy: str) -> str:
    """A text file in UTF-8.

    Raises:
        FileNotFoundError: nothing is there.
        UserError: see :func:`open_regular`; more bytes, or bytes that are no UTF-8.
    """
    with open_regular(path, remedy) as file:
        try:
            data = file.read(max_bytes + 1)
        except OSError as error:
            raise Unreadable(path, f"cannot be read ({error.strerror})", remedy) from None
    if len(data) > max_bytes:
        raise Unreadable(path, f"is larger than {max_bytes:,} bytes", remedy)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(path, f"is not UTF-8 (byte {error.start})", remedy) from None


def read_json(path: str | Path, max_bytes: int, remedy: str, max_depth: int = MAX_DEPTH) -> Any:
    """A JSON file, whatever its value.

    Args:
        remedy: what to do where it cannot be read, a sentence without its full stop.

    Raises:
        FileNotFoundError: nothing is there.
        UserError: see :func:`read_text`; no JSON, a number of thousands of digits, or more levels than ``max_depth``.
    """
    text = read_text(path, max_bytes, remedy)
    try:
        return parse_json(text, max_depth)
    except TooDeep:
        raise Unreadable(path, f"is nested deeper than {max_depth} levels", remedy) from None
    except ValueError as error:
        raise Unreadable(path, f"is not valid JSON ({error})", remedy) from None


def read_json_object(path: str | Path, max_bytes: int, remedy: str, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """A JSON file that holds an object; see :func:`read_json`.

    Raises:
        FileNotFoundError: nothing is there.
        UserError: see :func:`read_json`; another value.
    """
    value = read_json(path, max_bytes, remedy, max_depth)
    if not isinstance(value, dict):
        raise Unreadable(path, f"holds {_name(value)}, not an object", remedy)
    return value


def _name(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]


# --- YAML ------------------------------------------------------------------------------------------------------------


class _Bounded(yaml.SafeLoader):
    """SafeLoader that goes no deeper than a bound and refuses aliases that unfold to more nodes than a bound."""

    def __init__(self, text: str):
        super().__init__(text)
        self._level = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias = self.check_event(yaml.AliasEvent)
        self._level += 1
        if self._level > _MAX_YAML_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_MAX_YAML_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._level -= 1
        if is_alias and id(node) not in self._sizes:
            raise yaml.YAMLError("an alias stands inside of what it names")
        self._sizes[id(node)] = self._size(node)
        if self._sizes[id(node)] > _MAX_YAML_NODES:
            raise yaml.YAMLError(f"its aliases unfold to more than {_MAX_YAML_NODES:,} values")
        return node

    def _size(self, node: Any) -> int:
        """Values in a node, those of an alias counted where it stands."""
        parts = getattr(node, "value", ())
        if not isinstance(parts, list):
            return 1
        flat = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        return 1 + sum(self._sizes[id(part)] for part in flat)


def parse_yaml(text: str) -> Any:
    """YAML as SafeLoader reads it, within bounds.

    Raises:
        ValueError: it is none, nested too deeply, or its aliases unfold to too much; the message says which, in a line.
    """
    loader = None
    try:
        loader = _Bounded(text)
        return loader.get_single_data()
    except RecursionError:
        raise ValueError(f"nested deeper than {_MAX_YAML_DEPTH} levels") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of PyYAML's constructors
        raise ValueError(f"a value does not fit its type ({' '.join(str(error).split())})") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml_mapping(path: str | Path, what: str, holding: str = "") -> dict[Any, Any]:
    """A YAML file that holds a mapping.

    Args:
        what: what the file is, which begins the message.
        holding: what the mapping should hold, for the message.

    Raises:
        UserError: nothing is there, or see :func:`read_text` and :func:`parse_yaml`; another value.
    """
    try:
        text = read_text(path, _MAX_YAML_BYTES, "Give a file of YAML")
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist.") from None
    except Unreadable as error:
        raise UserError(f"{what} {error}") from None
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{what} {path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{what} {path}: expected a mapping{holding}, got {type(raw).__name__}.")
    return raw
