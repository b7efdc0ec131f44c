#!/usr/bin/env bash
# Makes an environment that holds updsl and what it is compared with but never depends on: HeavyBall, JAX and optax. `python -m benchmarks`, run with its
# Python, measures them in the same process as everything else; run with another, it leaves them out.
#
#     benchmarks/other_venv.sh [FOLDER]      (.venv-bench)
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${1:-.venv-bench}"
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --constraint constraints.txt hatchling editables
"$venv/bin/python" -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable . 'heavyball>=3.2,<3.3' jax optax
"$venv/bin/python" -c 'import heavyball, jax, optax, torch; print("torch", torch.__version__, "jax", jax.__version__, "optax", optax.__version__)'
echo "next: $venv/bin/python -m benchmarks"
