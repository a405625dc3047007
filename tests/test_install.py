"""The installer's decisions, tested without installing anything (scripts/install.py, scripts/installer/)."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import install as front_door  # noqa: E402
import test_pythons as other_pythons  # noqa: E402

from installer import cures, plan, setup  # noqa: E402
from installer.pip import Pip, Progress, diagnose  # noqa: E402
from installer.plan import InstallError, Plan, choose_device, vllm_is_locked_for  # noqa: E402
from installer.repair import forget_incomplete  # noqa: E402


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def no_installation_here(tmp_path, monkeypatch):
    """The installer called by mistake finds an empty folder, not this checkout and its environment."""
    monkeypatch.setattr(setup, "ROOT", tmp_path)


@pytest.fixture
def checkout(tmp_path):
    """A small checkout, in a folder with a space, with an interpreter in its .venv that only exists."""
    root = tmp_path / "a checkout"
    for name, text in {
        "requirements/common.in": "torch==2.13.0\n",
        "requirements/dev.txt": "pytest==9.2.0\n",
        "requirements/cpu.txt": "numpy==2.3.5\ntorch==2.13.0\ntorchvision==0.28.0\nvllm-cpu==0.31.0\n",
        "requirements/gpu.txt": "numpy==2.3.5\ntorch==2.13.0\ntorchvision==0.28.0\nvllm==0.31.0\n",
        "pyproject.toml": "[project]\n",
        "scripts/install.py": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    executable(root / ".venv/bin/python", "exit 0\n")
    return root


def cpu_plan(root: Path, **changes) -> Plan:
    return Plan(**{"root": root, "device": "cpu", "with_vllm": True, **changes})


# --- Which set -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nvidia_smi", "device"),
    [
        ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-0)'\n", "gpu"),
        ("echo 'No devices found.'\n", "cpu"),
        ("echo 'GPU access blocked by the operating system'; exit 9\n", "cpu"),  # a driver without a device
        (None, "cpu"),
    ],
)
def test_device_follows_what_nvidia_smi_lists(tmp_path, nvidia_smi, device):
    if nvidia_smi is not None:
        executable(tmp_path / "nvidia-smi", nvidia_smi)
    assert choose_device("", search_path=str(tmp_path)) == device


def test_device_asked_for_wins_over_the_one_found(tmp_path):
    executable(tmp_path / "nvidia-smi", "echo 'GPU 0: NVIDIA H200'\n")
    assert choose_device("cpu", search_path=str(tmp_path)) == "cpu"
    with pytest.raises(InstallError, match=r"DEVICE=tpu is unknown; use DEVICE=cpu or DEVICE=gpu"):
        choose_device("tpu")


@pytest.mark.parametrize(
    ("system", "machine", "libc", "expected"),
    [
        ("Linux", "x86_64", ("glibc", "2.28"), True),  # the wheels are tagged manylinux_2_28
        ("Linux", "x86_64", ("glibc", "2.36"), True),
        ("Linux", "x86_64", ("glibc", "2.9"), False),  # 9 < 28: versions are numbers, not text
        ("Linux", "x86_64", ("", ""), False),  # musl
        ("Linux", "aarch64", ("glibc", "2.36"), False),
        ("Darwin", "arm64", ("", ""), False),
        ("Windows", "AMD64", ("", ""), False),
    ],
)
def test_vllm_is_part_of_the_set_only_where_the_lock_fits(system, machine, libc, expected):
    assert vllm_is_locked_for(system, machine, libc) is expected


def test_without_a_vllm_wheel_the_rest_is_resolved_under_the_lock(checkout):
    requested = cpu_plan(checkout, with_vllm=False).package_arguments()
    assert "--no-deps" not in requested  # another platform needs other dependencies
    files = [Path(argument).name for argument in requested if not argument.startswith("-")]
    assert files == ["common.in", "dev.txt", "cpu.txt"]
    assert requested[requested.index(str(checkout / "requirements/cpu.txt")) - 1] == "-c"


def test_the_real_requirements_without_vllm_name_no_vllm():
    requirements = SCRIPTS.parent / "requirements"
    for name in ("common.in", "dev.txt"):
        lines = (requirements / name).read_text().splitlines()
        assert not [line for line in lines if line.startswith(("vllm", "-r"))]


def test_torch_comes_first_and_from_the_lock(checkout):
    assert cpu_plan(checkout).torch_requirements() == ["torch==2.13.0", "torchvision==0.28.0"]


# --- The stamp -----------------------------------------------------------------------------------------------------


def test_nothing_is_to_do_after_the_stamp_and_something_before(checkout):
    assert not cpu_plan(checkout).is_installed()
    cpu_plan(checkout).write_stamp()
    assert cpu_plan(checkout).is_installed()


@pytest.mark.parametrize(
    "path", ["requirements/common.in", "requirements/cpu.txt", "pyproject.toml", "scripts/install.py"]
)
def test_an_edited_input_is_noticed(checkout, path):
    cpu_plan(checkout).write_stamp()
    with (checkout / path).open("a") as file:
        file.write("# edited\n")
    assert not cpu_plan(checkout).is_installed()


@pytest.mark.parametrize("change", [{"device": "gpu"}, {"python_version": (3, 12)}, {"with_vllm": False}])
def test_another_device_python_or_platform_is_noticed(checkout, change):
    cpu_plan(checkout, python_version=(3, 11)).write_stamp()
    assert not cpu_plan(checkout, **{"python_version": (3, 11), **change}).is_installed()


def test_a_moved_checkout_is_noticed(checkout):
    cpu_plan(checkout).write_stamp()
    moved = checkout.rename(checkout.with_name("moved"))
    assert not cpu_plan(moved).is_installed()


def test_a_lost_interpreter_or_torn_stamp_is_noticed(checkout):
    this = cpu_plan(checkout)
    this.write_stamp()
    whole = this.stamp_file.read_text()
    for torn in ("", whole[: len(whole) // 2], "[]"):
        this.stamp_file.write_text(torn)
        assert not this.is_installed()
    this.stamp_file.write_text(whole)
    this.python.unlink()
    assert not this.is_installed()


def test_torch_index_matters_when_given_and_not_when_left_out_later(checkout):
    cpu_plan(checkout, torch_index="https://one.example").write_stamp()
    assert cpu_plan(checkout).is_installed()
    assert cpu_plan(checkout, torch_index="https://one.example").is_installed()
    assert not cpu_plan(checkout, torch_index="https://two.example").is_installed()


# --- The flow ------------------------------------------------------------------------------------------------------


class FakePip:
    """Records pip's arguments; fails like a lost network from the n-th call on, when told to."""

    calls: list[tuple[str, ...]] = []
    fail_from: int | None = None

    def __init__(self, python, site_packages, *_):
        self.python, self.site_packages = python, site_packages

    def run(self, *arguments, hints=None):
        self.calls.append(arguments)
        if self.fail_from is not None and len(self.calls) >= self.fail_from:
            raise InstallError("no network")


