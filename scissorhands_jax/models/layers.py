"""Flax linen building blocks that compute what PyTorch's modules compute, under PyTorch's names.

Images are (N, H, W, C), kernels (height, width, in, out). A module carries the last component of its PyTorch path as
its name, so a leaf of the variable tree and an entry of a state dict differ only in layout and in the last word:
`kernel`/`scale` is `weight`, `mean`/`var`/`count` are `running_mean`/`running_var`/`num_batches_tracked`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import lift
from jax.typing import DTypeLike

from scissorhands_jax.errors import InputError
from scissorhands_jax.microbatches import after
from scissorhands_jax.models.cpu_convolution import conv_general_dilated

Normalization = Literal["stored", "stored_unused", "fixed", "off"]

# Module-level values, not fresh closures, so that two modules with equal fields are equal and share compiled code.
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
KAIMING_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
TORCH_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-b, b) with b = 1 / sqrt(fan_in)


def as_float(inputs: jax.Array) -> jax.Array:
    """Network inputs as floating point: uint8 is divided by 255, floats pass through, anything else is refused.

    Raises:
      InputError: the inputs are neither floating point nor uint8.
    """
    if inputs.dtype == jnp.uint8:
        return inputs.astype(jnp.float32) / 255
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        return inputs
    raise InputError(f"inputs are {inputs.dtype}; give floating point (images in [0, 1]) or uint8 (images in 0..255)")


def enter(images: jax.Array, normalize: Normalization, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """The entry of an image network, called from its compact `__call__`: checks, scales and normalises.

    Args:
      images: shape (N, H, W, C), floating point in [0, 1] or uint8.
      normalize: `stored` subtracts `mean` and divides by `std`, both kept as variables of a child named `normalize`;
        `stored_unused` keeps the variables and applies nothing; `fixed` applies the numbers given here without
        storing them; `off` does neither.
      mean: one number per channel.
      std: one number per channel.

    Raises:
      InputError: the images are not (N, H, W, C), `normalize` is unknown, or mean and std do not fit the channels.
    """
    if normalize not in get_args(Normalization):
        raise InputError(f"normalize is {normalize!r}; choose one of {', '.join(get_args(Normalization))}")
    if images.ndim != 4:
        raise InputError(f"images have shape {images.shape}; an image network takes (N, H, W, C)")
    images = as_float(images)
    if normalize == "off":
        return images
    if not len(mean) == len(std) == images.shape[-1]:
        raise InputError(
            f"images have {images.shape[-1]} channels, but mean has {len(mean)} and std {len(std)} numbers; "
            "pass mean and std with one number per channel, or normalize='off'"
        )
    if normalize == "fixed":
        return _standardize(images, jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
    return Normalize(tuple(mean), tuple(std), used=normalize == "stored", name="normalize")(images)


def _standardize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    return (images - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)


class Normalize(nn.Module):
    """`(x - mean) / std` per channel, with both in the collection `constants`: stored, exported, never trained.

    Attributes:
      mean: initial value of the variable `mean`, one number per channel.
      std: initial value of the variable `std`.
      used: False keeps the variables and returns the input, as the authors' CelebA network does.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    used: bool = True

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        mean = self.variable("constants", "mean", lambda: jnp.asarray(self.mean, jnp.float32))
        std = self.variable("constants", "std", lambda: jnp.asarray(self.std, jnp.float32))
        return _standardize(images, mean.value, std.value) if self.used else images


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's rules (Ioffe and Szegedy, 2015).

    With `train` the batch's mean and biased variance normalise, and, where the collection `batch_stats` is mutable,
    the running statistics become `(1 - momentum) * old + momentum * batch`, the variance entering unbiased, and
    `count` grows by one. Without `train` the running statistics normalise and nothing moves.

    Statistics are computed in float32 or wider, to its precision also where means are large. Under `jit` with a batch
    sharded over devices they are those of the whole (global) batch, as PyTorch's SyncBatchNorm computes them,
    not per-device ones.

    Variables: `params` scale, bias, shape (C,); `batch_stats` mean, var, shape (C,), count, shape (), int32.

    Attributes:
      momentum: weight of the newest batch in the running statistics (PyTorch's convention, not flax's).
      eps: added to the variance.
      dtype: of the result; None keeps the input's.
    """

    momentum: float = 0.1
    eps: float = 1e-5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x`, shape (N, ..., C).

        Raises:
          InputError: `train` with a single value per channel, whose unbiased variance does not exist.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)

        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            values = x.size // channels
            if values < 2:
                raise InputError(
                    f"BatchNorm saw one value per channel (input shape {x.shape}) in train mode; "
                    "use larger batches or images, or train=False"
                )
            # As a matrix: XLA reduces that on CPU several times as fast as it reduces three axes.
            y, mean, var = _normalize_batch(wide.reshape(-1, channels), scale, bias, self.eps)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                unbiased = var * (values / (values - 1))
                keep, new = 1 - self.momentum, self.momentum
                running_mean.value = keep * running_mean.value + new * mean.astype(running_mean.value.dtype)
                running_var.value = keep * running_var.value + new * unbiased.astype(running_var.value.dtype)
                count.value = count.value + 1
        else:
            mean, var = running_mean.value, running_var.value
            y = (wide.reshape(-1, channels) - mean[None]) * jax.lax.rsqrt(var + self.eps)[None]
            y = y * scale[None] + bias[None]
        return y.reshape(x.shape).astype(self.dtype or x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _normalize_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalisation of x, shape (M, C), with the mean and the biased variance, shape (C,), that it used."""
    mean = jnp.mean(x, axis=0)
    var = _variance(x, mean)
    return (x - mean[None]) * jax.lax.rsqrt(var + eps)[None] * scale[None] + bias[None], mean, var


