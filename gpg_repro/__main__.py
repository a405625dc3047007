"""``python -m gpg_repro COMMAND``: recipes, train, evaluate, plan, launch; audit, claims, view, report."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from eval_harness.errors import UserError, disk_told
from eval_harness.markup import shown_streams
from eval_harness.outside import check_arguments
from eval_harness.private import hide_secrets

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
    evaluate = commands.add_parser(
        "evaluate", help="measure every checkpoint of a training run; the same command resumes and adds later ones"
    )
    evaluate.add_argument("run", help="folder of the run, or its name under results/runs; it may still be training")
    evaluate.add_argument("--benchmarks", metavar="A,B", help="names (default: those of the recipe's tables)")
    evaluate.add_argument("--steps", metavar="0,50,...", help="only these; 0 is the base (default: all there are)")
    evaluate.add_argument("--engine", default="auto", help="auto (default), vllm or transformers")
    evaluate.add_argument("--samples", metavar="auto|K|NAME=K,...", help="completions per item")
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N items of each benchmark or group")
    evaluate.add_argument("--temperature", type=float, metavar="T")
    evaluate.add_argument("--max-new-tokens", type=int, metavar="N")
    evaluate.add_argument("--data-parallel-size", type=int, metavar="N", help="engines on this machine, side by side")
    evaluate.add_argument("--tensor-parallel-size", type=int, metavar="N", help="vllm: GPUs that share one model")
    evaluate.add_argument("--data-root", type=Path, help="local copies of the data sets instead of the hub")
    evaluate.add_argument("--image-root", type=Path, help="folder with their image folders (default: the data root)")
    view = commands.add_parser("view", help="two evaluations side by side, item by item, as one HTML page")
    view.add_argument("first", metavar="RUN_A", help="folder of an evaluation, or its name under results/runs")
    view.add_argument("second", metavar="RUN_B")
    view.add_argument("--benchmark", metavar="A,B", help="only these (default: all that both runs have)")
    view.add_argument("--item", metavar="ID", help="the item it opens at; with --benchmark where several have it")
    view.add_argument("--labels", metavar="A,B", help="what to call the two runs (default: their ids)")
    view.add_argument("--items", type=int, metavar="N", help="most items on the page")
    view.add_argument("--out", type=Path, metavar="FILE.html", help="default: results/figures/view/<A>--<B>.html")
    view.add_argument("--data-root", type=Path, help="local copies of the benchmarks, for images that lie in them")
    view.add_argument("--image-root", type=Path, help="folder with their image folders (default: the data root)")
    _add_sensitivity(
        commands.add_parser("sensitivity", help="one model with and without chat template and system prompts, compared")
    )
    _add_plan(commands.add_parser("plan", help="what a table or figure needs, what is done, what the rest would cost"))
    claims = commands.add_parser("claims", help="each claim of the paper beside its evidence; trains nothing")
    claims.add_argument("--scale", default="tiny", help="smoke, tiny (default) or paper: folder, and what figures show")
    claims.add_argument("--no-inspections", action="store_true", help="leave out what takes longest: asking trainers")
    _add_report(commands.add_parser("report", help="build the static site of all tables, figures, records and docs"))
    _add_launch(commands.add_parser("launch", help="train on many GPUs: print or run a strategy's accelerate command"))
    audit = commands.add_parser("audit", help="check the paper's printed numbers against each other; writes a report")
    audit.add_argument("--out", type=Path, metavar="DIR", help="folder for tables/ and figures/ (default: results)")
    return parser


def _add_sensitivity(parser: argparse.ArgumentParser) -> None:
    from gpg_repro.prompts import TRAINED_WITH

    parser.add_argument(
        "--model", required=True, help="checkpoint folder or hub id; the registry has settings for some"
    )
    parser.add_argument("--benchmarks", required=True, help="names, separated by commas")
    parser.add_argument(
        "--system",
        default="",
        metavar="A,B",
        help=f"only these system prompts: {', '.join(TRAINED_WITH)} (default: all)",
    )
    parser.add_argument("--engine", default="auto", help="auto (default), vllm, transformers or openai")
    parser.add_argument("--base-url", metavar="URL", help="openai: where the server answers")
    parser.add_argument("--samples", metavar="auto|K|NAME=K,...", help="completions per item")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each benchmark or group")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument("--max-new-tokens", type=int, metavar="N")
    parser.add_argument("--max-model-len", type=int, metavar="N")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="local copies of the data sets, not the hub")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the runs (default results/runs/sensitivity-…)"
    )


def _add_launch(parser: argparse.ArgumentParser) -> None:
    from gpg_repro import launch

    launch.add_arguments(parser)


def _add_report(report: argparse.ArgumentParser) -> None:
    report.add_argument("--scale", default="tiny", help="smoke, tiny (default) or paper")
    report.add_argument("--out", type=Path, help="folder of the site (default build/report)")
    report.add_argument(
        "--seeds", type=int, default=0, metavar="N", help="0 (default): committed records; N: train N here"
    )
    report.add_argument("--only", metavar="NAME,...", help="only these notebooks, e.g. table_03,figure_2")
    report.add_argument("--jobs", type=int, default=2, metavar="N", help="notebooks at a time (default 2)")


def _add_plan(plan: argparse.ArgumentParser) -> None:
    from gpg_repro import costs

    plan.add_argument("name", metavar="TABLE", help="table4, 04, 4, figure2, kl, control")
    plan.add_argument("--scale", default="paper", help="smoke, tiny or paper (default)")
    plan.add_argument("--gpu", default=costs.DEFAULT_GPU, help=f"{', '.join(costs.GPUS)} (default {costs.DEFAULT_GPU})")
    plan.add_argument("--samples", default="auto", metavar="auto|K|NAME=K,...", help="completions per item")
    plan.add_argument("--seeds", type=int, default=1, metavar="N", help="training seeds (default 1)")
    plan.add_argument("--tokens-per-second", type=float, metavar="N", help="decoding rate of one GPU, if you know it")
    plan.add_argument("--completion-tokens", default="", metavar="N|NAME=N,...", help="mean completion, if you know it")
    plan.add_argument("--generation", default="transformers", help="how trainings sample: transformers or vllm")
    plan.add_argument("--strategy", default="zero2", help=f"whose checkpoints count: {', '.join(costs.STRATEGIES)}")
    plan.add_argument("--assume", action="append", default=[], metavar="NAME=LOW-HIGH", help="assume this instead")
    plan.add_argument("--data-root", type=Path, help="local copies of the data sets, whose prompts are then counted")
    plan.add_argument("--json", action="store_true", help="print JSON instead")


@shown_streams()
def main(argv: list[str] | None = None) -> int:
    """Run a command; 2 means that the user can mend what went wrong."""
    args = _parser().parse_args(argv)
    try:
        commands = {
            "recipes": _recipes,
            "train": _train,
            "evaluate": _evaluate,
            "plan": _plan,
            "launch": _launch,
            "audit": _audit,
            "claims": _claims,
            "view": _view,
            "report": _report,
            "sensitivity": _sensitivity,
        }
        check_arguments(vars(args))
        with disk_told(Path.cwd(), verb="read or write"):
            status = commands[args.command](args)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {hide_secrets(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from what was kept.", file=sys.stderr)
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


def _evaluate(args: argparse.Namespace) -> int:
    from eval_harness.engines.base import EngineError
    from eval_harness.runner import Overrides, parse_samples
    from gpg_repro.evaluate import evaluate_run, report

    try:
        steps = None if args.steps is None else [int(step) for step in args.steps.split(",") if step.strip()]
    except ValueError:
        raise UserError(f"--steps {args.steps}: expected numbers separated by commas, for example 0,50,100.") from None
    options = {
        "data_parallel_size": args.data_parallel_size,
        "tensor_parallel_size": args.tensor_parallel_size,
    }
    try:
        curve = evaluate_run(
            args.run,
            None if args.benchmarks is None else [name.strip() for name in args.benchmarks.split(",") if name.strip()],
            steps=steps,
            engine=args.engine,
            overrides=Overrides(
                samples=None if args.samples is None else parse_samples(args.samples),
                temperature=args.temperature,
                max_new_tokens=args.max_new_tokens,
            ),
            limit=args.limit,
            data_root=args.data_root,
            image_root=args.image_root,
            **{name: value for name, value in options.items() if value is not None},
        )
    except EngineError as error:
        print(f"error: {error}\nFinished records were kept; the same command resumes.", file=sys.stderr)
        return 1
    text, paths = report(curve)
    print(text)
    print("\n" + "\n".join(f"{suffix}: {path}" for suffix, path in paths.items()))
    return 0


def _claims(args: argparse.Namespace) -> int:
    import matplotlib

    matplotlib.use("agg")
    from gpg_repro.claims import build_claims
    from gpg_repro.paths import results

    report = build_claims(args.scale, inspections=False if args.no_inspections else None)
    for figure in (report.figure, report.base_figure, report.columns_figure):
        figure()
    print(report.counts().to_string())
    print(f"\n{report.summary()}\n\n{results() / 'tables' / args.scale / 'claims.md'}")
    return 0


def _view(args: argparse.Namespace) -> int:
    from gpg_repro.viewer import command

    return command.run(args)


def _plan(args: argparse.Namespace) -> int:
    from gpg_repro import plan_text

    print(plan_text.run(args))
    return 0


def _audit(args: argparse.Namespace) -> int:
    from gpg_repro.audit import report

    print(report.run(args.out))
    return 0


def _report(args: argparse.Namespace) -> int:
    from gpg_repro.site import build_site

    only = None if args.only is None else [name.strip() for name in args.only.split(",") if name.strip()]
    site = build_site(args.out, scale=args.scale, seeds=args.seeds, only=only, jobs=args.jobs)
    for line in site.warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"report: {len(site.notebooks)} notebooks, {site.seconds:.0f} s: {site.out / 'index.html'}")
    for entry in site.failed:
        print(f"error: {entry.name} failed: {entry.message}", file=sys.stderr)
    return 1 if site.failed else 0


def _sensitivity(args: argparse.Namespace) -> int:
    from gpg_repro import controls

    return controls.main(args)


def _launch(args: argparse.Namespace) -> int:
    from gpg_repro import launch

    return launch.main(args)


if __name__ == "__main__":
    sys.exit(main())
