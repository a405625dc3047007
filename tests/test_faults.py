"""Disks that fill up, folders that are read-only or in use, clocks that go back, records that were edited: each is
detected and told in one line, nothing is overwritten, and nothing that was computed is lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import runs_here

from eval_harness import compare, records, runner
from eval_harness.__main__ import main
from eval_harness.errors import UserError, disk_problem, disk_told
from eval_harness.interop import exporters
from eval_harness.locks import locked
from eval_harness.records import Sample
from eval_harness.runner import Overrides, evaluate, verify
from eval_harness.shards import merge, parse_shard
from gpg_repro.tables.marks import samples as marks_of

SUITES = ["tiny_sums", "tiny_chains"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def model(tmp_path) -> str:
    return runs_here.checkpoint(tmp_path / "model")


@pytest.fixture
def engine(monkeypatch):
    return runs_here.use(monkeypatch)


def run(model: str, out: Path, limit: int = 20, **options) -> Path:
    overrides = Overrides(samples=2, temperature=1.0, max_new_tokens=8)
    return evaluate(
        model, SUITES, engine="transformers", out=out, limit=limit, overrides=overrides, progress=False, **options
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


def lines(folder: Path) -> dict[str, list[bytes]]:
    return {path.name: sorted(path.read_bytes().splitlines()) for path in (folder / "samples").glob("*.jsonl")}


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """A file system of its own at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *arguments, str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder as a read-only file system: root may write to a folder whatever its permissions are."""
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield


# --- The disk --------------------------------------------------------------------------------------------------------


@pytest.mark.needs("mounting")
def test_a_disk_that_fills_up_during_an_evaluation(model, engine, monkeypatch, tmp_path):
    """On a real file system of 96 KiB: what fits stays whole, and with more room the rest alone is asked."""
    monkeypatch.setattr(runner, "_MIN_FREE_BYTES", 0)
    undisturbed = run(model, tmp_path / "undisturbed")
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=96k", "tmpfs") as disk:
        filler = disk / "filler"
        filler.write_bytes(bytes(64 << 10))
        engine.asked.clear()
        with pytest.raises(UserError, match=r"cannot write .*: the disk is full.*start the same command again"):
            run(model, disk / "run")
        kept = lines(disk / "run")
        num_kept = sum(map(len, kept.values()))
        assert 0 < num_kept < 80 and records.read_run(disk / "run").status == "running"
        for name in kept:  # nothing torn
            records.read_lines(disk / "run" / "samples" / name, Sample)
        assert not list((disk / "run").rglob("*.tmp"))
        filler.unlink()
        engine.asked.clear()
        run(model, disk / "run")
        assert len(engine.asked) == 40 - num_kept // 2  # items, two samples each
        assert lines(disk / "run") == lines(undisturbed)


@pytest.mark.needs("mounting")
def test_no_write_is_taken_in_part(tmp_path):
    """A disk with room for part of what is appended: the part is taken back."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=16k", "tmpfs") as disk:
        path = disk / "x.jsonl"
        records.append_bytes(path, b"a" * 5000 + b"\n")
        before = path.read_bytes()
        with pytest.raises(UserError, match="the disk is full"):
            records.append_bytes(path, b"b" * 12000 + b"\n")  # two pages of it fit
        assert path.read_bytes() == before
        with pytest.raises(UserError, match="the disk is full"):
            records.write_whole(path, b"c" * 20000)
        assert path.read_bytes() == before and [p.name for p in disk.iterdir()] == ["x.jsonl"]