@pytest.fixture
def fake_pip(monkeypatch):
    FakePip.calls, FakePip.fail_from = [], None
    monkeypatch.setattr(setup, "Pip", FakePip)
    monkeypatch.setattr(
        setup, "make_venv", lambda this: this.site_packages.mkdir(parents=True, exist_ok=True) or "made"
    )
    monkeypatch.setattr(cures, "import_error", lambda python, module: None)
    monkeypatch.setattr(Plan, "check_disk", lambda self: None)
    monkeypatch.setattr(setup.cures, "declare_torchvision_operators", lambda pip, file: [])
    return FakePip


def test_torch_then_packages_then_project_then_stamp(checkout, fake_pip):
    this = cpu_plan(checkout, torch_index="https://one.example")
    setup.install(this, [])
    torch, packages, project = fake_pip.calls
    assert torch[:3] == ("install", "torch==2.13.0", "torchvision==0.28.0")
    assert torch[-2:] == ("--extra-index-url", "https://one.example")
    assert packages[1:4] == ("--no-deps", "-r", str(checkout / "requirements/cpu.txt"))
    assert "--editable" in project and "--no-deps" in project
    assert this.is_installed()


def test_an_interrupted_try_leaves_no_stamp_and_the_next_one_finishes(checkout, fake_pip):
    this = cpu_plan(checkout)
    this.write_stamp()
    (checkout / "pyproject.toml").write_text("[project] # changed\n")
    fake_pip.fail_from = 2
    with pytest.raises(InstallError):
        setup.install(this, [])
    assert not this.stamp_file.exists()
    fake_pip.fail_from = None
    setup.install(this, [])
    assert this.is_installed()


