"""The grading pool's promises, each with a grader that breaks the rules on cue."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from eval_harness.graders import nursery
from eval_harness.graders.base import Verdict
from eval_harness.graders.pool import CHUNK, GradingPool, VerdictCache, _key, _size

pytestmark = pytest.mark.full("workers, and deadlines that take seconds")

ROOT = Path(__file__).resolve().parent.parent
SCRIPTED = "scripted_graders:Scripted"
MIB = 1 << 20


@pytest.fixture(scope="module")
def pool():
    with GradingPool(workers=2, deadline=2.0, memory=256 * MIB, patience=3.0) as pool:
        pool.grade(SCRIPTED, [("ok", "say hello"), ("ok", "say again")])
        yield pool


def _say(pool, *predictions: str, grader: str = SCRIPTED) -> list[Verdict]:
    return pool.grade(grader, [("ok", prediction) for prediction in predictions])


def _fresh(verb: str) -> str:
    """A prediction that no cache knows."""
    _fresh.count = getattr(_fresh, "count", 0) + 1
    return f"{verb} {_fresh.count}"


def test_no_signal_reaches_c_code_but_the_deadline_holds(pool):
    started = time.monotonic()
    slow, quick = _say(pool, "spin", "say quick")
    assert 2.0 <= time.monotonic() - started < 20
    assert (slow.correct, slow.correct_strict, slow.extracted, slow.reason) == (False, False, None, "timeout")
    assert quick.correct and quick.extracted == "quick"


def test_a_slow_answer_neither_delays_nor_fails_its_neighbours(pool):
    """All in one chunk: the others have their verdicts while the first still spins."""
    assert CHUNK >= 8
    others = [f"sleep {0.1 + i / 1000}" for i in range(7)]
    future = pool.grade_async(SCRIPTED, [("ok", prediction) for prediction in ("spin neighbours", *others)])
    beside = False
    while not future.done():
        for batch in [worker.batch for worker in list(pool._workers) if worker.batch is not None]:
            beside |= batch.verdicts[0] is None and None not in batch.verdicts[1:]
        time.sleep(0.01)
    slow, *others = future.result()
    assert beside and slow.reason == "timeout" and all(verdict.correct for verdict in others)


def test_the_deadline_is_of_computing_time_and_the_wall_has_a_limit_too():
    """A busy machine, told by sleep: 0.6 s of waiting are no computing; beyond 10 * 0.2 s nobody waits."""
    with GradingPool(workers=1, deadline=0.2, patience=10.0) as pool:
        _say(pool, "say warm")
        waited, forever = _say(pool, "sleep 0.6", "sleep 100")
    assert waited.correct and forever.reason == "timeout"


def test_every_answer_has_its_own_deadline():
    """Six times 0.4 s of computing is more than the 0.9 s that one of them may take."""
    with GradingPool(workers=1, deadline=0.9, patience=10) as alone:
        assert all(verdict.correct for verdict in _say(alone, *[f"compute {0.4 + i / 1000}" for i in range(6)]))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("segfault", "grader_crash"),
        ("abort", "grader_crash"),
        ("exit 0", "grader_crash"),
        ("exit 3", "grader_crash"),
        ("recurse", "grader_crash"),
        ("killed", "grader_memory"),  # as the kernel does when memory runs out
    ],
)
def test_what_kills_a_worker_costs_its_own_answer_alone(pool, script, reason):
    before, bad, after = _say(pool, _fresh("number"), script, _fresh("number"))
    assert bad == Verdict(False, False, None, reason)
    assert before.correct and after.correct


def test_a_worker_that_dies_once_costs_nothing(pool):
    verdicts = _say(pool, f"die_at {time.monotonic() + 0.3}", _fresh("number"))
    assert all(verdict.correct for verdict in verdicts)


def test_memory_is_bounded(pool):
    born = max(worker.born_memory for worker in pool._workers)
    slowly, at_once, little = _say(pool, "eat 8000", "grab 8000", "eat 50")
    assert slowly.reason == at_once.reason == "grader_memory" and little.correct
    # looked at every 50 ms, and beyond the limit only 512 MiB of address space are left
    assert born + 256 * MIB < pool.peak_memory < born + (256 + 512 + 64) * MIB


def test_a_worker_that_has_grown_is_replaced_before_it_costs_an_answer(pool):
    """140 MiB that stay are more than half of what a worker may have."""
    with GradingPool(workers=1, memory=256 * MIB) as small:
        first = _say(small, "number 1", grader=SCRIPTED)[0].extracted.split("/")[0]
        small.grade("scripted_graders:Hoarder", [("ok", "140")])
        second = _say(small, "number 2", grader=SCRIPTED)[0].extracted.split("/")[0]
    assert first != second


def test_harm_is_refused(pool, tmp_path):
    """Programs, files, deletions, connections, names: what the grader tries does not happen."""
    kept, made, folder = tmp_path / "kept", tmp_path / "made", tmp_path / "folder"
    kept.write_text("here")
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        scripts = [f"run {made}", f"spawn {made}", f"remove {kept}", f"connect {server.getsockname()[1]}"]
        scripts += [f"rmdir {folder}", f"cut {kept}", "look_up localhost"]
        verdicts = _say(pool, *scripts, f"write {made}", f"write {kept}")
        with pytest.raises(TimeoutError):
            server.accept()
    assert [verdict.reason for verdict in verdicts[: len(scripts)]] == ["grader_crash"] * len(scripts)
    assert kept.read_text() == "here" and folder.exists() and not made.exists()


def test_a_bug_in_a_grader_is_raised_and_fails_no_one_else(pool):
    broken, fine = pool.grade_async(SCRIPTED, [("ok", "fail here")]), pool.grade_async(SCRIPTED, [("ok", "say fine")])
    with pytest.raises(RuntimeError, match="scripted_graders:Scripted failed: ValueError: here"):
        broken.result(timeout=30)
    assert fine.result(timeout=30)[0].correct
    with pytest.raises(RuntimeError, match="cannot be built: ModuleNotFoundError"):
        pool.grade("no_such_module:Grader", [("ok", "say x")])


def test_a_bug_ends_its_chunk_and_no_verdict_is_stored_under_another_answer():
    """What stood behind the bug is graded anew when asked again."""
    with GradingPool(workers=1) as alone:
        with pytest.raises(RuntimeError, match="failed"):
            _say(alone, "fail here", "say one", "say two")
        _say(alone, "say three")  # the worker has ended the chunk before
        assert [verdict.extracted for verdict in _say(alone, "say one", "say two")] == ["one", "two"]
        with pytest.raises(RuntimeError, match="failed"):
            _say(alone, "fail here")


def test_a_grader_of_another_module_may_take_an_argument(pool):
    assert _say(pool, "built_with 1", grader=f"{SCRIPTED}:a:b")[0].extracted == "a:b"


@pytest.mark.full("lighteval is imported anew")
def test_lighteval_is_loaded_when_a_grader_needs_it_and_not_before(tmp_path):
    """Its import takes longer than all else; workers that have it are born with it, not made to import it."""
    body = (
        "def has(grader, count):\n"
        "    said = pool.grade(f'scripted_graders:Loaded:{grader}', [('', f'{grader} {i}') for i in range(count)])\n"
        "    return {verdict.extracted for verdict in said}\n"
        "with GradingPool(workers=2) as pool:\n"
        "    print(has('boxed', 4), has('math_latex_gold', 40))\n"
        "    print(pool.grade('math_latex_gold', [('$7$', 'so $7$')])[0].correct)\n"
        "    print(pool.grade('boxed', [('$7$', r'$\\boxed{7}$')])[0].correct)\n"
        "with GradingPool(workers=1).start(['math_expression_gold']) as pool:\n"
        "    print(has('boxed_answer', 1))\n"
        "nursery.stop()\n"
    )
    command = _script(tmp_path, body)
    path = tmp_path / "script.py"
    path.write_text(path.read_text().replace("nursery.PRELOAD = ()\n", ""))
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=200)
    assert done.stdout.split() == ["main", "runs", "{'False'}", "{'True'}", "True", "True", "{'True'}"], done.stderr


def test_repeats_are_graded_once(pool):
    """In one call, and later; each grading by a worker would say another number."""
    prediction = _fresh("number")
    first = _say(pool, *[prediction] * 40)
    assert len({verdict.extracted for verdict in first}) == 1 and len(first) == 40
    assert _say(pool, prediction) == first[:1]
    assert _say(pool, _fresh("number")) != first[:1]


def test_a_slow_answer_that_is_repeated_costs_one_deadline(pool):
    """12 in turn on two workers take at least 12 s, however quick the machine; one takes 2 to 6 s by the clock."""
    started = time.monotonic()
    assert {verdict.reason for verdict in _say(pool, *["spin repeated"] * 12)} == {"timeout"}
    assert time.monotonic() - started < 10


def test_what_depends_on_the_load_is_not_cached(pool):
    for prediction in ("spin once", "killed once"):
        _say(pool, prediction)
        assert pool._cache.get(_key(SCRIPTED, "ok", prediction)) is None
    _say(pool, "say cached")
    assert pool._cache.get(_key(SCRIPTED, "ok", "say cached")) is not None


def test_verdicts_that_an_inner_limit_may_have_decided_are_not_cached():
    with GradingPool(workers=1) as pool:
        assert _say(pool, "sleep 2.6")[0].correct and len(pool._cache) == 0


def test_the_cache_is_bounded_in_entries_and_bytes():
    cache = VerdictCache(max_entries=3, max_bytes=10_000)
    short = [Verdict(True, True, str(i), "match") for i in range(5)]
    for i in range(3):
        cache.put(bytes([i]), short[i])
    assert cache.get(b"\0") == short[0]  # used last: stays
    cache.put(b"\3", short[3])
    assert len(cache) == 3 and cache.get(b"\1") is None and cache.get(b"\0") is not None
    assert cache.num_bytes == 3 * (700 + 4)
    long = Verdict(True, True, "x" * 500, "match", extracted_strict="y" * 500, flags=("f",), extra={"tag": 1.0})
    assert _size(long) == 700 + 4 * 1000 + 2 * 80  # 4860: two of them fit into 10,000 bytes, with a short one not
    for i in range(9):
        cache.put(bytes([10 + i % 3]), long)
    assert len(cache) == 2 and cache.num_bytes == 2 * 4860
    cache.put(b"huge", Verdict(True, True, "x" * 5000, "match"))
    assert len(cache) == 0 == cache.num_bytes
    cache.put(b"\1", short[1])
    cache.clear()
    assert len(cache) == 0 == cache.num_bytes


def test_the_size_of_an_entry_is_not_understated():
    import pickle
    import tracemalloc

    for verdict in (Verdict(True, True, None, "match"), Verdict(True, True, "\U0001f600" * 500, "x", flags=("a", "b"))):
        data, cache = pickle.dumps(verdict), VerdictCache()
        tracemalloc.start()
        for i in range(1000):
            cache.put(i.to_bytes(16, "little"), pickle.loads(data))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0.3 * cache.num_bytes < held < cache.num_bytes


def test_the_caller_gets_no_signal_handlers(pool):
    handlers = {s: signal.getsignal(s) for s in signal.valid_signals()}
    timer, descriptor = signal.getitimer(signal.ITIMER_REAL), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    _say(pool, "spin for signals", "segfault", _fresh("number"))
    assert {s: signal.getsignal(s) for s in signal.valid_signals()} == handlers
    assert descriptor == signal.set_wakeup_fd(descriptor)
    assert timer[0] - 20 < signal.getitimer(signal.ITIMER_REAL)[0] <= timer[0]  # whoever has set one keeps it


def test_workers_are_no_copies_of_the_caller(pool):
    """So neither its CUDA state nor its threads can be forked into them; and they see no GPU."""
    seen, parent = _say(pool, "environment CUDA_VISIBLE_DEVICES", "parent")
    assert seen.extracted == "" and int(parent.extracted) != os.getpid()


def test_in_a_running_event_loop(pool):
    """Awaited, waited for in the loop's own thread, and given up: the loop goes on and so does the pool."""

    async def main():
        awaited = asyncio.wrap_future(pool.grade_async(SCRIPTED, [("ok", "sleep 0.3 "), ("ok", "say awaited")]))
        blocking = pool.grade(SCRIPTED, [("ok", "say blocking")])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(pool.grade_async(SCRIPTED, [("ok", "sleep 0.4 ")])), 0.05)
        return await awaited, blocking

    awaited, blocking = asyncio.run(main())
    assert awaited[1].extracted == "awaited" and blocking[0].extracted == "blocking"
    assert not pool.grade_async(SCRIPTED, [("ok", _fresh("number"))]).cancel()
    assert _say(pool, "say after")[0].correct


