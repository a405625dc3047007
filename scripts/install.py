"""`make install`: make .venv and bring it to the locked requirement set of this machine. Standard library only.

This front door is written for any Python 3, so that an old one gets a sentence instead of a syntax error; when it is
not run by a supported Python, it looks for one on PATH. The work is in scripts/installer/.
"""

import os
import shutil
import subprocess
import sys

OLDEST, TOO_NEW = (3, 11), (3, 13)


def is_supported(version_info):
    """Whether the packages of requirements/ have wheels for this Python version."""
    return OLDEST <= tuple(version_info[:2]) < TOO_NEW


def find_supported_python():
    """The newest supported python3.x on PATH that really starts (a version manager's shim may not), or None."""
    for minor in range(TOO_NEW[1] - 1, OLDEST[1] - 1, -1):
        path = shutil.which("python3.%d" % minor)
        if path and subprocess.call([path, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
            return path
    return None


def main(arguments):
    """Hand over to scripts/installer, under a supported Python; return the exit status."""
    if not is_supported(sys.version_info):
        other = find_supported_python()
        if other is None:
            sys.stderr.write(
                "install: Python %d.%d found, 3.11 or 3.12 needed; install one, `make install PYTHON=/path/to/it`\n"
                % sys.version_info[:2]
            )
            return 2
        return subprocess.call([other, os.path.abspath(__file__)] + arguments)
    sys.dont_write_bytecode = True
    from installer.setup import run

    return run(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.stderr.write("\ninstall: interrupted; `make install` goes on from here\n")
        sys.exit(130)