def test_an_unlabelled_torch_gives_way_when_an_index_is_named(checkout, fake_pip):
    this = cpu_plan(checkout, torch_index="https://one.example")
    (this.site_packages / "torch-2.13.0.dist-info").mkdir(parents=True)
    setup.replace_other_torch(this, FakePip(this.python, this.site_packages))
    assert fake_pip.calls == [("uninstall", "--yes", "torch", "torchvision")]
    (this.site_packages / "torch-2.13.0.dist-info").rename(this.site_packages / "torch-2.13.0+cpu.dist-info")
    setup.replace_other_torch(this, FakePip(this.python, this.site_packages))
    assert len(fake_pip.calls) == 1


@pytest.mark.parametrize(("recorded", "venv_is_kept"), [({}, True), ({"device": "gpu"}, False), ({"root": "x"}, False)])
def test_a_venv_of_another_place_or_device_is_made_again(checkout, monkeypatch, recorded, venv_is_kept):
    this = cpu_plan(checkout)
    this.write_stamp()
    this.stamp_file.write_text(json.dumps(this.read_stamp() | recorded))
    (this.venv / "pyvenv.cfg").write_text("")
    commands = []
    monkeypatch.setattr(
        setup.subprocess,
        "run",
        lambda command, **_: commands.append(command) or subprocess.CompletedProcess(command, 0),
    )
    assert (setup.make_venv(this) == "kept") is venv_is_kept
    assert any("venv" in command for command in commands) is not venv_is_kept


