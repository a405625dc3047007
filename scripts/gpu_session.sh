#!/usr/bin/env bash
# Everything that needs a GPU, for a machine that is lent for 15 minutes: the CUDA tests (5 minutes at most), then the
# bench (8 minutes). Run it in the repository's root with OUT, a folder for results:
#     OUT=results/gpu bash scripts/gpu_session.sh
# A machine without TRL takes it from wheels in .whl (pip download --no-deps; no network is needed here).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
: "${OUT:?give a folder for results}"
mkdir -p "$OUT" .gpu_site
export PYTHONPATH="$PWD:$PWD/.gpu_site" HF_HUB_OFFLINE=1
PY=${PY:-python}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || exit 1
if ! "$PY" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("trl") is None)'; then
  "$PY" -m pip install --quiet --no-index --no-deps --target .gpu_site .whl/*.whl || exit 1
fi

timeout 300 "$PY" -m pytest tests/gpu -q -x 2>&1 | tee "$OUT/tests.txt"
tests=${PIPESTATUS[0]}
timeout 540 "$PY" bench/gpu.py --minutes 8 --out "$OUT/gpu.json" 2>&1 | tee "$OUT/gpu.txt"
bench=${PIPESTATUS[0]}
echo "tests: $tests, bench: $bench (0 is fine, 124 out of time)"
exit $((tests != 0 || bench != 0))
