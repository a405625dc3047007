"""A notebook gets its memory back: after each cell that used an engine none is left, also where the cell failed."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from gpg_repro import notebooks

ROOT = Path(__file__).resolve().parent.parent
MARGIN_MIB = 100
"""What a kernel may hold more after a cell than before; an engine alone holds several times as much."""

BEFORE = """
import json, os, signal, sys, threading, time
sys.path.insert(0, ROOT)
import psutil
from eval_harness import records
from eval_harness.runner import Overrides, evaluate

me = psutil.Process()

def tree():
    return [p for p in (me, *me.children(recursive=True)) if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

def mib(processes):
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss >> 20
        except psutil.NoSuchProcess:
            pass
    return total

def engines():
    found = []
    for process in tree():
        try:
            if "eval_harness.engines.worker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found

def run(name):
    return evaluate(MODEL, ["tiny_sums"], engine="transformers", out=OUT + name, limit=2,
                    overrides=Overrides(max_new_tokens=4), progress=False)

class Watch(threading.Thread):
    \"\"\"The most that engines held while a cell ran; interrupts it once they hold `interrupt_at` MiB.\"\"\"
    def __init__(self, interrupt_at=None):
        super().__init__(daemon=True)
        self.most, self.interrupt_at, self.over = 0, interrupt_at, False
        self.start()
    def run(self):
        while not self.over:
            self.most = max(self.most, mib(engines()))
            if self.interrupt_at and self.most > self.interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.2)

def report(label, watch):
    watch.over = True
    print("REPORT", json.dumps([label, watch.most, len(engines()), mib(tree())]))
"""
CELLS = {
    "whole": "watch = Watch(); folder = run('whole')",
    "error": (
        "def full(*_): raise OSError('disk full')\n"
        "kept, records.append_lines = records.append_lines, full\n"
        "watch = Watch()\n"
        "try:\n    run('error')\nexcept OSError as error:\n    failed = error  # and with it every frame below\n"
        "records.append_lines = kept"
    ),
    "interrupt": (
        "watch = Watch(interrupt_at=150)\n"
        "try:\n    run('interrupt')\nexcept KeyboardInterrupt as error:\n    stopped = error"
    ),
}


@pytest.mark.full("a notebook that starts engines")
def test_after_each_cell_the_engine_and_its_memory_are_gone(random_checkpoint, tmp_path):
    names = {"ROOT": str(ROOT), "MODEL": str(random_checkpoint), "OUT": f"{tmp_path}/"}
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    assigned = "SCALE = 'smoke'\n" + "".join(f"{name} = {value!r}\n" for name, value in names.items())
    notebook.cells = [nbformat.v4.new_code_cell(assigned, metadata={"tags": ["parameters"]})]
    notebook.cells.append(nbformat.v4.new_code_cell(BEFORE))
    for label, source in CELLS.items():
        notebook.cells.append(nbformat.v4.new_code_cell(source))
        notebook.cells.append(nbformat.v4.new_code_cell(f"report({label!r}, watch)"))
    notebook.cells.append(nbformat.v4.new_code_cell("print('RAISED', type(failed).__name__, type(stopped).__name__)"))
    nbformat.write(notebook, tmp_path / "a.ipynb")
    done = nbformat.read(notebooks.run(tmp_path / "a.ipynb", {}, tmp_path / "out.ipynb"), as_version=4)
    printed = "".join(o.get("text", "") for c in done.cells if c.cell_type == "code" for o in c.outputs)
    lines = [json.loads(line.removeprefix("REPORT ")) for line in printed.splitlines() if line.startswith("REPORT ")]
    found = {label: (most, left, held) for label, most, left, held in lines}
    assert set(found) == set(CELLS) and "RAISED OSError KeyboardInterrupt" in printed
    after_first = found["whole"][2]
    for label, (most, left, held) in found.items():
        assert most > 1.4 * MARGIN_MIB, f"{label}: the engine was seen and held more than the margin"
        assert left == 0, f"{label}: {left} engine processes are left"
        assert held < after_first + MARGIN_MIB, f"{label}: {held} MiB held, {after_first} after the first cell"
