"""The order of the packages, one home for each public name, and an import of the library that stays light."""

import ast
import collections
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scissorhands_jax

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
            found = [target.id for target in targets if isinstance(target, ast.Name)]
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


def test_importing_the_library_loads_no_heavy_extra():
    code = "import sys; from scissorhands_jax import *; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = "cv2 equinox ftfy matplotlib nudenet onnxruntime sklearn tokenizers torch tensorflow"
    assert set(done.stdout.split()) & set(heavy.split()) == set()


UNLIMITED = {
    *("json.load", "json.loads", "np.load", "np.loadtxt", "np.genfromtxt", "np.fromfile", "np.memmap", "Image.open"),
    *("gzip.open", "gzip.decompress", "zlib.decompress", "bz2.open", "lzma.open", "zipfile.ZipFile", "csv.reader"),
    *("csv.DictReader", "pickle.load", "pickle.loads", "tomllib.load", "tomllib.loads"),
}
"""Readers without limits, of which `reading`, `array_files` and `image_files` offer such with limits."""


def unlimited_reads(path):
    """The calls by which a module reads something without limits; `json.loads(json.dumps(...))` copies its own."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name, first = ast.unparse(node.func), ast.unparse(node.args[0]) if node.args else ""
        if name in UNLIMITED and not first.startswith("json.dumps("):
            yield name
        owner, _, method = name.rpartition(".")
        if method in ("read_text", "read_bytes") and owner != "reading":
            yield name


def test_whatever_is_read_is_read_with_limits():
    system = {"training/reproducibility.py", "jobs/plan_memory.py", "cli/huge_pages.py"}  # of /proc and /sys
    told = {"training/distributed.py"}  # what another process of the same run has sent
    mechanism = {"reading.py", "array_files.py", "image_files.py"}
    found = {}
    for path, _ in modules():
        name = path.relative_to(PACKAGE).as_posix()
        calls = set(unlimited_reads(path))
        if calls and name not in system | told | mechanism:
            found[name] = calls
    assert found == {}


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


def test_all_that_the_package_offers_exists():
    assert [name for name in scissorhands_jax.__all__ if not hasattr(scissorhands_jax, name)] == []
