"""``python -m gpg_repro recipes [NAME [key=value ...]] | train RECIPE [key=value ...]``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from eval_harness.errors import UserError

_SIGPIPE = 141
"""What a shell reports for a command whose reader went away."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpg_repro", description="Train with GPG.")
    commands = parser.add_subparsers(dest="command", required=True)
    recipes = commands.add_parser(
        "recipes", help="list recipes, the table row each serves, whether and where it has been run; or print one"
    )
    recipes.add_argument("recipe", nargs="?", help="print this one with nothing left to default")
    recipes.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. scale=paper num_generations=4")
    train = commands.add_parser("train", help="train a recipe; a killed run resumes with the same command")
    train.add_argument("recipe", help="name from `recipes`, or path of a YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. scale=smoke seed=1 max_steps=20")
    train.add_argument("--root", type=Path, help="where run folders live (default results/runs)")
    train.add_argument("--data-root", type=Path, help="local copies of the data sets instead of the hub")
    train.add_argument("--image-root", type=Path, help="folder with their image folders (default: the data root)")
    train.add_argument(
        "--log-to",
        metavar="tensorboard|trackio|wandb|none",
        help="also log there (default: TensorBoard in the run's folder, where installed)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; 2 means that the user can mend what went wrong."""
    args = _parser().parse_args(argv)
    try:
        status = _recipes(args) if args.command == "recipes" else _train(args)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains while it ends
        return _SIGPIPE


def _recipes(args: argparse.Namespace) -> int:
    import yaml

    from gpg_repro.recipe import load_recipe, recipe_names, recipe_scales

    if args.recipe is not None:
        recipe = load_recipe(args.recipe, args.overrides)
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120), end="")
        return 0
    from gpg_repro.history import History

    history = History.read()
    for name in recipe_names():
        by_scale = {scale: load_recipe(name, scale=scale) for scale in recipe_scales(name)}
        recipe = next(iter(by_scale.values()))
        print(f"{name}\n  {recipe.title}\n  serves {recipe.serves}; method {recipe.method}, fidelity {recipe.fidelity}")
        for scale, one in by_scale.items():
            print(f"  {scale + ':':6} {history.of(one)}")
    for problem in history.unreadable:
        print(f"warning: {problem}", file=sys.stderr)
    return 0


def _train(args: argparse.Namespace) -> int:
    from gpg_repro.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    from gpg_repro.train import train  # after the recipe is known to be sound: this import takes seconds

    run = train(recipe, root=args.root, data_root=args.data_root, image_root=args.image_root, log_to=args.log_to)
    if os.environ.get("RANK", "0") == "0":
        print(f"run: {run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
