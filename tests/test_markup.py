"""Text of others in Markdown, CSV, plots, file names and terminals: it stays the text it is."""

from __future__ import annotations

import csv
import io
import os
import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from hostile_records import ALL, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.myst_role import myst_role_plugin

from eval_harness.markup import (
    csv_cell,
    csv_table,
    markdown_code,
    markdown_rows,
    markdown_table,
    markdown_text,
    one_line,
    plot_text,
    safe_name,
    shown,
    shown_streams,
    visible,
)

PLAIN = {"text", "code_inline"}
"""Tokens inside of a line that say nothing but themselves."""


def tokens(text: str) -> tuple[list[str], list[str]]:
    """Kinds of the blocks of a Markdown text as MyST reads it, and the inline texts with the kinds of their parts."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"]).use(dollarmath_plugin).use(myst_role_plugin)
    blocks, inside = [], []
    for token in parser.parse(text):
        if token.type != "inline":
            blocks.append(token.type)
            continue
        kinds = {child.type for child in token.children}
        assert kinds <= PLAIN, (kinds - PLAIN, text)
        inside.append("".join(child.content for child in token.children))
    return blocks, inside


PARAGRAPH = ["paragraph_open", "paragraph_close"]
ITEM = ["bullet_list_open", "list_item_open", *PARAGRAPH, "list_item_close", "bullet_list_close"]


def seen(text: str) -> set[str]:
    """How a text may show: in one line, its bars perhaps as their twins."""
    line = one_line(text)
    return {line, line.replace("|", "∣")}


def stays_text(text: str) -> None:
    line = markdown_text(text)
    if one_line(text):
        for form, wanted in (("%s", PARAGRAPH), ("- %s", ITEM), ("name: %s.", PARAGRAPH)):
            blocks, inside = tokens(form.replace("%s", line))
            assert blocks == wanted, (text, blocks)
            assert inside[0] in {form.removeprefix("- ").replace("%s", one) for one in seen(text)}, (text, inside)
    blocks, inside = tokens(markdown_table(pd.DataFrame({"x": [text, "end"]}, index=pd.Index(["a", text], name=text))))
    assert (blocks.count("tr_open"), blocks.count("td_open"), blocks.count("th_open")) == (3, 4, 2), text
    assert {*inside[:1], inside[3], inside[4]} <= seen(text), (text, inside)


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_text_stays_text_in_markdown(name):
    stays_text(TEXTS[name])
    stays_text(f"harmless {TEXTS[name]}")


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="`*_[]()<>!|\\$~{}#+-=:&;@./'\" \n\tab1x", max_size=24))
def test_drawn_text_stays_text_in_markdown(text):
    stays_text(text)


@pytest.mark.parametrize(
    "text",
    ["48.4 [44.1, 52.7]", "< 0.0001", "+1.0", "-0.5", "GPG (7B)", "eval-table3_gpg_rs1-tiny", "3 × 500", "–",
     "avg@32 43.3", "p = 0.05", "+ GPG", "Qwen2.5-Math-7B (no template) *"],
)  # fmt: skip
def test_what_tables_hold_is_left_as_it_is(text):
    assert markdown_text(text, in_table=True) == text


def test_code_spans_by_hand():
    assert markdown_code("a``b") == "```a``b```"  # the longest run is two
    assert markdown_code("`") == "`` ` ``"
    assert markdown_code("a|b\nc") == "`a∣b c`"
    assert markdown_code(" \n") == ""
    assert markdown_rows([["a", "b"], ["<i>", "x|y"]]) == "| a | b |\n| --- | --- |\n| `<i>` | `x∣y` |"


def test_what_cannot_be_seen_is_named():
    assert visible("a\0\u202eb\r\nc") == "a⟨U+0000⟩⟨U+202E⟩b\nc"
    assert one_line(" a \r\n\tb\u2028") == "a b⟨U+2028⟩"


# --- CSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", " =1", "＝1", "\n=1"]
)
def test_no_cell_is_a_formula(text):
    text_of_cell = text.replace("\r", "\n")  # readers would end the line at it
    assert csv_cell(text) == f"'{text_of_cell}"
    frame = pd.DataFrame({text: [text, "x"], "n": [-0.5, 1]})
    rows = list(csv.reader(io.StringIO(csv_table(frame))))
    assert rows[0][0] == f"'{text_of_cell}" and rows[1:] == [[f"'{text_of_cell}", "-0.5"], ["x", "1.0"]]


def test_a_carriage_return_begins_no_line():
    rows = list(csv.reader(io.StringIO(csv_table(pd.DataFrame({"a": ["x\r=1+1,2", "y\r\n=2"]})))))
    assert rows == [["a"], ["x\n=1+1,2"], ["y\n=2"]]


@pytest.mark.parametrize("value", ["-0.5", "+1.0", "-1e-3", "0", "a=b", "–", "", -0.5, None, True])
def test_numbers_and_plain_texts_stay(value):
    assert csv_cell(value) is value


# --- Plots -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["$x^{$", "a $\\frac$ b", "\\$5 and \\$6", "$", "$$"])
def test_no_text_is_a_formula_in_a_plot(text):
    figure = plt.figure()
    drawn = figure.suptitle(plot_text(text))
    figure.canvas.draw()  # raises where matplotlib reads a formula that is none
    told, is_math = drawn._preprocess_math(drawn.get_text())
    assert not is_math and told == text.replace("\\$", "$")
    plt.close(figure)


# --- File names ------------------------------------------------------------------------------------------------------

NAMES = {
    "up": "../../x", "absolute": "/etc/passwd", "nul": "a\0b", "newline": "a\nb", "long": "x" * 300, "dots": "..",
    "empty": "", "reserved": "con", "reserved with an ending": "nul.txt", "hidden": ".bashrc", "windows": "a\\..\\b:c",
    "other case": "Run", "another case": "RUN", "end": "name.", "surrogate": "\ud800", "all": ALL, "tilde": "run~0000",
    "option": "-rf", "separators": "a/b",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_from_a_record_is_one_harmless_part_of_a_path(name, tmp_path):
    made = safe_name(NAMES[name])
    assert made != NAMES[name] and len(made) <= 80 and made.isascii() and made.isprintable()
    assert os.path.basename(made) == made and not made.startswith((".", "-")) and not made.endswith(".")
    assert made.split(".")[0].split("~")[0].lower() not in ("con", "nul", "aux", "prn") or "~" in made.split(".")[0]
    (tmp_path / f"{made}.html").write_text("x")
    assert (tmp_path / f"{made}.html").resolve().parent == tmp_path.resolve()


def test_no_two_names_are_one_not_even_where_case_is_not_told():
    texts = [*NAMES.values(), "run", "x" * 301, "a-b", "a_b", "a..b", safe_name("Run"), safe_name("a/b")]
    assert len({safe_name(text).lower() for text in texts}) == len(texts)


def test_plain_names_stay_and_others_can_be_read():
    assert safe_name("eval-tiny_base-1a2b3c") == "eval-tiny_base-1a2b3c"
    assert safe_name("Qwen/Qwen2.5-Math") == "Qwen-Qwen2.5-Math~eeb987c02e"  # printf Qwen/Qwen2.5-Math | sha256sum


# --- Terminals -------------------------------------------------------------------------------------------------------


def test_a_terminal_is_shown_control_characters():
    assert shown("a\x1b[31mb\x9b\x07\u202e\0\r\n\tc é 数") == "a\\x1b[31mb\\x9b\\x07\\u202e\\x00\\r\n\tc é 数"


def test_what_commands_print_goes_through_it(capsys):
    before = sys.stdout, sys.stderr
    with shown_streams():
        print("out \x1b[2J")
        print("error: \x1b]0;x\x07 \r over", file=sys.stderr)
        sys.stderr.write("\r 50% of \x1b[31m")  # as tqdm redraws its line
        sys.stderr.write("\n\x1b[A")
        sys.stdout.write("\rhidden")
        sys.stdout.writelines(["\x1b", "x\n"])
        assert sys.stdout.isatty() is before[0].isatty()
    assert (sys.stdout, sys.stderr) == before
    out, err = capsys.readouterr()
    assert out == "out \\x1b[2J\n\\rhidden\\x1bx\n"
    assert err == "error: \\x1b]0;x\\x07 \\r over\n\r 50% of \\x1b[31m\n\x1b[A"