def test_short_writes_go_on(monkeypatch, tmp_path):
    """The system may take less than it is given without an error; the rest is written then."""

    class Slow:
        def __init__(self, path, *args, **kwargs):
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            self.file.close()

        def seek(self, *args):
            return self.file.seek(*args)

        def write(self, data):
            return self.file.write(data[:3])

    monkeypatch.setattr(records, "open", Slow, raising=False)
    records.append_bytes(tmp_path / "x", b"0123456789\n")
    assert (tmp_path / "x").read_bytes() == b"0123456789\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "x"), "the disk is full"),
        (OSError(122, "Disk quota exceeded"), "quota"),
        (OSError(30, "Read-only file system"), "read-only"),
        (PermissionError(13, "Permission denied"), "no permission"),
        (RuntimeError('SafetensorError: IoError: Os { code: 28 } "No space left on device (os error 28)"'), "full"),
        (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"), "could not be written"),
        (FileNotFoundError(2, "No such file"), None),
        (KeyError("No space left"), None),
    ],
)
def test_what_is_behind_an_error(error, told):
    problem = disk_problem(error)
    assert problem is None if told is None else told in problem[0]


def test_trouble_with_the_disk_is_one_line(tmp_path):
    with pytest.raises(UserError) as raised, disk_told(tmp_path / "x"):
        Path("/dev/full").write_text("x" * 100_000)
    assert "/x: the disk is full" in str(raised.value) or "/dev/full: the disk is full" in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(ZeroDivisionError), disk_told(tmp_path):
        raise ZeroDivisionError


@pytest.mark.needs("mounting")
def test_a_read_only_folder_is_one_line(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"gold": "2", "prediction": "$\\boxed{2}$"}) + "\n", encoding="utf-8")
    with read_only(tmp_path / "ro"):
        command = ["grade", "--benchmark", "tiny_sums", "--input", str(source), "--output", str(tmp_path / "ro" / "o")]
        assert main(command) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the file system is read-only" in err and "Traceback" not in err


@pytest.mark.needs("mounting")
def test_a_read_only_results_folder(model, engine, tmp_path):
    """New runs are refused before the engine starts; finished ones are read all the same."""
    results = tmp_path / "results"
    finished = run(model, results / "done")
    started = results / "started"
    shutil.copytree(finished, started)
    _change(started / "run.json", lambda text: text.replace('"status": "finished"', '"status": "running"'))
    before, engine.asked[:] = contents(results), []
    with read_only(results):
        for folder in (results / "new", started):
            with pytest.raises(UserError, match="the file system is read-only; give a folder|file system is read-only"):
                run(model, folder)
        assert run(model, finished) == finished and not engine.asked
        assert verify_says(finished) == 0
    assert contents(results) == before


# --- Two at once -----------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from eval_harness.locks import locked
with locked(Path(sys.argv[1]), "evaluation"):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that writes to a folder, and the folder."""
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process, folder
    process.kill()
    process.wait()


def test_two_runs_in_one_folder(model, engine, holder, tmp_path):
    """The second is told who has it; when the first is killed, what it left blocks nobody."""
    process, folder = holder
    with pytest.raises(UserError) as raised:
        run(model, folder)
    told = str(raised.value)
    assert f"process {process.pid} here" in told and "since 20" in told and "(evaluation)" in told and "\n" not in told
    assert not engine.asked and {path.name for path in folder.iterdir()} == {".lock", ".lock.owner"}
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / ".lock.owner").exists()
    assert run(model, folder) == folder
    assert {path.name for path in folder.iterdir()} == {".lock", "run.json", "items", "samples", "engine.log"}


def test_a_lock_without_its_note_still_holds(holder):
    _, folder = holder
    for text in ("", "{", "[]", '{"host": 1}'):
        (folder / ".lock.owner").write_text(text)
        with pytest.raises(UserError, match="in use: another process is writing to it"), locked(folder, "training"):
            pass


def test_what_killed_writes_left_is_removed(tmp_path):
    left = [tmp_path / ".run.json.123.tmp"]
    for part in ("items", "samples", "masks"):
        (tmp_path / part).mkdir()
        left.append(tmp_path / part / ".tiny_sums.jsonl.9.tmp")
    kept = [tmp_path / "mine.tmp", tmp_path / ".hidden"]
    for path in (*left, *kept):
        path.touch()
    with locked(tmp_path, "evaluation"):
        assert not any(path.exists() for path in left) and all(path.exists() for path in kept)


STOPS = """
import os, signal, sys
from pathlib import Path
from eval_harness import records
def stop(*paths):  # everything is written, nothing is moved yet
    print(Path(paths[0]).name, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = stop
records.write_whole(Path(sys.argv[1]), "theirs")
"""


@contextlib.contextmanager
def stopped_write(path: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process in the middle of a write, and the name of its temporary file; a line sent to it kills it."""
    command = [sys.executable, "-c", STOPS, str(path)]
    writer = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield writer, writer.stdout.readline().strip()
    finally:
        writer.kill()
        writer.communicate()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["table.md", "table-of-2.md"])
