"""HTML, written by the templates in ``templates/``, which escape what they are given. Python puts no markup together.

What a template puts into a page is text, whoever wrote it, unless a template made it (:class:`markupsafe.Markup`), and
characters that would not be seen are named (:func:`eval_harness.markup.visible`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval_harness.markup import visible


def part(template: str, name: str, /, **values: Any) -> Markup:
    """What one macro of a template makes.

    Args:
        template: file in ``templates/`` without its ending.
        name: the macro; ``values`` are its arguments.
    """
    return Markup(getattr(_module(template), name)(**values))


@cache
def _module(template: str) -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{template}.jinja").module
