"""One run in parts: every N-th item of each benchmark in a folder of its own, and the parts made one run again.

``--shard I/N`` (0-based) evaluates items I, I+N, I+2N, ... into ``<out>/shard-I-of-N/``; shards share nothing but the
disk, so they may run on different machines and at different times. :func:`merge` writes the run that one process would
have written into ``<out>``.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.identity import differences, identity_of

_FOLDER = re.compile(r"shard-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` (0-based) of ``of``."""

    index: int
    of: int

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @property
    def folder(self) -> str:
        """Name of its folder inside the run's."""
        return f"shard-{self.index}-of-{self.of}"

    def part(self, items: list) -> list:
        """Its items."""
        return items[self.index :: self.of]


def parse_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard | None:
    """``I/N``, or ``auto``: the place of this process among those that a launcher started.

    ``auto`` reads SLURM's job array (SLURM_ARRAY_TASK_ID of EVAL_SHARDS; without that of its COUNT, from its MIN and
    STEP, which a part of an array submitted again does not have) and the tasks in each job (SLURM_PROCID of
    SLURM_NTASKS), else RANK of WORLD_SIZE (torchrun).

    Raises:
        UserError: something else, or ``auto`` where no launcher tells.
    """
    if text is None:
        return None
    if text == "auto":
        index, of = _of_launcher(environment)
    else:
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not match:
            raise UserError(f"--shard {text}: expected I/N with I from 0 to N-1, e.g. 0/4, or auto.")
        index, of = int(match[1]), int(match[2])
    if not 0 <= index < of:
        raise UserError(f"--shard {index}/{of}: there are shards 0 to {of - 1} of {of}." if of else "--shard: N is 0.")
    return Shard(index, of)


def _of_launcher(environment: Mapping[str, str]) -> tuple[int, int]:
    def number(name: str, default: int | None = None) -> int | None:
        value = environment.get(name, "")
        if value == "":
            return default
        if not re.fullmatch(r"-?\d+", value):
            raise UserError(f"--shard auto: {name} is {value!r}; expected a number.")
        return int(value)

    task, tasks = number("SLURM_PROCID"), number("SLURM_NTASKS")
    job, jobs, fixed = number("SLURM_ARRAY_TASK_ID"), number("SLURM_ARRAY_TASK_COUNT"), number("EVAL_SHARDS")
    if job is not None and (fixed is not None or jobs is not None):
        if fixed is not None:
            place, jobs = job, fixed
            if not 0 <= place < jobs:
                raise UserError(f"array task {job} of {jobs} shards: tasks are numbered from 0 to {jobs - 1}.")
        else:
            first, step = number("SLURM_ARRAY_TASK_MIN", 0), number("SLURM_ARRAY_TASK_STEP", 1)
            place = (job - first) // step
        return (place, jobs) if task is None or tasks is None else (place * tasks + task, jobs * tasks)
    if task is not None and tasks is not None:
        return task, tasks
    rank, world = number("RANK"), number("WORLD_SIZE")
    if rank is not None and world is not None:
        return rank, world
    raise UserError(
        "--shard auto: neither SLURM_PROCID and SLURM_NTASKS nor RANK and WORLD_SIZE are set. Start this with srun or "
        "torchrun, or give --shard I/N."
    )


def has_shards(folder: Path) -> bool:
    """Whether shards of a run lie in a folder."""
    return any(_FOLDER.fullmatch(path.name) for path in _entries(folder))


