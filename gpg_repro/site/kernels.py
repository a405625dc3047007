"""Kernels forked from one process that has imported what the notebooks import: a page costs its work, not its imports.

The process is Python's own fork server (:mod:`multiprocessing`): it has one thread and no state of any notebook, and
each notebook still has a kernel process to itself. What it imports is in :mod:`gpg_repro.site.preloaded`.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.provisioning import LocalProvisioner

_STARTING = threading.Lock()
_PRELOADED = "gpg_repro.site.preloaded"
_INLINE = "module://matplotlib_inline.backend_inline"


def forked_kernels(
    environment: Mapping[str, str], log: Path, base: type[KernelManager] = AsyncKernelManager
) -> type[KernelManager]:
    """A class of kernel managers for one notebook.

    Args:
        environment: variables of the kernel, on top of this process's.
        log: file for what the kernel itself prints.
        base: jupyter's class to extend.
    """

    class Manager(base):
        extra_environment, kernel_log = dict(environment), log

        async def _async_pre_start_kernel(self, **options):
            if self.provisioner is None:
                self.provisioner = _Forked(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
            return await super()._async_pre_start_kernel(**options)

    return Manager


class _Forked(LocalProvisioner):
    """Starts the kernel as a child of the fork server; the rest is jupyter's own."""

    async def launch_kernel(self, cmd: list[str], **options: Any):
        environment = {**os.environ, **(options.get("env") or {}), **self.parent.extra_environment}
        arguments = (cmd[cmd.index("-f") + 1], environment, str(options.get("cwd") or Path.cwd()))
        start_server(environment)
        child = multiprocessing.get_context("forkserver").Process(
            target=_kernel, args=(*arguments, str(self.parent.kernel_log))
        )
        child.start()
        self.process = _Child(child)
        self.pid = child.pid
        return self.connection_info


def start_server(environment: Mapping[str, str], preload: Sequence[str] = ()) -> None:
    """Start the process kernels are forked from unless it runs; it imports on its own, and the first kernel waits.

    Args:
        environment: of a kernel; its ``OMP_NUM_THREADS`` is read by libraries when they are imported.
        preload: modules to import beside those of :mod:`gpg_repro.site.preloaded`.
    """
    with _STARTING:  # kernels start from several threads, and the environment is everybody's
        multiprocessing.get_context("forkserver").set_forkserver_preload([_PRELOADED, *preload])
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = environment.get("OMP_NUM_THREADS", "1")
        try:
            forkserver.ensure_running()
        finally:
            os.environ.pop("OMP_NUM_THREADS")
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before


class _Child:
    """A child of the fork server in the shape of ``subprocess.Popen``, as far as jupyter looks."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()


def _kernel(connection_file: str, environment: dict[str, str], folder: str, log: str) -> None:
    """Become a kernel, with the environment, folder and backend a kernel of its own process would have."""
    gc.freeze()  # what was imported stays: collections need not walk it, nor copy its pages
    os.environ.clear()
    os.environ.update(environment, JPY_PARENT_PID=str(os.getppid()), MPLBACKEND=_INLINE)
    os.chdir(folder)
    with open(log, "ab") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    import matplotlib
    from ipykernel.kernelapp import IPKernelApp

    matplotlib.rcParams["backend"] = _INLINE  # read from the environment when the server imported it
    sys.argv = ["kernel", "-f", connection_file]
    try:
        IPKernelApp.launch_instance(argv=sys.argv[1:])
    finally:
        atexit._run_exitfuncs()  # a child of the fork server ends without them
