"""``python -m gpg_repro view RUN_A RUN_B``."""

from __future__ import annotations

import argparse

from eval_harness.errors import UserError
from eval_harness.markup import safe_name
from gpg_repro.paths import results
from gpg_repro.viewer.collect import Pair, SideBySide, cells, side_by_side, title_of
from gpg_repro.viewer.page import Limits, counts_text, write_page


def run(args: argparse.Namespace) -> int:
    """Write the page; say where it is and how often each run is right.

    Raises:
        UserError: see :func:`gpg_repro.viewer.side_by_side`; an item that is in several benchmarks or in none.
    """
    labels = None if args.labels is None else tuple(part.strip() for part in args.labels.split(","))
    if labels is not None and (len(labels) != 2 or not all(labels)):
        raise UserError(f"--labels {args.labels}: expected two names with a comma between, for example GPG,GRPO.")
    if args.items is not None and args.items < 1:
        raise UserError(f"--items {args.items}: expected at least 1.")
    names = None if args.benchmark is None else [name.strip() for name in args.benchmark.split(",") if name.strip()]
    both = side_by_side(args.first, args.second, names, labels=labels)
    chosen = None if args.item is None else find_item(both, args.item)
    out = args.out or results() / "figures" / "view" / f"{'--'.join(map(safe_name, both.labels))}.html"
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file.")
    limits = Limits() if args.items is None else Limits(items=args.items)
    page = write_page(both, out, chosen=chosen, limits=limits, data_root=args.data_root, image_root=args.image_root)
    for _, line in cells(both.pairs).iterrows():
        print(f"{line['title']}: {counts_text(line, both.labels)}")
    for note in (*both.notes, *page.left_out):
        print(f"note: {note}")
    print(f"page: {out} ({page.num_items} items)")
    return 0


def find_item(both: SideBySide, item_id: str) -> Pair:
    """The item of this id, whatever its benchmark.

    Raises:
        UserError: no benchmark of both runs has it, or several do.
    """
    having = [pair.benchmark for pair in both.pairs if pair.item.item_id == item_id]
    if len(having) > 1:
        raise UserError(f"item {item_id} is in {', '.join(having)}; name one of them with --benchmark.")
    if not having and len(both.benchmarks) > 1:
        titles = ", ".join(map(title_of, both.benchmarks))
        raise UserError(f"no item {item_id!r} that both runs answered in {titles}.")
    return both.pair(having[0] if having else both.benchmarks[0], item_id)
