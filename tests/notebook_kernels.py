"""A pytest plugin (``-p notebook_kernels``): nbval's kernels fork from one process that has the heavy imports.

Each notebook still has a kernel process of its own; only its imports are there already (:mod:`gpg_repro.site.kernels`).
At smoke scale every table trains, so TRL is among them.
"""

from __future__ import annotations

import os
from pathlib import Path

import nbval.kernel
import pytest
from jupyter_client.manager import KernelManager

from gpg_repro.site.kernels import forked_kernels, start_server

LOG = Path("build/notebooks/kernels.log")


def pytest_configure(config: pytest.Config) -> None:
    """Start the process in every worker of xdist, or in the only one."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # this process hands notebooks to workers
    LOG.parent.mkdir(parents=True, exist_ok=True)
    start_server(os.environ, preload=["gpg_repro.train"])
    nbval.kernel.KernelManager = forked_kernels({}, LOG.resolve(), KernelManager)