@pytest.mark.parametrize("stamp", [{"root": "/another/checkout"}, {}])
def test_an_environment_of_others_is_not_cleared_through_a_link(checkout, tmp_path, monkeypatch, stamp):
    monkeypatch.setattr(setup.subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    monkeypatch.setattr(setup, "_has_pip", lambda this: False)
    (checkout / ".venv").rename(tmp_path / "theirs")
    (checkout / ".venv").symlink_to(tmp_path / "theirs")
    this = cpu_plan(checkout)
    this.stamp_file.write_text(json.dumps(stamp))
    with pytest.raises(InstallError, match=r"\.venv is a link to .*theirs, .* remove the link"):
        setup.make_venv(this)
    assert (tmp_path / "theirs/bin/python").exists()


def test_ones_own_environment_may_be_behind_a_link(checkout, tmp_path, monkeypatch):
    """On a larger disk, for instance."""
    made = []
    monkeypatch.setattr(setup.subprocess, "run", lambda c, **_: made.append(c) or subprocess.CompletedProcess(c, 0))
    monkeypatch.setattr(setup, "_has_pip", lambda this: False)
    this = cpu_plan(checkout)
    this.write_stamp()
    (checkout / ".venv").rename(tmp_path / "scratch")
    (checkout / ".venv").symlink_to(tmp_path / "scratch")
    assert setup.make_venv(this) == "made"
    assert made[0][1:4] == ["-m", "venv", "--clear"]


def test_a_missing_venv_module_is_named_with_its_remedy(checkout, monkeypatch):
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(InstallError, match=r"lacks its ensurepip module; install it .*apt install python3-venv"):
        setup.make_venv(cpu_plan(checkout))


def test_a_second_installation_waits_for_the_first(tmp_path, capfd):
    entered = threading.Event()

    def second():
        with setup.only_one(tmp_path / "lock"):
            entered.set()

    with setup.only_one(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
    thread.join(10)
    assert entered.is_set()
    assert "another installation is running here; waiting" in capfd.readouterr().out


# --- Python and disk -----------------------------------------------------------------------------------------------


def test_supported_pythons():
    assert front_door.supported() == ["3.11", "3.12", "3.13"]
    accepted = [front_door.is_supported((3, minor, 0)) for minor in (10, 11, 12, 13, 14)]
    assert accepted == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ((3, 9, 18), "install: Python 3.9 found, 3.11, 3.12 or 3.13 needed; install one, "),
        (
            (3, 14, 0),
            "install: Python 3.14 found, 3.11, 3.12 or 3.13 needed"
            " (tensordict==0.10.0 has no wheel for Python 3.14 yet); install one, ",
        ),
    ],
)
def test_another_python_is_refused_in_one_line(monkeypatch, capsys, version, said):
    monkeypatch.setattr(front_door.sys, "version_info", version)
    monkeypatch.setattr(front_door, "find_pythons", lambda: [])
    assert front_door.main([]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(said) and printed.count("\n") == 1


def test_what_holds_the_next_python_back_is_a_pin():
    """When that pin moves, look whether the new version has the wheel."""
    pinned = "".join(path.read_text() for path in (SCRIPTS.parent / "requirements").glob("*.txt")).splitlines()
    assert front_door.HELD_BACK_BY in pinned


def test_pythons_are_found_when_they_really_start(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    executable(tmp_path / "first/python3.12", "exit 127\n")  # a version manager's shim of a Python that is not active
    assert front_door.find_pythons() == []
    oldest = executable(tmp_path / "first/python3.11", "exit 0\n")
    assert front_door.find_pythons() == [("3.11", str(oldest))]
    behind = executable(tmp_path / "second/python3.12", "exit 0\n")
    executable(tmp_path / "second/python3.11", "exit 0\n")
    executable(tmp_path / "second/python3.14", "exit 0\n")
    assert front_door.find_pythons() == [("3.12", str(behind)), ("3.11", str(oldest))]


def test_behind_a_shim_that_does_not_start_pyenvs_own_version_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "shims"))
    executable(tmp_path / "shims/python3.13", "exit 127\n")
    executable(tmp_path / "versions/3.12.1/bin/python3.12", "exit 0\n")
    there = executable(tmp_path / "versions/3.13.0/bin/python3.13", "exit 0\n")
    executable(tmp_path / "versions/3.14.0/bin/python3.14", "exit 0\n")
    assert front_door.find_pythons()[0] == ("3.13", str(there))


def test_an_unsupported_python_hands_over_to_the_newest_supported_one(tmp_path, monkeypatch):
    """By a real child process: the found interpreter gets the front door and its arguments."""
    executable(tmp_path / "python3.11", 'test "$1" = -c || exit 5\n')
    executable(tmp_path / "python3.13", f'test "$1" = -c || echo "$@" > "{tmp_path}/asked"\n')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(front_door.sys, "version_info", (3, 14, 0))
    assert front_door.main(["--quiet"]) == 0
    assert (tmp_path / "asked").read_text().split() == [str(SCRIPTS / "install.py"), "--quiet"]


@pytest.fixture
def made_by(tmp_path, monkeypatch):
    """Writes a .venv as made by this version of a stand-in, which records its arguments."""
    monkeypatch.setattr(front_door, "HERE", str(tmp_path / "scripts"))

    def make(version: str) -> Path:
        maker = executable(tmp_path / "bin/maker", f'test "$1" = -c || echo "$@" > "{tmp_path}/asked"\n')
        config = f"home = {maker.parent}\nversion = {version}\nexecutable = {maker}\ncommand = {maker} -m venv x=y\n"
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv/pyvenv.cfg").write_text(config)
        return maker

    return make


def test_an_environment_keeps_the_python_it_was_made_with(tmp_path, made_by):
    """`make install PYTHON=…` once: a later target, without PYTHON, must not make .venv anew with python3."""
    made_by("3.13.0")
    assert front_door.main(["--quiet", "--keep-python"]) == 0
    assert (tmp_path / "asked").read_text().split() == [str(tmp_path / "scripts/install.py"), "--quiet"]


@pytest.mark.parametrize("version", ["3.10.2", "3.14.0", "none"])
def test_an_environment_of_another_python_does_not(tmp_path, made_by, version):
    made_by(version)
    assert front_door.maker_of(str(tmp_path / ".venv")) is None


