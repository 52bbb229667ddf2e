"""A module imports only from lower layers, and heavy or foreign packages stay out of the import of the library."""

import ast
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import scissorhands_jax

PACKAGE = Path(scissorhands_jax.__file__).parent
LAYERS = (
    ("errors", "base", "trees", "files", "compilation", "sharding", "distributed", "_watcher", "signing", "ledger"),
    ("saliency", "masks", "reinit", "projection", "losses", "microbatches", "data", "optimizers", "models"),
    (
        *("methods", "torch_weights", "_torch_pickle", "metrics", "attacks", "checkpoints", "datasets", "gradcam"),
        *("evidence", "probes"),
    ),
    (
        *(
            "training",
            "feeding",
            "config",
            "evaluation",
            "report",
            "runs",
            "progress",
            "relearning",
            "tuning",
            "sweeps",
        ),
        *(
            "verdicts",
            "gates",
            "records",
            "ensembles",
            "grid",
            "unlearning",
            "planning",
            "demo",
            "deletion",
            "deletion_audits",
            "audit",
        ),
        "diffusion",
    ),
    ("cli", "cli_requests", "_huge_pages", "__main__", "__init__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Within a layer: what may import what. Every other pair of one layer must not know of each other.
WITHIN = {
    ("base", "errors"),
    ("trees", "errors"),
    ("sharding", "base"),
    ("sharding", "errors"),
    ("distributed", "errors"),
    ("distributed", "_watcher"),
    ("trees", "base"),
    ("signing", "base"),
    ("signing", "errors"),
    ("signing", "files"),
    ("signing", "trees"),
    ("ledger", "errors"),
    ("ledger", "files"),
    ("ledger", "signing"),
    ("torch_weights", "_torch_pickle"),
    ("training", "feeding"),
    ("losses", "microbatches"),
    ("models", "microbatches"),
    ("progress", "training"),
    ("relearning", "training"),
    ("ensembles", "sweeps"),
    ("sweeps", "feeding"),
    ("sweeps", "training"),
    ("tuning", "sweeps"),
    ("tuning", "training"),
    ("records", "report"),
    ("records", "verdicts"),
    ("gates", "report"),
    ("gates", "verdicts"),
    ("cli", "cli_requests"),
    ("__main__", "cli"),
    ("__main__", "_huge_pages"),
    *(
        (importer, imported)
        for importer in ("grid", "unlearning", "planning", "demo", "deletion", "deletion_audits", "audit", "diffusion")
        for imported in LAYERS[3]
        if importer != imported
    ),
}
FOREIGN = {"torch", "tensorflow", "experiments", "tests"}


def modules():
    """Every module of the package with the top-level name that stands for it in LAYERS."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, parts[0]


def imported_names(path):
    """Absolute names of all that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_a_layer():
    assert {name for _, name in modules()} == set(LEVEL)


@pytest.mark.parametrize(("path", "name"), list(modules()), ids=lambda value: getattr(value, "stem", value))
def test_imports_run_downwards(path, name):
    for imported in imported_names(path):
        top, *rest = imported.split(".")
        assert top not in FOREIGN, f"{path} imports {imported}"
        if top != "scissorhands_jax" or not rest or name == "__init__":
            continue
        other = rest[0]
        assert other in LEVEL, f"{path} imports {imported}"
        allowed = other == name or LEVEL[other] < LEVEL[name] or (name, other) in WITHIN
        assert allowed, f"{name} (layer {LEVEL[name]}) imports {other} (layer {LEVEL[other]})"


def test_importing_the_library_loads_no_heavy_extra():
    code = "import sys; from scissorhands_jax import *; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = "cv2 equinox ftfy matplotlib nudenet onnxruntime sklearn tokenizers torch tensorflow"
    assert set(done.stdout.split()) & set(heavy.split()) == set()


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
