"""Where items come from: a data set of the hub at a revision, a local JSONL copy of it, or a generator.

Rows never hold pixels. Images are read one by one when they are needed, by the reader a source hands out, so that a
benchmark of any size takes little memory.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from eval_harness.errors import UserError
from eval_harness.images import ImageError, encode, read_file
from eval_harness.outside import cleaned, parse_json

_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")
ImageReader = Callable[[int, str], bytes]
"""(0-based index of the item, name of the image) -> the encoded image. Raises ImageError for that image alone."""


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
    image_column: str | None = None
    """The hub's column of images. In a local copy it holds file names under the image root."""
    images: str = ""
    """Folder under the image root that a local copy's file names are relative to."""

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
        data = self._from_hub()
        names = [name for name in self.columns if name != self.image_column]
        return [cleaned(dict(row)) for row in data.select_columns(names)], self.describe()

    def commit(self) -> str | None:
        """The commit the hub's copy is of, also where ``revision`` is open; None: the copy does not tell."""
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        data = self._from_hub()
        # the origin of a data set's files is hf://datasets/<repo>@<commit>/..., and its cache folder is named by it
        told = [*(data.info.download_checksums or ()), *(file["filename"] for file in data.cache_files)]
        return next((match.group() for text in told if (match := _COMMIT.search(text))), None)

    def image_reader(self, data_root: Path | None, image_root: Path | None) -> ImageReader:
        """Reads single images, of the hub's copy or of the image folder."""
        if data_root is not None:
            return folder_reader(Path(image_root or data_root) / self.images)
        import datasets

        data = self._from_hub().select_columns([self.image_column])
        data = data.cast_column(self.image_column, datasets.Image(decode=False))

        def read(index: int, name: str) -> bytes:
            cell = data[index][self.image_column] or {}
            if not cell.get("bytes") and not cell.get("path"):
                raise ImageError(f"{name}: the data set holds no image here")
            return cell.get("bytes") or read_file(_in_a_cache(cell["path"], name), name)

        return read

    def _load(self) -> Any:
        return load_from_hub(self.repo, self.revision, split=self.split)

    def _from_hub(self) -> Any:
        try:
            return self._load()
        except Exception as error:  # the hub's client raises a dozen unrelated types for "not to be had"
            raise UserError(
                f"the data set {self.describe()} is neither cached nor reachable ({type(error).__name__}: "
                f"{str(error).splitlines()[0][:200]}). Either connect to the hub, or give --data-root DIR with a "
                f"{self.local_file} of columns {', '.join(self.columns)} (under make: EVAL_DATA_ROOT=DIR)."
            ) from error


def load_from_hub(repo: str, revision: str | None, **options: Any) -> Any:
    """``datasets.load_dataset`` of a repository of the hub; without the hub, of its files in the hub's cache.

    By itself, ``datasets`` without a network finds only what it has converted before, not what ``hf download`` fetched.

    Raises:
        Exception: whatever the first try raised, when the cache does not hold it either.
    """
    import datasets
    from huggingface_hub import snapshot_download

    try:
        return datasets.load_dataset(repo, revision=revision, **options)
    except Exception as error:
        try:
            folder = snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True)
        except Exception:
            raise error from None
    return datasets.load_dataset(folder, **options)


