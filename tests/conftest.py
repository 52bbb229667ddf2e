"""Settings and fixtures for all tests."""

import os
import tempfile
from pathlib import Path

import jax
import pytest

from tests.compilations import save_time
from tests.equipment import absent

# Comparisons with recorded numbers are in full float32; shapes that broadcast by accident are errors.
jax.config.update("jax_default_matmul_precision", "highest")
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # in the processes that tests start as well
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests compile thousands of small programs and run most of them once. So XLA is asked to compile them fast instead of
# well, which more than halves the suite's time. `XLA_FLAGS= bash tests/run.sh` tests what users compile.
if "XLA_FLAGS" not in os.environ:
    flags = [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",  # both cores are busy anyway
    ]
    if jax.__version_info__ < (0, 11):  # Later ones lack it, and a flag that XLA does not know ends the process.
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)
    os.environ["SHARED_CONTEXTS"] = "1"  # also in the processes that tests start
save_time()


# The files that take longest, by measured CPU time.
SLOWEST = (
    *("parity_test.py", "kills_test.py", "experiments/benchmark_test.py", "deletion/running_test.py"),
    *("cli/main_test.py", "site_test.py", "docs_test.py"),
    *("training/sharding_test.py", "training/distributed_test.py", "methods/methods_test.py"),
    *("experiments/accelerator_test.py", "jobs/planning_test.py", "jobs/demo_test.py", "diffusion/unlearning_test.py"),
    *("experiments/run_test.py", "audit/run_test.py", "diffusion/demo/demo_test.py"),
    "deletion/audits_test.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take whole files in this order (`--no-loadscope-reorder`), so that no long one is left for the end."""
    tests = Path(__file__).parent
    ranks = {tests / name: rank for rank, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_configure(config: pytest.Config) -> None:
    """Gives all processes of the run one compilation cache: the workers, and the processes that tests start.

    They inherit the variables. The folder is removed after the run, so that no other machine or version reads it.
    """
    if hasattr(config, "workerinput") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    settings = {
        "jax_compilation_cache_dir": folder.name,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of traces and data next to the checkout; see `tests/equipment.py` for where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        absent("SHARED", f"there is no folder {folder}, with traces of the authors' code")
    return folder