def test_from_many_threads_at_once(pool):
    found: dict[int, list[str]] = {}

    def work(thread: int) -> None:
        found[thread] = [v.extracted for v in _say(pool, *[f"say {thread} {i}" for i in range(60)])]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {thread: [f"{thread} {i}" for i in range(60)] for thread in range(8)}


def test_a_callback_may_not_wait_for_its_own_pool(pool):
    errors: list[BaseException] = []
    done = threading.Event()

    def callback(_) -> None:
        try:
            pool.grade(SCRIPTED, [("ok", "say inner")])
        except RuntimeError as error:
            errors.append(error)
        done.set()

    pool.grade_async(SCRIPTED, [("ok", f"sleep 0.1{time.monotonic_ns()}")]).add_done_callback(callback)
    assert done.wait(30) and "grade_async" in str(errors[0])


def test_a_forked_copy_has_a_pool_of_its_own(pool):
    """Data loaders fork. The copy grades with new workers and leaves the original's alone."""
    assert _say(pool, _fresh("number"))[0].correct
    # A worker that another test has ended starts again when there is work for it.
    mine = {worker.process.pid for worker in pool._workers if worker.process}
    assert mine
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            nursery.PRELOAD = ()
            said = pool.grade(SCRIPTED, [("ok", _fresh("number"))])[0].extracted
            pool.close()
            os.write(writer, said.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(pid, 0)
    assert said.endswith("/1") and int(said.split("/")[0]) not in mine
    assert _say(pool, _fresh("number"))[0].correct
    assert mine <= {worker.process.pid for worker in pool._workers if worker.process}


def test_closing_leaves_no_worker_behind():
    closing = GradingPool(workers=2)
    _say(closing, "say a")
    future = closing.grade_async(SCRIPTED, [("ok", "spin until closed"), ("ok", "say b")])
    pids = [worker.process.pid for worker in closing._workers if worker.process]
    closing.close()
    assert pids and not any(map(psutil.pid_exists, pids))
    with pytest.raises(RuntimeError, match="closed"):
        future.result(timeout=10)
    with pytest.raises(RuntimeError, match="closed"):
        closing.grade(SCRIPTED, [("ok", "say late")])
    closing.close()


def test_no_answer_is_lost_when_a_pool_closes_under_its_callers():
    """Every future ends, in verdicts or in an error, however the calls and the closing interleave."""
    for _ in range(5):
        closing = GradingPool(workers=1)
        futures = []

        def ask(closing=closing, futures=futures) -> None:
            for i in range(200):
                try:
                    futures.append(closing.grade_async(SCRIPTED, [("ok", f"say {i}")]))
                except RuntimeError:
                    return

        thread = threading.Thread(target=ask)
        thread.start()
        closing.close()
        thread.join()
        for future in futures:
            assert future.exception(timeout=10) is None or "closed" in str(future.exception())


def _script(tmp_path: Path, body: str) -> list[str]:
    path = tmp_path / "script.py"
    path.write_text(
        "print('main runs', flush=True)\n"
        "from eval_harness.graders import nursery\n"
        "from eval_harness.graders.pool import GradingPool\n"
        "nursery.PRELOAD = ()\n" + body
    )
    return [sys.executable, str(path)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def _gone(pids: list[int], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
            return True
        time.sleep(0.05)
    return False


def test_a_killed_caller_takes_its_workers_along(tmp_path):
    """Also one that is deep in C code."""
    body = (
        "pool = GradingPool(workers=2, deadline=600)\n"
        f"pids = {{v.extracted.split('/')[0] for v in pool.grade({SCRIPTED!r}, [('ok', f'number {{i}}') "
        "for i in range(2)])}\n"
        f"parent = pool.grade({SCRIPTED!r}, [('ok', 'parent')])[0].extracted\n"
        f"future = pool.grade_async({SCRIPTED!r}, [('ok', 'spin')])\n"
        "print(*[w.process.pid for w in pool._workers if w.process], parent, flush=True)\n"
        "future.result()\n"
    )
    caller = subprocess.Popen(_script(tmp_path, body), stdout=subprocess.PIPE, text=True, env=_environment())
    with caller:
        caller.stdout.readline()
        pids = [int(pid) for pid in caller.stdout.readline().split()]
        time.sleep(0.3)
        assert len(pids) >= 2 and all(map(psutil.pid_exists, pids))
        caller.kill()
    assert _gone(pids)


def test_a_script_without_main_guard_runs_once_and_ends_clean(tmp_path):
    """Workers of multiprocessing would run it again. When it ends, everything it started is gone."""
    body = (
        "pool = GradingPool(workers=1)\n"
        f"verdicts = pool.grade({SCRIPTED!r}, [('ok', 'parent'), ('ok', 'number')])\n"
        "print(verdicts[0].extracted, verdicts[1].extracted.split('/')[0])\n"
    )
    done = subprocess.run(_script(tmp_path, body), capture_output=True, text=True, env=_environment(), timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    first, pids = done.stdout.splitlines()
    assert first == "main runs" and _gone([int(pid) for pid in pids.split()])


def test_a_nursery_that_dies_is_replaced(tmp_path):
    body = (
        "pool = GradingPool(workers=2)\n"
        f"(said,) = pool.grade({SCRIPTED!r}, [('ok', 'parent')])\n"
        "import psutil, time\n"
        "killed = psutil.Process(int(said.extracted))\n"
        "killed.kill()\n"
        "while killed.is_running() and killed.status() != psutil.STATUS_ZOMBIE: time.sleep(0.01)\n"
        f"(again,) = pool.grade({SCRIPTED!r}, [('ok', 'parent 2')])\n"
        "assert again.extracted != said.extracted\n"
        "pool.close()\n"
        "nursery.stop()\n"
        "print(psutil.Process().children(recursive=True))\n"
    )
    done = subprocess.run(_script(tmp_path, body), capture_output=True, text=True, env=_environment(), timeout=60)
    assert done.stdout.splitlines() == ["main runs", "[]"], done.stderr


def test_a_nursery_without_workers_ends(monkeypatch):
    """While its user lives on."""
    monkeypatch.setattr(nursery, "PRELOAD", ())
    monkeypatch.setattr(nursery, "LINGER_SECONDS", 0.1)
    idle = nursery._Nursery()
    assert idle.process.wait(60) == 0
    idle.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_busy_worker_does_not_outlive_its_nursery(monkeypatch):
    """Nobody else could end it."""
    monkeypatch.setattr(nursery, "PRELOAD", ())
    alone = nursery._Nursery()
    child = alone.fork(1 << 30, False)
    kind, pid, _ = json.loads(child.connection.recv_bytes())
    child.connection.send_bytes(json.dumps(["grade", 1, SCRIPTED, [["ok", "spin"]]]).encode())
    assert (kind, json.loads(child.connection.recv_bytes())[0]) == ("ready", "begun")
    alone.process.kill()
    alone.process.wait()
    try:
        assert _gone([pid])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        child.forget()
        alone.close()


def test_a_worker_ends_with_its_own_status():
    """What tells an answer that took too much memory from a crash; the interpreter's exit is not gone through."""
    ours, theirs = socket.socketpair()
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        try:
            ours.close()
            nursery._work(theirs.detach(), 1 << 30, parent)
        finally:
            os._exit(70)
    theirs.close()
    assert b"ready" in ours.recv(4096)
    ours.close()  # nothing to grade: the worker's work is done
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_workers_that_cannot_start_are_an_error(tmp_path):
    body = (
        "nursery.PRELOAD = ('no_such_module',)\n"
        "try:\n"
        f"    GradingPool(workers=1).grade({SCRIPTED!r}, [('ok', 'number')])\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(_script(tmp_path, body), capture_output=True, text=True, env=_environment(), timeout=60)
    assert "grading workers cannot start" in done.stdout and "no_such_module" in done.stderr


def test_in_a_notebook(tmp_path):
    """In the kernel's running event loop, waited for and awaited, with a slow answer."""
    import nbformat
    from nbclient import NotebookClient

    source = (
        "import asyncio\n"
        "from eval_harness.graders import nursery\n"
        "from eval_harness.graders.pool import shared_pool\n"
        "nursery.PRELOAD = ()\n"
        "shared_pool().deadline = 1.0\n"
        f"verdicts = shared_pool().grade({SCRIPTED!r}, [('ok', 'say a'), ('ok', 'spin')])\n"
        f"verdicts += await asyncio.wrap_future(shared_pool().grade_async({SCRIPTED!r}, [('ok', 'say b')]))\n"
        "print([verdict.reason for verdict in verdicts])"
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    client = NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", _environment()["PYTHONPATH"])
        client.execute()
    assert book.cells[0].outputs[0].text.strip() == "['match', 'timeout', 'match']"


def test_the_deadline_is_the_documented_one():
    """docs/reliability.md: 5 s of computing, and twice that by the clock."""
    with GradingPool() as default:
        assert (default.deadline, default.deadline * default.patience, default.memory) == (5, 10, 1 << 30)


def test_building_a_grader_is_no_answers_time():
    """The clock's limit of an answer is 0.4 s; its grader takes a second to build."""
    with GradingPool(workers=1, deadline=0.2, patience=2) as alone:
        _say(alone, "say warm")
        assert _say(alone, "say slow", grader="scripted_graders:slow_to_build")[0].correct


@pytest.mark.parametrize("settings", [{"deadline": 0}, {"deadline": -1}, {"memory": 0}, {"patience": 0.5}], ids=str)
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="must be positive|must be at least 1"):
        GradingPool(**settings)