@_normalize_batch.defjvp
def _normalize_batch_jvp(eps, primals, tangents):
    """The derivative in terms of the normalised input, so that its transpose needs two reductions and not five.

    With n = (x - mean) / std: dn = (dx - E[dx] - n E[n dx]) / std, where E is the mean over the batch. Its relative
    error is about 1e-7 mean / std.
    """
    (x, scale, _), (x_dot, scale_dot, bias_dot) = primals, tangents
    outputs = _normalize_batch(*primals, eps)
    _, mean, var = outputs
    inverse = jax.lax.rsqrt(var + eps)
    normalized = (x - mean[None]) * inverse[None]
    mean_dot, slope = jnp.mean(x_dot, axis=0), jnp.mean(normalized * x_dot, axis=0)
    gain = scale * inverse
    # `normalized` times slopes, in terms of x, lest XLA stores `normalized` for the backward pass.
    tilt = inverse * (scale_dot - gain * slope)
    y_dot = gain[None] * x_dot + tilt[None] * x + (bias_dot - gain * mean_dot - tilt * mean)[None]
    return outputs, (y_dot, mean_dot, 2 * slope / inverse)


_LARGE_MEAN = 16.0  # times the variance is a squared mean that leaves E[x^2] - mean^2 too few digits


def _variance(x: jax.Array, mean: jax.Array) -> jax.Array:
    """The biased variance of x, shape (M, C), around its mean, shape (C,).

    On CPU E[x^2] - mean^2, because XLA stores the centred values for a pass around the mean. The relative error of this
    is about 1e-7 mean^2 / variance, so that a single channel with a large mean makes it take that pass after all.
    """
    if jax.default_backend() != "cpu":
        return jnp.mean(jnp.square(x - mean[None]), axis=0)
    fast = jnp.mean(jnp.square(x), axis=0) - jnp.square(mean)
    return jax.lax.cond(
        jnp.all(jnp.square(mean) <= _LARGE_MEAN * fast),
        lambda: fast,
        lambda: jnp.mean(jnp.square(x - mean[None]), axis=0),
    )


@jax.custom_jvp
def relu_sum(a: jax.Array, b: jax.Array) -> jax.Array:
    """`relu(a + b)` of two arrays of one shape, the same numbers unless b is -inf, where it is NaN.

    Written so that on CPU XLA stores it: it considers the sums of a chain of residual blocks cheap and would compute
    them again, from the first block on, wherever one is read.
    """
    return jnp.maximum(a, -b) + b


@relu_sum.defjvp
def _relu_sum_jvp(primals, tangents):
    y = relu_sum(*primals)
    return y, jnp.where(y > 0, sum(tangents), 0)


Block = TypeVar("Block", bound=type[nn.Module] | Callable[..., jax.Array])


def rematerialized(block: Block, remat: bool) -> Block:
    """The block, which with `remat` keeps nothing but its input for the backward pass and is computed once more there.

    The same names and numbers. Statistics move once: what the second computation does to them is discarded. On CPU only
    reverse-mode differentiation passes through it.

    Args:
      block: a class of modules called as `block(x, *static)`, or a function `(module, x, *static)` within a module's
        compact method.
    """
    return nn.transforms.lift_transform(_recomputed, block) if remat else block


def _recomputed(function: Callable) -> Callable:
    """A lifted transform, as `flax.core.lift.checkpoint` is one."""

    def inner(scope_fn, repack_fn, variable_groups, rng_groups, x, *static):
        def run(variable_groups, rng_groups, x):
            scope = scope_fn(variable_groups, rng_groups)
            y = function(scope, x, *static)
            return y, repack_fn(scope)

        recompute = checkpoint_late if jax.default_backend() == "cpu" else jax.checkpoint
        return recompute(run)(variable_groups, rng_groups, x)

    return lift.pack(inner, (True,), (True,), (True,), name="remat")


def checkpoint_late(function: Callable) -> Callable:
    """`jax.checkpoint` that frees memory on XLA:CPU too, for reverse-mode differentiation alone.

    There XLA drops the barrier that keeps `jax.checkpoint`'s second forward pass apart from the first (measured for
    ResNet-20: one of the two is removed again, and memory does not fall). Here the second one waits for the gradient.
    """

    @jax.custom_vjp
    def checkpointed(*arguments):
        return function(*arguments)

    def forward(*arguments):
        return function(*arguments), arguments

    def backward(arguments, cotangents):
        _, pull = jax.vjp(function, *after(cotangents, arguments))
        return pull(cotangents)

    checkpointed.defvjp(forward, backward)
    return checkpointed


def average_pool(x: jax.Array) -> jax.Array:
    """The mean over height and width, shape (N, C), in float32 or wider.

    What follows is a thousandth of the work and decides confidences, so it never runs in a narrow dtype.
    """
    return jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))


def torch_conv(
    features: int,
    size: int,
    stride: int = 1,
    *,
    name: str,
    dtype: DTypeLike,
    kernel_init: nn.initializers.Initializer = KAIMING_FAN_OUT,
    use_bias: bool = False,
) -> nn.Conv:
    """A square convolution padded as PyTorch's `padding=size // 2`: equally on both sides, whatever the stride."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=[(size // 2, size // 2)] * 2,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        name=name,
        conv_general_dilated=conv_general_dilated,
    )


def torch_linear(
    features: int,
    fan_in: int,
    *,
    name: str,
    dtype: DTypeLike,
    kernel_init: nn.initializers.Initializer = TORCH_LINEAR,
) -> nn.Dense:
    """A dense layer whose kernel and bias start as those of `torch.nn.Linear`: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def bias_init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, name=name)
