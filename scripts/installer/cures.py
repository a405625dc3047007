"""Cures for packages that install but do not load, each tried only when its import fails (docs/environment.md)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from installer.pip import Pip
from installer.plan import InstallError

OPERATORS_MODULE = "_gpg_torchvision_operators"
OPTIONAL_EXTENSIONS = ("torchaudio", "torchcodec")


def import_error(python: Path, module: str) -> str | None:
    """None when `module` can be imported by `python`; otherwise the last line of its traceback."""
    result = subprocess.run([str(python), "-I", "-c", f"import {module}"], capture_output=True, text=True)
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {result.returncode}"


def remove_unloadable_extensions(pip: Pip, probe: Callable[[Path, str], str | None] = import_error) -> list[str]:
    """Uninstall torchaudio and torchcodec where they cannot be loaded. Returns what was done, a line each."""
    done = []
    for package in OPTIONAL_EXTENSIONS:
        if any(pip.site_packages.glob(f"{package}-*.dist-info")) and (error := probe(pip.python, package)):
            pip.run("uninstall", "--yes", package)
            done.append(f"{package} does not load beside this torch ({error}): uninstalled, nothing here needs it")
    return done


def declare_torchvision_operators(
    pip: Pip, operators_file: Path, probe: Callable[[Path, str], str | None] = import_error
) -> list[str]:
    """Make `import torchvision` work where its compiled operators do not load. Returns what was done, a line each.

    Args:
        operators_file: the module to copy into site-packages, imported there by a `.pth` line.

    Raises:
        InstallError: if torchvision cannot be imported with the operators declared either.
    """
    module, hook = (pip.site_packages / (OPERATORS_MODULE + suffix) for suffix in (".py", ".pth"))
    for earlier in (module, hook):
        earlier.unlink(missing_ok=True)
    error = probe(pip.python, "torchvision")
    if error is None:
        return []
    if "torchvision::nms" in error:
        shutil.copyfile(operators_file, module)
        hook.write_text(f"import {OPERATORS_MODULE}\n")
        error = probe(pip.python, "torchvision")
    if error is not None:
        raise InstallError(f"torchvision cannot be imported: {error}; see docs/environment.md, Troubleshooting")
    return ["torchvision's compiled operators do not load beside this torch: declared them (docs/environment.md)"]
