"""Two runs side by side, one problem at a time: what each wrote, what was read from it, both marks and why.

    both = side_by_side(run_a, run_b)          what the records of two evaluations have in common
    both.pair("aime24", "3")                   one item
    cells(both.pairs)                          how often both, one or neither is right
    viewer(run_a, run_b)                       the same to click through, in a notebook
    write_page(both, path)                     the same as a page that needs nothing beside it

Completions are text that nobody has checked: they are shown as text, never as markup, and characters that would not be
seen are named.
"""

from eval_harness.markup import visible
from gpg_repro.viewer.collect import Pair, RuleMark, Side, SideBySide, cells, find_evaluation, marks_of, side_by_side
from gpg_repro.viewer.page import Limits, Page, build_page, pair_html, write_page
from gpg_repro.viewer.text import clip
from gpg_repro.viewer.widget import viewer

__all__ = [
    "Limits",
    "Page",
    "Pair",
    "RuleMark",
    "Side",
    "SideBySide",
    "build_page",
    "cells",
    "clip",
    "find_evaluation",
    "marks_of",
    "pair_html",
    "side_by_side",
    "viewer",
    "visible",
    "write_page",
]
