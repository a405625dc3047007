"""Where items come from: a data set of the hub at a revision, a local JSONL copy of it, or a generator."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_harness.errors import UserError


@dataclass(frozen=True)
class Hub:
    """A data set of the hub. ``revision`` None means that no revision is known to be the paper's."""

    repo: str
    split: str
    revision: str | None
    local_file: str
    """Name of the JSONL copy under ``--data-root``."""
    columns: tuple[str, ...]
    """The columns that are read; no others are needed."""

    def describe(self) -> str:
        """``repo@revision[split]`` for lists and records."""
        return f"{self.repo}@{(self.revision or 'main')[:8]}[{self.split}]"

    def rows(self, data_root: Path | None) -> tuple[list[dict[str, Any]], str]:
        """Rows and a name for where they came from.

        Raises:
            UserError: the local file is missing or malformed, or the hub cannot be reached and has no cached copy.
        """
        if data_root is not None:
            path = Path(data_root) / self.local_file
            return read_jsonl(path, self.columns), path.name
        return self._from_hub(), self.describe()

    def _from_hub(self) -> list[dict[str, Any]]:
        import datasets

        try:
            data = datasets.load_dataset(self.repo, split=self.split, revision=self.revision)
        except Exception as error:  # the hub's client raises a dozen unrelated types for "not to be had"
            raise UserError(
                f"the data set {self.describe()} is neither cached nor reachable ({type(error).__name__}: "
                f"{str(error).splitlines()[0][:200]}). Either connect to the hub, or give --data-root DIR with a "
                f"{self.local_file} of columns {', '.join(self.columns)} (under make: EVAL_DATA_ROOT=DIR)."
            ) from error
        return [dict(row) for row in data.select_columns(list(self.columns))]


@dataclass(frozen=True)
class Generated:
    """Items made by a seeded generator of this package: nothing to download."""

    name: str
    make: Callable[[], Sequence[dict[str, Any]]]

    def describe(self) -> str:
        """Name for lists and records."""
        return f"generated ({self.name})"

    def rows(self, data_root: Path | None) -> tuple[list[dict[str, Any]], str]:
        """Rows and a name for where they came from; ``data_root`` does not apply."""
        return list(self.make()), self.describe()


def default_data_root() -> Path | None:
    """``EVAL_DATA_ROOT``, the folder of local copies used when none is given; None if it is not set."""
    return Path(os.environ["EVAL_DATA_ROOT"]) if os.environ.get("EVAL_DATA_ROOT") else None


def read_jsonl(path: Path, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read a JSONL file of objects.

    Raises:
        UserError: missing file, bytes that are not UTF-8, a line that is not a JSON object, or a required key missing;
            the message names the line.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Check --data-root / --input.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; a JSONL file was expected.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it first.") from None
    rows = []
    # split on "\n" only: str.splitlines would also cut at U+2028 and the like inside a string
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno}). Each line must "
                "be one JSON object."
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: a JSON object was expected, got {type(row).__name__}.")
        missing = [key for key in required if key not in row]
        if missing:
            raise UserError(
                f"{path}, line {number}: missing {', '.join(map(repr, missing))}; it has "
                f"{', '.join(map(repr, sorted(row))) or 'no keys'}."
            )
        rows.append(row)
    return rows
