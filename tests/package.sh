#!/usr/bin/env bash
# Builds sdist and wheel, looks into both, and runs the demo from the wheel, far from the checkout, in a new environment.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
"$python" -m venv "$work/build"
pip=("$work/build/bin/python" -m pip --disable-pip-version-check --quiet)
# One environment builds both, where `build` would make a new one for each.
"${pip[@]}" install build "$(sed -n 's/^requires = \["\(setuptools.*\)"\]$/\1/p' pyproject.toml)"
# From a copy, so that nothing is left in the checkout.
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$(mkdir "$work/source" && echo "$work/source")"
"$work/build/bin/python" -m build --no-isolation --outdir "$work/dist" "$work/source" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$work/build/bin/python" - "$work"/dist/*.tar.gz "$work"/dist/*.whl <<'PYTHON'
import sys, tarfile, zipfile

sdist, wheel = sys.argv[1:]
in_sdist = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
in_wheel = set(zipfile.ZipFile(wheel).namelist())


def need(found, names, where):
    missing = [name for name in names if name not in found]
    assert not missing, f"{where} lacks {missing}"


need(in_sdist, ["LICENSE", "CITATION.cff", "README.md", "docs/index.md", "mkdocs.yml", "tests/conftest.py", "tests/masks_test.py",
                "tests/run.sh", "experiments/README.md", "scissorhands_jax/py.typed"], "the sdist")
need(in_wheel, ["scissorhands_jax/py.typed", "scissorhands_jax/__main__.py"], "the wheel")
assert any(name.endswith("licenses/LICENSE") for name in in_wheel), "the wheel has no licence"
for name in (name for name in in_sdist if name.startswith("scissorhands_jax/") and name.endswith((".py", ".html", ".css"))):
    assert name in in_wheel, f"the wheel lacks {name}"
assert not any(name.startswith(("tests", "experiments", "docs")) for name in in_wheel), "the wheel holds more than the package"
PYTHON
"$python" -m venv --without-pip "$work/user"
# Not compiled: most of it is never imported.
"${pip[@]}" --python "$work/user/bin/python" install --no-compile "$work"/dist/*.whl
cd "$work"
export PYTHONDONTWRITEBYTECODE=
"$work/user/bin/scissorhands" --version
# The demo with a short training, compiled fast rather than well; as it is shipped it is run by tests/jobs/demo_test.py.
XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true" \
  "$work/user/bin/python" - >"$work/log" 2>&1 <<'PYTHON' || { cat "$work/log"; exit 1; }
import dataclasses, sys
from scissorhands_jax.cli.main import main
from scissorhands_jax.jobs import demo

training = dataclasses.replace(demo.EXPERIMENT.training, epochs=5)
demo.EXPERIMENT = dataclasses.replace(demo.EXPERIMENT, training=training)
sys.exit(main(["demo", "--seeds", "1", "--out", "demo"]))
PYTHON
test -s "$work/demo/report.html"
echo "sdist and wheel are complete, and the demo runs from the wheel"
