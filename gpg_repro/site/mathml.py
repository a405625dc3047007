"""Formulas as MathML, written by latex2mathml: browsers draw it themselves, so no script and no font is fetched."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, tostring

from docutils import nodes
from latex2mathml.converter import convert_to_element
from markupsafe import Markup
from sphinx.util import logging

from gpg_repro import html

_LOG = logging.getLogger(__name__)
_ELEMENTS = {
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "ms", "mfrac", "msqrt", "mroot", "mstyle", "mpadded"),
    *("mphantom", "merror", "mfenced", "menclose", "msub", "msup", "msubsup", "munder", "mover", "munderover"),
    *("mmultiscripts", "mprescripts", "none", "mtable", "mtr", "mlabeledtr", "mtd"),
}
_ATTRIBUTES = {
    *("xmlns", "display", "displaystyle", "scriptlevel", "mathvariant", "mathsize", "mathcolor", "stretchy", "fence"),
    *("form", "separator", "symmetric", "minsize", "maxsize", "largeop", "movablelimits", "accent", "accentunder"),
    *("lspace", "rspace", "width", "height", "depth", "voffset", "linethickness", "columnalign", "rowalign"),
    *("columnspacing", "rowspacing", "columnlines", "rowlines", "columnspan", "rowspan", "notation", "bevelled"),
}
"""What of MathML draws and does nothing else: no link, no handler, no embedded HTML, no style."""
_ENTITY = re.compile(r"&#x([0-9A-Fa-f]{1,6});")


def setup(app) -> dict[str, bool]:
    """Sphinx's entry: the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def mathml(latex: str, block: bool = False) -> Markup:
    """A formula as a ``<math>`` element of the elements and attributes above; one that cannot be read, or would be
    more, stays LaTeX in a ``<code>`` element, and is told."""
    try:
        tree = convert_to_element(latex, display="block" if block else "inline")
        problem = _problem(tree)
    except Exception as error:  # the converter raises whatever its parser runs into
        problem = f"{type(error).__name__} {error}".strip()
    if problem:
        _LOG.warning("formula %r cannot be written as MathML: %s", latex, problem)
        return html.part("site", "code", text=latex)
    return Markup(tostring(tree, encoding="unicode"))


def _problem(tree: Element) -> str | None:
    """What keeps a tree from being shown; the converter's own notation of characters becomes the characters."""
    for element in tree.iter():
        if element.tag not in _ELEMENTS:
            return f"the element {element.tag}"
        if strange := set(element.attrib) - _ATTRIBUTES:
            return f"the attribute {min(strange)}"
        if element.tag == "mi" and (element.text or "").startswith("\\"):
            return "unknown command"
        element.text, element.tail = _characters(element.text), _characters(element.tail)
        for name, value in element.attrib.items():
            element.set(name, _characters(value))
    return None


def _characters(text: str | None) -> str | None:
    return None if text is None else _ENTITY.sub(lambda found: chr(int(found[1], 16)), text)


def visit_math(self, node: nodes.math) -> None:
    """A formula in a line."""
    self.body.append(html.part("site", "formula", made=mathml(node.astext()), block=False))
    raise nodes.SkipNode


def visit_block(self, node: nodes.math_block) -> None:
    """A formula of its own, in a box that scrolls where the page is narrow."""
    self.body.append(html.part("site", "formula", made=mathml(node.astext(), block=True), block=True))
    raise nodes.SkipNode