def test_what_a_killed_write_left_goes_with_the_next_write(tmp_path, name):
    """Of the same file and by a process of this kernel that is gone; nobody else's."""
    path = tmp_path / name
    with stopped_write(path) as (writer, left):
        assert left.startswith(f".{name}.{records.boot()}-")
        writer.communicate("now\n")
        assert writer.returncode == -signal.SIGKILL and names(tmp_path) == {left}
    others = {f".{name}.00000000-123456789abc.tmp", left.replace(".md.", ".csv.")}
    for other in others:
        (tmp_path / other).touch()
    records.write_whole(path, "x")
    assert names(tmp_path) == {name, *others}


def test_a_write_that_goes_on_is_nobody_elses(tmp_path, monkeypatch):
    """Two containers: the other process has our host name, and a process id that nobody here has."""
    monkeypatch.setattr("socket.gethostname", lambda: "job")
    monkeypatch.setattr("psutil.pid_exists", lambda pid: False)
    path = tmp_path / "run.json"
    with stopped_write(path) as (_, theirs):
        records.write_whole(path, "ours")
        with locked(tmp_path, "evaluation"):
            assert names(tmp_path) == {"run.json", theirs, ".lock", ".lock.owner"}
        assert path.read_text() == "ours" and (tmp_path / theirs).read_text() == "theirs"
    with locked(tmp_path, "evaluation"):
        assert names(tmp_path) == {"run.json", ".lock", ".lock.owner"}


def test_two_containers_with_one_process_id_write_the_same_file(tmp_path, monkeypatch):
    """Each in the middle of its write when the other begins: neither writes into the other's temporary file."""
    monkeypatch.setattr("socket.gethostname", lambda: "job")
    monkeypatch.setattr("os.getpid", lambda: 7)
    path, replace, seen = tmp_path / "run.json", os.replace, []

    def inside(*paths):
        monkeypatch.setattr("os.replace", replace)
        seen.append(paths[0])
        records.write_whole(path, "second")
        assert Path(paths[0]).read_text() == "first"
        replace(*paths)

    monkeypatch.setattr("os.replace", inside)
    records.write_whole(path, "first")
    assert path.read_text() == "first" and names(tmp_path) == {"run.json"} and len(seen) == 1


def test_a_temporary_file_that_is_taken_before_its_lock_is_made_again(tmp_path, monkeypatch):
    """Between its creation and its lock it looks abandoned."""
    lock, taken = records.fcntl.flock, []

    def late(file, how):
        if not taken:
            taken.extend(tmp_path.glob(".*.tmp"))
            taken[0].unlink()
        lock(file, how)

    monkeypatch.setattr(records.fcntl, "flock", late)
    records.write_whole(tmp_path / "run.json", "x")
    assert len(taken) == 1 and names(tmp_path) == {"run.json"} and (tmp_path / "run.json").read_text() == "x"


def test_a_holder_in_another_container_is_not_here(holder, monkeypatch):
    """Same host name, another table of processes: its number says nothing here."""
    process, folder = holder
    note = json.loads((folder / ".lock.owner").read_text())
    host = note["host"]
    with pytest.raises(UserError, match=f"process {process.pid} here"), locked(folder, "training"):
        pass
    for change in ({"numbers": "pid:[1]"}, {"boot": "00000000"}):
        (folder / ".lock.owner").write_text(json.dumps(note | change))
        with pytest.raises(UserError, match=f"process {process.pid} on {host}"), locked(folder, "training"):
            pass


