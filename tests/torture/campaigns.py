"""What is killed and how it is compared: an evaluation, a training, a notebook."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.models import check_model
from eval_harness.records import Item, Sample, TrainingRecord

TIME_OF_RUN = ("created", "finished", "timings")
"""Fields of run.json that depend on time; ``provenance.sessions`` has an entry for each start besides."""
TIME_OF_STEP = ("step_time", "time/", "peak_memory_mib")
"""Metrics of a step that do, by the start of their name."""
TIME_COLUMN = "seconds per run"
"""The column of a table that does."""
_UNCOMPARED = re.compile(r"(^|/)(\.lock|engine\.log|tensorboard/.*)$")
"""One log for each start, and TensorBoard's files: views of what steps.jsonl holds, one for each start."""


@dataclass(frozen=True)
class Campaign:
    """A command, where it writes, and how many kills a run of it takes."""

    name: str
    module: str
    arguments: Callable[[Path, str], list[str]]
    """(root of the run, folder of the model) -> arguments."""
    short: dict[str, str]
    """Arguments that are replaced in the short form."""
    kills_per_round: int
    """After so many a run is left to finish; the next one starts from nothing."""
    environment: Callable[[Path], dict[str, str]] = lambda root: {}
    warm: bool = False
    phases: tuple[tuple[str, str], ...] = ()
    """(pattern, phase): the first that is found in a stack names the phase of a kill from outside."""


_STARTING = (("_find_and_load|<frozen importlib|starting Python", "starting: imports"),)
_EVALUATING = (
    ("append_lines|replace_lines|write_json", "writing records"),
    (r"engines/process\.py.* in (__init__|_receive)[\s\S]*_start_engine", "starting the engine"),
    (r"in grade|graders/", "grading"),
    (r"in write\b", "waiting for grades"),
    (r"in (_receive|generate)\b[\s\S]*_generate\b", "generating"),
    ("in close", "ending the engine"),
    ("summarise|averages", "making scores"),
)
_TRAINING = (
    ("_save_whole", "saving weights to keep"),
    ("_save_checkpoint|save_pretrained|rotate|on_save", "saving a checkpoint"),
    ("_calculate_rewards|_graded", "rewards"),
    (r"in _generate|generation/utils", "sampling"),
    ("in backward|_engine_run_backward", "update: backward"),
    ("clip_grad", "update: clipping"),
    (r"optim/.* in |in step\b", "update: optimiser"),
    ("compute_loss|_logps", "update: forward"),
    ("on_log", "writing a step"),
    ("in training_step|_sample_step", "in a step"),
    ("_load_from_checkpoint|_load_optimizer|_load_rng|load_adapter|from_pretrained", "loading"),
    ("training_rows|unreadable_golds|build_trainer|mixture", "preparing"),
    ("_inner_training_loop|in train", "between steps"),
)

EVALUATION = Campaign(
    "evaluation",
    "eval_harness",
    lambda root, model: [
        *("run", "--model", model, "--engine", "transformers", "--out", str(root / "run"), "--temperature", "1"),
        *("--benchmarks", "tiny_sums,tiny_chains,tiny_products", "--samples", "3", "--max-new-tokens", "40"),
        *("--limit", "80"),
    ],
    {"80": "20"},
    10,
    phases=(*_STARTING, *_EVALUATING),
)
TRAINING = Campaign(
    "training",
    "gpg_repro",
    lambda root, model: [
        *("train", "table3_gpg_age_rs1", "scale=smoke", "max_steps=10", "save_steps=2", "--root", str(root / "runs")),
    ],
    {"max_steps=10": "max_steps=4", "save_steps=2": "save_steps=1"},
    10,
    warm=True,
    phases=(*_STARTING, *_TRAINING),
)
NOTEBOOK = Campaign(
    "notebook",
    "gpg_repro.notebooks",
    lambda root, model: [
        *("run", "notebooks/table_04.ipynb", "--parameters", "SCALE=smoke", "ENGINE=transformers", "SEEDS=1"),
    ],
    {},
    15,
    environment=lambda root: {"GPG_RESULTS": str(root / "results")},
    phases=(*_STARTING, *_TRAINING[:-1], *_EVALUATING, *_TRAINING[-1:], ("papermill|nbclient", "papermill")),
)
CAMPAIGNS = {campaign.name: campaign for campaign in (EVALUATION, TRAINING, NOTEBOOK)}


def phase_of(campaign: Campaign, told: str) -> str:
    """A kill's phase in few words, from the change it came before, or from the stack."""
    if told.startswith("before "):
        action, _, path = told.removeprefix("before ").partition(" ")
        return f"before {_ACTIONS.get(action, action)}: {kind_of(path)}"
    if told.startswith("inside "):
        return f"inside a write: {kind_of(told.removeprefix('inside '))}"
    return "at a moment: " + next((name for pattern, name in campaign.phases if re.search(pattern, told)), "other")


