"""Convolutions and matrix products of oneDNN, which jaxlib's wheels for x86 contain but do not use by themselves.

XLA:CPU calls oneDNN where passes of its own put such calls into a program. In the wheels these passes are switched off,
but the calls work, and `jax.ffi.ffi_call` makes them. Their form is XLA's own affair and may change, hence `is_there`.
"""

from __future__ import annotations

import functools
import json
import platform
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

# Where the form has changed a call may end the process, so only the releases on which the tests ran are tried.
_RELEASES = ((0, 10), (0, 11), (0, 12))
_AXES = ((0, 0), (1, 1))  # of the products that are tried: either matrix transposed


def is_there() -> bool:
    """Whether programs for the CPU can have these calls.

    Not where programs are kept by JAX's persistent compilation cache: those with such calls cannot be stored.
    """
    kept = jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir
    return not kept and _works()


@functools.cache
def _works() -> bool:
    if platform.machine() not in ("x86_64", "AMD64") or jaxlib.version.__version_info__[:2] not in _RELEASES:
        return False
    x, kernel = np.arange(32, dtype=np.float32).reshape(1, 4, 4, 2), np.ones((3, 3, 2, 1), np.float32)
    rows = x.reshape(16, 2)
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            convolved = jax.jit(functools.partial(convolution, stride=2, padding=1)).lower(x, kernel).compile()
            compiled = [jax.jit(functools.partial(product, axes=axes)).lower(rows, rows).compile() for axes in _AXES]
    except jax.errors.JaxRuntimeError:
        return False
    windows = [x[:, max(0, i) : i + 3, max(0, j) : j + 3].sum() for i in (-1, 1) for j in (-1, 1)]
    right = np.array_equal(np.ravel(convolved(x, kernel)), windows)
    pairs = zip(compiled, _AXES, strict=True)
    products = [np.array_equal(call(rows, rows), np.tensordot(rows, rows, axes)) for call, axes in pairs]
    return right and all(products)


def convolution(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """The cross-correlation of images with a square kernel; cannot be differentiated or batched.

    Args:
      x: shape=(N, H, W, C), dtype=float32
      kernel: shape=(k, k, C, K), dtype=float32
      stride: between windows, along both axes.
      padding: zeros on each side of both axes.

    Returns:
      shape=(N, (H + 2 padding - k) // stride + 1, (W + 2 padding - k) // stride + 1, K)
    """
    height, width = ((side + 2 * padding - kernel.shape[0]) // stride + 1 for side in x.shape[1:3])
    images = {"data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    config = {
        "dims": 4,
        "input": images,
        "kernel": {"filter": {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}},
        "output": images,
        "window": {
            "strides": [stride, stride],
            "pad_left": [padding, padding],
            "pad_right": [padding, padding],
            "window_dilations": [1, 1],
        },
        "feature_groups": 1,
    }
    return _call("convolution", {"onednn_conv_config": config}, (x.shape[0], height, width, kernel.shape[3]), x, kernel)


def product(left: jax.Array, right: jax.Array, axes: tuple[int, int] = (1, 0)) -> jax.Array:
    """The product of two matrices over one axis of each; cannot be differentiated or batched.

    Args:
      left: shape=(M, N) or, for axis 0, (N, M), dtype=float32
      right: shape=(N, K) or, for axis 1, (K, N), dtype=float32
      axes: which axis of either is summed over.

    Returns:
      shape=(M, K)
    """
    config = {"onednn_matmul_config": {"transpose_a": axes[0] == 0, "transpose_b": axes[1] == 1}}
    return _call("matmul", config, (left.shape[1 - axes[0]], right.shape[1 - axes[1]]), left, right)


def _call(name: str, config: dict[str, Any], shape: tuple[int, ...], *operands: jax.Array) -> jax.Array:
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    config_text = json.dumps(config)
    call = jax.ffi.ffi_call(f"__onednn${name}", result, custom_call_api_version=1, legacy_backend_config=config_text)
    return call(*operands)