def test_a_run_killed_before_its_first_line_resumes(model, engine, tmp_path, monkeypatch):
    """At every step of setting up the folder: the folder is a run's from the first file on."""
    expected = contents(run(model, tmp_path / "whole")).keys()
    for stop in range(1, 6):
        calls, replace = [], os.replace

        def dies(*paths, calls=calls, replace=replace, stop=stop):
            calls.append(paths)
            if len(calls) == stop:
                raise KeyboardInterrupt
            replace(*paths)

        out = tmp_path / f"cut{stop}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", dies)
            run(model, out)
        (out / f".run.json.{stop}.tmp").touch()  # as SIGKILL leaves it
        assert contents(run(model, out)).keys() == expected


# --- The clock -------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back(model, engine, monkeypatch, tmp_path):
    """By a day between two tries, and by a second at every look."""
    hours = iter(range(10_000))

    class Back(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 1, 2, tzinfo=UTC) - timedelta(hours=next(hours))

    monkeypatch.setattr(records, "datetime", Back)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "summarise", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path / "run")
    done = records.read_run(run(model, tmp_path / "run"))
    assert done.finished >= done.created and all(seconds >= 0 for seconds in done.timings.values())
    assert len(engine.asked) == 40  # the second try found everything


def test_a_file_that_changed_within_one_tick_of_the_clock_is_read_again(model, engine, tmp_path):
    """Tables keep the samples they read; time alone does not tell that a file is another one."""
    folder = run(model, tmp_path / "run")
    right, wrong = run(model, tmp_path / "right"), run(model, tmp_path / "wrong", limit=10)
    assert len(marks_of(folder, "tiny_sums")) == 40
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    for name in ("run.json", "samples/tiny_sums.jsonl", "items/tiny_sums.jsonl"):
        shutil.copy(wrong / name, folder / f"{name}.new")
        os.utime(folder / f"{name}.new", ns=(times[folder / name],) * 2)
        os.replace(folder / f"{name}.new", folder / name)
        assert (folder / name).stat().st_mtime_ns == times[folder / name]
    assert len(marks_of(folder, "tiny_sums")) == 20 and len(marks_of(right, "tiny_sums")) == 40


# --- Records that were edited ----------------------------------------------------------------------------------------


