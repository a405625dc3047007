"""The three tiers of the suite: ``--tier quick``, ``full`` (with quick), ``long`` (alone) and ``all``.

A test is in the tier that its nearest marker names. ``full`` and ``long`` give the reason; a test without one is quick,
or full where it is on real data (tests/needs.py):

    @pytest.mark.full("starts a real vLLM engine")
    @pytest.mark.long("every layout on one, two and three processes")
"""

from __future__ import annotations

import pytest

TIERS = ("quick", "full", "long")
CHOICES = {"quick": TIERS[:1], "full": TIERS[:2], "long": TIERS[2:], "all": TIERS}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tier", choices=CHOICES, default="all", help="quick, full (with quick), long (alone) or all (default)"
    )


def tier_of(item: pytest.Item) -> str:
    """The tier of a collected test.

    Raises:
        pytest.UsageError: the marker gives no reason.
    """
    nodes = reversed(item.listchain())
    for marker in (marker for node in nodes for marker in reversed(node.own_markers)):  # that of a parameter first
        if marker.name in TIERS[1:]:
            if len(marker.args) != 1 or not isinstance(marker.args[0], str) or not marker.args[0].strip():
                raise pytest.UsageError(f"{item.nodeid}: {marker.name} needs one reason, a string.")
            return marker.name
    return "full" if item.get_closest_marker("real_data") else "quick"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the tiers that were asked for."""
    wanted = CHOICES[config.getoption("--tier")]
    kept, left = [], []
    for item in items:
        (kept if tier_of(item) in wanted else left).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept
