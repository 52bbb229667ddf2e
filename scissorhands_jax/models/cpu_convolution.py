"""Convolutions that are fast on CPU, where XLA's own leave much of the machine unused.

`convolve` is `jax.lax.conv_general_dilated` on accelerators, on several devices and for small inputs. On one CPU, where
the work is worth it, it is one of

* oneDNN's, where the process has it (`onednn`), for few channels and for strided kernels, on several cores also for
  not so few and little work, and its matrix products below for kernel gradients and for few channels;
* the minimal filtering F(2x2, 3x3) of Winograd for 3x3 kernels of stride 1 (Lavin and Gray, 2016, section 4.1): 16
  matrix products over tiles of 4x4 inputs give 2x2 outputs each, with 4/9 of the multiplications;
* one matrix product over patches for everything else;

the latter two over chunks of the batch that stay in a core's cache. Forward pass, input gradient and kernel gradient
are three primitives, each bilinear in its two arguments and each transposed into the other two, so that forward mode,
reverse mode and any mixture of them (Hessian products) take the same fast paths.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive
from jax.interpreters import ad, batching, mlir

from scissorhands_jax import microbatches
from scissorhands_jax.models import onednn

_LEAST_FLOPS = 3e8  # below, XLA's convolution takes a few milliseconds, and compiles in less time
_LEAST_FLOPS_ONEDNN = 5e7  # oneDNN's have nothing to compile
_TILES, _TILE_FLOATS = 256, 32768  # a chunk has as many tiles, or as many as bring one of 16 operands to that size
_PATCH_FLOATS = 1 << 18
# Where several cores share a product, it must be larger to be worth sharing; sums over chunks gain only by oneDNN's.
_MORE_TILES, _MORE_PATCHES, _MORE_ROWS = 4, 4, 16
_MORE_TILE_SUMS, _MORE_ROW_SUMS = 2, 4
_MANY_CHANNELS, _FEW_CHANNELS = 256, 32  # from so many on tiles, up to so many rows are large enough, or too small
# Up to so many channels oneDNN's products of tiles are faster than XLA's on several cores, and up to so much work its
# convolutions are faster still.
_SOME_CHANNELS, _SOME_FLOPS = 64, 3e9
_LEAST_CHANNELS = 32
_ROW_FLOATS = 1 << 16  # a chunk of rows of patches is of images with so many numbers before or after


class _Window(NamedTuple):
    """What a convolution does apart from its two arrays; hashable, hence a parameter of the primitives."""

    size: int
    stride: int
    padding: int
    image: tuple[int, int]  # height and width of the input
    looped: bool = False  # whether it is part of a loop, in which XLA's own convolutions are many times slower


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """The convolution (cross-correlation) of images with a square kernel.

    Args:
      x: shape (N, H, W, C).
      kernel: shape (k, k, C, K), of the same floating-point dtype.
      stride: between windows, along both axes.
      padding: zeros on each side of both axes.

    Returns:
      Shape (N, (H + 2 padding - k) // stride + 1, (W + 2 padding - k) // stride + 1, K).
    """
    looped = _context.get() == "loop"
    window = _Window(kernel.shape[0], stride, padding, (x.shape[1], x.shape[2]), looped)
    can = _context.get() != "plain" and jax.default_backend() == "cpu" and _is_known(x, kernel, window)
    if not can or not (looped or _is_large(x, kernel, window)):
        return _forward(x, kernel, window=window)
    return forward_p.bind(x, kernel, window=window)


_context: contextvars.ContextVar[Literal["", "plain", "loop"]] = contextvars.ContextVar("convolutions", default="")


@contextlib.contextmanager
def _traced_as(kind: Literal["plain", "loop"]) -> Iterator[None]:
    token = _context.set(kind)
    try:
        yield
    finally:
        _context.reset(token)


def plainly() -> contextlib.AbstractContextManager[None]:
    """What is traced within has XLA's own convolutions, whose operations XLA can count."""
    return _traced_as("plain")


def within_loop() -> contextlib.AbstractContextManager[None]:
    """What is traced within will run in a loop, where also small convolutions on CPU had better not be XLA's own."""
    return _traced_as("loop")


def pays_in_a_loop(program: ClosedJaxpr) -> bool:
    """Whether a loop, traced `within_loop`, has large convolutions, and only such as are fast there on CPU.

    For a ResNet-20 a loop of four steps saves 2 to 6 % of the time, and 13 % without huge pages
    (`feeding.steps_per_call`).
    """
    found = list(microbatches.equations(program.jaxpr))
    large = any(
        _is_large(*(variable.aval for variable in equation.invars), equation.params["window"])
        for equation in found
        if equation.primitive is forward_p
    )
    return large and all(equation.primitive is not lax.conv_general_dilated_p for equation in found)


def _is_known(x: jax.Array, kernel: jax.Array, window: _Window) -> bool:
    """Whether there is anything but XLA's convolution for it, in a loop for all three passes."""
    if x.dtype != jnp.float32 or kernel.dtype != jnp.float32 or getattr(jax.typeof(x), "vma", None):
        return False
    return not window.looped or _is_point(window) or _keeps_size(window) or _is_halving(window)


def _is_large(x: Any, kernel: Any, window: _Window) -> bool:
    least = _LEAST_FLOPS_ONEDNN if _has_onednn(window, x.shape[0], kernel.shape) else _LEAST_FLOPS
    return _flops(window, x.shape[0], kernel.shape) >= least


def _flops(window: _Window, number: int, kernel: Sequence[int]) -> int:
    """Of a convolution of so many images with a kernel of this shape."""
    return 2 * number * math.prod(_output_size(window)) * math.prod(kernel)


def _output_size(window: _Window) -> tuple[int, int]:
    height, width = ((side + 2 * window.padding - window.size) // window.stride + 1 for side in window.image)
    return height, width


# XLA's convolution and its two transposes.


def _forward(x: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    padding = [(window.padding, window.padding)] * 2
    strides = (window.stride, window.stride)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _input(slope: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    x = jax.ShapeDtypeStruct((slope.shape[0], *window.image, kernel.shape[2]), slope.dtype)
    return jax.linear_transpose(lambda x: _forward(x, kernel, window=window), x)(slope)[0]


def _kernel(x: jax.Array, slope: jax.Array, *, window: _Window) -> jax.Array:
    kernel = jax.ShapeDtypeStruct((window.size, window.size, x.shape[3], slope.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: _forward(x, kernel, window=window), kernel)(slope)[0]


# Minimal filtering. Along one axis, with B, G and A of the paper: y = A^T [(G g) * (B^T d)] for 4 inputs d, 3 weights
# g and 2 outputs y. Parts are lists, one array per element of the small matrix, so that no array is ever permuted.

Parts = Sequence[jax.Array]


def _two_axes(transform: Callable[[Parts], Parts], parts: Sequence[Parts]) -> list[Parts]:
    """A transform of the rows and then of the columns of a small matrix of arrays."""
    columns = [transform([row[j] for row in parts]) for j in range(len(parts[0]))]
    return [transform([column[i] for column in columns]) for i in range(len(columns[0]))]


def _of_inputs(d: Parts) -> Parts:
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _of_kernel(g: Parts) -> Parts:
    middle = (g[0] + g[2]) / 2
    return g[0], middle + g[1] / 2, middle - g[1] / 2, g[2]


def _of_products(m: Parts) -> Parts:
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _of_slopes(y: Parts) -> Parts:  # the transpose of `_of_products`
    return y[0], y[0] + y[1], y[0] - y[1], -y[1]


def _to_kernel(u: Parts) -> Parts:  # the transpose of `_of_kernel`
    half = (u[1] + u[2]) / 2
    return u[0] + half, (u[1] - u[2]) / 2, half + u[3]


def _input_tiles(x: jax.Array) -> list[jax.Array]:
    """The transformed 4x4 input tiles of images: 16 arrays, shape (tiles, C)."""
    _, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = [[padded[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)]
    return [part.reshape(-1, channels) for row in _two_axes(_of_inputs, corners) for part in row]


def _slope_tiles(slope: jax.Array) -> list[jax.Array]:
    """The transformed 2x2 output tiles of gradients: 16 arrays, shape (tiles, K)."""
    corners = [[slope[:, i::2, j::2] for j in range(2)] for i in range(2)]
    return [part.reshape(-1, slope.shape[3]) for row in _two_axes(_of_slopes, corners) for part in row]


def _winograd_forward(x: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    return _filtered(x, _two_axes(_of_kernel, list(kernel)), 0, window)


def _winograd_input(slope: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    # A reversed kernel has the same parts in another order, so that XLA computes them once for both passes.
    order = (3, 1, 2, 0)
    parts = _two_axes(_of_kernel, list(kernel))
    return _filtered(slope, [[parts[i][j] for j in order] for i in order], 1, window)


def _filtered(x: jax.Array, kernel: Sequence[Parts], axis: int, window: _Window) -> jax.Array:
    """Images with their channels times those of the transformed kernel along its axis 0 (in) or 1 (out)."""
    height, width = window.image
    weights = [part for row in kernel for part in row]
    multiply = _product if several_cores() and x.shape[3] <= _SOME_CHANNELS else _dot

    def filter_chunk(x):
        pairs = zip(_input_tiles(x), weights, strict=True)
        products = [multiply(tile, weight, (1, axis)) for tile, weight in pairs]
        tiles = [part.reshape(-1, height // 2, width // 2, part.shape[1]) for part in products]
        outputs = _two_axes(_of_products, [tiles[4 * i : 4 * i + 4] for i in range(4)])
        rows = [jnp.stack(row, axis=3) for row in outputs]  # (N, H/2, W/2, 2, channels)
        return jnp.stack(rows, axis=2).reshape(x.shape[0], height, width, -1)

    more = _MORE_TILES if several_cores() and x.shape[3] < _MANY_CHANNELS else 1
    return _map_chunks(filter_chunk, x, _tile_chunk(x.shape, x.shape[3], more))


def _winograd_kernel(x: jax.Array, slope: jax.Array, *, window: _Window) -> jax.Array:
    del window

    def sum_chunk(x, slope):
        pairs = zip(_input_tiles(x), _slope_tiles(slope), strict=True)
        return [_product(*pair, (0, 0)) for pair in pairs]

    chunk = _tile_chunk(x.shape, max(x.shape[3], slope.shape[3]), _more(_MORE_TILE_SUMS))
    sums = _sum_chunks(sum_chunk, (x, slope), chunk)
    return jnp.stack([jnp.stack(row) for row in _two_axes(_to_kernel, [sums[4 * i : 4 * i + 4] for i in range(4)])])


def _tile_chunk(shape: tuple[int, ...], channels: int, more: int = 1) -> int:
    number, height, width, _ = shape
    tiles = max(_TILES, _TILE_FLOATS // channels) * more
    return _chunk(number, tiles * 4 / (height * width))


# Patches.


def _patches(x: jax.Array, window: _Window) -> jax.Array:
    """All windows as rows of a matrix, shape (N * H' * W', size * size * C)."""
    size, stride, pad = window[:3]
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = _output_size(window)
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    taps = [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(taps, axis=-1).reshape(-1, size * size * x.shape[3])


def _patches_forward(x: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    matrix = kernel.reshape(-1, kernel.shape[3])
    height, width = _output_size(window)

    def convolve_chunk(x):
        return (_patches(x, window) @ matrix).reshape(x.shape[0], height, width, -1)

    return _map_chunks(convolve_chunk, x, _patch_chunk(x.shape, window, _MORE_PATCHES if several_cores() else 1))


def _patches_kernel(x: jax.Array, slope: jax.Array, *, window: _Window) -> jax.Array:
    def sum_chunk(x, slope):
        # Rows are output channels: Eigen takes twice as long for the transpose where they are few.
        return multiply(slope.reshape(-1, slope.shape[3]), _patches(x, window), (0, 0))

    multiply, more = (_product, _more(_MORE_PATCHES)) if x.shape[3] >= _LEAST_CHANNELS else (_dot, 1)
    total = _sum_chunks(sum_chunk, (x, slope), _patch_chunk(x.shape, window, more))
    return total.T.reshape(window.size, window.size, x.shape[3], slope.shape[3])


def _patch_chunk(shape: tuple[int, ...], window: _Window, more: int = 1) -> int:
    return _chunk(shape[0], more * _PATCH_FLOATS / (math.prod(_output_size(window)) * window.size**2 * shape[3]))


# Patches of rows, for layers with few channels: products with all rows of the kernel at once, whose results are shifted
# and added, take a third of the patches' memory and have three times the columns.


def _row_patches(x: jax.Array, more_rows: int) -> jax.Array:
    """Three neighbours in a row, side by side, with rows of zeros above and below: (N, H + 2 more_rows, W, 3 C)."""
    width = x.shape[2]
    padded = jnp.pad(x, ((0, 0), (more_rows, more_rows), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, :, j : j + width] for j in range(3)], axis=3)


def _rows_forward(x: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    _, height, width, channels = x.shape
    features = kernel.shape[3]
    matrix = kernel.transpose(1, 2, 0, 3).reshape(3 * channels, 3 * features)

    def convolve_chunk(x):
        products = _row_patches(x, 1).reshape(-1, 3 * channels) @ matrix
        products = products.reshape(x.shape[0], height + 2, width, 3, features)
        return sum(products[:, i : i + height, :, i] for i in range(3))

    more = _MORE_ROWS if several_cores() and max(channels, features) <= _FEW_CHANNELS else 1
    return _map_chunks(convolve_chunk, x, _patch_chunk(x.shape, window, more))


def _rows_input(slope: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    return _rows_forward(slope, kernel[::-1, ::-1].swapaxes(2, 3), window=window)


# Strided kernels, backwards: every phase of the input is a small convolution of the slope.


def _is_halving(window: _Window) -> bool:
    return window[:3] == (3, 2, 1) and window.image[0] % 2 == window.image[1] % 2 == 0


def _halving_input(slope: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    """Input gradient of a 3x3 kernel with stride 2: even rows meet its middle row, odd rows the two others."""
    _, height, width, features = slope.shape
    taps = [[(1, 0)], [(0, 1), (2, 0)]]  # by parity of the input's row: rows of the kernel, and shifts of the slope

    def convolve_chunk(slope):
        padded = jnp.pad(slope, ((0, 0), (0, 1), (0, 1), (0, 0)))
        rows = []
        for i, j in itertools.product(range(2), range(2)):
            pairs = list(itertools.product(taps[i], taps[j]))
            shifted = [padded[:, y : y + height, x : x + width] for (_, y), (_, x) in pairs]
            matrix = jnp.concatenate([kernel[a, b].T for (a, _), (b, _) in pairs])
            product = jnp.concatenate(shifted, axis=-1).reshape(-1, matrix.shape[0]) @ matrix
            rows.append(product.reshape(slope.shape[0], height, width, -1))
        columns = [jnp.stack(rows[:2], axis=3), jnp.stack(rows[2:], axis=3)]  # (N, H', W', 2, C)
        return jnp.stack(columns, axis=2).reshape(slope.shape[0], 2 * height, 2 * width, -1)

    more = _MORE_PATCHES if several_cores() else 1
    chunk = _chunk(slope.shape[0], more * _PATCH_FLOATS / (height * width * 9 * features))
    return _map_chunks(convolve_chunk, slope, chunk)


# 1x1 kernels.


def _point_forward(x: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    return x[:, :: window.stride, :: window.stride] @ kernel[0, 0]


def _point_input(slope: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    product = slope @ kernel[0, 0].T
    gaps = [
        (0, side - 1 - (size - 1) * window.stride, window.stride - 1)
        for side, size in zip(window.image, slope.shape[1:3], strict=True)
    ]
    return lax.pad(product, jnp.zeros((), product.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])


def _point_kernel(x: jax.Array, slope: jax.Array, *, window: _Window) -> jax.Array:
    inputs = x[:, :: window.stride, :: window.stride].reshape(-1, x.shape[3])
    return _product(inputs, slope.reshape(-1, slope.shape[3]), (0, 0))[None, None]


def _is_point(window: _Window) -> bool:
    return (window.size, window.padding) == (1, 0)


# Chunks of the batch.


def several_cores() -> bool:
    """Whether this process may use more than one core."""
    return len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)) > 1


def _chunk(number: int, wanted: float) -> int:
    """The largest divisor of the batch size that is at most a little above the wanted number of images."""
    most = max(1, min(number, int(1.25 * wanted)))
    return next(size for size in range(most, 0, -1) if number % size == 0)


def _map_chunks(function: Callable[[jax.Array], jax.Array], x: jax.Array, chunk: int) -> jax.Array:
    if chunk == x.shape[0]:
        return function(x)

    def step(index, result):
        part = function(lax.dynamic_slice_in_dim(x, index * chunk, chunk))
        return lax.dynamic_update_slice_in_dim(result, part, index * chunk, axis=0)

    outline = jax.eval_shape(function, jax.ShapeDtypeStruct((chunk, *x.shape[1:]), x.dtype))
    start = jnp.broadcast_to(_zero(x), (x.shape[0], *outline.shape[1:]))
    return lax.fori_loop(0, x.shape[0] // chunk, step, start)


def _sum_chunks(function: Callable[..., Any], arrays: Sequence[jax.Array], chunk: int) -> Any:
    number = arrays[0].shape[0]
    if chunk == number:
        return function(*arrays)

    def step(index, total):
        parts = function(*[lax.dynamic_slice_in_dim(array, index * chunk, chunk) for array in arrays])
        return jax.tree.map(jnp.add, total, parts)

    outline = jax.eval_shape(
        function, *[jax.ShapeDtypeStruct((chunk, *array.shape[1:]), array.dtype) for array in arrays]
    )
    start = jax.tree.map(lambda leaf: jnp.broadcast_to(_zero(arrays[0]), leaf.shape), outline)
    return lax.fori_loop(0, number // chunk, step, start)


def _zero(x: jax.Array) -> jax.Array:
    """A zero that XLA does not see through; it would keep one constant for all loops and copy it into each."""
    return jnp.minimum(jnp.abs(x[0, 0, 0, 0]), 0)


# oneDNN's.


def _product(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The product of two matrices over an axis of each, oneDNN's where it is there: it shares also small ones."""
    return (onednn.product if onednn.is_there() else _dot)(left, right, axes)


def _dot(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    return lax.dot_general(left, right, (((axes[0],), (axes[1],)), ((), ())))


def _more(factor: int) -> int:
    """By how much chunks of sums grow: not at all where XLA multiplies, or a single core does."""
    return factor if several_cores() and onednn.is_there() else 1


def _onednn_forward(x: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    return onednn.convolution(x, kernel, stride=window.stride, padding=window.padding)


def _onednn_input(slope: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    return _onednn_forward(slope, kernel[::-1, ::-1].swapaxes(2, 3), window=window)


def _onednn_kernel(x: jax.Array, slope: jax.Array, *, window: _Window) -> jax.Array:
    """One product of patches of rows of the inputs with three rows of slopes side by side has all nine positions."""
    channels, features = x.shape[3], slope.shape[3]

    def sum_chunk(x, slope):
        height = slope.shape[1]
        padded = jnp.pad(slope, ((0, 0), (1, 1), (0, 0), (0, 0)))
        rows = jnp.concatenate([padded[:, 2 - i : 2 - i + height] for i in range(3)], axis=3)  # (N, H, W, 3 K)
        return onednn.product(_row_patches(x, 0).reshape(-1, 3 * channels), rows.reshape(-1, 3 * features), (0, 0))

    floats = math.prod(x.shape[1:3]) * max(channels, features)
    total = _sum_chunks(sum_chunk, (x, slope), _chunk(x.shape[0], _more(_MORE_ROW_SUMS) * _ROW_FLOATS / floats))
    return total.reshape(3, channels, 3, features).transpose(2, 0, 1, 3)


def _has_onednn(window: _Window, number: int, kernel: Sequence[int]) -> bool:
    fewest, several = min(kernel[2:]), several_cores()
    few = fewest < (_SOME_CHANNELS if several else _LEAST_CHANNELS)
    small = several and fewest <= _SOME_CHANNELS and _flops(window, number, kernel) <= _SOME_FLOPS
    return window.size > 1 and (few or small or window.stride > 1) and onednn.is_there()


# Which of them, by what was measured on single layers.


def _is_tiled(window: _Window, channels: Sequence[int]) -> bool:
    even = window.image[0] % 2 == window.image[1] % 2 == 0
    return _keeps_size(window) and even and min(channels) >= _LEAST_CHANNELS


def _keeps_size(window: _Window) -> bool:
    return window[:3] == (3, 1, 1)


def _fast_forward(x: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    function = _forward
    if _is_point(window):
        function = _point_forward
    elif _has_onednn(window, x.shape[0], kernel.shape):
        function = _onednn_forward
    elif _is_tiled(window, kernel.shape[2:]):
        function = _winograd_forward
    elif _keeps_size(window):
        function = _rows_forward
    elif window.looped or x.shape[3] >= 64:
        function = _patches_forward
    return function(x, kernel, window=window)


def _fast_input(slope: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    function = _input
    if _is_point(window):
        function = _point_input
    elif _keeps_size(window) and _has_onednn(window, slope.shape[0], kernel.shape):
        function = _onednn_input
    elif _is_tiled(window, kernel.shape[2:]):
        function = _winograd_input
    elif _keeps_size(window):
        function = _rows_input
    elif _is_halving(window) and (window.looped or kernel.shape[2] < 256):
        function = _halving_input
    return function(slope, kernel, window=window)


def _fast_kernel(x: jax.Array, slope: jax.Array, *, window: _Window) -> jax.Array:
    function = _patches_kernel
    if _is_point(window):
        function = _point_kernel
    elif _keeps_size(window) and max(x.shape[3], slope.shape[3]) <= _FEW_CHANNELS and onednn.is_there():
        function = _onednn_kernel
    elif _is_tiled(window, (x.shape[3], slope.shape[3])):
        function = _winograd_kernel
    return function(x, slope, window=window)


# The primitives.


def _primitive(name: str, plain: Callable[..., jax.Array], fast: Callable[..., jax.Array]) -> Primitive:
    """A primitive that is `fast` when it is compiled for one CPU device, else `plain`, which gives its shape too."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="window"))

    def abstract(*arguments: jax.core.ShapedArray, window: _Window) -> jax.core.ShapedArray:
        result = jax.eval_shape(functools.partial(plain, window=window), *arguments)
        return jax.core.ShapedArray(result.shape, result.dtype)

    def lower_for_cpu(context: mlir.LoweringRuleContext, *arguments: Any, window: _Window) -> Any:
        axes = context.module_context.axis_context
        alone = isinstance(axes, mlir.ShardingContext) and axes.num_devices == 1
        exported = context.module_context.lowering_parameters.for_export
        return mlir.lower_fun(fast if alone and not exported else plain, multiple_results=False)(
            context, *arguments, window=window
        )

    def batch(arguments: Sequence[jax.Array], axes: Sequence[int | None], *, window: _Window) -> tuple[jax.Array, int]:
        images, other = arguments
        if primitive is kernel_p or axes[1] is not None:
            return jax.vmap(functools.partial(plain, window=window), tuple(axes))(images, other), 0
        images = jnp.moveaxis(images, axes[0], 0)
        result = primitive.bind(images.reshape(-1, *images.shape[2:]), other, window=window)
        return result.reshape(*images.shape[:2], *result.shape[1:]), 0

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(primitive, lower_for_cpu, platform="cpu")
    batching.primitive_batchers[primitive] = batch
    return primitive


forward_p = _primitive("fast_conv_general_dilated", _forward, _fast_forward)  # of x and kernel
input_p = _primitive("fast_conv_input_gradient", _input, _fast_input)  # of slope and kernel
kernel_p = _primitive("fast_conv_kernel_gradient", _kernel, _fast_kernel)  # of x and slope

# <slope, forward(x, kernel)> = <x, input(slope, kernel)> = <kernel, kernel(x, slope)>.
ad.defbilinear(
    forward_p,
    lambda slope, x, kernel, window: input_p.bind(slope, kernel, window=window),
    lambda slope, x, kernel, window: kernel_p.bind(x, slope, window=window),
)
ad.defbilinear(
    input_p,
    lambda x, slope, kernel, window: forward_p.bind(x, kernel, window=window),
    lambda x, slope, kernel, window: kernel_p.bind(x, slope, window=window),
)
ad.defbilinear(
    kernel_p,
    lambda kernel, x, slope, window: input_p.bind(slope, kernel, window=window),
    lambda kernel, x, slope, window: forward_p.bind(x, kernel, window=window),
)