def _change(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text(encoding="utf-8")
    changed = change(text)
    assert changed != text
    path.write_text(changed, encoding="utf-8")


def _lines(text: str, change: Callable[[list[str]], list[str]]) -> str:
    return "".join(change(text.splitlines(keepends=True)))


def _flip(line: str) -> str:
    """The same line with the other mark."""
    sample = json.loads(line)
    sample["correct"] = not sample["correct"]
    return json.dumps(sample) + "\n"


def _flip_two(lines: list[str]) -> list[str]:
    """One right mark made wrong, one wrong mark made right: the score stays."""
    marks = [json.loads(line)["correct"] for line in lines]
    chosen = {marks.index(True), marks.index(False)}
    return [_flip(line) if i in chosen else line for i, line in enumerate(lines)]


EDITS = {
    "a line removed": lambda text: _lines(text, lambda lines: lines[:3] + lines[4:]),
    "a line twice": lambda text: _lines(text, lambda lines: [*lines, lines[0]]),
    "another line instead": lambda text: _lines(text, lambda lines: [lines[1], *lines[1:]]),
    "a mark changed": lambda text: _lines(text, lambda lines: [_flip(lines[0]), *lines[1:]]),
    "two marks changed, the score the same": lambda text: _lines(text, _flip_two),
    "an answer changed": lambda text: text.replace("+ 1: ", "+ 7: ", 1),
    "cut in the middle of a line": lambda text: text[: len(text) // 2],
    "cut in the middle at a line's end": lambda text: _lines(text, lambda lines: lines[: len(lines) // 2]),
    "emptied": lambda text: "",
}


def verify_says(folder: Path) -> int:
    return main(["verify", str(folder)])


@pytest.fixture
def mixed(engine, monkeypatch, model, tmp_path) -> Path:
    """A finished run with right and wrong answers in one benchmark."""
    answers = runs_here.ScriptedEngine.generate

    def sometimes_wrong(self, requests):
        for i, result in enumerate(answers(self, requests)):
            if i % 3:
                yield result
            else:
                wrong = [runs_here.Completion(c.text.replace("{", "{9"), "stop", 1) for c in result.completions]
                yield runs_here.Result(result.key, wrong, num_prompt_tokens=3)

    monkeypatch.setattr(engine, "generate", sometimes_wrong)
    monkeypatch.setattr(runner, "GradingPool", runs_here.GradingHere)
    return run(model, tmp_path / "edited")


@pytest.mark.parametrize("edit", EDITS)
def test_edited_samples_are_told_and_never_used(edit, mixed, model, engine, tmp_path, capsys):
    whole = shutil.copytree(mixed, tmp_path / "whole")
    assert verify_says(mixed) == 0
    _change(mixed / "samples" / "tiny_sums.jsonl", EDITS[edit])
    before, engine.asked[:] = contents(mixed), []
    capsys.readouterr()
    assert verify_says(mixed) in (1, 2)
    told = capsys.readouterr()
    assert "NOT reproduced" in told.out or "torn" in told.err
    for use in (
        lambda: records.samples_frame(mixed),
        lambda: records.read_finished(mixed),
        lambda: marks_of(mixed, "tiny_sums"),
        lambda: compare.open_side(f"{whole},{mixed}"),
        lambda: exporters.eval_results(mixed, tmp_path / "out"),
        lambda: run(model, mixed),  # the same command again
    ):
        with pytest.raises(UserError, match="tiny_sums.jsonl.*(does not fit|torn)") as raised:
            use()
        assert "\n" not in str(raised.value)
    assert contents(mixed) == before and not engine.asked  # nothing overwritten, nothing asked behind its back
    (mixed / "samples" / "tiny_sums.jsonl").unlink()  # the remedy: that file's items are asked anew, and no other
    assert run(model, mixed) == mixed and lines(mixed) == lines(whole)
    assert {json.loads(key)[0] for key in engine.asked} == {"tiny_sums"}
    assert "the samples of tiny_sums are gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result["score"].update(mean=0.99),
        lambda result: result.update(failed=3, scored=result["scored"] - 3),
        lambda result: result.update(asked=result["asked"] + 2),
    ],
)
def test_a_record_that_disagrees_with_its_samples(change, mixed, tmp_path):
    run_json = json.loads((mixed / "run.json").read_text(encoding="utf-8"))
    change(run_json["benchmarks"]["tiny_sums"])
    (mixed / "run.json").write_text(json.dumps(run_json), encoding="utf-8")
    for use in (records.read_finished, records.samples_frame, lambda folder: marks_of(folder, "tiny_sums")):
        with pytest.raises(UserError, match="does not fit run.json"):
            use(mixed)
    assert verify_says(mixed) == 1


def test_records_made_before_there_was_a_hash_are_held_to_their_score(mixed):
    run_json = json.loads((mixed / "run.json").read_text(encoding="utf-8"))
    del run_json["provenance"]["benchmarks"]["tiny_sums"]["samples_hash"]
    (mixed / "run.json").write_text(json.dumps(run_json), encoding="utf-8")
    assert len(records.read_samples(mixed, "tiny_sums")) == 40
    _change(mixed / "samples" / "tiny_sums.jsonl", EDITS["a mark changed"])
    said = 100 * run_json["benchmarks"]["tiny_sums"]["score"]["mean"]
    with pytest.raises(UserError, match=rf"its marks give \d+\.\d\d %, the record says {said:.2f} %"):
        records.read_samples(mixed, "tiny_sums")


def test_the_order_of_lines_is_nobodys_edit(mixed):
    """A run that was resumed has its lines in another order."""
    _change(mixed / "samples" / "tiny_sums.jsonl", lambda text: _lines(text, lambda lines: lines[::-1]))
    assert len(records.read_samples(mixed, "tiny_sums")) == 40 and verify_says(mixed) == 0


def test_an_edited_shard_is_not_merged(model, engine, monkeypatch, tmp_path):
    for part in ("0/2", "1/2"):
        run(model, tmp_path / "run", shard=parse_shard(part))
    shard = tmp_path / "run" / "shard-1-of-2" / "samples" / "tiny_sums.jsonl"
    whole = shard.read_bytes()
    _change(shard, EDITS["a mark changed"])
    with pytest.raises(UserError, match="shard-1-of-2/samples/tiny_sums.jsonl does not fit"):
        merge(tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    shard.write_bytes(whole)
    merged = merge(tmp_path / "run")
    assert len(records.read_samples(merged, "tiny_sums")) == 40 and verify_says(merged) == 0


def test_edited_steps_are_told(tmp_path):
    steps = [json.dumps({"step": i, "reward": 0.5}) + "\n" for i in (1, 2, 3)]
    record = records.TrainingRecord(
        run_id="t", fingerprint="f", status="finished", created="2026", finished="2026", recipe={}, base={},
        checkpoint="checkpoint", num_steps=3, timings={}, environment={},
    )  # fmt: skip
    records.write_json(tmp_path / "run.json", record)
    for lines in (steps[:2], [*steps, steps[2]], [steps[0], steps[2], steps[2]], []):
        (tmp_path / "steps.jsonl").write_text("".join(lines), encoding="utf-8")
        with pytest.raises(UserError, match=f"{len(lines)} lines .* of the 3 steps"):
            records.steps_frame(tmp_path)
    (tmp_path / "steps.jsonl").write_text("".join(steps), encoding="utf-8")
    assert len(records.steps_frame(tmp_path)) == 3


def test_a_newer_schema_is_left_alone(model, engine, tmp_path, capsys):
    """By every command, of a run that a newer version of the project has written to."""
    folder = run(model, tmp_path / "run")
    newer = f'"schema_version": {records.SCHEMA_VERSION + 1}'
    _change(folder / "run.json", lambda text: text.replace(f'"schema_version": {records.SCHEMA_VERSION}', newer))
    before, engine.asked[:] = contents(folder), []
    for use in (
        lambda: run(model, folder),
        lambda: verify(folder),
        lambda: records.samples_frame(folder),
        lambda: compare.open_side(str(folder)),
        lambda: marks_of(folder, "tiny_sums"),
        lambda: list(records.find_runs(tmp_path)),
    ):
        said = f"schema version {records.SCHEMA_VERSION + 1}.*Use the version of the project that wrote it"
        with pytest.raises(UserError, match=said):
            use()
    assert contents(folder) == before and not engine.asked
    _change(folder / "run.json", lambda text: text.replace(newer, f'"schema_version": {records.SCHEMA_VERSION}'))
    _change(
        folder / "samples" / "tiny_sums.jsonl", lambda text: text.replace('"extra": {}', '"extra": {}, "new": 1', 1)
    )
    with pytest.raises(UserError, match="line 1: not a valid Sample line .new: Extra"):
        run(model, folder)


def test_time_is_not_lost_to_the_check(model, engine, tmp_path):
    """10,000 lines are checked in well under a second."""
    folder = run(model, tmp_path / "run")
    path = folder / "samples" / "tiny_sums.jsonl"
    path.write_bytes(path.read_bytes() * 250)
    began = time.process_time()
    records.lines_hash(path)
    assert time.process_time() - began < 0.5
