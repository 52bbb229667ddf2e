"""Building blocks in Flax linen that compute the same as PyTorch's modules, under PyTorch's names.

Images have the shape (N, H, W, C) and kernels (height, width, in, out). A module is named after the last part of its
path in PyTorch, so a leaf of the variable tree and an entry of a state dict differ only in the order of axes and in the
last word: `kernel` and `scale` are `weight`, and `mean`, `var` and `count` are `running_mean`, `running_var` and
`num_batches_tracked`.
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

# They are values of this module and not made afresh for each network, because two fresh initialisers are never equal,
# and networks share compiled code only if their fields are equal.
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
KAIMING_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
TORCH_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-b, b) with b = 1 / sqrt(fan_in)


def as_float(inputs: jax.Array) -> jax.Array:
    """Converts the inputs of a network to floating point: uint8 is divided by 255, and floats stay as they are.

    Raises:
      InputError: The inputs are neither floating point nor uint8.
    """
    if inputs.dtype == jnp.uint8:
        return inputs.astype(jnp.float32) / 255
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        return inputs
    raise InputError(f"inputs are {inputs.dtype}; give floating point (images in [0, 1]) or uint8 (images in 0..255)")


def enter(images: jax.Array, normalize: Normalization, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Checks, scales and normalises images. A network calls it at the beginning of its compact `__call__`.

    Args:
      images: Images of shape (N, H, W, C), floating point in [0, 1] or uint8.
      normalize: `stored` subtracts `mean` and divides by `std`, which are variables of a child named `normalize`;
        `stored_unused` has these variables but does not apply them; `fixed` applies the numbers without storing them;
        `off` does neither.
      mean: One number per channel.
      std: One number per channel.

    Raises:
      InputError: The images do not have the shape (N, H, W, C), `normalize` is unknown, or the lengths of `mean` and
        `std` are not the number of channels.
    """
    if normalize not in get_args(Normalization):
        raise InputError(f"normalize is {normalize!r}; choose one of {', '.join(get_args(Normalization))}")
    if images.ndim != 4:
        raise InputError(f"images have shape {images.shape}; give an array of shape (N, H, W, C)")
    images = as_float(images)
    if normalize == "off":
        return images
    if len(mean) == images.shape[1] != images.shape[-1]:
        raise InputError(
            f"images have shape {images.shape}, which look like channels first; give channels last, as with "
            ".transpose(0, 2, 3, 1)"
        )
    if not len(mean) == len(std) == images.shape[-1]:
        raise InputError(
            f"images have {images.shape[-1]} channels, but mean has {len(mean)} and std {len(std)} numbers; "
            "pass mean and std with one number per channel, or normalize='off'"
        )
    if not all(value > 0 for value in std):
        raise InputError(f"std must be above 0, got {', '.join(map(str, std))}; images are divided by it")
    if normalize == "fixed":
        return _standardize(images, jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
    return Normalize(tuple(mean), tuple(std), used=normalize == "stored", name="normalize")(images)


def _standardize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    return (images - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)


class Normalize(nn.Module):
    """Computes `(x - mean) / std` per channel.

    Both are variables in the collection `constants`, which is saved and exported with the network but never trained.

    Attributes:
      mean: The initial value of the variable `mean`, one number per channel.
      std: The initial value of the variable `std`, one number per channel.
      used: Whether the variables are applied. If not, the input is returned, as in the authors' CelebA network.
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
    """Batch normalisation over all axes except the last, by PyTorch's rules (Ioffe and Szegedy, 2015).

    In training it normalises by the mean and the biased variance of the batch. If the collection `batch_stats` is
    mutable, the running statistics become `(1 - momentum) * old + momentum * batch`, where the variance of the batch is
    the unbiased one, and `count` grows by one. In evaluation it normalises by the running statistics and changes
    nothing.

    Statistics are computed in float32 or wider, and are precise even where means are large. Under `jit`, with a batch
    that is sharded over devices, they are those of the whole batch, as with PyTorch's SyncBatchNorm, and not those of
    each device.

    The variables are `scale` and `bias` in `params`, of shape (C,); and in `batch_stats` `mean` and `var`, of shape
    (C,), and `count`, an int32 of shape ().

    Attributes:
      momentum: The weight of the newest batch in the running statistics. This is PyTorch's convention, not Flax's.
      eps: A number that is added to the variance.
      dtype: The type of the result. By default it is that of the input.
    """

    momentum: float = 0.1
    eps: float = 1e-5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x`, of shape (N, ..., C).

        Raises:
          InputError: In training there is a single value per channel, which has no unbiased variance.
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
            # On CPU XLA reduces one axis of a matrix several times as fast as three axes.
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
    """Normalises x, of shape (M, C). Also returns the mean and the biased variance of the batch, of shape (C,)."""
    mean = jnp.mean(x, axis=0)
    var = _variance(x, mean)
    return (x - mean[None]) * jax.lax.rsqrt(var + eps)[None] * scale[None] + bias[None], mean, var


@_normalize_batch.defjvp
def _normalize_batch_jvp(eps, primals, tangents):
    """Writes the derivative in terms of the normalised input, so that its transpose needs two reductions, not five.

    With n = (x - mean) / std, dn = (dx - E[dx] - n E[n dx]) / std, where E is the mean over the batch. The relative
    error is about 1e-7 mean / std.
    """
    (x, scale, _), (x_dot, scale_dot, bias_dot) = primals, tangents
    outputs = _normalize_batch(*primals, eps)
    _, mean, var = outputs
    inverse = jax.lax.rsqrt(var + eps)
    normalized = (x - mean[None]) * inverse[None]
    mean_dot, slope = jnp.mean(x_dot, axis=0), jnp.mean(normalized * x_dot, axis=0)
    gain = scale * inverse
    # The products with `normalized` are written in terms of x, because XLA would otherwise store `normalized`, an array
    # as large as x, for the backward pass.
    tilt = inverse * (scale_dot - gain * slope)
    y_dot = gain[None] * x_dot + tilt[None] * x + (bias_dot - gain * mean_dot - tilt * mean)[None]
    return outputs, (y_dot, mean_dot, 2 * slope / inverse)


# If the squared mean exceeds the variance by more than this factor, E[x^2] - mean^2 loses too many digits.
_LARGE_MEAN = 16.0


def _variance(x: jax.Array, mean: jax.Array) -> jax.Array:
    """Computes the biased variance of x, of shape (M, C), around its mean, of shape (C,).

    On CPU this is E[x^2] - mean^2, because for the mean of (x - mean)^2 XLA would store the centred values. The
    relative error of the difference is about 1e-7 mean^2 / variance, so the second formula is used for all channels as
    soon as one has a large mean.
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
    """Computes `relu(a + b)` of two arrays of one shape. It differs only where b is -inf: it is NaN there.

    On CPU XLA considers the plain sums of a chain of residual blocks cheap, and wherever one is read computes all of
    them again, from the first block on. It stores the result of this form instead.
    """
    return jnp.maximum(a, -b) + b


@relu_sum.defjvp
def _relu_sum_jvp(primals, tangents):
    y = relu_sum(*primals)
    return y, jnp.where(y > 0, sum(tangents), 0)


Block = TypeVar("Block", bound=type[nn.Module] | Callable[..., jax.Array])


def rematerialized(block: Block, remat: bool) -> Block:
    """Makes a block keep only its input for the backward pass, which computes the block a second time.

    Names and numbers stay the same. Statistics move once, because the second computation's are discarded. On CPU only
    reverse-mode differentiation is possible.

    Args:
      block: A class of modules that are called as `module(x, *static)`, or a function `(module, x, *static)` within the
        compact method of a module.
      remat: Whether to do so; otherwise the block is returned as it is.
    """
    return nn.transforms.lift_transform(_recomputed, block) if remat else block


def _recomputed(function: Callable) -> Callable:
    """Recomputes a function in the backward pass. It is a lifted transform, like `flax.core.lift.checkpoint`."""

    def inner(scope_fn, repack_fn, variable_groups, rng_groups, x, *static):
        def run(variable_groups, rng_groups, x):
            scope = scope_fn(variable_groups, rng_groups)
            y = function(scope, x, *static)
            return y, repack_fn(scope)

        recompute = checkpoint_late if jax.default_backend() == "cpu" else jax.checkpoint
        return recompute(run)(variable_groups, rng_groups, x)

    return lift.pack(inner, (True,), (True,), (True,), name="remat")


def checkpoint_late(function: Callable) -> Callable:
    """Recomputes a function in the backward pass like `jax.checkpoint`, and saves memory on CPU too.

    On CPU XLA drops the barrier between the two forward passes of `jax.checkpoint` and then merges them, so that memory
    does not fall (measured for ResNet-20). Here the second forward pass depends on the incoming gradient instead. Only
    reverse-mode differentiation is possible.

    Args:
      function: A function of any number of pytrees of arrays.
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
    """Computes the mean over height and width, of shape (N, C), in float32 or wider.

    The layers after it are a thousandth of the work and decide the confidences, so they never compute in half
    precision.
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
    """Makes a square convolution with PyTorch's `padding=size // 2`: the same on both sides, whatever the stride.

    Args:
      features: The number of output channels.
      size: The height and width of the kernel, in pixels.
      stride: The stride in both directions, in pixels.
      name: The name of the layer.
      dtype: The type to compute in.
      kernel_init: The initialiser of the kernel.
      use_bias: Whether the layer has a bias.
    """
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
    """Makes a dense layer that starts like `torch.nn.Linear`: uniform in +-1/sqrt(fan_in), the bias included.

    Args:
      features: The number of outputs.
      fan_in: The number of inputs.
      name: The name of the layer.
      dtype: The type to compute in.
      kernel_init: The initialiser of the kernel.
    """
    bound = fan_in**-0.5

    def bias_init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, name=name)