@dataclass(frozen=True)
class Local:
    """Items of a list file under the data root, images under the image root; the hub has no copy of the list."""

    name: str
    local_file: str
    columns: tuple[str, ...]
    images: str
    """Folder under the image root that the file names are relative to."""
    obtain: str
    """How to get the list and the images, for the message to whoever lacks them."""

    def describe(self) -> str:
        """Name for lists and records."""
        return f"local ({self.local_file})"

    def rows(self, data_root: Path | None) -> tuple[list[dict[str, Any]], str]:
        """Rows and a name for where they came from.

        Raises:
            UserError: no data root, or the list is missing or malformed.
        """
        if data_root is None or not (Path(data_root) / self.local_file).exists():
            raise UserError(
                f"{self.name} needs --data-root DIR (under make: EVAL_DATA_ROOT=DIR) with {self.local_file}: one JSON "
                f"object a line with {', '.join(self.columns)}. {self.obtain}"
            )
        path = Path(data_root) / self.local_file
        return read_jsonl(path, self.columns), path.name

    def image_reader(self, data_root: Path | None, image_root: Path | None) -> ImageReader:
        """Reads single files of the image folder.

        Raises:
            UserError: there is no such folder.
        """
        root = image_root or data_root
        folder = Path(root, self.images) if root else None
        if folder is None or not folder.is_dir():
            raise UserError(
                f"{self.name}: the images are missing: no folder {self.images or '.'} under the image root. Give "
                f"--image-root DIR (under make: EVAL_IMAGE_ROOT=DIR). {self.obtain}"
            )
        return folder_reader(folder)


@dataclass(frozen=True)
class Generated:
    """Items made by a seeded generator of this package: nothing to download."""

    name: str
    make: Callable[[], Sequence[dict[str, Any]]]
    draw: Callable[[Mapping[str, Any]], Image.Image] | None = None
    """Draws the image of a row."""
    seeded: Callable[[int], Generated] | None = None
    """The same with another seed; None: there is one set only."""

    def describe(self) -> str:
        """Name for lists and records."""
        return f"generated ({self.name})"

    def rows(self, data_root: Path | None) -> tuple[list[dict[str, Any]], str]:
        """Rows and a name for where they came from; ``data_root`` does not apply."""
        return list(self.make()), self.describe()

    def image_reader(self, data_root: Path | None, image_root: Path | None) -> ImageReader:
        """Draws single images."""
        rows = lru_cache(1)(self.make)
        return lambda index, name: encode(self.draw(rows()[index]))


def folder_reader(folder: Path) -> ImageReader:
    """Reads image files of one folder; names and links that lead out of it are refused.

    A folder that is linked into it, or that is a link itself, is a data set kept elsewhere, and fine. Links further
    down came with the data: they may lead to other places of the same data set only.
    """
    folder = Path(folder)

    def read(index: int, name: str) -> bytes:
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts:
            raise ImageError(f"{name}: leads out of the image folder")
        try:
            homes = [folder.resolve(), *(place.resolve() for part in parts[:1] if (place := folder / part).is_dir())]
            real = (folder / name).resolve()
        except (OSError, ValueError, RuntimeError):  # a NUL, a ring of links: reading says what is wrong
            return read_file(folder / name, name)
        if not any(real.is_relative_to(home) for home in homes):
            raise ImageError(f"{name}: is a link that leads out of the image folder; put a copy there")
        return read_file(folder / name, name)

    return read


def _in_a_cache(path: str, name: str) -> Path:
    """A path that a row of a data set names, if it lies where the hub's and the data sets' copies do."""
    import datasets
    from huggingface_hub import constants

    homes = [Path(home).resolve() for home in (constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE)]
    if not any(Path(path).resolve().is_relative_to(home) for home in homes):
        raise ImageError(f"{name}: the data set names a file that is not its own")
    return Path(path)


def default_image_root() -> Path | None:
    """``EVAL_IMAGE_ROOT``, the folder of image folders used when none is given; None: the data root."""
    return Path(os.environ["EVAL_IMAGE_ROOT"]) if os.environ.get("EVAL_IMAGE_ROOT") else None


def default_data_root() -> Path | None:
    """``EVAL_DATA_ROOT``, the folder of local copies used when none is given; None if it is not set."""
    return Path(os.environ["EVAL_DATA_ROOT"]) if os.environ.get("EVAL_DATA_ROOT") else None


def read_jsonl(path: Path, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read a JSONL file of objects, their texts clean (see :mod:`eval_harness.outside`).

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
            row = parse_json(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno}). Each line must "
                "be one JSON object."
            ) from None
        except ValueError as error:  # a number of thousands of digits, too many brackets
            raise UserError(f"{path}, line {number}: JSON that cannot be read ({error}). Shorten it.") from None
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