def check_others(folder: Path, shard: Shard) -> None:
    """Refuse a shard beside those of another division: 0/1 beside others would be the whole run once more.

    Raises:
        UserError: they lie in the folder.
    """
    there = sorted({int(match[2]) for path in _entries(folder) if (match := _FOLDER.fullmatch(path.name))})
    others = [of for of in there if of != shard.of]
    if others:
        raise UserError(
            f"{folder} holds shards of {' and of '.join(map(str, others))}, and this is shard {shard}. Give the same "
            "number of shards (SHARDS=N with configs/slurm/evaluate.sbatch), or another folder."
        )


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def merge(folder: Path) -> Path:
    """Make one run of the shards in a folder.

    The result holds what an undivided run would: the same items and samples, scores over all of them, the same
    fingerprint. The shards stay; they may be deleted afterwards.

    Args:
        folder: ``--out`` of the shards.

    Returns:
        The folder.

    Raises:
        UserError: no shards, shards that are missing or unfinished (named with what to start again), from different
            settings, data or engines, or with an item twice. Nothing is written then.
    """
    from eval_harness.locks import locked
    from eval_harness.provenance import with_samples
    from eval_harness.runner import averages, summarise

    folder = Path(folder)
    runs = _shards(folder)
    first = runs[0][1]
    if (folder / "run.json").exists():
        there = records.read_run(folder)
        if there.fingerprint != first.shard["fingerprint"]:
            raise UserError(f"{folder} itself holds another run ({there.run_id}); move its shards elsewhere.")
    request = identity_of(first)["benchmarks"]
    joined = {name: _joined(name, wanted[2], runs) for name, wanted in request.items()}
    decodings = {name: records.Decoding(**wanted[3]) for name, wanted in request.items()}
    with locked(folder, "merge of shards"):
        results = {}
        for name, (items, samples) in joined.items():
            benchmark = _benchmark(name, request[name])
            results[name] = summarise(benchmark, items, decodings[name], samples)
            records.replace_lines(folder / "items" / f"{name}.jsonl", items)
            records.replace_lines(folder / "samples" / f"{name}.jsonl", samples)
        merged = first.model_copy(
            update={
                "fingerprint": first.shard["fingerprint"],
                "created": min(run.created for _, run in runs),
                "finished": records.now(not_before=max(run.created for _, run in runs)),
                "benchmarks": results,
                **averages(results),
                "timings": _timings([run for _, run in runs]),
                "provenance": with_samples(_provenance([run for _, run in runs], joined), folder, results),
                "shard": None,
            }
        )
        records.write_json(folder / "run.json", merged)
    return folder


def _shards(folder: Path) -> list[tuple[Path, records.RunRecord]]:
    """All shards in their order, each finished and all of one run."""
    found = {}
    for path in _entries(folder):
        if match := _FOLDER.fullmatch(path.name):
            found[int(match[1]), int(match[2])] = path
    if not found:
        raise UserError(f"{folder} holds no shards (folders shard-I-of-N); give the --out of the shards.")
    totals = sorted({of for _, of in found})
    if len(totals) > 1:
        raise UserError(
            f"{folder} holds shards of {' and of '.join(map(str, totals))}. Move away those that do not belong."
        )
    of, runs, waiting = totals[0], [], []
    for index in range(of):
        path = found.get((index, of))
        run = records.read_run(path) if path and (path / "run.json").exists() else None
        if run is not None and (run.kind != "evaluation" or (run.shard or {}).get("index") != index):
            raise UserError(f"{path} is not shard {index} of {of} of an evaluation; it was renamed or copied.")
        if run is None or run.status != "finished":
            waiting.append((index, "missing" if path is None else "unfinished"))
        else:
            runs.append((path, run))
    if runs:
        _check_alike(runs)
    if waiting:
        raise UserError(
            f"{folder} cannot be merged yet: "
            + ", ".join(f"shard {index}/{of} is {state}" for index, state in waiting)
            + f". {_again(runs, [index for index, _ in waiting], of)}"
        )
    return runs


def _again(runs: list[tuple[Path, records.RunRecord]], indices: list[int], of: int) -> str:
    """How to start shards again, from the command of one that ran."""
    sessions = [session for _, run in runs for session in run.provenance.get("sessions", ())]
    if not sessions or "--shard" not in sessions[-1]["command"]:
        return "Start them again with the command of the others and their own --shard; each resumes where it stopped."
    command = list(sessions[-1]["command"])
    lines = []
    for index in indices:
        command[command.index("--shard") + 1] = f"{index}/{of}"
        lines.append("  " + " ".join(f"'{word}'" if re.search(r"[\s']", word) else word for word in command))
    return "Start again, each resumes where it stopped (paths are shortened in records: fill them in):\n" + "\n".join(
        lines
    )


