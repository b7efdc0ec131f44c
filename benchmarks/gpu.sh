#!/usr/bin/env bash
# Everything there is to measure on a CUDA machine, in one call of less than 8 minutes: the numbers' rightness first, a short table last. Writes
# benchmarks/results and docs/performance.md.
#
#     PYTHON=.venv/bin/python benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks --device cuda --budget 450
