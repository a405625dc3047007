"""A pytest plugin (``-p notebook_kernels``): nbval's kernels fork from one process that has the heavy imports.

Each notebook still has a kernel process of its own; only its imports are there already (:mod:`gpg_repro.site.kernels`).
At smoke scale every table trains, so TRL is among them.
"""

from __future__ import annotations

import os
from pathlib import Path

import nbval.kernel
from jupyter_client.manager import KernelManager

from gpg_repro.site.kernels import forked_kernels, start_server

LOG = Path("build/notebooks/kernels.log")


def pytest_configure() -> None:
    LOG.parent.mkdir(parents=True, exist_ok=True)
    start_server(os.environ, preload=["gpg_repro.train"])
    nbval.kernel.KernelManager = forked_kernels({}, LOG.resolve(), KernelManager)
