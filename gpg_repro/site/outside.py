"""Text stays text on the site, a Sphinx extension: HTML comes from our templates and from objects that notebooks show.

Whatever stands in a page, no directive writes HTML or includes a file, HTML in Markdown is shown as it is written,
pictures and downloads come from the site's own sources, and each page carries a policy by which the browser runs the
site's scripts alone and asks nobody else for anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import furo
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

_LOG = logging.getLogger(__name__)
_OUTPUT = {"output", "text_html"}
"""Classes that myst-nb gives to the HTML of an output."""
_BEFORE_COLLECTORS = 100
"""Sphinx copies pictures and downloads in handlers of priority 500."""


class Part(SphinxDirective):
    """``{part} name``: markup that the builder made, by its name in the configuration."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The markup, marked as ours."""
        node = nodes.raw("", self.config.gpg_parts[self.arguments[0]], format="html")
        node["ours"] = True
        return [node]


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry."""
    app.add_config_value("gpg_parts", {}, "env", types=frozenset({dict}))
    app.add_directive("part", Part)
    app.connect("builder-inited", _refuse_files)
    app.connect("doctree-read", _keep_text, priority=_BEFORE_COLLECTORS)
    app.connect("html-page-context", _add_policy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _refuse_files(app: Sphinx) -> None:
    app.env.settings.update(file_insertion_enabled=False, raw_enabled=False)


def _keep_text(app: Sphinx, doctree: nodes.document) -> None:
    for node in list(doctree.findall(nodes.raw)):
        if not (node.get("ours") or set(node["classes"]) >= _OUTPUT):
            _show(node, node.astext(), "HTML")
    for node in list(doctree.findall(nodes.image)):
        if not _is_inside(app, node["uri"]):
            _show(node, node["uri"], "a picture from elsewhere")
    for node in list(doctree.findall(addnodes.download_reference)):
        if not _is_inside(app, node["reftarget"]):
            _show(node, node["reftarget"], "a file from elsewhere")


def _show(node: nodes.Element, text: str, what: str) -> None:
    _LOG.warning("%s is not shown, but written out: %r", what, text[:80], location=node)
    inline = isinstance(node.parent, nodes.TextElement)
    node.replace_self(nodes.literal(text, text) if inline else nodes.literal_block(text, text))


def _is_inside(app: Sphinx, uri: str) -> bool:
    """Whether a path leads to a file of the sources, or of what myst-nb wrote out of the notebooks."""
    if "://" in uri or uri.startswith(("//", "data:", "\\")):
        return False
    path = Path(app.env.relfn2path(uri)[1]).resolve()
    outputs = Path(app.outdir).parent / "jupyter_execute"
    return path.is_relative_to(Path(app.srcdir).resolve()) or path.is_relative_to(outputs.resolve())


def _add_policy(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    scripts = " ".join(["'self'", *(f"'{_digest(script)}'" for script in _theme_scripts())])
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'"
    )
    context["metatags"] = f'<meta http-equiv="Content-Security-Policy" content="{policy}">{context.get("metatags", "")}'


def _theme_scripts() -> list[str]:
    """The scripts that the theme writes into its pages."""
    template = (Path(furo.__file__).parent / "theme" / "furo" / "base.html").read_text(encoding="utf-8")
    return re.findall(r"<script>(.*?)</script>", template, flags=re.DOTALL)


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
