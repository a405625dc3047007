"""One style for all pictures: colours that stay apart for colour-blind readers, the same bytes for the same figure."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from eval_harness import style

matplotlib.use("agg")
ROOT = Path(__file__).resolve().parent.parent

# Machado, Oliveira and Fernandes 2009, severity 1.0, applied to linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TOGETHER = [
    (style.GPG_BLUE, style.GRPO_GRAY, style.BASE_BLACK, style.SFT_GOLD, style.GPG_LIGHT),
    (style.EASY_GREEN, style.HARD_RED, style.GPG_BLUE),
]
"""Colours that meet in one picture."""


def lab(color: str, sight: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as somebody with this sight sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(sight @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = to_xyz @ seen / np.array([0.95047, 1.0, 1.08883])
    f = [v ** (1 / 3) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_stay_apart(sight):
    """A difference of 15 is plain to see; red and green of equal lightness would be near 0 for two of the four."""
    for colors in TOGETHER:
        for one, other in itertools.combinations(colors, 2):
            distance = float(np.linalg.norm(lab(one, SIGHT[sight]) - lab(other, SIGHT[sight])))
            assert distance > 15, (sight, one, other, distance)


def test_figures_are_written_twice_and_the_same_each_time(tmp_path):
    import matplotlib.pyplot as plt

    style.use_style()
    written = []
    for name in ("a", "b"):
        figure, axis = plt.subplots()
        axis.plot([0, 1], [0, 1], "o-", color=style.GPG_BLUE)
        axis.set_title("searchable text")
        written.append(style.save_figure(figure, tmp_path / "made" / f"{name}.1"))
        plt.close(figure)
    assert [path.name for path in written[0]] == ["a.1.png", "a.1.svg"]
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert "searchable text" in written[0][1].read_text(encoding="utf-8")


def test_a_saved_figure_is_laid_out_once(tmp_path):
    """The SVG, and what is shown later, keep the layout of the PNG."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(layout="constrained")
    axis.set_ylabel("a label\nof\nseveral\nlines")
    before = axis.get_position().bounds
    style.save_figure(figure, tmp_path / "a")
    laid_out = axis.get_position().bounds
    axis.set_ylabel("")
    figure.draw_without_rendering()
    assert laid_out != before and axis.get_position().bounds == laid_out
    plt.close(figure)


def test_no_module_has_a_style_of_its_own():
    """Themes are set, and figures of results written, in one place."""
    for path in [p for folder in ("gpg_repro", "eval_harness", "bench") for p in (ROOT / folder).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if path != ROOT / "eval_harness" / "style.py":
            assert not re.search(r"set_theme\(|plt\.style\.use|rcParams\[(?!\"backend\")", text), path
