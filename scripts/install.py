"""`make install`: make .venv and bring it to the locked requirement set of this machine. Standard library only.

This front door is written for any Python 3, so that an old one gets a sentence instead of a syntax error; when it is
not run by a supported Python, it looks for one on this machine. The work is in scripts/installer/.
"""

import glob
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# The supported versions, the last one included. Tests hold all else that names them to these two.
OLDEST, NEWEST = (3, 11), (3, 13)
# The pin of requirements/ that has no wheel for the version after NEWEST. `make lock` says when it has one.
HELD_BACK_BY = "tensordict==0.10.0"


def supported():
    """The supported versions as text, the oldest first: ["3.11", …]."""
    return ["%d.%d" % (OLDEST[0], minor) for minor in range(OLDEST[1], NEWEST[1] + 1)]


def is_supported(version_info):
    """Whether the packages of requirements/ have wheels for this Python version."""
    return OLDEST <= tuple(version_info[:2]) <= NEWEST


def find_pythons():
    """[(version, path)], the newest version first, of the supported interpreters on this machine that really start.

    One path a version, the first on PATH. A version manager's shim may not start; pyenv's stand beside its versions.
    """
    found = []
    for version in reversed(supported()):
        for folder in os.get_exec_path():
            path = os.path.join(folder, "python" + version)
            behind = os.path.join(os.path.dirname(folder), "versions", version + ".*", "bin", "python" + version)
            candidates = [path] + (sorted(glob.glob(behind)) if os.path.basename(folder) == "shims" else [])
            working = [candidate for candidate in candidates if starts(candidate)]
            if working:
                found.append((version, working[0]))
                break
    return found


def starts(python):
    """Whether this interpreter is there and runs a program."""
    if not os.access(python, os.X_OK):
        return False
    return subprocess.call([python, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def maker_of(venv):
    """The interpreter that made this environment, or None: there is no environment, or it is not supported, or gone."""
    try:
        with open(os.path.join(venv, "pyvenv.cfg"), encoding="utf-8") as file:
            pairs = [line.split("=", 1) for line in file if "=" in line]
    except OSError:
        return None
    settings = dict((key.strip(), value.strip()) for key, value in pairs)
    version = settings.get("version", "")
    maker = settings.get("executable", "")
    return maker if ".".join(version.split(".")[:2]) in supported() and starts(maker) else None


def refusal(version_info):
    """One line: this Python is not supported, why not when it is too new, and what to do."""
    said = "install: Python %d.%d found, %s or %s needed" % (
        version_info[0],
        version_info[1],
        ", ".join(supported()[:-1]),
        supported()[-1],
    )
    if tuple(version_info[:2]) > NEWEST:
        said += " (%s has no wheel for Python %d.%d yet)" % (HELD_BACK_BY, NEWEST[0], NEWEST[1] + 1)
    return said + "; install one, `make install PYTHON=/path/to/it`\n"


def main(arguments):
    """Hand over to scripts/installer, under a supported Python; return the exit status.

    With --keep-python the Python of an existing .venv goes before the one that runs this.
    """
    if "--keep-python" in arguments:
        arguments = [argument for argument in arguments if argument != "--keep-python"]
        maker = maker_of(os.path.join(os.path.dirname(HERE), ".venv"))
        if maker is not None:
            return subprocess.call([maker, os.path.join(HERE, "install.py")] + arguments)
    if not is_supported(sys.version_info):
        others = find_pythons()
        if not others:
            sys.stderr.write(refusal(sys.version_info))
            return 2
        return subprocess.call([others[0][1], os.path.join(HERE, "install.py")] + arguments)
    sys.dont_write_bytecode = True
    from installer.setup import run

    return run(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.stderr.write("\ninstall: interrupted; `make install` goes on from here\n")
        sys.exit(130)
