#!/usr/bin/env bash
# What needs a GPU, for a machine that is lent for 15 minutes: the CUDA tests (at most 5), then the bench (8).
#     OUT=folder bash scripts/gpu_session.sh [tests | bench]
# Both without an argument; one at a time where a command may take no more than 10 minutes. A machine without TRL takes
# it from wheels in .whl (`pip download --no-deps`); no network is needed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
: "${OUT:?give a folder for results}"
what=${1:-all}
case $what in all | tests | bench) ;; *) echo "$what: expected tests or bench" >&2 && exit 2 ;; esac
PY=${PY:-python}
export PYTHONPATH="$PWD:$PWD/.gpu_site" HF_HUB_OFFLINE=1
mkdir -p "$OUT"

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || exit 1
if ! "$PY" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("trl") is None)'; then
  "$PY" -m pip install --quiet --no-index --no-deps --target .gpu_site .whl/*.whl || exit 1
fi

status=0
if [ "$what" != bench ]; then
  timeout 300 "$PY" -m pytest --confcutdir tests/gpu tests/gpu -q 2>&1 | tee "$OUT/tests.txt" || status=1
fi
if [ "$what" != tests ]; then
  # It ends by itself and saves after every row; the limit is for a kernel that hangs.
  timeout 540 "$PY" bench/gpu.py --minutes "${MINUTES:-8}" --out "$OUT/gpu.json" 2>&1 | tee "$OUT/gpu.txt" || status=1
fi
exit $status
