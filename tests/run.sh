#!/usr/bin/env bash
# Sets up a virtual environment in .venv-test and runs everything that must hold: lint, formatting, types, tests.
# PYTHON chooses the interpreter (3.11, 3.12 or 3.13; the default is python3); further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-test
"${PYTHON:-python3}" -m venv "$venv"
# Not compiled: most of it is never imported. What is imported is compiled once and kept, whatever the environment says,
# because tests start many processes, each of which would take seconds to compile JAX and its companions again.
export PYTHONDONTWRITEBYTECODE=
install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile)
"${install[@]}" -e ".[test,docs]"
# Carries the vocabulary of CLIP's tokenizer, which tests read; the package is never imported, so it needs nothing else.
"${install[@]}" --no-deps open_clip_torch
export REQUIRE_VOCABULARY=1
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
# Types are checked while the first tests run: together they keep all cores busy.
types=$(mktemp)
"$venv/bin/mypy" >"$types" 2>&1 &
status=0
"$venv/bin/python" -m pytest "$@" || status=$?
wait $! || status=$?
cat "$types"
rm "$types"
exit "$status"
