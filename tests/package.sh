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
"$work/user/bin/scissorhands" demo --seeds 1 --out "$work/demo" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
test -s "$work/demo/report.html"
echo "sdist and wheel are complete, and the demo runs from the wheel"