def test_a_python_that_is_gone_is_not_kept(tmp_path, made_by):
    assert front_door.maker_of(str(tmp_path / ".venv")) is None  # no environment
    maker = made_by("3.12.1")
    assert front_door.maker_of(str(tmp_path / ".venv")) == str(maker)
    maker.unlink()
    assert front_door.maker_of(str(tmp_path / ".venv")) is None


@pytest.mark.parametrize("name", ["install.py", "suggest.py"])
def test_the_front_doors_parse_under_an_old_python(name):
    ast.parse((SCRIPTS / name).read_text(), feature_version=(3, 4))


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_refused_before_any_work(checkout, monkeypatch):
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: Usage(0, 0, int(2e9)))
    with pytest.raises(InstallError, match=r"disk full: the cpu set needs 6 GB under .*, 2\.0 GB are free; make room"):
        cpu_plan(checkout).check_disk()
    with pytest.raises(InstallError, match=r"the gpu set needs 15 GB"):
        cpu_plan(checkout, device="gpu").check_disk()


def test_what_an_earlier_try_holds_counts_as_room(checkout, monkeypatch):
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: Usage(0, 0, int(4e9)))
    with (checkout / ".venv/big").open("wb") as file:
        file.truncate(int(2.5e9))  # sparse: 4 + 2.5 >= 6
    cpu_plan(checkout).check_disk()


# --- The quick tests under the other Pythons -----------------------------------------------------------------------


def test_an_environment_beside_venv_is_one_of_its_own(checkout, fake_pip, monkeypatch, capsys):
    used = []
    monkeypatch.setattr(setup, "Pip", lambda python, *rest: used.append(python) or fake_pip(python, *rest))
    monkeypatch.setattr(setup, "ROOT", checkout)
    monkeypatch.setenv("DEVICE", "cpu")
    for folder in ("build/venv-3.12", ".venv"):
        assert not (checkout / folder / plan.STAMP_NAME).exists()
        assert setup.run(["--venv", folder, "--quiet"]) == 0
        assert f"install: {folder} is ready (cpu set)" in capsys.readouterr().out
        assert (checkout / folder / plan.STAMP_NAME).exists()
    assert used == [checkout / "build/venv-3.12/bin/python", checkout / ".venv/bin/python"]


OWN = ".".join(map(str, sys.version_info[:2]))
OTHERS = [version for version in reversed(front_door.supported()) if version != OWN]


