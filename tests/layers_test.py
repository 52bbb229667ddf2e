"""The order of the packages, one home for each public name, and an import of the library that stays light."""

import ast
import collections
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import scissorhands_jax
from scissorhands_jax import array_files, image_files, reading
from scissorhands_jax.datasets import archives
from scissorhands_jax.deletion import signing
from scissorhands_jax.jobs import cells
from scissorhands_jax.torch_weights import pickles, weight_files

PACKAGE = Path(scissorhands_jax.__file__).parent
ORDER = (
    *("version", "errors", "plain_terminal", "terminal", "keywords", "base", "trees", "reading", "files"),  # the ground
    *("array_files", "image_files", "hashing"),
    "torch_weights",
    *(
        "data",
        "augmentation",
        "masks",
        "reinit",
        "projection",
        "microbatches",
        "losses",
        "saliency",
        "tasks",
        "optimizers",
    ),
    *("datasets", "models", "methods", "training", "metrics", "report", "jobs", "audit", "deletion", "diffusion"),
    "language",
    *("cli", "__main__", "__init__"),
)
"""Everything that stands directly in the package. Each entry imports only what comes before it."""
FOREIGN = {"torch", "tensorflow", "experiments", "tests"}


def modules():
    """Every module of the package, with the entry of ORDER that it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(path):
    """Absolute names of all that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def public_names(path):
    """The public functions, classes and constants that a module defines itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            nodes = (found for target in targets for found in ast.walk(target))
            found = [found.id for found in nodes if isinstance(found, ast.Name) and isinstance(found.ctx, ast.Store)]
        else:
            continue
        yield from (name for name in found if not name.startswith("_"))


def test_every_module_stands_somewhere():
    assert {name for _, name in modules()} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


def test_the_guide_for_contributors_names_every_part_in_this_order():
    guide = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \|", guide[guide.index("| part |") :], flags=re.MULTILINE)
    named = [name.rstrip("/") for row in rows for name in re.findall(r"`(.*?)`", row)]
    assert sorted(named) == sorted(set(ORDER) - {"__main__", "__init__"})
    places = [min(map(ORDER.index, (name.rstrip("/") for name in re.findall(r"`(.*?)`", row)))) for row in rows]
    assert places == sorted(places)


@pytest.mark.parametrize(("path", "name"), list(modules()), ids=lambda value: getattr(value, "stem", value))
def test_imports_run_downwards(path, name):
    for imported in imported_names(path):
        top, *rest = imported.split(".")
        assert top not in FOREIGN, f"{path} imports {imported}"
        if top == "scissorhands_jax":
            assert rest, f"{path} imports the whole package"
            other = rest[0]
            assert other == name or ORDER.index(other) < ORDER.index(name), f"{path} imports {imported}"


def test_tests_mirror_the_tree():
    """A test in a folder is of the module of its name there, or of the package itself; tests of several stand above."""
    tests = Path(__file__).parent
    for path in tests.glob("*/**/*_test.py"):
        folder, name = path.relative_to(tests).parent, path.name.removesuffix("_test.py")
        places = [folder / name, folder] if name == folder.name else [folder / name]
        modules = [root / place for root in (PACKAGE, PACKAGE.parent) for place in places]
        assert any(module.with_suffix(".py").is_file() or module.is_dir() for module in modules), path


def test_a_public_name_is_defined_in_one_file_only():
    homes = collections.defaultdict(list)
    for path, _ in modules():
        for name in set(public_names(path)):
            homes[name].append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_losses_of_optax_are_given_numbers_in_full_precision():
    """In half precision they have three digits; `losses` has the cross-entropies that all others take."""
    computing = re.compile(r"optax\.(losses\.)?\w*(cross_entropy|kl_divergence|l2_loss|huber_loss)")
    found = {path.relative_to(PACKAGE).as_posix() for path, _ in modules() if computing.search(path.read_text())}
    assert found == {"losses.py", "tasks.py", "methods/delete.py"}
    assert all("in_full_precision(" in (PACKAGE / path).read_text() for path in found)


def test_importing_parts_loads_only_what_they_need():
    """One process imports more and more, and says after each what is loaded."""
    heavy = {
        "cv2",
        "equinox",
        "ftfy",
        "matplotlib",
        "nudenet",
        "onnxruntime",
        "sklearn",
        "tensorflow",
        "tokenizers",
        "torch",
    }
    unwanted = {
        "scissorhands_jax.models": heavy,  # Adapters import a framework when they are called.
        "scissorhands_jax; from scissorhands_jax import *": heavy,
        # Metrics and reports need neither a database nor signatures.
        "scissorhands_jax.metrics.row, scissorhands_jax.report, scissorhands_jax.audit": {"sqlite3", "cryptography"},
    }
    code = "import sys\n" + "".join(f"import {names}\nprint(*sys.modules)\n" for names in unwanted)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for (names, others), loaded in zip(unwanted.items(), done.stdout.splitlines(), strict=True):
        assert not others & set(loaded.split()), names


UNLIMITED = {
    *("json.load", "json.loads", "numpy.load", "numpy.loadtxt", "numpy.genfromtxt", "numpy.fromfile", "numpy.memmap"),
    *("numpy.lib.npyio.NpzFile", "numpy.lib.format.read_array", "jax.numpy.load", "PIL.Image.open", "scipy.io.loadmat"),
    *("gzip.open", "gzip.decompress", "zlib.decompress", "bz2.open", "lzma.open", "zipfile.ZipFile", "csv.reader"),
    *("csv.DictReader", "pickle.load", "pickle.loads", "tomllib.load", "tomllib.loads"),
}
"""Readers without limits; `reading`, `array_files` and `image_files` have such with limits."""


def unlimited_reads(path):
    """The calls by which a module reads something without limits; `json.loads(json.dumps(...))` copies its own."""
    tree, names = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, first = ast.unparse(node.func), ast.unparse(node.args[0]) if node.args else ""
        head, dot, rest = name.partition(".")
        name = names.get(head, head) + dot + rest
        if name in UNLIMITED and not first.startswith("json.dumps("):
            yield name
        modes = [ast.unparse(mode) for mode in (*node.args[1:2], *(k.value for k in node.keywords if k.arg == "mode"))]
        if name in ("open", "io.open") and not any(set("wax+") & set(mode) for mode in modes):
            yield name  # It waits for the writer of a pipe, as `reading.open_file` does not.
        owner, _, method = name.rpartition(".")
        if method in ("read_text", "read_bytes") and owner != "scissorhands_jax.reading":
            yield name


def test_readers_are_known_however_they_are_spelled(tmp_path):
    module = tmp_path / "module.py"
    for text in (
        *("import numpy\nnumpy.load(f)", "import numpy as n\nn.load(f)", "from numpy import load as l\nl(f)"),
        *("from json import loads\nloads(t)", "from PIL import Image\nImage.open(f)"),
        *("import PIL.Image\nPIL.Image.open(f)", "def f():\n  from scipy.io import loadmat\n  loadmat(f)"),
        *("from pathlib import Path\nPath(f).read_text()", "from gzip import open as unpack\nunpack(f)"),
        *("open(f)", "open(f, 'rb')", "open(f, mode='rt')"),
    ):
        module.write_text(text)
        assert len(list(unlimited_reads(module))) == 1, text
    module.write_text(
        "from scissorhands_jax import reading\nreading.read_text(f)\nimport json\nopen(json.dumps(t), 'w')"
    )
    assert list(unlimited_reads(module)) == []


def test_whatever_is_read_is_read_with_limits():
    system = {"training/reproducibility.py", "jobs/plan_memory.py", "cli/huge_pages.py"}  # of /proc and /sys
    told = {"training/distributed.py"}  # what another process of the same run has sent
    checked = {"datasets/archives.py": {"scipy.io.loadmat"}}  # of content and numbers that were counted before
    mechanism = {"reading.py", "array_files.py", "image_files.py"}
    found = {}
    for path, _ in modules():
        name = path.relative_to(PACKAGE).as_posix()
        calls = set(unlimited_reads(path)) - checked.get(name, set())
        if calls and name not in system | told | mechanism:
            found[name] = calls
    assert found == {}


def test_versions_are_looked_up_in_one_module():
    found = {path.name for path, _ in modules() if "importlib.metadata" in set(imported_names(path))}
    assert found == {"version.py"}


def in_words(size):
    """A number of bytes as pages say it."""
    power, unit = next((power, unit) for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if size >= 2**power)
    return f"{size >> power} {unit}"


def test_the_page_tells_the_limits_that_are_kept():
    page = (PACKAGE.parent / "docs" / "explanations" / "guarantees.md").read_text()
    rows = page[page.index("| what is read | limits |") :].partition("\n\n")[0].splitlines()[2:]
    told = {row.split("|")[1].strip(): row.split("|")[2] for row in rows}
    unpacked = in_words(archives._MAX_CONTENT)
    kept = {
        "JSON": (in_words(reading.MAX_JSON), f"{reading.MAX_VALUES:,} values", f"{reading.MAX_DEPTH} levels"),
        "text and CSV": (in_words(reading.MAX_TEXT), f"{reading.MAX_LINES:,} lines"),
        "gzip": (in_words(reading.MAX_TEXT), unpacked),
        "`.npz`": (in_words(array_files.MIN_UNPACKED), f"{array_files.MAX_RATIO} times the size"),
        "images": (in_words(image_files.MAX_IMAGE), f"{image_files.MAX_PIXELS:,} pixels"),
        "`.safetensors`": (in_words(weight_files._MAX_HEADER), f"{weight_files._MAX_TENSORS:,} names"),
        "files of `torch.save`": (
            in_words(reading.MAX_DIRECTORY),
            f"{pickles._MAX_OPERATIONS:,} operations",
            f"{pickles._MAX_DEPTH:,} levels",
        ),
        "cells": (in_words(cells._MAX_CELL),),
        "`.mat`": (unpacked,),
        "keys": (in_words(signing._MAX_PUBLIC),),
    }
    assert len(told) == len(kept)
    for name, words in kept.items():
        (row,) = [row for title, row in told.items() if title.startswith(name)]
        assert [word for word in words if word not in row] == [], name


def public_functions():
    for info in pkgutil.walk_packages([str(PACKAGE)], "scissorhands_jax."):
        if info.name.endswith("__main__"):
            continue
        module = __import__(info.name, fromlist=["_"])
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == info.name and not name.startswith("_"):
                yield f"{info.name}.{name}", value


def test_public_functions_are_documented_and_use_the_glossary():
    functions = dict(public_functions())
    assert len(functions) > 80
    undocumented = [name for name, function in functions.items() if not inspect.getdoc(function)]
    assert undocumented == []
    forbidden = {"rng", "seed_key", "weights_tree", "sparsity", "lam", "memory_num"}
    used = {name: forbidden & set(inspect.signature(f).parameters) for name, f in functions.items()}
    assert {name: words for name, words in used.items() if words} == {}


OWN_ERRORS = {
    "InputError",
    "CheckpointError",
    "WeightsError",
    "LedgerError",
    "PeerError",
    "NonFiniteError",
    "BusyError",
}


def raised_errors(function):
    """The errors of this package that the statements of a function raise."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = (node.exc.func for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
    return OWN_ERRORS & {ast.unparse(call) for call in calls}


def test_docstrings_name_arguments_where_there_are_many_and_errors():
    """Four arguments or more are explained, or said to be another function's; modules with underscores are left out."""
    lacking = set()
    for name, function in public_functions():
        if any(part.startswith("_") for part in name.split(".")):
            continue
        text = inspect.getdoc(function) or ""
        many = len(inspect.signature(function).parameters) >= 4
        if many and "Args:" not in text and "arguments" not in text:
            lacking.add(f"{name}: Args")
        if raised_errors(function) and "Raises" not in text:
            lacking.add(f"{name}: Raises")
    assert lacking == set()


def test_all_that_the_package_offers_exists():
    assert [name for name in scissorhands_jax.__all__ if not hasattr(scissorhands_jax, name)] == []
