"""Data sets of one's own: a file, a folder that ``datasets`` saved, or any set of the hub, with its columns named.

Everything is checked before it is trained on: the columns are there, questions are text, answers are text or numbers.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from eval_harness.errors import UserError
from eval_harness.images import ImageError
from eval_harness.models import offline_if_unreachable
from eval_harness.sources import Hub, ImageReader, folder_reader, load_from_hub, read_jsonl
from gpg_repro.datasets.base import TrainingSet

KINDS = (".jsonl", ".json", ".csv", ".parquet")
FORMS = f"a hub id (org/name), or the path of a file ({', '.join(KINDS)}) or of a folder saved by `datasets`"
_MARKS = {"dataset_info.json": False, "dataset_dict.json": True}
"""Files by which ``datasets`` knows a folder it saved, and whether that holds several splits."""


class Columns(BaseModel):
    """Names of columns; None: the set has no such column."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = "question"
    answer: str = "answer"
    image: str | None = None
    demonstration: str | None = None
    """Whole right completions; sft only."""

    def named(self) -> dict[str, str]:
        """What a column is for -> its name."""
        return {use: name for use, name in self.model_dump().items() if name is not None}


def own_set(
    dataset: str, columns: Columns, config: str | None = None, split: str | None = None, revision: str | None = None
) -> TrainingSet | None:
    """The set behind a path or a hub id; nothing is read yet. None: it is neither.

    A path wins over a hub id of the same form.

    Raises:
        UserError: a file of another kind, or settings that do not go with a path.
    """
    path = Path(dataset).expanduser()
    source: OwnFile | OwnHub
    if path.suffix in KINDS or path.exists() or dataset.startswith((".", "/", "~")) or dataset.count("/") > 1:
        if path.suffix not in KINDS and path.is_file():
            raise UserError(f"data set {dataset} is a file of another kind than {', '.join(KINDS)}: convert it.")
        unused = [key for key, value in (("config", config), ("revision", revision)) if value is not None]
        unused += ["split"] if split is not None and not path.is_dir() else []
        if unused:
            keys = " and ".join(f"dataset_{key}" for key in sorted(unused))
            raise UserError(f"data set {dataset} is a path, which has no {keys}: leave it out.")
        source = OwnFile(path, columns, split)
    elif dataset.count("/") == 1:
        texts = tuple(name for use, name in columns.named().items() if use != "image")
        name = dataset.split("/")[1]
        source = OwnHub(
            dataset, split or "train", revision, f"{name}.jsonl", texts, columns.image, config=config, wanted=columns
        )
    else:
        return None
    return TrainingSet(
        name=dataset,
        source=source,
        question=columns.question,
        solution=columns.answer,
        image=columns.image,
        demonstration=columns.demonstration,
    )


def check(found: TrainingSet, data_root: Path | None = None, image_root: Path | None = None) -> None:
    """Read a set of one's own once, images left out; does nothing for the registered ones.

    Raises:
        UserError: it cannot be had, is empty, or its columns are not those expected.
    """
    if isinstance(found.source, (OwnFile, OwnHub)):
        found.source.rows(data_root)
        if found.image:
            found.source.image_reader(data_root, image_root)


def content_of(found: TrainingSet, data_root: Path | None = None) -> str | None:
    """What tells one's own data from other data: sha256 of a file, commit of a hub set; None: a registered set.

    Raises:
        UserError: it cannot be had.
    """
    return found.source.content(data_root) if isinstance(found.source, (OwnFile, OwnHub)) else None