def other_python(folder: Path, version: str, installs: bool = True, status: int = 0) -> None:
    """A stand-in for `python3.x` whose installer leaves an environment; the tests there end with `status`."""
    environment = folder / f"build/venv-{version}/bin"
    executable(folder / f"ready-{version}", f'echo "{version} $@" >> "{folder}/tested"; exit {status}\n')
    make_it = f'mkdir -p "{environment}" && cp "{folder}/ready-{version}" "{environment}/python"'
    script = f'PATH=/usr/bin:/bin\ntest "$1" = -c && exit 0\necho "{version} $@" >> "{folder}/installed"\n'
    executable(folder / "on path" / f"python{version}", script + (make_it if installs else "exit 2") + "\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose PATH is one folder, and a checkout without any environment."""
    monkeypatch.setenv("PATH", str(tmp_path / "on path"))
    monkeypatch.setattr(other_pythons, "ROOT", tmp_path)
    return tmp_path


def test_each_other_python_is_installed_and_tested(machine, capfd):
    for version in (*OTHERS, OWN):
        other_python(machine, version)
    assert other_pythons.main(["-k", "stats"]) == 0
    lines = (machine / "installed").read_text().splitlines()
    assert lines == [f"{v} {machine}/scripts/install.py --venv build/venv-{v} --quiet" for v in OTHERS]
    lines = (machine / "tested").read_text().splitlines()
    assert [line.split()[0] for line in lines] == OTHERS
    for line in lines:
        assert " -m pytest " in line and " --tier quick " in line and line.endswith(" -k stats")
    said = capfd.readouterr().out.splitlines()
    assert said[-1] == "test-pythons: " + "; ".join(f"Python {version} passed" for version in OTHERS)


def test_a_python_that_fails_does_not_keep_the_next_from_its_turn(machine, capfd):
    other_python(machine, OTHERS[0], installs=False)
    other_python(machine, OTHERS[1], status=1)
    assert other_pythons.main([]) == 1
    said = capfd.readouterr().out.splitlines()[-1]
    assert said == f"test-pythons: Python {OTHERS[0]} NOT INSTALLED; Python {OTHERS[1]} FAILED (pytest ended with 1)"


def test_without_another_python_one_line_says_so(machine, capfd):
    other_python(machine, OWN)
    executable(machine / "on path" / f"python{OTHERS[0]}", "exit 127\n")
    assert other_pythons.main([]) == 0
    said = capfd.readouterr().out
    assert said.startswith(f"test-pythons: nothing to do: .venv is Python {OWN}, and no other is here")
    assert said.count("\n") == 1 and not (machine / "installed").exists()


# --- pip's words ---------------------------------------------------------------------------------------------------

NO_NETWORK = """\
WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError('...: Failed to \
establish a new connection: [Errno -3] Temporary failure in name resolution')': /simple/torch/
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)
ERROR: No matching distribution found for torch==2.13.0
"""
NO_WHEEL = """\
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: 2.2.0, 2.2.2)
ERROR: No matching distribution found for torch==2.13.0
"""
DISK_FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
BROKEN_BUILD = """\
  error: subprocess-exited-with-error
  × Preparing editable metadata (pyproject.toml) did not run successfully.
      OSError: Readme file does not exist: README.md
error: metadata-generation-failed
"""


@pytest.mark.parametrize(
    ("log", "diagnosis"),
    [
        (NO_NETWORK, r"^no network, or the package index cannot be reached \(asked for torch==2\.13\.0\); check "),
        (NO_WHEEL, r"^the package index offers no torch==2\.13\.0 for this platform and Python; "),
        (DISK_FULL, r"^disk full while installing; make room and run `make install` again"),
        (BROKEN_BUILD, r"^pip failed: OSError: Readme file does not exist: README\.md$"),
        ("", r"^pip failed: it said nothing$"),
    ],
)
def test_a_failure_is_diagnosed_in_one_line(log, diagnosis):
    said = diagnose(log)
    assert "\n" not in said
    assert re.search(diagnosis, said), said


def fake_pip_process(tmp_path, output: str, status: int) -> tuple[Pip, io.StringIO]:
    (tmp_path / "output").write_text(output)
    python = executable(tmp_path / "python", f"cat '{tmp_path}/output'; exit {status}\n")
    screen = io.StringIO()
    progress = Progress(num_phases=1, stream=screen)
    progress.start("packages")
    return Pip(python, tmp_path, tmp_path / "install.log", progress), screen


def test_a_failing_pip_raises_its_diagnosis_and_keeps_its_log(tmp_path):
    pip, _ = fake_pip_process(tmp_path, NO_NETWORK, 1)
    with pytest.raises(InstallError, match=r"no network.*full log: .*install\.log"):
        pip.run("install", "torch==2.13.0")
    assert NO_NETWORK in (tmp_path / "install.log").read_text()


def test_a_hint_is_shown_once(tmp_path):
    pip, screen = fake_pip_process(tmp_path, "Collecting nvidia-cublas\nCollecting nvidia-nccl\n", 0)
    pip.run("install", "torch==2.13.0", hints={"Collecting nvidia-": "a CUDA build"})
    assert screen.getvalue().count("a CUDA build") == 1


@pytest.mark.parametrize(
    ("output", "detail"),
    [
        (["Collecting numpy==2.3.5\n"], "1 packages seen, now numpy"),
        (
            ["Collecting a\n", "Collecting b\n", "  Downloading b-1.0-py3-none-any.whl (5.1 MB)\n"],
            "2 packages seen, downloading b (5.1 MB)",
        ),
        (["Installing collected packages: a, b, c\n"], "installing 3 packages (0 in place)"),
        ([], "starting"),
    ],
)
def test_the_heartbeat_says_what_pip_is_at(tmp_path, output, detail):
    pip, _ = fake_pip_process(tmp_path, "", 0)
    assert pip._detail(output) == detail


# --- Repair and cures ----------------------------------------------------------------------------------------------


def distribution(site_packages: Path, name: str, recorded_size: int = 5) -> Path:
    """A distribution of one module of five bytes, as pip leaves it."""
    site_packages.mkdir(parents=True, exist_ok=True)
    (site_packages / f"{name}.py").write_text("x = 1")  # 5 bytes
    (site_packages / f"{name}.pyc").write_text("compiled over")
    dist_info = site_packages / f"{name}-1.0.dist-info"
    dist_info.mkdir()
    rows = f"{name}.py,sha256=x,{recorded_size}\n{name}.pyc,sha256=x,1\n{name}-1.0.dist-info/RECORD,,\n"
    for file, text in {"INSTALLER": "pip\n", "METADATA": "", "RECORD": rows}.items():
        (dist_info / file).write_text(text)
    return dist_info


def test_half_installed_distributions_are_forgotten_and_whole_ones_kept(tmp_path):
    whole = distribution(tmp_path, "whole")
    (distribution(tmp_path, "killed") / "INSTALLER").unlink()  # pip writes it after the last file
    distribution(tmp_path, "torn", recorded_size=6)
    distribution(tmp_path, "gone")
    (tmp_path / "gone.py").unlink()
    (tmp_path / "~hole").mkdir()  # what pip leaves of an upgrade that was cut short
    assert forget_incomplete(tmp_path) == ["gone", "killed", "torn"]
    assert [path.name for path in tmp_path.glob("*.dist-info")] == [whole.name]
    assert not (tmp_path / "~hole").exists()
    assert forget_incomplete(tmp_path) == []


NMS_MISSING = "RuntimeError: operator torchvision::nms does not exist"


def test_torchvision_is_left_alone_when_it_loads_and_an_earlier_cure_is_taken_back(tmp_path):
    pip = FakePip(tmp_path / "python", tmp_path)
    (tmp_path / f"{cures.OPERATORS_MODULE}.pth").write_text("import gone")
    assert cures.declare_torchvision_operators(pip, SCRIPTS / "torchvision_operators.py", lambda *_: None) == []
    assert list(tmp_path.glob("*.pth")) == []


def test_torchvision_without_operators_gets_them_declared(tmp_path):
    def probe(python, module):
        return None if list(tmp_path.glob("*.pth")) else NMS_MISSING

    pip = FakePip(tmp_path / "python", tmp_path)
    assert len(cures.declare_torchvision_operators(pip, SCRIPTS / "torchvision_operators.py", probe)) == 1
    assert (tmp_path / f"{cures.OPERATORS_MODULE}.pth").read_text() == f"import {cures.OPERATORS_MODULE}\n"
    assert (tmp_path / f"{cures.OPERATORS_MODULE}.py").is_file()


@pytest.mark.parametrize("error", [NMS_MISSING, "ImportError: something else"])
def test_torchvision_that_stays_broken_is_an_error(tmp_path, error):
    pip = FakePip(tmp_path / "python", tmp_path)
    with pytest.raises(InstallError, match="torchvision cannot be imported: "):
        cures.declare_torchvision_operators(pip, SCRIPTS / "torchvision_operators.py", lambda *_: error)


def test_only_installed_extensions_that_do_not_load_are_removed(tmp_path, fake_pip):
    distribution(tmp_path, "torchaudio")
    distribution(tmp_path, "torchcodec")
    pip = FakePip(tmp_path / "python", tmp_path)
    done = cures.remove_unloadable_extensions(pip, lambda _, module: "OSError" if module == "torchaudio" else None)
    assert fake_pip.calls == [("uninstall", "--yes", "torchaudio")] and len(done) == 1
    empty = FakePip(tmp_path / "python", tmp_path / "empty")
    assert cures.remove_unloadable_extensions(empty, lambda *_: "OSError") == []


def test_the_operators_hook_costs_a_python_start_nothing():
    code = "import sys, torchvision_operators as hook; print(len(sys.modules) - before, 'torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; before = len(sys.modules); {code}"],
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["1", "False"]  # the hook itself and nothing else
