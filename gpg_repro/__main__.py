"""``python -m gpg_repro recipes | train RECIPE [key=value ...]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eval_harness.errors import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpg_repro", description="Train with GPG.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("recipes", help="list recipes, the table row each serves, whether it has been run")
    train = commands.add_parser("train", help="train a recipe; a killed run resumes with the same command")
    train.add_argument("recipe", help="name from `recipes`, or path of a YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. scale=smoke seed=1 max_steps=20")
    train.add_argument("--root", type=Path, help="where run folders live (default results/runs)")
    train.add_argument("--data-root", type=Path, help="local copies of the data sets instead of the hub")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; 2 means that the user can mend what went wrong."""
    args = _parser().parse_args(argv)
    try:
        return _recipes() if args.command == "recipes" else _train(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint.", file=sys.stderr)
        return 130


def _recipes() -> int:
    from gpg_repro.recipe import SCALES, load_recipe, recipe_names

    for name in recipe_names():
        shown = []
        for scale in SCALES:
            try:
                recipe = load_recipe(name, scale=scale)
            except UserError:
                continue
            shown.append(scale)
        print(
            f"{name:24} {recipe.method:5} fidelity {recipe.fidelity:6} {recipe.serves}\n"
            f"{'':24} {recipe.title}\n{'':24} scales: {', '.join(shown)}; status: {recipe.status}"
        )
    return 0


def _train(args: argparse.Namespace) -> int:
    from gpg_repro.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    from gpg_repro.train import train  # after the recipe is known to be sound: this import takes seconds

    print(f"run: {train(recipe, root=args.root, data_root=args.data_root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
