"""The registry of released and cited checkpoints: what each is, and how it is evaluated (``checkpoints.yaml``)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eval_harness.errors import UserError, unknown
from eval_harness.inputs import read_yaml_mapping

REGISTRY = Path(__file__).with_name("checkpoints.yaml")
AMC_SETS = {40: "amc23", 83: "amc_83"}
"""Problems of an AMC set -> the benchmark that holds it."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(_Entry):
    """How a checkpoint is evaluated."""

    max_model_len: int = Field(ge=2)
    chat_template: str
    """``own``, ``none`` (plain text) or a name of ``templates``."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)
    source: str
    """Where these choices come from."""

    def same_as(self, other: Settings) -> bool:
        """Whether two checkpoints are measured alike under these settings, wherever the choices come from."""
        return self.model_dump(exclude={"source"}) == other.model_dump(exclude={"source"})

    @property
    def decoding(self) -> dict[str, Any]:
        """What replaces a benchmark's documented decoding."""
        return {name: getattr(self, name) for name in ("temperature", "top_p", "max_new_tokens")}

    @property
    def template(self) -> str | None:
        """The chat template as engines take it: None for the model's own, ``none`` for plain text, or its text."""
        if self.chat_template in ("own", "none"):
            return None if self.chat_template == "own" else "none"
        return _registry(REGISTRY)[1][self.chat_template]


class PrintedRow(_Entry):
    """A printed row that a checkpoint stands for."""

    table: int
    method: str
    """As printed."""
    source: str = "paper-v3"
    """``paper-v3``, ``readme``, or another that holds no data of its own here."""
    mark: str = ""
    variant: str | None = None
    """The settings that are the row's; None: the checkpoint's own."""
    amc: Literal[40, 83] | None
    """Problems of the AMC set that the printed number is a count of; None: of neither."""
    printed: Mapping[str, float]
    """Percent; ``average`` and one number per benchmark, ``amc`` being whichever set it was."""


class Checkpoint(_Entry):
    """One entry of the registry."""

    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(pattern=r"^[0-9a-f]{40}$")
    """Commit; None: not known (``revision_note`` says why), ``main`` is taken."""
    revision_note: str = ""
    believed: str
    """What it is believed to be."""
    base: str | None = None
    """Hub id of the model it was trained from, by its authors' word; None: it is a base, or not known."""
    parameters: int = Field(gt=0)
    bytes: int = Field(gt=0)
    """On disk, about."""
    context: int = Field(ge=2)
    """Positions of the model."""
    benchmarks: tuple[str, ...] = Field(min_length=1)
    """What it is measured on, in one run that all tables share."""
    settings: Settings
    variants: Mapping[str, Mapping[str, Any]] = {}
    """Name -> the settings that differ."""
    rows: tuple[PrintedRow, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Checkpoint:
        if self.revision is None and not self.revision_note:
            raise ValueError("revision is null without a revision_note that says why")
        for name in (None, *self.variants):
            settings = self.settings_of(name)
            if settings.max_model_len > self.context:
                raise ValueError(f"max_model_len {settings.max_model_len} is more than its context of {self.context}")
        strangers = {row.variant for row in self.rows} - {None, *self.variants}
        if strangers:
            raise ValueError(f"a row names the unknown variant {sorted(strangers)[0]!r}")
        return self

    def settings_of(self, variant: str | None = None) -> Settings:
        """The settings of a variant; None: its own.

        Raises:
            UserError: it has no such variant.
        """
        if variant is None:
            return self.settings
        if variant not in self.variants:
            raise unknown(f"variant of {self.id}", variant, self.variants)
        return Settings(**{**self.settings.model_dump(), **self.variants[variant]})

    def rows_of(self, variant: str | None = None) -> tuple[PrintedRow, ...]:
        """The printed rows that an evaluation with these settings stands beside: those that name the variant, else
        those that name none."""
        own = tuple(row for row in self.rows if row.variant == variant)
        return own or tuple(row for row in self.rows if row.variant is None)

    @property
    def tables(self) -> tuple[int, ...]:
        """The tables it has a row in."""
        return tuple(sorted({row.table for row in self.rows}))

    @property
    def label(self) -> str:
        """Its id as part of a file name."""
        return self.id.replace("/", "--")


def load_checkpoints(path: Path | None = None) -> dict[str, Checkpoint]:
    """Hub id -> checkpoint, in the registry's order.

    Args:
        path: another registry file.

    Raises:
        UserError: the file is no valid registry; the message names the entry and the field.
    """
    return dict(_registry(path or REGISTRY)[0])


def get_checkpoint(name: str) -> Checkpoint:
    """The entry of a hub id.

    Raises:
        UserError: the registry has none; the message suggests the closest.
    """
    known = load_checkpoints()
    if name not in known:
        raise unknown("checkpoint", name, known)
    return known[name]


@cache
def _registry(path: Path) -> tuple[dict[str, Checkpoint], dict[str, str]]:
    try:
        raw = read_yaml_mapping(path, "registry", " with a list `checkpoints`")
        entries, templates = raw["checkpoints"], raw.get("templates") or {}
    except KeyError as error:
        raise UserError(f"registry {path} is not YAML with a list `checkpoints` ({error}).") from None
    if not isinstance(entries, list) or not isinstance(templates, dict):
        raise UserError(f"registry {path}: `checkpoints` must be a list and `templates` a mapping.")
    found: dict[str, Checkpoint] = {}
    for number, entry in enumerate(entries, start=1):
        name = entry.get("id", "without id") if isinstance(entry, dict) else "no mapping"
        where = f"registry {Path(path).name}, entry {number} ({name})"
        try:
            checkpoint = Checkpoint.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise UserError(f"{where}: {f'{field}: ' if field else ''}{first['msg']}.") from None
        if checkpoint.id in found:
            raise UserError(f"{where}: the id stands there twice; keep one.")
        for variant in (None, *checkpoint.variants):
            template = checkpoint.settings_of(variant).chat_template
            if template not in ("own", "none", *templates):
                raise UserError(f"{where}: {unknown('chat template', template, ('own', 'none', *templates))}")
        found[checkpoint.id] = checkpoint
    return found, templates
