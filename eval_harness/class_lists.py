"""The lists of the four classification sets, built from what their authors publish.

    python -m eval_harness.class_lists pets37 --from DIR --out oxford_pets37_test.jsonl

DIR is the unpacked distribution. Each line is ``{"image", "label", "class_name"}``: the file's name inside the
distribution, the 0-based class and its name in the style of CoOp's lists, which the release's lists follow.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError
from eval_harness.markup import shown_streams
from eval_harness.outside import parse_json

Row = tuple[str, int, str]
"""Image, label, class name."""


def pets37(root: Path) -> Iterator[Row]:
    """Oxford-IIIT Pet: ``annotations/test.txt``; the class is the file's name without its number, in lower case."""
    for number, line in _lines(root / "annotations" / "test.txt"):
        try:
            stem, label, *_ = line.split()
            yield f"images/{stem}.jpg", int(label) - 1, stem.rpartition("_")[0].lower()
        except ValueError:
            raise _unreadable(root / "annotations" / "test.txt", number, "name, class, species and breed") from None


def fgvc_aircraft(root: Path) -> Iterator[Row]:
    """FGVC-Aircraft: ``data/images_variant_test.txt``, labels in the order of ``data/variants.txt``."""
    path = root / "data" / "images_variant_test.txt"
    labels = {name: label for label, (_, name) in enumerate(_lines(root / "data" / "variants.txt"))}
    for number, line in _lines(path):
        image, _, variant = line.partition(" ")
        if variant not in labels:
            raise _unreadable(path, number, "the number of an image and a variant named in variants.txt")
        yield f"images/{image}.jpg", labels[variant], variant


def cars196(root: Path) -> Iterator[Row]:
    """Stanford Cars: ``cars_test_annos_withlabels.mat`` and ``cars_meta.mat``, each in DIR or in ``DIR/devkit``.

    The distribution ends a name with the year (``Acura TL Sedan 2012``); the lists begin with it.
    """
    names = [str(name) for name in _mat(root, "cars_meta.mat", "class_names")]
    for annotation in _mat(root, "cars_test_annos_withlabels.mat", "annotations"):
        label = int(annotation["class"]) - 1
        if not 0 <= label < len(names):
            raise UserError(f"cars_test_annos_withlabels.mat: class {label + 1} is not in cars_meta.mat.")
        model, _, year = names[label].rpartition(" ")
        yield f"cars_test/{annotation['fname']}", label, f"{year} {model}"


def flowers102(root: Path) -> Iterator[Row]:
    """Flowers102: the part ``test`` of CoOp's ``split_zhou_OxfordFlowers.json``, with its class names."""
    path = root / "split_zhou_OxfordFlowers.json"
    try:
        rows = parse_json(_text(path))["test"]
        yield from ((f"jpg/{image}", int(label), str(name)) for image, label, name in rows)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path.name} is not CoOp's split ({type(error).__name__}: {error}); download it again."
        ) from None


BUILDERS: dict[str, Callable[[Path], Iterable[Row]]] = {
    "flowers102": flowers102,
    "pets37": pets37,
    "fgvc_aircraft": fgvc_aircraft,
    "cars196": cars196,
}


def build(name: str, root: Path) -> list[dict]:
    """The list of a set as rows ``{"image", "label", "class_name"}``, in the order of the distribution.

    Args:
        name: the benchmark's name.
        root: the unpacked distribution.

    Raises:
        UserError: a file is missing or not as published, the number of items or classes is off, or a label has two
            names.
    """
    benchmark = get_benchmark(name)
    rows = list(BUILDERS[name](Path(root)))
    names: dict[int, str] = {}
    for image, label, class_name in rows:
        if names.setdefault(label, class_name) != class_name:
            raise UserError(f"{name}: class {label} is {names[label]!r} and, at {image}, {class_name!r}.")
    counts = {"items": (len(rows), benchmark.num_items), "classes": (len(names), benchmark.num_classes)}
    for what, (found, expected) in counts.items():
        if found != expected:
            raise UserError(
                f"{name}: the distribution gives {found} {what}, expected {expected}. Is {root} the complete, unpacked "
                "distribution of the right year?"
            )
    return [{"image": image, "label": label, "class_name": class_name} for image, label, class_name in rows]


@shown_streams()
def main(argv: list[str] | None = None) -> int:
    """Build one list; 2 means that the user can mend what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m eval_harness.class_lists", description=__doc__.split("\n")[0])
    parser.add_argument("set", choices=sorted(BUILDERS))
    parser.add_argument("--from", dest="root", type=Path, required=True, metavar="DIR", help="unpacked distribution")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL to write")
    args = parser.parse_args(argv)
    try:
        rows = build(args.set, args.root)
        try:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {args.out} ({error.strerror}); give another --out.") from None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(rows)} items of {len({row['label'] for row in rows})} classes written to {args.out}")
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 (byte {error.start}); download it again.") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); --from expects the folder of the unpacked distribution."
        ) from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that say something, with their 1-based numbers; ``#`` starts a comment."""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip()


def _mat(root: Path, name: str, variable: str):
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    path = next((p for p in (root / name, root / "devkit" / name) if p.exists()), None)
    if path is None:
        raise UserError(f"{root} has no {name}, nor its folder devkit; --from expects the unpacked distribution.")
    try:
        return loadmat(path, squeeze_me=True)[variable]
    except (MatReadError, OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{name} is not as published ({type(error).__name__}: {error}); download it again.") from None


def _unreadable(path: Path, number: int, expected: str) -> UserError:
    return UserError(f"{path.name}, line {number}: expected {expected}. Download the distribution again.")


if __name__ == "__main__":
    sys.exit(main())
