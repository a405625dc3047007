"""Dockerfile, .dockerignore and dev container agree with the checkout. No image is built here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import install as front_door  # noqa: E402


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined, comments left out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = lines.replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in joined.splitlines() if line.strip()]


def arguments(name: str) -> list[str]:
    """What stands after each instruction of that name."""
    return [rest for instruction, rest in instructions() if instruction == name]


def stages() -> dict[str, str]:
    """Stage -> image or stage it starts from, with the defaults of the build arguments."""
    pairs = [re.fullmatch(r"(\S+) AS (\S+)", line) for line in arguments("FROM")]
    assert all(pairs), arguments("FROM")
    defaults = dict(line.split("=", 1) for line in arguments("ARG"))
    return {pair[2]: re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], pair[1]) for pair in pairs}


def ignored() -> list[str]:
    return [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def test_bases_are_pinned_by_their_full_version():
    for stage, source in stages().items():
        if source in stages():
            continue
        assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", source), f"stage {stage} starts from {source}"


def test_the_python_is_one_the_project_supports():
    """The default, and the one that the Dockerfile gives as an example of another."""
    (image,) = {source for source in stages().values() if source not in stages()}
    (example,) = re.findall(r"--build-arg PYTHON_VERSION=(3\.\d+)\.\d+", (ROOT / "Dockerfile").read_text())
    default = ".".join(image.split(":")[1].split(".")[:2])
    assert {default, example} <= set(front_door.supported()) and default != example


def test_the_wheels_bring_cuda_so_the_base_need_not():
    """Why the base is a plain Python: the lock holds CUDA's runtime, compiler and libraries."""
    lock = (ROOT / "requirements" / "gpu.txt").read_text()
    majors = set(re.findall(r"^nvidia-cuda-(?:runtime|nvcc)==(\d+)\.", lock, re.MULTILINE))
    assert majors == {"13"}
    assert "CUDA 13" in (ROOT / "Dockerfile").read_text() and "nvidia-cudnn-cu13==" in lock


def test_what_is_copied_exists_and_is_not_ignored():
    for line in arguments("COPY"):
        *sources, target = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not any(source == name or source.startswith(f"{name}/") for name in ignored()), source


def test_the_installation_has_what_it_reads_before_the_code_is_copied():
    """The layer that installs is made of the files the installation depends on, the project's own metadata included."""
    before = []
    for instruction, rest in instructions():
        if instruction == "COPY":
            before += [word for word in rest.split()[:-1] if not word.startswith("--")]
        if instruction == "RUN" and "make install" in rest:
            break
    assert {"Makefile", "pyproject.toml", "requirements", "scripts"} <= set(before)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [project["project"]["readme"], *project["project"]["license-files"]]
    wanted += project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for path in wanted:
        assert any(path == name or path.startswith(f"{name}/") for name in before), path


def test_the_device_is_said_before_anything_is_installed():
    """No GPU is visible during a build: without it the CPU set would be installed."""
    seen = []
    for instruction, rest in instructions():
        if instruction == "ENV":
            seen.append(rest)
        if instruction == "RUN" and "make install" in rest:
            break
    assert any("DEVICE=gpu" in line for line in seen)


def test_the_user_is_not_root_and_owns_what_is_mounted():
    users = arguments("USER")
    assert users and users[-1] not in ("root", "0")
    folders = json.loads(arguments("VOLUME")[0])
    (home,) = arguments("WORKDIR")
    assert f"{home}/results" in folders and any(
        f"HF_HOME={folder}" in line for line in arguments("ENV") for folder in folders
    )
    (made,) = [rest for rest in arguments("RUN") if "useradd" in rest]
    assert all(folder in made for folder in folders)  # else docker makes them as root


def test_commands_in_the_image_are_targets():
    text = "\n".join(rest for name, rest in instructions() if name in ("RUN", "CMD"))
    targets = set(re.findall(r"\bmake ([a-z-]+)", text))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets and targets <= known
    assert json.loads(arguments("CMD")[0]) == ["make"]


def test_the_context_leaves_out_what_git_leaves_out():
    """What builds and runs leave behind stays out of the image, and so do the records that are generated."""
    rules = (ROOT / ".gitignore").read_text().splitlines()
    for rule in (line.rstrip("/") for line in rules if line and not line.startswith("#")):
        if rule in (".virtual_documents", ".DS_Store", "*.swp"):
            continue
        assert rule in ignored() or f"**/{rule}" in ignored(), rule
    assert ".git" in ignored() and "results" not in ignored()


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_dev_container_is_the_cpu_set_and_opens_the_lab():
    found = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    build = found["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert build["target"] in stages() and (ROOT / ".devcontainer" / build["context"]).resolve() == ROOT
    assert found["containerEnv"]["DEVICE"] == "cpu" and found["postCreateCommand"] == "make install"
    assert found["remoteUser"] in next(rest for rest in arguments("RUN") if "useradd" in rest)
    assert found["forwardPorts"] == [8888]
    for command in (found["postCreateCommand"], found["postAttachCommand"]):
        done = subprocess.run(
            [*command.replace("make", "make --dry-run", 1).split()], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "jupyterlab" in done.stdout and "--no-browser" in done.stdout
