"""Whether oneDNN is used where it is there, and not where it is not."""

import platform
import subprocess
import sys

import jax
import jaxlib.version
import numpy as np
import pytest

from scissorhands_jax.models import onednn

# JAX says so where it cannot store a program.
pytestmark = pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache")


def test_known_releases_for_x86_have_it():
    known = jaxlib.version.__version_info__[:2] in onednn._RELEASES
    assert onednn._works() == (known and platform.machine() == "x86_64")


def test_programs_that_are_to_be_stored_do_without():
    assert jax.config.jax_compilation_cache_dir, "the tests share one"
    assert not onednn.is_there()


@pytest.mark.parametrize("enabled", [True, False])
def test_a_process_decides_for_itself(enabled, tmp_path):
    """In a new process, where the first to ask is the compiler, at work on a step in a loop."""
    program = f"""
import jax, numpy as np
jax.config.update("jax_compilation_cache_dir", {str(tmp_path)!r})
jax.config.update("jax_enable_compilation_cache", {enabled})
from scissorhands_jax.models import convolution
x, kernel = np.ones((2, 8, 8, 4), np.float32), np.ones((3, 3, 4, 4), np.float32)
with convolution.within_loop():
    lowered = jax.jit(lambda x, kernel: convolution.convolve(x, kernel, padding=1)).lower(x, kernel)
assert ("__onednn$" in lowered.as_text()) != {enabled}
assert float(lowered.compile()(x, kernel).sum()) == 2 * 4 * 4 * 22**2
"""
    if not onednn._works():
        pytest.skip("needs a jaxlib with oneDNN")
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("axes", [(1, 0), (0, 0), (1, 1), (0, 1)])
def test_products_over_any_two_axes(axes):
    if not onednn._works():
        pytest.skip("needs a jaxlib with oneDNN")
    rng = np.random.default_rng(0)
    left, right = (np.moveaxis(rng.standard_normal((4, n)), 0, axis) for n, axis in zip((3, 5), axes, strict=True))
    left, right = np.float32(left), np.float32(right)
    found = jax.jit(lambda left, right: onednn.product(left, right, axes))(left, right)
    np.testing.assert_allclose(found, np.tensordot(left, right, axes), rtol=1e-6)


@pytest.mark.parametrize("what", ["another machine", "another release", "no such call", "wrong numbers"])
def test_what_is_not_known_to_work_is_not_used(monkeypatch, what):
    if what == "another machine":
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    elif what == "another release":
        monkeypatch.setattr(jaxlib.version, "__version_info__", (0, 99, 0))
    elif what == "no such call":
        call = onednn._call
        monkeypatch.setattr(onednn, "_call", lambda name, *rest: call("nothing", *rest))
    else:
        product = onednn.product
        monkeypatch.setattr(onednn, "product", lambda *matrices, axes: product(*matrices, axes) + np.float32(1))
    assert not onednn._works.__wrapped__()  # what it says without its memory
