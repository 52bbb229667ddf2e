"""Convolutions for CPUs, where many of XLA's own, and most of their kernel gradients, take two to three times as long.

`conv_general_dilated` has the signature of `jax.lax.conv_general_dilated`, so it can be given to any network:
`nn.Conv(64, (3, 3), conv_general_dilated=conv_general_dilated)` in Flax linen as in nnx. All bundled networks but
the FID's Inception use it.
On CPU, a plain two-dimensional convolution in float32 that is large enough becomes matrix products:

* For 3x3 kernels of stride 1, the minimal filtering F(2x2, 3x3) of Winograd (Lavin and Gray, 2016, section 4.1): 16
  products over tiles of 4x4 inputs give 2x2 outputs each, with 4/9 of the multiplications.
* For the gradients of such kernels with few channels, and of all other kernels, one product over patches.
* For 1x1 kernels, the product of pixels and kernel.

What is left to XLA are strided convolutions and those of few channels, where its own, which share a convolution among
cores, are as fast. The products are computed over chunks of the batch that stay in the caches. Forward pass, input
gradient and kernel gradient are three primitives. Each is bilinear in its two arguments, and the transpose of each is
one of the other two, so forward mode, reverse mode and any mixture of them, such as Hessian products, use the same
code.

Everything else is computed by `jax.lax.conv_general_dilated`. The choice depends only on the shapes and types of the
arguments and on whether the program is for one CPU device, and so do the bits of the result; neither depends on the
number of cores. If the environment variable SCISSORHANDS_CPU_CONVOLUTION is `off` when a network is first traced, XLA
computes all convolutions.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike

from scissorhands_jax import trees

# These limits were measured on single layers and a CPU of a few cores (experiments/cpu_profile.md).
_LEAST_FLOPS = 1e8  # Below this, XLA's convolution takes a millisecond or so and compiles faster.
_MOST_PIXELS = 1 << 15  # of an output; the 16 operands of one larger image would take hundreds of megabytes
_TILED_CHANNELS = 64  # With fewer channels, Winograd's products are too small to pay for its transforms.
# Sizes of one operand of a chunk: large enough to share a product among cores, small enough for the caches.
_TILES, _TILE_FLOATS, _MORE_TILES = 256, 1 << 15, 4
_PATCH_FLOATS = 1 << 18

_AXES = ("NHWC", "HWIO", "NHWC")
_Pads = tuple[tuple[int, int], tuple[int, int]]


class _Window(NamedTuple):
    """All parameters of a convolution except its two arrays. It is hashable, as parameters of primitives must be."""

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: _Pads
    image: tuple[int, int]  # height and width of the input

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output."""
        sides = zip(self.image, self.padding, self.size, self.strides, strict=True)
        height, width = ((side + sum(pads) - size) // stride + 1 for side, pads, size, stride in sides)
        return height, width

    @property
    def is_point(self) -> bool:
        """Whether the convolution is a matrix product for each pixel."""
        return self.size == (1, 1) and self.padding == ((0, 0), (0, 0))

    @property
    def is_dense(self) -> bool:
        """Whether the kernel is 3x3 and the stride 1. The input gradient then is such a convolution too.

        It has the padding 2 - pad, which must not be negative.
        """
        return self.size == (3, 3) and self.strides == (1, 1) and max(max(pads) for pads in self.padding) <= 2


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> jax.Array:
    """Computes a convolution faster than `jax.lax.conv_general_dilated` on a CPU.

    The arguments are the same, and so are the results, up to rounding. Images of shape (N, H, W, C) and kernels of
    shape (height, width, C, K) in float32 are computed here on a CPU, if there is no dilation, group, explicit
    precision or explicit sharding, if the convolution takes at least 1e8 operations, and if an output image has at most
    32,768 pixels. XLA computes all others, and all convolutions of programs that are divided over several devices.

    Args:
      lhs: The images.
      rhs: The kernel.
      window_strides: The stride in each spatial direction.
      padding: "SAME", "VALID", or the padding on both sides in each spatial direction.
      lhs_dilation: See `jax.lax.conv_general_dilated`, as for all arguments that follow.
      rhs_dilation: The dilation of the kernel.
      dimension_numbers: The order of axes.
      feature_group_count: The number of groups of channels.
      batch_group_count: The number of groups of examples.
      precision: The precision of products.
      preferred_element_type: The type of the result.
      out_sharding: The sharding of the result.
    """
    options = {
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": dimension_numbers,
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
        "out_sharding": out_sharding,
    }
    window = _window(lhs, rhs, window_strides, padding, options)
    if window is None:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    return _forward_p.bind(lhs, rhs, window=window)


def _window(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    options: Mapping[str, Any],
) -> _Window | None:
    """Returns the window of a convolution that is computed here, and None for one that is left to XLA."""
    is_on = jax.default_backend() == "cpu" and os.environ.get("SCISSORHANDS_CPU_CONVOLUTION", "on") != "off"
    is_float32 = lhs.dtype == rhs.dtype == jnp.float32 and options["preferred_element_type"] in (None, jnp.float32)
    is_plain = options["precision"] is options["out_sharding"] is None and not trees.manual_axes()
    numbers = options["feature_group_count"], options["batch_group_count"]
    factors = {1, *numbers, *(options["lhs_dilation"] or ()), *(options["rhs_dilation"] or ())}
    if not (is_on and lhs.ndim == rhs.ndim == 4 and is_float32 and is_plain and factors == {1}):
        return None
    axes = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options["dimension_numbers"])
    if axes != lax.conv_dimension_numbers(lhs.shape, rhs.shape, _AXES) or lhs.shape[3] != rhs.shape[2]:
        return None
    image, size = (lhs.shape[1], lhs.shape[2]), (rhs.shape[0], rhs.shape[1])
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image, size, strides, padding)
    (top, bottom), (left, right) = padding
    window = _Window(size, (strides[0], strides[1]), ((top, bottom), (left, right)), image)
    pixels = math.prod(window.output)
    if min(top, bottom, left, right, *window.output) < 0 or pixels > _MOST_PIXELS:
        return None
    return window if 2 * lhs.shape[0] * pixels * math.prod(rhs.shape) >= _LEAST_FLOPS else None


