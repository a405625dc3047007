"""Loaded by every Python process of a victim: tells what it does to the files of a folder, and ends it where told.

``TORTURE`` in the environment is a JSON object: ``root`` (the folder), ``trace`` (where to tell), and, of a kill from
inside, ``event`` (end before the n-th change to a file) or ``write`` and ``bytes`` (end inside the n-th file that is
written, after so many bytes of it).
"""

import json
import os
import sys

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.mkdir": 2, "os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.link": 2, "os.truncate": None}
"""Audit event -> place of its dir_fd."""
_LINES = (".jsonl", ".json", ".md", ".csv", ".html", ".ipynb", ".svg")
"""Files that Python writes and that can be cut inside a write."""


class Hook:
    """Counts changes below the root in this process (not in those it forks)."""

    def __init__(self, root: str, trace: str, event: int = 0, write: int = 0, bytes: int = 0):
        self.root, self.trace = os.path.realpath(root) + os.sep, trace
        self.event, self.write, self.bytes = event, write, bytes
        self.pid, self.num_events, self.num_writes, self.inside = os.getpid(), 0, 0, False
        self.log = None

    def __call__(self, name, args):
        if self.inside or os.getpid() != self.pid or (name != "open" and name not in _CHANGES):
            return
        self.inside = True
        try:
            self._look(name, args)
        finally:
            self.inside = False

    def _look(self, name, args):
        path = args[0]
        if isinstance(path, int) or not isinstance(path, (str, bytes, os.PathLike)):
            return
        place = _CHANGES.get(name)
        path = os.fsdecode(path)
        if place is not None and len(args) > place and args[place] not in (None, -1):
            path = os.path.join(os.readlink(f"/proc/self/fd/{args[place]}"), path)
        path = os.path.abspath(path)
        inner = path[len(self.root) :]
        if not path.startswith(self.root) or "tensorboard" in inner:  # opened for every line, and no record
            return
        if name == "open" and not args[2] & _WRITES:
            self._read(path, inner)
            return
        self.num_events += 1
        written = name == "open" and inner.endswith(_LINES)
        what = f"{'write' if written else name} {inner}"
        self._tell("events", what)
        if self.num_events == self.event:
            self._end(f"before {what}")
        if written:
            self.num_writes += 1
            if self.num_writes == self.write:
                self._arm(path, args[2], f"inside {inner}")

    def _read(self, path, inner):
        """What is read last of a checkpoint that is loaded is read of whole ones only."""
        folder, name = os.path.split(path)
        of_trainer = os.path.basename(os.path.dirname(folder)) == "trainer"
        if of_trainer and name == "trainer_state.json" and not os.path.exists(os.path.join(folder, "complete")):
            self._tell("half", f"a half-written checkpoint was read: {inner}")

    def _tell(self, kind, text):
        with open(os.path.join(self.trace, f"{self.pid}.{kind}"), "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def _end(self, what):
        import signal

        self._tell("killed", what)
        os.kill(self.pid, signal.SIGKILL)

    def _arm(self, path, flags, what):
        """The kernel ends the process inside a write: that is what a limit on the size of files does."""
        import resource
        import signal
        import threading

        if threading.current_thread() is not threading.main_thread():
            self._end(what)
        size = 0 if flags & os.O_TRUNC or not os.path.exists(path) else os.path.getsize(path)
        self._tell("killed", what)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + self.bytes, resource.RLIM_INFINITY))


def install(settings: dict) -> None:
    """Watch this process, and let it write down its stack on SIGUSR1."""
    import faulthandler
    import signal

    stack = open(os.path.join(settings["trace"], f"{os.getpid()}.stack"), "w", encoding="utf-8")  # noqa: SIM115
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)
    sys.addaudithook(Hook(**settings))


if "TORTURE" in os.environ:
    install(json.loads(os.environ["TORTURE"]))