_ACTIONS = {
    **dict.fromkeys(("write", "open"), "a write"),
    **dict.fromkeys(("os.remove", "os.rmdir"), "a removal"),
    "os.rename": "a rename",
    "os.mkdir": "making a folder",
}
_KINDS = (
    (r"\.lock", "lock"),
    (r"run\.json", "run.json"),
    (r"(^|/)items/", "items"),
    (r"(^|/)samples/", "samples"),
    (r"steps\.jsonl", "steps.jsonl"),
    (r"trainer/checkpoint-\d+/complete$", "mark of a whole checkpoint"),
    (r"(^|/)trainer(/|$)", "checkpoint of the trainer"),
    (r"(^|/)checkpoints(/|$)", "kept weights"),
    (r"(^|/)checkpoint(\.partial|\.removed)?(/|$)", "final weights"),
    (r"tensorboard", "TensorBoard"),
    (r"engine\.log", "log"),
    (r"(^|/)tables/", "table"),
    (r"(^|/)figures/", "figure"),
    (r"(^|/)notebooks/", "executed notebook"),
)


def kind_of(path: str) -> str:
    """What a file is to a run."""
    return next((name for pattern, name in _KINDS if re.search(pattern, path)), "folder of the run")


# --- After every kill ------------------------------------------------------------------------------------------------


@dataclass
class Snapshot:
    """What was whole on the disk after a kill and must be there after the next start."""

    lines: dict[str, dict[Any, bytes]] = field(default_factory=dict)
    """File -> key -> line. Of samples, those of items that have all of theirs; of steps, those a checkpoint covers."""

    @property
    def num_bytes(self) -> int:
        """Size of it."""
        return sum(len(line) for of_file in self.lines.values() for line in of_file.values())


def inspect(root: Path, before: Snapshot) -> tuple[Snapshot, list[str], int]:
    """Look at what a kill left.

    Returns:
        What is whole now; violations; bytes that were whole before and are not there any more.
    """
    now, problems = Snapshot(), []
    for path in sorted(root.glob("**/run.json")):
        try:
            run = records.read_run(path.parent)
        except UserError as error:
            problems.append(str(error))
            continue
        kept, found = _samples(root, path.parent) if run.kind == "evaluation" else _steps(root, path.parent, run)
        now.lines |= kept
        problems += found
        if run.kind == "training" and run.status == "finished":
            problems += _unreadable(path.parent / "checkpoint")
            continue  # what is left of its trainer's folder is on its way out
        saves = [save.parent for save in path.parent.glob("trainer/checkpoint-*/complete") if not save.parent.suffix]
        problems += _unreadable(max(saves, key=_step)) if saves else []
    for save in root.glob("**/checkpoints/checkpoint-*"):
        problems += [] if save.suffix else _unreadable(save)
    lost = 0
    for name, lines in before.lines.items():
        gone = [line for key, line in lines.items() if now.lines.get(name, {}).get(key) != line]
        if gone:
            problems.append(f"{name}: {len(gone)} whole lines of before are gone or changed")
            lost += sum(map(len, gone))
    return now, problems, lost


def _step(save: Path) -> int:
    return int(save.name.split("-")[1])


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _samples(root: Path, folder: Path) -> tuple[dict, list[str]]:
    kept, problems = {}, []
    for path in sorted((folder / "samples").glob("*.jsonl")):
        found: dict[tuple, bytes] = {}
        for line in _whole_lines(path):
            try:
                sample = Sample.model_validate_json(line)
            except ValueError:
                problems.append(f"{path.name}: a torn line inside the file: {line[:80]!r}")
                continue
            key = sample.item_id, sample.sample
            if key in found:
                problems.append(f"{path.name}: sample {key} stands there twice")
            found[key] = line
        counts: dict[str, int] = {}
        for item_id, _ in found:
            counts[item_id] = counts.get(item_id, 0) + 1
        full = max(counts.values(), default=0)
        name = str(path.relative_to(root))
        kept[name] = {key: line for key, line in found.items() if counts[key[0]] == full > 1}
    return kept, problems


def _steps(root: Path, folder: Path, run: TrainingRecord) -> tuple[dict, list[str]]:
    path = folder / "steps.jsonl"
    whole = [_step(p.parent) for p in folder.glob("trainer/checkpoint-*/complete") if not p.parent.suffix]
    saved = run.num_steps if run.status == "finished" else max(whole, default=0)
    found: dict[int, bytes] = {}
    problems = []
    for line in _whole_lines(path):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError):
            problems.append(f"steps.jsonl: a torn line inside the file: {line[:80]!r}")
            continue
        if step in found:
            problems.append(f"steps.jsonl: step {step} stands there twice")
        found[step] = line
    if missing := [step for step in range(1, saved + 1) if step not in found]:
        problems.append(f"steps.jsonl lacks steps {missing}, which the checkpoint of step {saved} covers")
    return {str(path.relative_to(root)): {step: line for step, line in found.items() if step <= saved}}, problems