# XLA's convolution and its two transposes.


def _plain_forward(x: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, window.strides, window.padding, dimension_numbers=_AXES)


def _plain_input(slope: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    x = jax.ShapeDtypeStruct((slope.shape[0], *window.image, kernel.shape[2]), slope.dtype)
    return jax.linear_transpose(lambda x: _plain_forward(x, kernel, window=window), x)(slope)[0]


def _plain_kernel(x: jax.Array, slope: jax.Array, *, window: _Window) -> jax.Array:
    kernel = jax.ShapeDtypeStruct((*window.size, x.shape[3], slope.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: _plain_forward(x, kernel, window=window), kernel)(slope)[0]


# The choice of an algorithm for each of the three.


def _fast_forward(x: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    if window.is_point:
        return x[:, :: window.strides[0], :: window.strides[1]] @ kernel[0, 0]
    if window.is_dense and _has_tiles(window.output, kernel.shape[2:]):
        return _tiled(x, _two_axes(_of_kernel, list(kernel)), 0, window.padding, window.output)
    return _plain_forward(x, kernel, window=window)


def _fast_input(slope: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    if window.is_point:
        return _point_input(slope, kernel, window)
    if window.is_dense and _has_tiles(window.image, kernel.shape[2:]):
        # The input gradient of stride 1 is the convolution of the slope with the kernel reversed in both directions. A
        # reversed kernel has the same parts, with the first and the last exchanged, so XLA computes them once for both
        # passes.
        (top, bottom), (left, right) = window.padding
        parts, order = _two_axes(_of_kernel, list(kernel)), (3, 1, 2, 0)
        padding = (2 - top, 2 - bottom), (2 - left, 2 - right)
        return _tiled(slope, [[parts[i][j] for j in order] for i in order], 1, padding, window.image)
    return _plain_input(slope, kernel, window=window)


def _fast_kernel(x: jax.Array, slope: jax.Array, *, window: _Window) -> jax.Array:
    if window.is_point:
        inputs = x[:, :: window.strides[0], :: window.strides[1]].reshape(-1, x.shape[3])
        return _product(inputs, slope.reshape(-1, slope.shape[3]))[None, None]
    if window.is_dense and _has_tiles(window.output, (x.shape[3], slope.shape[3])):
        return _tiled_kernel(x, slope, window.padding)
    return _patches_kernel(x, slope, window)


def _has_tiles(output: tuple[int, int], channels: Sequence[int]) -> bool:
    """Says whether outputs divide into 2x2 tiles, and have enough channels for minimal filtering to pay."""
    return output[0] % 2 == output[1] % 2 == 0 and min(channels) >= _TILED_CHANNELS


# Minimal filtering. Along one axis, with the matrices B, G and A of the paper: y = A^T [(G g) * (B^T d)] for 4 inputs
# d, 3 weights g and 2 outputs y, with 4 products instead of 6. In two dimensions the transforms apply to rows and then
# to columns. Parts are lists with one array per element of the small matrix, so that no axes are ever permuted.

_Parts = Sequence[jax.Array]


def _two_axes(transform: Callable[[_Parts], _Parts], parts: Sequence[_Parts]) -> list[_Parts]:
    """Applies a transform along both axes of a small matrix of arrays."""
    columns = [transform([row[j] for row in parts]) for j in range(len(parts[0]))]
    return [transform([column[i] for column in columns]) for i in range(len(columns[0]))]


def _of_inputs(d: _Parts) -> _Parts:  # B^T d
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _of_kernel(g: _Parts) -> _Parts:  # G g
    middle = (g[0] + g[2]) / 2
    return g[0], middle + g[1] / 2, middle - g[1] / 2, g[2]


def _of_products(m: _Parts) -> _Parts:  # A^T m
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _of_slopes(y: _Parts) -> _Parts:  # A y, the transpose of `_of_products`
    return y[0], y[0] + y[1], y[0] - y[1], -y[1]


def _to_kernel(u: _Parts) -> _Parts:  # G^T u, the transpose of `_of_kernel`
    half = (u[1] + u[2]) / 2
    return u[0] + half, (u[1] - u[2]) / 2, half + u[3]


def _input_tiles(x: jax.Array, padding: _Pads, output: tuple[int, int]) -> list[jax.Array]:
    """Transforms the 4x4 input tiles of images, which overlap by two pixels, to 16 arrays of shape (tiles, C)."""
    (height, width), padded = output, _padded(x, padding)
    # Element (i, j) of all tiles is every second pixel from (i, j) on.
    corners = [[padded[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)]
    return [part.reshape(-1, x.shape[3]) for row in _two_axes(_of_inputs, corners) for part in row]


def _slope_tiles(slope: jax.Array) -> list[jax.Array]:
    """Transforms the 2x2 tiles of the output's gradient to 16 arrays of shape (tiles, K)."""
    corners = [[slope[:, i::2, j::2] for j in range(2)] for i in range(2)]
    return [part.reshape(-1, slope.shape[3]) for row in _two_axes(_of_slopes, corners) for part in row]


def _tiled(x: jax.Array, kernel: Sequence[_Parts], axis: int, padding: _Pads, output: tuple[int, int]) -> jax.Array:
    """Convolves images with a transformed kernel by minimal filtering.

    Args:
      x: The images, or the gradient of the output.
      kernel: The transformed kernel, 4x4 arrays of shape (in, out).
      axis: The axis of the kernel that is summed over with the channels of x: 0 (in) forwards, 1 (out) backwards.
      padding: The padding of x.
      output: The height and width of the result.
    """
    (height, width), channels = output, x.shape[3]
    weights = [part for row in kernel for part in row]

    def filter_chunk(x):
        pairs = zip(_input_tiles(x, padding, output), weights, strict=True)
        products = [_product(tile, weight, (1, axis)) for tile, weight in pairs]
        tiles = [part.reshape(-1, height // 2, width // 2, part.shape[1]) for part in products]
        outputs = _two_axes(_of_products, [tiles[4 * i : 4 * i + 4] for i in range(4)])
        rows = [jnp.stack(row, axis=3) for row in outputs]  # (N, H/2, W/2, 2, channels)
        return jnp.stack(rows, axis=2).reshape(x.shape[0], height, width, -1)

    more = _MORE_TILES if channels < 256 else 1
    return _map_chunks(filter_chunk, x, _tile_chunk(output, channels) * more)


def _tiled_kernel(x: jax.Array, slope: jax.Array, padding: _Pads) -> jax.Array:
    """Computes the kernel gradient by minimal filtering. Only the sums over tiles are transformed back."""
    output = slope.shape[1], slope.shape[2]

    def sum_chunk(x, slope):
        return [_product(*pair) for pair in zip(_input_tiles(x, padding, output), _slope_tiles(slope), strict=True)]

    sums = _sum_chunks(sum_chunk, (x, slope), _tile_chunk(output, max(x.shape[3], slope.shape[3])))
    return jnp.stack([jnp.stack(row) for row in _two_axes(_to_kernel, [sums[4 * i : 4 * i + 4] for i in range(4)])])


def _tile_chunk(output: tuple[int, int], channels: int) -> float:
    """Returns the number of images in a chunk, each of which has a quarter as many tiles as output pixels."""
    return max(_TILES, _TILE_FLOATS // channels) * 4 / math.prod(output)


# Whole patches, for kernel gradients.


def _patches(x: jax.Array, window: _Window) -> jax.Array:
    """Returns all windows as rows of a matrix of shape (N * H' * W', height * width * C)."""
    padded, (down, across) = _padded(x, window.padding), window.strides
    rows, columns = ((n - 1) * stride + 1 for n, stride in zip(window.output, window.strides, strict=True))
    places = itertools.product(range(window.size[0]), range(window.size[1]))
    taps = [padded[:, i : i + rows : down, j : j + columns : across] for i, j in places]
    return jnp.concatenate(taps, axis=-1).reshape(-1, math.prod(window.size) * x.shape[3])


def _patches_kernel(x: jax.Array, slope: jax.Array, window: _Window) -> jax.Array:
    def sum_chunk(x, slope):
        # The rows are output channels. If these are few, XLA takes twice as long for the transposed product.
        return _product(slope.reshape(-1, slope.shape[3]), _patches(x, window))

    wanted = _PATCH_FLOATS / (math.prod(window.output) * math.prod(window.size) * x.shape[3])
    total = _sum_chunks(sum_chunk, (x, slope), wanted)
    return total.T.reshape(*window.size, x.shape[3], slope.shape[3])


def _point_input(slope: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Computes the input gradient of a 1x1 kernel, which is zero at the pixels that the stride leaves out."""
    product = slope @ kernel[0, 0].T
    sides = zip(window.image, slope.shape[1:3], window.strides, strict=True)
    gaps = [(0, side - 1 - (size - 1) * stride, stride - 1) for side, size, stride in sides]
    return lax.pad(product, jnp.zeros((), product.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])


def _product(left: jax.Array, right: jax.Array, axes: tuple[int, int] = (0, 0)) -> jax.Array:
    """Multiplies two matrices over one axis of each."""
    return lax.dot_general(left, right, (((axes[0],), (axes[1],)), ((), ())))


def _padded(x: jax.Array, padding: _Pads) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


# Chunks of the batch.


def _map_chunks(function: Callable[[jax.Array], jax.Array], x: jax.Array, wanted: float) -> jax.Array:
    """Computes a function of images for about `wanted` images at a time, and puts the results together."""

    def place(index, result, part):
        return lax.dynamic_update_slice_in_dim(result, part, index * len(part), axis=0)

    outline = jax.eval_shape(function, x)
    return _fold_chunks(function, place, outline, (x,), wanted)


def _sum_chunks(function: Callable[..., Any], arrays: Sequence[jax.Array], wanted: float) -> Any:
    """Computes a function that is a sum over images for about `wanted` images at a time, and adds the results."""

    def add(index, total, parts):
        del index
        return jax.tree.map(jnp.add, total, parts)

    return _fold_chunks(function, add, jax.eval_shape(function, *arrays), arrays, wanted)


def _fold_chunks(function, combine, outline, arrays, wanted):
    """Combines the results of a function over chunks of the first axis, starting from zeros.

    All chunks have one size, because a loop needs one shape: the largest divisor of the batch of up to 1.25 `wanted`.
    """
    number = len(arrays[0])
    most = max(1, min(number, int(1.25 * wanted)))
    chunk = next(size for size in range(most, 0, -1) if number % size == 0)
    if chunk == number:
        return function(*arrays)

    def step(index, result):
        parts = [lax.dynamic_slice_in_dim(array, index * chunk, chunk) for array in arrays]
        return combine(index, result, function(*parts))

    # XLA would keep one constant array of zeros for all loops and copy it into each. It cannot see that this is zero.
    zero = jnp.minimum(jnp.abs(arrays[0][0, 0, 0, 0]), 0)
    start = jax.tree.map(lambda leaf: jnp.broadcast_to(zero, leaf.shape), outline)
    return lax.fori_loop(0, number // chunk, step, start)


# The primitives.


def _primitive(name: str, plain: Callable[..., jax.Array], fast: Callable[..., jax.Array]) -> Primitive:
    """Makes a primitive with two implementations.

    Args:
      name: The name of the primitive.
      plain: The implementation by XLA, which also gives the shape of the result.
      fast: The implementation that is compiled for one CPU device.
    """
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="window"))

    def abstract(*arguments: jax.core.ShapedArray, window: _Window) -> jax.core.ShapedArray:
        result = jax.eval_shape(functools.partial(plain, window=window), *arguments)
        return jax.core.ShapedArray(result.shape, result.dtype)

    def lower_for_cpu(context: mlir.LoweringRuleContext, *arguments: Any, window: _Window) -> Any:
        axes = context.module_context.axis_context
        # If the batch were divided over devices, each chunk of it would lie on one device while the others wait.
        is_single = isinstance(axes, mlir.ShardingContext) and axes.num_devices == 1
        lower = mlir.lower_fun(fast if is_single else plain, multiple_results=False)
        return lower(context, *arguments, window=window)

    def batch(arguments: Sequence[jax.Array], axes: Sequence[int | None], *, window: _Window) -> tuple[jax.Array, int]:
        # Images that share a kernel are one larger batch. Kernel gradients, which sum over the batch, and batched
        # kernels are left to XLA.
        images, other = arguments
        if primitive is _kernel_p or axes[1] is not None:
            return jax.vmap(functools.partial(plain, window=window), tuple(axes))(images, other), 0
        assert axes[0] is not None  # At least one of both is batched.
        images = jnp.moveaxis(images, axes[0], 0)
        result = primitive.bind(images.reshape(-1, *images.shape[2:]), other, window=window)
        return result.reshape(*images.shape[:2], *result.shape[1:]), 0

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(primitive, lower_for_cpu, platform="cpu")
    batching.primitive_batchers[primitive] = batch
    return primitive


_forward_p = _primitive("cpu_conv_general_dilated", _plain_forward, _fast_forward)  # of x and kernel
_input_p = _primitive("cpu_conv_input_gradient", _plain_input, _fast_input)  # of slope and kernel
_kernel_p = _primitive("cpu_conv_kernel_gradient", _plain_kernel, _fast_kernel)  # of x and slope

# <slope, forward(x, kernel)> = <x, input(slope, kernel)> = <kernel, kernel(x, slope)>.
ad.defbilinear(
    _forward_p,
    lambda slope, x, kernel, window: _input_p.bind(slope, kernel, window=window),
    lambda slope, x, kernel, window: _kernel_p.bind(x, slope, window=window),
)
ad.defbilinear(
    _input_p,
    lambda x, slope, kernel, window: _forward_p.bind(x, kernel, window=window),
    lambda x, slope, kernel, window: _kernel_p.bind(x, slope, window=window),
)
ad.defbilinear(
    _kernel_p,
    lambda kernel, x, slope, window: _input_p.bind(slope, kernel, window=window),
    lambda kernel, x, slope, window: _forward_p.bind(x, kernel, window=window),
)