@dataclass(frozen=True)
class OwnFile:
    """A file or folder of this disk."""

    path: Path
    columns: Columns
    split: str | None = None
    """Of a folder that holds several."""

    def describe(self) -> str:
        """Its name, without the folders it lies in."""
        return self.path.name

    def content(self, data_root: Path | None = None) -> str:
        """``sha256:`` of the file, or of the Arrow files of a folder in the order of their names."""
        self._exists()
        paths = [self.path] if self.path.is_file() else sorted(self._folder().glob("*.arrow"))
        return f"sha256:{_sha256(paths)}"

    def rows(self, data_root: Path | None) -> tuple[list[dict[str, Any]], str]:
        """Rows and a name for where they came from; ``data_root`` does not apply.

        Raises:
            UserError: not there, not readable, empty, or with other columns than expected.
        """
        self._exists()
        where, kind = self.describe(), self.path.suffix if self.path.is_file() else None
        if kind in (".jsonl", ".json", ".csv"):
            rows = {".jsonl": read_jsonl, ".json": _read_json, ".csv": _read_csv}[kind](self.path)
            _check_names(dict.fromkeys(name for row in rows for name in row), self.columns, where, bool(rows))
            return _texts(rows, self.columns, where, names_images=True), where
        return _rows_of(self._table(), self.columns, where), where

    def image_reader(self, data_root: Path | None, image_root: Path | None) -> ImageReader:
        """Reads single images: files under the image root (default: beside the data), or the table's own."""
        files = folder_reader(Path(image_root or (self.path if self.path.is_dir() else self.path.parent)))
        if self.path.is_file() and self.path.suffix != ".parquet":
            return files
        data = self._table()
        return files if _holds_names(data, self.columns.image) else _cells(data, self.columns.image)

    def _exists(self) -> None:
        if not self.path.exists():
            raise UserError(f"data set {self.path} does not exist (a relative path starts in the current folder).")

    def _folder(self) -> Path:
        """The folder of one split."""
        marks = [several for mark, several in _MARKS.items() if (self.path / mark).exists()]
        if not marks:
            raise UserError(
                f"data set {self.path} is a folder without {' or '.join(_MARKS)}; expected one that `datasets` saved "
                "(save_to_disk), or the path of a file in it."
            )
        if not any(marks):
            if self.split is not None:
                raise UserError(f"data set {self.path} holds one split only: leave dataset_split out.")
            return self.path
        splits = json.loads((self.path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        split = self.split or "train"
        if split not in splits:
            raise UserError(f"data set {self.path} has no split {split!r}; dataset_split can be {', '.join(splits)}.")
        return self.path / split

    def _table(self) -> Any:
        import datasets  # takes a second

        try:
            if self.path.is_dir():
                return datasets.load_from_disk(str(self._folder()))
            # the cache goes by the time of files alone: a name of the content keeps copies of other files apart
            name = _sha256([self.path])[:16]
            return datasets.load_dataset("parquet", name, data_files={"train": str(self.path)}, split="train")
        except UserError:
            raise
        except Exception as error:  # of Arrow's and of the file system's, a dozen types
            problem = str(error.__cause__ or error).strip().split("\n")[0][:200]
            raise UserError(
                f"data set {self.path} cannot be read ({problem}). It is damaged: write it again."
            ) from None


@dataclass(frozen=True)
class OwnHub(Hub):
    """A set of the hub that is not among the registered ones."""

    config: str | None = None
    wanted: Columns = Columns()

    def content(self, data_root: Path | None = None) -> str:
        """``commit:`` of the copy that is read, or ``sha256:`` of the local one."""
        if data_root is not None:
            return OwnFile(Path(data_root) / self.local_file, self.wanted).content()
        commit = self.commit()
        if commit is None:
            raise UserError(f"the copy of {self.describe()} does not tell its commit: name it with dataset_revision.")
        return f"commit:{commit}"

    def rows(self, data_root: Path | None) -> tuple[list[dict[str, Any]], str]:
        """Rows and a name for where they came from.

        Raises:
            UserError: cannot be had, empty, or with other columns than expected.
        """
        if data_root is not None:
            return OwnFile(Path(data_root) / self.local_file, self.wanted).rows(None)
        return _rows_of(self._from_hub(), self.wanted, self.describe()), self.describe()

    def image_reader(self, data_root: Path | None, image_root: Path | None) -> ImageReader:
        """Reads single images."""
        if data_root is not None:
            return OwnFile(Path(data_root) / self.local_file, self.wanted).image_reader(None, image_root)
        return _cells(self._from_hub(), self.image_column)

    def _from_hub(self) -> Any:
        offline_if_unreachable()
        try:
            return super()._from_hub()
        except UserError as error:
            cause = str(error.__cause__).split("\n")
            if cause[0].startswith(("Config name is missing", "BuilderConfig", "Unknown split")):
                why = " ".join(line.strip() for line in cause[:2])
                raise UserError(f"the data set {self.repo}: {why} Set dataset_config, dataset_split.") from None
            raise

    def _load(self) -> Any:
        return load_from_hub(self.repo, self.revision, name=self.config, split=self.split)


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"data set {path} is not valid JSON ({error}).") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"data set {path}: expected a list of JSON objects, one a row (one object a line is .jsonl).")
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """All cells as text: 007 stays 007."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            rows = []
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    raise UserError(
                        f"data set {path}, line {reader.line_num}: {len(cells)} cells under {len(header)} names. Quote "
                        "cells that hold commas or line breaks."
                    )
                rows.append(dict(zip(header, cells, strict=True)))
            return rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"data set {path} is not CSV in UTF-8 ({error}).") from None


def _check_names(there: Iterable[str], columns: Columns, where: str, any_rows: bool) -> None:
    """Refuse an empty set, and one that lacks columns."""
    if not any_rows:
        raise UserError(f"data set {where} holds no rows.")
    there = list(there)
    problems = []
    for use, name in columns.named().items():
        if name not in there:
            close = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}" if close else ""
            problems.append(f"no column {name!r} (columns.{use}){hint}")
    if problems:
        raise UserError(f"data set {where} has {', '.join(problems)}. Its columns: {', '.join(map(str, there))}.")


def _rows_of(data: Any, columns: Columns, where: str) -> list[dict[str, Any]]:
    """Rows of a ``datasets.Dataset``; images stay where they are, but for the names of files."""
    _check_names(data.column_names, columns, where, len(data) > 0)
    names_images = columns.image is not None and _holds_names(data, columns.image)
    used = [name for use, name in columns.named().items() if use != "image" or names_images]
    return _texts(data.select_columns(list(dict.fromkeys(used))), columns, where, names_images)


def _holds_names(data: Any, column: str) -> bool:
    return getattr(data.features[column], "dtype", None) in ("string", "large_string")


def _cells(data: Any, column: str) -> ImageReader:
    """Reads encoded images out of a table."""
    import datasets  # takes a second

    try:
        data = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # what Arrow raises for columns of anything else
        problem = str(error).split("\n")[0][:200]
        raise UserError(f"column {column!r} holds no images, one a row ({problem}).") from None

    def read(index: int, name: str) -> bytes:
        content = (data[index][column] or {}).get("bytes")
        if not content:
            raise ImageError(f"row {index}: the data set holds no image here")
        return content

    return read


def _texts(rows: Iterable[Mapping[str, Any]], columns: Columns, where: str, names_images: bool) -> list[dict[str, Any]]:
    """Rows with the named columns alone, answers as text.

    Raises:
        UserError: cells of other types, or empty ones; every column with its first bad row (from 0).
    """
    uses = {use: name for use, name in columns.named().items() if use != "image" or names_images}
    problems: dict[str, list[tuple[int, Any]]] = {}
    found = []
    for index, row in enumerate(rows):
        kept = {}
        for use, name in uses.items():
            text = _text(row.get(name), number=use == "answer")
            if text is None:
                problems.setdefault(use, []).append((index, row.get(name)))
            kept[name] = text
        found.append(kept)
    if problems:
        raise UserError(f"data set {where}: " + " ".join(_told(uses[use], use, bad) for use, bad in problems.items()))
    return found


def _text(cell: Any, number: bool) -> str | None:
    if isinstance(cell, str) and cell.strip():
        return cell
    if number and isinstance(cell, (int, float)) and not isinstance(cell, bool) and math.isfinite(cell):
        return str(cell)
    return None


def _told(name: str, use: str, bad: Sequence[tuple[int, Any]]) -> str:
    index, cell = bad[0]
    wanted = "text or a number" if use == "answer" else "the name of a file" if use == "image" else "text"
    what = "nothing" if cell is None or cell == "" else f"{type(cell).__name__} {str(cell)[:40]!r}"
    rows = f"row {index}" if len(bad) == 1 else f"{len(bad)} rows, row {index} the first"
    return f"column {name!r} (columns.{use}) should hold {wanted}; {rows}: {what}."