def _unreadable(folder: Path) -> list[str]:
    """Why weights under a final name are not whole."""
    if not folder.is_dir():
        return [f"{folder.name} of a finished run is missing"]
    problems = []
    try:
        check_model(str(folder))
    except UserError as error:
        problems.append(str(error))
    for path in folder.glob("*.pt"):
        if not zipfile.is_zipfile(path):
            problems.append(f"{path} is not whole")
    return problems


# --- At the end ------------------------------------------------------------------------------------------------------


def differences(reference: Path, survivor: Path) -> list[str]:
    """How a run that was killed and resumed differs from an undisturbed one."""
    ours, theirs = ({_name(root, p): p for p in _files(root)} for root in (reference, survivor))
    problems = [f"{name} is missing" for name in ours.keys() - theirs.keys()]
    problems += [f"{name} is left over" for name in theirs.keys() - ours.keys()]
    for name in sorted(ours.keys() & theirs.keys()):
        one, other = (_comparable(paths[name]) for paths in (ours, theirs))
        if one != other:
            problems.append(f"{name} differs: {_first_difference(one, other)}")
    return problems


def _files(root: Path) -> Iterator[Path]:
    for path in root.glob("**/*"):
        if path.is_file() and not _UNCOMPARED.search(str(path.relative_to(root))):
            yield path


def _name(root: Path, path: Path) -> str:
    return str(path.relative_to(root))


def _comparable(path: Path) -> Any:
    """A file without what depends on time."""
    if path.name == "run.json":
        run = json.loads(path.read_bytes())
        for name in TIME_OF_RUN:
            run.pop(name, None)
        run.get("provenance", {}).pop("sessions", None)
        if run.get("steps_hash"):  # of a file that holds times: whether it is that file's
            run["steps_hash"] = run["steps_hash"] == records.lines_hash(path.with_name("steps.jsonl"))
        return run
    if path.name == "steps.jsonl":
        steps = [json.loads(line) for line in path.read_bytes().splitlines()]
        return [{k: v for k, v in step.items() if not k.startswith(TIME_OF_STEP)} for step in steps]
    if path.parent.name == "samples":
        return sorted(path.read_bytes().splitlines())
    if path.suffix == ".ipynb":
        return _outputs(json.loads(path.read_bytes()))
    if path.suffix in (".md", ".html"):
        return _without_times(path.read_text(encoding="utf-8"), path.suffix)
    return path.read_bytes()


def _outputs(notebook: dict) -> list:
    """Kinds of the outputs of every cell: that it ran, and that nothing failed."""
    return [
        sorted({output["output_type"] for output in cell.get("outputs", ())} - {"stream"}) for cell in notebook["cells"]
    ]


def _without_times(text: str, suffix: str) -> str:
    if TIME_COLUMN not in text:
        return text
    if suffix == ".md":
        lines, at = [], None
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.split("|")]
            at = None if not line.startswith("|") else cells.index(TIME_COLUMN) if TIME_COLUMN in cells else at
            lines.append("|".join(c for i, c in enumerate(cells) if i != at and not set(c) <= set(":-")))
        return "\n".join(lines)
    head, table, rest = text.rpartition("<table")  # the trainings come last
    return head + re.sub(r"<td[^>]*>\s*\d+\s*</td>\s*</tr>", "</tr>", table + rest)


def _first_difference(one: Any, other: Any) -> str:
    if type(one) is type(other) and isinstance(one, dict):
        name = next(k for k in {**one, **other} if one.get(k) != other.get(k))
        return f"{name}: {_first_difference(one.get(name), other.get(name))}"
    if type(one) is type(other) and isinstance(one, list):
        if len(one) != len(other):
            return f"{len(one)} and {len(other)} entries"
        return next(_first_difference(a, b) for a, b in zip(one, other, strict=True) if a != b)
    return f"{str(one)[:100]!r} and {str(other)[:100]!r}"


def summary_of_records(root: Path) -> str:
    """How much an undisturbed run leaves."""
    num_samples = sum(len(_whole_lines(path)) for path in root.glob("**/samples/*.jsonl"))
    num_items = sum(len(records.read_lines(path, Item)) for path in root.glob("**/items/*.jsonl"))
    num_steps = sum(len(_whole_lines(path)) for path in root.glob("**/steps.jsonl"))
    num_weights = len(list(root.glob("**/*.safetensors")))
    return f"{num_samples} samples of {num_items} items, {num_steps} steps, {num_weights} sets of weights"
