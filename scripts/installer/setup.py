"""The flow of `make install`: nothing when all is there, else venv, torch, packages, project, cures, stamp."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from installer import cures
from installer.pip import Pip, Progress
from installer.plan import InstallError, Plan
from installer.repair import forget_incomplete

try:
    import fcntl
except ImportError:  # Windows: two installations at the same time are not guarded against each other
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent.parent
CUDA_HINT = (
    "pip's index serves a CUDA build of torch (several GB) for this CPU set; TORCH_INDEX=<PyTorch's CPU index> avoids"
    " it (docs/environment.md)"
)


@contextlib.contextmanager
def only_one(lock_file: Path) -> Iterator[list[int]]:
    """Hold `lock_file`, waiting while another installation holds it. Yields descriptors for pip to keep open."""
    with lock_file.open("a") as lock:
        if fcntl is None:
            yield []
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("install: another installation is running here; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield [lock.fileno()]


def make_venv(plan: Plan) -> str:
    """Make the environment, keeping a usable one of the same Python, place and device. Returns what was done.

    Raises:
        InstallError: if Python lacks its venv or ensurepip module, making the environment fails, or it would clear
            the environment of another checkout through a link.
    """
    stamp = plan.read_stamp()
    moved = bool(stamp) and (stamp.get("root"), stamp.get("device")) != (str(plan.root), plan.device)
    if not moved and (plan.venv / "pyvenv.cfg").is_file() and _has_pip(plan):
        return "kept"
    if plan.venv.is_symlink() and stamp.get("root") != str(plan.root) and any(plan.venv.glob("*")):
        raise InstallError(
            f"{plan.venv_name} is a link to {plan.venv.resolve()}, which is not this checkout's and would be cleared;"
            " remove the link and run `make install` again"
        )
    if missing := [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]:
        raise InstallError(
            f"this Python lacks its {' and '.join(missing)} module; install it (Debian, Ubuntu: apt install"
            " python3-venv) or choose another with PYTHON=…"
        )
    base_python = getattr(sys, "_base_executable", None) or sys.executable
    result = subprocess.run(
        [base_python, "-m", "venv", "--clear", str(plan.venv)], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if result.returncode != 0:
        words = (result.stderr or result.stdout).strip().splitlines()
        if any("No space left" in line for line in words):
            raise InstallError(f"disk full while making {plan.venv_name}; make room and run `make install` again")
        raise InstallError(f"cannot make {plan.venv}: {words[-1] if words else 'python -m venv failed'}")
    return "made again for this place and device" if moved else "made"


def _has_pip(plan: Plan) -> bool:
    """Whether the environment's interpreter starts, is of the planned version and can import pip."""
    check = f"import sys, pip._internal.cli.main; sys.exit(sys.version_info[:2] != {plan.python_version})"
    with contextlib.suppress(OSError):
        return subprocess.run([str(plan.python), "-I", "-c", check], capture_output=True).returncode == 0
    return False


def replace_other_torch(plan: Plan, pip: Pip) -> None:
    """Uninstall a torch without a build label when TORCH_INDEX asks for a labelled build: pip sees no difference."""
    unlabelled = [path for path in plan.site_packages.glob("torch-*.dist-info") if "+" not in path.name]
    if plan.torch_index and unlabelled:
        pip.run("uninstall", "--yes", "torch", "torchvision")


def install(plan: Plan, inherited: list[int]) -> None:
    """Bring the environment to `plan`, whatever state it is in. The stamp goes first and comes back last."""
    plan.check_disk()
    if not plan.with_vllm:
        print("install: the vLLM wheels are for Linux on x86_64: the transformers engine will be used here")
    progress = Progress(num_phases=5)
    progress.start("virtual environment")
    venv_state = make_venv(plan)
    plan.stamp_file.unlink(missing_ok=True)
    forgotten = forget_incomplete(plan.site_packages)
    progress.finish(venv_state)
    if forgotten:
        progress.note(f"half installed by an earlier try, installing again: {', '.join(forgotten)}")

    log_file = plan.venv / "install.log"
    log_file.write_text("")
    pip = Pip(plan.python, plan.site_packages, log_file, progress, inherited)
    torch_index = ["--extra-index-url", plan.torch_index] if plan.torch_index else []

    progress.start(f"torch for {plan.device}")
    replace_other_torch(plan, pip)
    hints = {"Collecting nvidia-": CUDA_HINT} if plan.device == "cpu" else {}
    pip.run("install", *plan.torch_requirements(), "-c", str(plan.lock_file), *torch_index, hints=hints)
    progress.finish()

    progress.start(f"packages of the {plan.device} set")
    pip.run("install", *plan.package_arguments(), *torch_index)
    progress.finish()

    progress.start("this project, editable")
    pip.run("install", "--no-deps", "--no-build-isolation", "--editable", str(plan.root))
    progress.finish()

    progress.start("checking that it loads")
    operators_file = plan.root / "scripts" / "torchvision_operators.py"
    done = cures.remove_unloadable_extensions(pip) + cures.declare_torchvision_operators(pip, operators_file)
    progress.finish()
    for line in done:
        progress.note(line)
    plan.write_stamp()


def run(arguments: list[str]) -> int:
    """Entry point; returns the exit status: 0 when the environment is ready, else 2 with one line on stderr."""
    description = "Make the virtual environment ready. DEVICE and TORCH_INDEX are environment variables."
    parser = argparse.ArgumentParser(prog="install", description=description)
    parser.add_argument("--quiet", action="store_true", help="say nothing when there is nothing to do")
    parser.add_argument("--venv", default=".venv", metavar="FOLDER", help="the environment, under the checkout")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        plan = Plan.for_this_machine(ROOT, os.environ, options.venv)
        if plan.is_installed():
            if not options.quiet:
                print(f"install: {plan.venv_name} is up to date ({plan.device} set)")
            return 0
        with only_one(plan.root / ".venv.lock") as inherited:
            if not plan.is_installed():
                install(plan, inherited)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - started
    print(f"install: {plan.venv_name} is ready ({plan.device} set) after {seconds:.0f} s", flush=True)
    return 0
