"""Draws, tokens and FLOPs of GPG with beta_th = 0.6, counted on the committed tiny trainings, against DAPO's sampling.

GPG's are the records' own counts. No DAPO with its dynamic sampling was trained: its draws follow in closed form from
the share of groups with a signal that the same training's first draws had, with draws of the batch (×1) and of three
batches (×3, its recipe in verl), at the same tokens per completion. Ends in one JSON line; `--out` writes it to a file,
`--table` prints the committed one as docs/audit.md has it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from datetime import date
from pathlib import Path

from eval_harness.records import steps_frame
from gpg_repro.audit.fourth import GENERATE, SCORE, UPDATE, expected_draws
from gpg_repro.tables.runs import REFERENCE

RESULT = Path(__file__).parent / "results" / "dapo_cost.json"
RECIPE = "table1_gpg_age_th"
OVER = (1, 3)
COLUMNS = {
    "seed": "{}",
    "share_valid": "{:.3f}",
    "draws": "{:.2f}",
    "draws_dapo_1": "{:.2f}",
    "data_1": "{:.2f}",
    "flops_1": "{:.2f}",
    "draws_dapo_3": "{:.2f}",
    "data_3": "{:.2f}",
    "flops_3": "{:.2f}",
}


def count(folder: Path) -> dict[str, float]:
    """One training: its draws and tokens per step, and DAPO's at its share of groups with a signal."""
    steps = steps_frame(folder)
    num_groups = int(steps["num_groups"].iloc[0])
    share = float(steps["num_valid_groups"].sum() / steps["num_groups"].sum())
    generated, trained = (float(steps[f"tokens/{name}"].mean()) for name in ("generated", "trained"))
    draws = float(steps["num_draws"].mean())
    per_draw = generated / draws
    found = {"share_valid": share, "groups": num_groups, "draws": draws, "generated": generated, "trained": trained}
    for k in OVER:
        other = expected_draws(share, k * num_groups, num_groups)
        flops = GENERATE * per_draw * other * k + (SCORE + UPDATE) * per_draw
        found |= {
            f"draws_dapo_{k}": other,
            f"data_{k}": draws / (other * k),
            f"flops_{k}": (GENERATE * generated + UPDATE * trained) / flops,
        }
    return {name: round(value, 6) for name, value in found.items()}


def table(result: dict) -> str:
    """The committed counts as Markdown."""
    lines = [
        "| seed | groups with a signal | draws, GPG | draws, DAPO ×1 | data | FLOPs | draws, DAPO ×3 | data | FLOPs |",
        "| --- |" + " --- |" * (len(COLUMNS) - 1),
    ]
    for line in result["trainings"]:
        lines.append("| " + " | ".join(form.format(line[name]) for name, form in COLUMNS.items()) + " |")
    return "\n".join(lines)


def main() -> None:
    """Count and print, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the committed result as Markdown")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(RESULT.read_text(encoding="utf-8"))))
        return
    folders = sorted((REFERENCE / "tiny" / RECIPE).glob("seed*/training"))
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    result = {
        "bench": "dapo_cost",
        "recipe": RECIPE,
        "trainings": [{"seed": int(folder.parent.name.removeprefix("seed")), **count(folder)} for folder in folders],
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "command": "python bench/dapo_cost.py --out bench/results/dapo_cost.json",
        "device": "none: counts of committed records",
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
