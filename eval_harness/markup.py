"""Text of others put into other languages: Markdown, CSV, plots, file names, terminals. It stays text in each.

One function per language. HTML is written by the templates of :mod:`gpg_repro.html`, which escape by themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# --- What can be seen ------------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"[^ -~\n\t]")
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories that are named: control, format (bidirectional overrides, zero width), surrogate, private, unassigned,
line and paragraph separators."""
_JOINERS = "\u200c\u200d"
"""Format characters that words of some scripts and emoji cannot do without."""


def visible(text: str) -> str:
    """Text in which every character can be seen and written as UTF-8.

    What is a control character, turns the direction of writing, has no width or is no character is named: NUL is
    ``⟨U+0000⟩``. New lines and tabs stay; ``\\r\\n`` is a new line.
    """
    return _PLAIN.sub(lambda found: _seen(found.group()), text.replace("\r\n", "\n"))


def _seen(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩" if _is_unseen(character) else character


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN and character not in _JOINERS


def one_line(text: str) -> str:
    """The same in one line: white space of any kind and length is one space, at the ends none."""
    return " ".join(visible(text).split())


# --- Markdown --------------------------------------------------------------------------------------------------------

_INLINE = re.compile(
    r"[`|$\\~{}]"
    r"|(?<!\s)\*|\*(?![\s)]|$)"  # behind a space it ends no emphasis, before a space it begins none
    r"|<(?![ =\d])"  # tag, comment, autolink
    r"|&#?\w+;"
    r"|(?<![^\W_])_|_(?![^\W_])"  # beside no letter or digit it may be emphasis
    r"|\]\s*[(\[:]|!\[|\[\^"  # link, reference, image, footnote
    r"|://|www\.|mailto:|@[\w-]+\."  # GitHub links these wherever they stand
)
_BLOCK = re.compile(r"[#>=:%]|[-+](?![\d.])|\d+[.)](?!\S)|\[.?\](?!\S)|\(.*\)=")
"""What is more than a paragraph where it begins a line."""
_BACKTICKS = re.compile("`+")


def markdown_text(text: Any, in_table: bool = False) -> str:
    """A text in a line, a list or a table cell of Markdown (CommonMark, GitHub's or MyST): as it is where nothing in it
    could be markup, else as :func:`markdown_code`."""
    line = one_line(str(text))
    could_be = _INLINE.search(line) or (not in_table and _BLOCK.match(line))
    return markdown_code(line) if could_be else line


def markdown_code(text: str) -> str:
    """A code span whose fence is longer than any run of backticks in the text; newlines are spaces, and ``|``, which
    parsers of tables do not agree on, is the letter ``∣``. Empty where the text is."""
    line = one_line(text).replace("|", "∣")
    if not line:
        return ""
    fence = "`" * (1 + max(map(len, _BACKTICKS.findall(line)), default=0))
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def markdown_table(frame: pd.DataFrame) -> str:
    """A frame as a table; cells, labels and headings that are texts go through :func:`markdown_text`."""
    safe = frame.map(_markdown_cell)
    safe.columns = [_markdown_cell(name) for name in frame.columns]
    if not all(isinstance(label, int | float) for label in frame.index):
        safe.index = [markdown_text(label, in_table=True) for label in frame.index]
    safe.index.name = None if frame.index.name is None else markdown_text(frame.index.name, in_table=True)
    return safe.to_markdown(disable_numparse=True)


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, the heading first."""
    lines = [[markdown_text(cell, in_table=True) for cell in row] for row in rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_cell(value: Any) -> Any:
    return markdown_text(value, in_table=True) if isinstance(value, str | tuple) else value


# --- CSV -------------------------------------------------------------------------------------------------------------

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\n]")
"""What a spreadsheet takes a cell for a formula by, OWASP's list with the wide forms."""


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet computes: a text that begins like a formula has ``'`` before it. Numbers stay, also
    those written as text (``-0.5``). A carriage return, which writers of CSV leave unquoted, is a newline."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
    if not _FORMULA.match(value):
        return value
    with contextlib.suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


def csv_table(frame: pd.DataFrame) -> str:
    """A frame as CSV, without its index; cells and headings go through :func:`csv_cell`."""
    safe = frame.map(csv_cell)
    safe.columns = [csv_cell(name) for name in frame.columns]
    return safe.to_csv(index=False)


# --- Plots -----------------------------------------------------------------------------------------------------------


def plot_text(text: str) -> str:
    """A text in a figure of matplotlib, which reads what stands between two ``$`` as a formula."""
    return visible(text).replace("\\$", "$").replace("$", "\\$")


# --- File names ------------------------------------------------------------------------------------------------------

_LONGEST_NAME = 80
_TAME_NAME = re.compile(r"[a-z0-9_][a-z0-9._-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def safe_name(text: str) -> str:
    """One part of a path, for a file that is named after a record.

    A short name of lower-case ASCII letters, digits, ``.``, ``_`` and ``-`` stays as it is. All others keep what can be
    kept, for reading, and get ``~`` and a hash of the whole: no two texts share a name, also where the file system does
    not tell upper from lower case; none is hidden, reserved, too long or leads out of its folder.
    """
    if len(text) <= _LONGEST_NAME and _TAME_NAME.fullmatch(text) and not (_RESERVED.fullmatch(text) or text[-1] == "."):
        return text
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", text[: 4 * _LONGEST_NAME]).strip("-.")[: _LONGEST_NAME - 12].rstrip("-.")
    kept = f"_{kept}" if _RESERVED.fullmatch(kept.lower()) else kept or "name"
    return f"{kept}~{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


# --- Terminals -------------------------------------------------------------------------------------------------------

_BAR = re.compile(r"(\n|\x1b\[A)+")
"""What tqdm writes alone to move between its bars."""


def shown(text: str) -> str:
    """A text as a terminal may have it: control characters, and what turns the direction of writing, as ``\\x1b``."""
    return _PLAIN.sub(lambda found: _escaped(found.group()), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii") if _is_unseen(character) else character


class _Shown:
    """A stream of text through :func:`shown`; everything else is the stream's."""

    def __init__(self, stream: Any, bars: bool):
        self._stream, self._bars = stream, bars

    def write(self, text: str) -> int:
        if self._bars and (text.startswith("\r") or _BAR.fullmatch(text)):
            head = "\r" if text.startswith("\r") else text
            self._stream.write(head + shown(text[len(head) :]))
        else:
            self._stream.write(shown(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def shown_streams() -> Iterator[None]:
    """Inside, standard output and error show control characters and do not send them: what every command prints
    through. Only standard error may be told to overwrite its line, as progress bars do."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Shown(before[0], False), _Shown(before[1], True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
