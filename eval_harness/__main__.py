"""``python -m eval_harness list | run | grade | verify``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from eval_harness.errors import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval_harness", description="Evaluate models on benchmarks.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="benchmarks with item counts, data source, grader, version")

    run = commands.add_parser("run", help="evaluate a model; a killed run resumes with the same command")
    run.add_argument("--model", required=True, help="checkpoint folder or hub id")
    run.add_argument("--benchmarks", required=True, help="names, separated by commas")
    run.add_argument("--engine", default="auto", help="auto (default), vllm or transformers")
    run.add_argument("--samples", type=int, metavar="K", help="completions per item")
    run.add_argument("--seed", type=int)
    run.add_argument("--limit", type=int, metavar="N", help="only the first N items of each benchmark")
    run.add_argument("--data-root", type=Path, metavar="DIR", help="local copies of the data sets instead of the hub")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (default results/runs/...)")
    run.add_argument("--temperature", type=float, metavar="T")
    run.add_argument("--top-p", type=float, metavar="P")
    run.add_argument("--max-new-tokens", type=int, metavar="N")
    run.add_argument("--max-model-len", type=int, metavar="N")
    run.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    run.add_argument("--revision", metavar="R", help="hub revision of the model")
    run.add_argument("--system-prompt", metavar="S")
    run.add_argument("--chat-template", metavar="FILE|none")
    run.add_argument("--tensor-parallel-size", type=int, default=1, metavar="N")

    grade = commands.add_parser("grade", help="grade stored answers: JSONL of gold and prediction")
    grade.add_argument("--benchmark", required=True)
    grade.add_argument("--rule", choices=("published", "strict", "both"), default="published")
    grade.add_argument("--input", required=True, type=Path)
    grade.add_argument("--output", required=True, type=Path)

    verify = commands.add_parser("verify", help="grade a stored run again and compare")
    verify.add_argument("run", type=Path)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; 2 means that the user can mend what went wrong, 1 that a check failed or the engine died."""
    args = _parser().parse_args(argv)
    from eval_harness.engines.base import EngineError

    try:
        return {"list": _list, "run": _run, "grade": _grade, "verify": _verify}[args.command](args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except EngineError as error:
        print(f"error: {error}\nFinished records were kept; the same command resumes the run.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished records were kept, the same command resumes the run.", file=sys.stderr)
        return 130


def _list(args: argparse.Namespace) -> int:
    from eval_harness.benchmarks import all_benchmarks
    from eval_harness.graders import GRADERS

    rows = [("name", "items", "version", "grader", "data")]
    rows += [
        (b.name, str(b.num_items), str(b.version), b.grader, b.source.describe()) for b in all_benchmarks().values()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for name, line in GRADERS.items():
        print(f"{name}: {line}")
    return 0


def _run(args: argparse.Namespace) -> int:
    from eval_harness import records
    from eval_harness.runner import Overrides, evaluate

    template = args.chat_template
    if template not in (None, "none"):
        try:
            template = Path(template).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"--chat-template {template}: {error.strerror}; give a file or the word none.") from None
    overrides = Overrides(
        args.samples, args.seed, args.temperature, args.top_p, args.max_new_tokens, args.system_prompt
    )
    folder = evaluate(
        args.model,
        [name.strip() for name in args.benchmarks.split(",") if name.strip()],
        engine=args.engine,
        out=args.out,
        data_root=args.data_root,
        limit=args.limit,
        overrides=overrides,
        revision=args.revision,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        chat_template=template,
        tensor_parallel_size=args.tensor_parallel_size,
    )
    print(format_run(records.read_run(folder)))
    print(f"records: {folder}")
    return 0


def format_run(run) -> str:
    """Scores of a run as text: percent with 95 % interval, and the counts they rest on."""
    lines = [f"{run.run_id} ({run.engine['name']}, {run.engine.get('dtype')})"]
    for name, result in run.benchmarks.items():
        counts = f"asked {result.asked}, scored {result.scored}, failed {result.failed}"
        if result.score is None:
            lines.append(f"  {name:16} no score          {counts}")
            continue
        s = {k: 100 * result.score[k] for k in ("mean", "se", "low", "high")}
        strict = 100 * result.score_strict["mean"]
        notes = [f"{result.num_truncated} cut at the token limit"] if result.num_truncated else []
        notes += [f"{result.num_timeout} grading timeouts"] if result.num_timeout else []
        notes += [f"{result.num_gold_fallback} golds compared as text"] if result.num_gold_fallback else []
        lines.append(
            f"  {name:16} {s['mean']:5.1f} % ± {s['se']:.1f} [{s['low']:.1f}, {s['high']:.1f}]  strict "
            f"{strict:.1f} %  {counts}{'; ' + ', '.join(notes) if notes else ''}"
        )
    if run.average:
        lines.append(f"  {'average':16} {100 * run.average['mean']:5.1f} % ± {100 * run.average['se']:.1f}")
    return "\n".join(lines)


def _grade(args: argparse.Namespace) -> int:
    from eval_harness.benchmarks import get_benchmark
    from eval_harness.graders.pool import GradingPool
    from eval_harness.sources import read_jsonl

    grader = get_benchmark(args.benchmark).grader
    rows = read_jsonl(args.input, ("gold", "prediction"))
    for number, row in enumerate(rows, start=1):
        for key in ("gold", "prediction"):
            if not isinstance(row[key], str):
                raise UserError(f"{args.input}, row {number}: {key} must be a string, got {type(row[key]).__name__}.")
        if not row["gold"].strip():
            raise UserError(f"{args.input}, row {number}: the gold is empty; nothing can be graded against it.")
    if args.output.exists() and args.output.resolve() == args.input.resolve():
        raise UserError("--output is the input file; give another.")
    with GradingPool() as pool:
        verdicts = pool.grade(grader, [(row["gold"], row["prediction"]) for row in rows])
    lines = []
    for row, verdict in zip(rows, verdicts, strict=True):
        marks = {"correct": verdict.correct_strict if args.rule == "strict" else verdict.correct}
        if args.rule == "both":
            marks["correct_strict"] = verdict.correct_strict
        extra = {"extracted": verdict.extracted, "reason": verdict.reason, "gold_fallback": verdict.gold_fallback}
        lines.append(json.dumps(row | marks | extra, ensure_ascii=True))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    correct = sum(v.correct_strict if args.rule == "strict" else v.correct for v in verdicts)
    print(
        f"{correct} of {len(rows)} correct ({args.rule if args.rule == 'strict' else 'published'} rule), "
        f"{sum(v.reason == 'timeout' for v in verdicts)} timeouts; written to {args.output}"
    )
    return 0


def _verify(args: argparse.Namespace) -> int:
    from eval_harness.runner import verify

    report = verify(args.run)
    for name, row in report.items():
        word = "reproduced" if row["reproduced"] else "NOT reproduced"
        stored = "none" if row["stored"] is None else f"{100 * row['stored']:.2f} %"
        print(
            f"{name:16} stored {stored}, graded again {100 * row['regraded']:.2f} %, "
            f"{row['changed']} marks changed: {word}"
        )
    return 0 if all(row["reproduced"] for row in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