def _check_alike(runs: list[tuple[Path, records.RunRecord]]) -> None:
    """Refuse shards of different runs, naming what differs."""
    (first_path, first), *others = runs
    for path, run in others:
        found = differences(identity_of(first), identity_of(run))
        for key in ("name", "version", "dtype", "max_model_len"):
            if key in first.engine and key in run.engine and first.engine[key] != run.engine[key]:
                found.append(f"engine {key}: {first.engine[key]} and {run.engine[key]}")
        for name, data in first.provenance["benchmarks"].items():
            if data["data"] != run.provenance["benchmarks"].get(name, {}).get("data"):
                found.append(f"data of {name}")
        if found or first.shard["fingerprint"] != run.shard["fingerprint"]:
            raise UserError(
                f"{first_path.name} and {path.name} are not parts of one run; they differ in "
                f"{'; '.join(found) or 'their fingerprint'}. Run one of them again with the other's settings "
                "(move its folder away first)."
            )


def _joined(name: str, prompts: str, runs: list[tuple[Path, records.RunRecord]]):
    """Items and samples of all shards in the order of an undivided run."""
    from eval_harness.benchmarks import prompts_hash

    parts = [records.read_lines(path / "items" / f"{name}.jsonl", records.Item) for path, _ in runs]
    # the item with index i is the (i // N)-th of shard i mod N
    items = [item for turn in zip_longest(*parts) for item in turn if item is not None]
    item_id, times = Counter(item.item_id for part in parts for item in part).most_common(1)[0]
    if times > 1:
        raise UserError(f"{name}: item {item_id} is in two shards; one of them was edited. Run it again.")
    if prompts_hash(items) != prompts:
        raise UserError(
            f"{name}: the {len(items)} items of the shards are not those of the undivided run; a file was edited or is "
            "missing. Move that shard away and run it again."
        )
    order = {item.item_id: place for place, item in enumerate(items)}
    samples = [
        sample for path, run in runs if name in run.benchmarks for sample in records.read_samples(path, name, run)
    ]
    strange = next((s for s in samples if s.item_id not in order), None)
    if strange is not None:
        raise UserError(f"{name}: there are samples of item {strange.item_id}, which no shard holds.")
    samples.sort(key=lambda sample: (order[sample.item_id], sample.sample))
    for one, other in zip(samples, samples[1:], strict=False):
        if (one.item_id, one.sample) == (other.item_id, other.sample):
            raise UserError(f"{name}: sample {one.sample} of item {one.item_id} is there twice; run its shard again.")
    return items, samples


def _benchmark(name: str, wanted: list):
    from eval_harness.benchmarks import get_benchmark

    benchmark = get_benchmark(name)
    if [benchmark.version, benchmark.grader] != wanted[:2]:
        raise UserError(
            f"{name} is version {benchmark.version} (grader {benchmark.grader}) here; the shards were made with "
            f"version {wanted[0]} ({wanted[1]}). Merge with the version of the project that made them."
        )
    return benchmark


def _timings(runs: list[records.RunRecord]) -> dict[str, float]:
    """Seconds of all shards together, and of the slowest."""
    total = {name: round(sum(run.timings[name] for run in runs), 2) for name in runs[0].timings}
    return total | {"slowest_shard_s": max(round(sum(run.timings.values()), 2) for run in runs)}


def _provenance(runs: list[records.RunRecord], joined: Mapping[str, tuple[list, list]]) -> dict[str, Any]:
    from eval_harness.benchmarks import prompts_hash
    from eval_harness.provenance import items_hash

    whole = {
        name: runs[0].provenance["benchmarks"][name]
        | {"prompts_hash": prompts_hash(items), "items_hash": items_hash(items)}
        for name, (items, _) in joined.items()
    }
    sessions = [
        session | {"shard": f"{run.shard['index']}/{run.shard['of']}"}
        for run in runs
        for session in run.provenance["sessions"]
    ]
    return runs[0].provenance | {"benchmarks": whole, "sessions": sessions}
