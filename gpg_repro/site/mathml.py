"""Formulas as MathML, written by latex2mathml: browsers draw it themselves, so no script and no font is fetched."""

from __future__ import annotations

import html

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

_LOG = logging.getLogger(__name__)


def setup(app) -> dict[str, bool]:
    """Sphinx's entry: the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def mathml(latex: str, block: bool = False) -> str:
    """A formula as a ``<math>`` element; one that cannot be read stays LaTeX in a ``<code>`` element, and is told."""
    try:
        made = convert(latex, display="block" if block else "inline")
    except Exception as error:  # the converter raises whatever its parser runs into
        made, problem = "", f"{type(error).__name__} {error}".strip()
    else:
        problem = "unknown command" if "<mi>\\" in made else ""
    if problem:
        _LOG.warning("formula %r cannot be written as MathML: %s", latex, problem)
        return f"<code>{html.escape(latex)}</code>"
    return made


def visit_math(self, node: nodes.math) -> None:
    """A formula in a line."""
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def visit_block(self, node: nodes.math_block) -> None:
    """A formula of its own, in a box that scrolls where the page is narrow."""
    self.body.append(f'<div class="math-box">{mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode
