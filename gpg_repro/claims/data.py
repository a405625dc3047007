"""The claims as data: ``results/paper/claims.json``. A claim says what and where, never how it ended.

Every claim is a paraphrase of ours without a digit in it: numbers are looked up in the published tables. It has exactly
one way to be measured, or a reason why it has none:

* ``compare``: rows of a table of :mod:`gpg_repro.tables`, best first, in its headline number or in named columns;
* ``training``: a quantity of the steps of a recipe's trainings;
* ``check``: a function of :mod:`gpg_repro.claims.checks` that runs the real code;
* ``untested``: the reason.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from eval_harness.errors import UserError
from gpg_repro.claims.checks import CHECKS
from gpg_repro.claims.rule import Direction, Quantifier
from gpg_repro.figures.base import published_range
from gpg_repro.published import folder, published_table
from gpg_repro.recipe import recipe_names
from gpg_repro.tables import TABLES, get_table

KINDS = {
    "identity": "Identities",
    "property": "Properties of the method",
    "dynamics": "What happens during training",
    "comparison": "Comparisons of two rows",
    "generality": "Over tasks and modalities",
    "efficiency": "Cost",
    "standing": "Standing among other methods",
}
"""Kind -> heading, in the order of the page."""


def _without_digits(text: str) -> str:
    if re.search(r"\d", text):
        raise ValueError("holds a digit; numbers are looked up in the published tables, never typed")
    return text


Words = Annotated[str, AfterValidator(_without_digits)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Test(_Data):
    """Rows of a table, best first; each is compared with the next."""

    __test__ = False  # no test of pytest's

    table: str
    rows: tuple[str, ...] = Field(min_length=2)
    columns: tuple[str, ...] = ()
    """Titles as published, each a test of its own; empty: the table's headline number."""


class Compare(_Data):
    """What has to be higher than what."""

    direction: Direction
    of: Quantifier = "every"
    tests: tuple[Test, ...] = Field(min_length=1)
    margin: tuple[str, str] | None = None
    """Place and name of a difference that the text quotes, in points; None: any difference."""


class Training(_Data):
    """A quantity of a recipe's training steps."""

    recipe: str
    quantity: str
    statistic: Literal["mean", "change", "range"]
    """Mean over steps; last ten steps minus first ten; lowest to highest."""
    direction: Direction
    quoted: tuple[str, str] | None = None
    """Figure and name of the quoted range."""


class Check(_Data):
    """A function that runs the real code."""

    name: str
    direction: Direction


class Published(_Data):
    """What is printed for a claim that is no comparison of rows: cells of a table, or a quoted range."""

    table: str | None = None
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    quoted: tuple[str, str] | None = None


class Claim(_Data):
    """One claim of the paper."""

    id: str
    places: tuple[str, ...] = Field(min_length=1)
    claim: Words
    kind: Literal[tuple(KINDS)]
    about: Literal["methods", "models"] = "methods"
    """Of models (checkpoints), one measurement each can speak at paper scale; of methods it takes several seeds."""
    compare: Compare | None = None
    training: Training | None = None
    check: Check | None = None
    untested: Words | None = None
    published: Published | None = None
    remark: Words = ""

    @model_validator(mode="after")
    def _one_measure(self) -> Claim:
        given = [self.compare, self.training, self.check, self.untested]
        if sum(entry is not None for entry in given) != 1:
            raise ValueError(f"{self.id}: expected exactly one of compare, training, check, untested")
        return self


@cache
def load_claims(path: Path | None = None) -> tuple[Claim, ...]:
    """All claims, checked: ids are unique; tables, rows, columns, recipes, checks and quotes exist.

    Raises:
        UserError: names everything that is wrong with the file.
    """
    path = path or folder() / "claims.json"
    try:
        claims = tuple(Claim.model_validate(entry) for entry in json.loads(path.read_text(encoding="utf-8"))["claims"])
    except (ValidationError, json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{path.name} is no list of claims: {error}") from error
    ids = [claim.id for claim in claims]
    wrong = [f"{name}: the id stands {ids.count(name)} times" for name in dict.fromkeys(ids) if ids.count(name) > 1]
    for claim in claims:
        wrong += [f"{claim.id}: {problem}" for problem in _problems(claim)]
    if wrong:
        raise UserError(f"{path.name}: {len(wrong)} references lead nowhere:\n" + "\n".join(f"- {w}" for w in wrong))
    return claims


def _problems(claim: Claim) -> list[str]:
    found = []
    for test in claim.compare.tests if claim.compare else ():
        if test.table not in TABLES:
            found.append(f"no table {test.table!r}")
            continue
        table = get_table(test.table)
        found += [f"table {test.table} has no row {row!r}" for row in test.rows if row not in _keys(test.table)]
        titles = [column.title for column in table.printed_columns]
        found += [f"table {test.table} has no column {title!r}" for title in test.columns if title not in titles]
    if claim.compare and claim.compare.direction == "within":
        found.append("a comparison has no direction 'within'")
    if claim.training and claim.training.recipe not in recipe_names():
        found.append(f"no recipe {claim.training.recipe!r}")
    if claim.training and (claim.training.statistic == "range") != (claim.training.direction == "within"):
        found.append("the statistic 'range' belongs to the direction 'within'")
    if claim.training and claim.training.statistic == "range" and claim.training.quoted is None:
        found.append("a range needs the quoted one")
    if claim.check and claim.check.name not in CHECKS:
        found.append(f"no check {claim.check.name!r}")
    margin, training = claim.compare and claim.compare.margin, claim.training and claim.training.quoted
    for quoted in filter(None, (margin, training, claim.published and claim.published.quoted)):
        found += _missing(published_range, *quoted)
    if claim.published and claim.published.table:
        found += _missing(published_table, claim.published.table) or [
            f"{claim.published.table} prints no {kind} {name!r}"
            for kind, names, known in (
                ("row", claim.published.rows, published_table(claim.published.table).index),
                ("column", claim.published.columns, published_table(claim.published.table).columns),
            )
            for name in names
            if name not in known
        ]
    return found


def _keys(table: str) -> set[str]:
    return {row.key for row in get_table(table).rows}


def _missing(look_up, *names: str) -> list[str]:
    try:
        look_up(*names)
    except UserError as error:
        return [str(error)]
    return []
