"""What several notebooks import, for the process their kernels are forked from (:mod:`gpg_repro.site.kernels`).

Not among it: TRL, which takes as long as all of this and serves two notebooks; matplotlib's inline backend, which shows
plots only where a kernel is there when it is imported.
"""

import os
from importlib import import_module

os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else the kernel's debugger warns when it is imported

import ipykernel.debugger  # noqa: E402, F401
import ipykernel.ipkernel  # noqa: E402, F401
import matplotlib.backends.backend_agg  # noqa: E402, F401
import matplotlib.backends.backend_svg  # noqa: E402, F401
import matplotlib.pyplot  # noqa: E402, F401
import pandas.io.formats.style  # noqa: E402, F401
import tabulate  # noqa: E402, F401
from PIL import Image  # noqa: E402

from eval_harness.benchmarks import all_benchmarks  # noqa: E402
from gpg_repro.tables import TABLES, get_table  # noqa: E402

for name in ("audit", "claims", "controls", "dynamics", "method_plots", "tables.report", "tables.table_09", "viewer"):
    import_module(f"gpg_repro.{name}")
for number in (1, 2, 3, 4):
    import_module(f"gpg_repro.figures.figure_{number}")
for name in TABLES:
    get_table(name)
all_benchmarks()
Image.preinit()
