"""Measures how near the networks come to the limits of the device: matrix products, timed in turn with them."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.benchmark.settings import Settings, Size, build, random_images
from experiments.benchmark.timing import Call, OnRound, Result, compare
from scissorhands_jax import optimizers

MATRIX_PRODUCT = "matrix product"
PASSES = {
    "forward": "forward pass in train mode",
    "gradient": "loss and gradient",
    "train": "training step: gradient and SGD with momentum and weight decay",
}


def pass_case(name: str, label: str, what: str, settings: Settings, on_round: OnRound) -> Result:
    """Compares a pass of a network at one size with a product of two square matrices in the same dtype.

    `flops` is twice the multiplications of the convolutions and matrix products as the network defines them, threefold
    for a gradient (its backward pass has two for each of the forward pass); an algorithm that needs fewer shows as a
    higher rate.
    """
    size = settings.sizes[label]
    calls, flops = _calls(label, size)
    product, product_flops = matrix_product(jnp.dtype(size.dtype), settings)
    result = compare(name, PASSES[what], calls[what], {MATRIX_PRODUCT: product}, settings, on_round)
    assert result.seconds is not None
    flops *= 1 if what == "forward" else 3
    numbers = {
        "images_per_second": size.batch_size / result.seconds.median,
        "flops": flops,
        "flops_per_second": flops / result.seconds.median,
        "share_of_matrix_rate": flops / product_flops / result.ratio_to(MATRIX_PRODUCT),
    }
    return dataclasses.replace(result, numbers=numbers)


def product_case(name: str, dtype: Any, settings: Settings, on_round: OnRound) -> Result:
    """Compares the rate of matrix products with the rate of reading and writing the same arrays."""
    product, flops = matrix_product(jnp.dtype(dtype), settings)
    matrix = _matrix(dtype, settings)
    double = jax.jit(lambda matrix: matrix * 2)
    result = compare(name, "square matrix product", product, {"copy": lambda: double(matrix)}, settings, on_round)
    assert result.seconds is not None
    copied = 2 * matrix.nbytes / result.against[0].seconds.median
    numbers = {
        "flops": flops,
        "flops_per_second": flops / result.seconds.median,
        "copy_bytes_per_second": copied,
    }
    return dataclasses.replace(result, numbers=numbers)


def _side(settings: Settings) -> int:
    if settings.quick:
        return 64
    return 2048 if jax.default_backend() == "cpu" else 8192


def _matrix(dtype: Any, settings: Settings) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (_side(settings),) * 2, dtype)


@functools.lru_cache(maxsize=2)
def matrix_product(dtype: jnp.dtype, settings: Settings) -> tuple[Call, int]:
    """Returns the product of two square matrices as a function without arguments, and the number of its operations."""
    matrix = _matrix(dtype, settings)
    product = jax.jit(jnp.matmul)
    return lambda: product(matrix, matrix), 2 * _side(settings) ** 3


@functools.lru_cache(maxsize=1)
def _calls(label: str, size: Size) -> tuple[dict[str, Call], int]:
    """Returns every pass as a function without arguments, and the number of operations of the forward pass."""
    del label  # It is an argument only so that each size has functions of its own.
    model, loss_fn = build(size.network, size.options)
    params, model_state = model.init(jax.random.key(0))
    batch = random_images(dict(size.options)["image_shape"], size.batch_size, seed=1)
    optimizer = optimizers.sgd(1e-3)
    opt_state = optimizer.init(params)

    @jax.jit
    def forward(params):
        return model.apply(params, model_state, batch["image"], train=True)

    def loss(params):
        return loss_fn(params, model_state, batch, train=True, key=None)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))

    @jax.jit
    def train(params, opt_state):
        result, slope = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(slope, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, result

    calls = {
        "forward": lambda: forward(params),
        "gradient": lambda: gradient(params),
        "train": lambda: train(params, opt_state),
    }
    return calls, count_flops(jax.make_jaxpr(forward)(params).jaxpr)


def count_flops(jaxpr: Any) -> int:
    """Counts twice the multiplications of the convolutions and matrix products in a jaxpr, inner jaxprs included.

    XLA's own count does not serve: it counts what was compiled, without the lengths of loops, and not what was asked.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, result = equation.primitive.name, equation.outvars[0].aval if equation.outvars else None
        if name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            total += 2 * result.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif name in ("conv_general_dilated", "cpu_conv_general_dilated"):
            kernel = equation.invars[1].aval.shape  # (height, width, in, out)
            total += 2 * result.size * math.prod(kernel[:-1])
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += count_flops(inner)
    return total
