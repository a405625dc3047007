"""What belongs into the virtual environment on this machine, and whether it is there already."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEVICES = ("cpu", "gpu")
DISK_NEEDED_GB = {"cpu": 6, "gpu": 15}
TEMPORARY_NEEDED_GB = {"cpu": 1, "gpu": 4}
STAMP_NAME = "install-stamp.json"


class InstallError(Exception):
    """The installation cannot go on; the message says in one line what is wrong and what to do."""


def choose_device(requested: str, search_path: str | None = None) -> str:
    """Return "cpu" or "gpu": the request if there is one, else "gpu" exactly when `nvidia-smi -L` lists a GPU.

    Raises:
        InstallError: if `requested` is neither empty nor one of the two names.
    """
    if requested:
        if requested not in DEVICES:
            raise InstallError(f"DEVICE={requested} is unknown; use DEVICE=cpu or DEVICE=gpu, or leave it out")
        return requested
    nvidia_smi = shutil.which("nvidia-smi", path=search_path)
    if nvidia_smi is None:
        return "cpu"
    try:
        listing = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if listing.returncode == 0 and "GPU" in listing.stdout else "cpu"


def vllm_is_locked_for(system: str, machine: str, libc: tuple[str, str]) -> bool:
    """Whether the locks, which hold vLLM, fit this platform: Linux, x86_64, glibc 2.28 or newer (the wheels' tag)."""
    if system != "Linux" or machine.lower() not in ("x86_64", "amd64") or libc[0] != "glibc":
        return False
    return tuple(int(part) for part in libc[1].split(".")[:2]) >= (2, 28)


@dataclass(frozen=True)
class Plan:
    """One installation: where, for which device, from which requirement files."""

    root: Path
    device: str
    with_vllm: bool
    torch_index: str = ""
    python_version: tuple[int, int] = sys.version_info[:2]
    venv_name: str = ".venv"
    """Where under `root` the environment is."""

    @classmethod
    def for_this_machine(cls, root: Path, environment: Mapping[str, str], venv_name: str = ".venv") -> Plan:
        """Read DEVICE and TORCH_INDEX from `environment`, the rest from the machine."""
        return cls(
            root=root,
            venv_name=venv_name,
            device=choose_device(environment.get("DEVICE", "")),
            with_vllm=vllm_is_locked_for(platform.system(), platform.machine(), platform.libc_ver()),
            torch_index=environment.get("TORCH_INDEX", ""),
        )

    @property
    def venv(self) -> Path:
        return self.root / self.venv_name

    @property
    def python(self) -> Path:
        """The virtual environment's interpreter."""
        return self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def site_packages(self) -> Path:
        if os.name == "nt":
            return self.venv / "Lib" / "site-packages"
        return self.venv / "lib" / "python{}.{}".format(*self.python_version) / "site-packages"

    @property
    def lock_file(self) -> Path:
        return self.root / "requirements" / f"{self.device}.txt"

    @property
    def stamp_file(self) -> Path:
        return self.venv / STAMP_NAME

    def torch_requirements(self) -> list[str]:
        """The lock's pins of torch and torchvision, which are installed first."""
        lines = self.lock_file.read_text().splitlines()
        return [line for line in lines if line.startswith(("torch==", "torchvision=="))]

    def package_arguments(self) -> list[str]:
        """pip's arguments for everything else.

        Where the lock fits it is complete, so pip need not resolve. Elsewhere the pins without vLLM are resolved for
        this platform, with the lock as constraints.
        """
        if self.with_vllm:
            return ["--no-deps", "-r", str(self.lock_file)]
        common, tools = (str(self.root / "requirements" / name) for name in ("common.in", "dev.txt"))
        return ["-r", common, "-r", tools, "-c", str(self.lock_file)]

    def fingerprint(self) -> str:
        """Hash of all that decides what is installed; a new value means that there is work to do."""
        digest = hashlib.sha256()
        patterns = ("requirements/*.in", "requirements/*.txt", "pyproject.toml")
        patterns += ("scripts/install.py", "scripts/installer/*.py", "scripts/torchvision_operators.py")
        for path in (path for pattern in patterns for path in sorted(self.root.glob(pattern))):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        digest.update(repr((str(self.root), self.device, self.with_vllm, self.python_version)).encode())
        return digest.hexdigest()

    def read_stamp(self) -> dict:
        """What the last finished installation recorded; empty when there was none or its stamp cannot be read."""
        try:
            stamp = json.loads(self.stamp_file.read_text())
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def is_installed(self) -> bool:
        """Whether the last installation finished, with these inputs, and its interpreter still exists."""
        stamp = self.read_stamp()
        return (
            stamp.get("fingerprint") == self.fingerprint()
            and self.torch_index in ("", stamp.get("torch_index"))
            and os.access(self.python, os.X_OK)
        )

    def write_stamp(self) -> None:
        """Record that everything is installed: the last act of an installation, written aside and moved into place."""
        stamp = {"fingerprint": self.fingerprint(), "root": str(self.root), "device": self.device}
        stamp |= {"torch_index": self.torch_index, "python_version": list(self.python_version)}
        aside = self.stamp_file.with_suffix(".tmp")
        aside.write_text(json.dumps(stamp, indent=1) + "\n")
        os.replace(aside, self.stamp_file)

    def check_disk(self) -> None:
        """Raise InstallError when the requirement set cannot fit; what the environment already holds counts as room."""
        self._check_room(self.root, DISK_NEEDED_GB[self.device], f"for {self.venv_name}", self.venv)
        temporary = Path(tempfile.gettempdir())
        if os.stat(temporary).st_dev != os.stat(self.root).st_dev:
            self._check_room(temporary, TEMPORARY_NEEDED_GB[self.device], "for downloads (TMPDIR moves them)", None)

    def _check_room(self, folder: Path, needed_gb: float, purpose: str, reusable: Path | None) -> None:
        free = shutil.disk_usage(folder).free
        if free >= needed_gb * 1e9:
            return
        if reusable is not None:
            free += sum(file.lstat().st_size for file in reusable.rglob("*") if file.is_file())
        if free < needed_gb * 1e9:
            raise InstallError(
                f"disk full: the {self.device} set needs {needed_gb} GB under {folder} {purpose},"
                f" {free / 1e9:.1f} GB are free; make room and run `make install` again"
            )
