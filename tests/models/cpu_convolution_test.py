"""The fast convolutions against XLA's: values, derivatives of every kind, and where each of them is used."""

from typing import ClassVar

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scissorhands_jax.models import cpu_convolution, onednn
from scissorhands_jax.models.cpu_convolution import convolve

# By algorithm: images (N, H, W, C), kernel (k, k, C, K), stride and padding.
CASES = {
    "winograd": ((6, 4, 8, 32), (3, 3, 32, 34), 1, 1),
    "rows": ((6, 5, 4, 3), (3, 3, 3, 5), 1, 1),
    "patches": ((6, 5, 4, 64), (3, 3, 64, 2), 1, 0),
    "halving": ((6, 4, 8, 32), (3, 3, 32, 6), 2, 1),
    "halving of an odd image": ((4, 5, 7, 3), (3, 3, 3, 4), 2, 1),
    "point": ((4, 6, 5, 3), (1, 1, 3, 4), 2, 0),
    "large kernel": ((4, 9, 8, 2), (7, 7, 2, 3), 2, 3),
}


@pytest.fixture(autouse=True)
def _always_fast_in_small_chunks(monkeypatch):
    monkeypatch.setattr(cpu_convolution, "_LEAST_FLOPS", 0)
    monkeypatch.setattr(cpu_convolution, "_LEAST_FLOPS_ONEDNN", 0)
    monkeypatch.setattr(cpu_convolution, "_TILES", 16)
    monkeypatch.setattr(cpu_convolution, "_TILE_FLOATS", 1)
    monkeypatch.setattr(cpu_convolution, "_PATCH_FLOATS", 2000)
    monkeypatch.setattr(cpu_convolution, "_ROW_FLOATS", 120)
    monkeypatch.setattr(onednn, "is_there", lambda: False)


@pytest.fixture
def with_onednn(monkeypatch):
    if not onednn._works():
        pytest.skip("needs a jaxlib with oneDNN")
    monkeypatch.setattr(onednn, "is_there", lambda: True)


# JAX says so where it cannot store a program; the tests have a cache, in which users would not get oneDNN.
ignore_cache = pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache")


def arrays(name):
    """Images, kernel, a slope of the output, and both functions."""
    shape, kernel_shape, stride, padding = CASES[name]
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (shape, kernel_shape))

    def fast(x, kernel):
        return convolve(x, kernel, stride=stride, padding=padding)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    slope = jnp.asarray(rng.standard_normal(jax.eval_shape(plain, x, kernel).shape), jnp.float32)
    return x, kernel, slope, fast, plain


def check_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


def all_three(function):
    """The function's value and both gradients."""

    def compute(x, kernel, slope):
        y, transpose = jax.vjp(function, x, kernel)
        return y, transpose(slope)

    return jax.jit(compute)


@pytest.mark.parametrize("name", CASES)
def test_value_and_both_gradients_are_those_of_xla(name):
    x, kernel, slope, fast, plain = arrays(name)
    check_close(all_three(fast)(x, kernel, slope), all_three(plain)(x, kernel, slope))


@ignore_cache
@pytest.mark.usefixtures("with_onednn")
class TestOneDNN:
    # By case: calls in the forward pass, for the input's gradient, and for the kernel's.
    CALLS: ClassVar = {
        "winograd": (1, 1, 16),
        "rows": (1, 1, 1),
        "patches": (1, 0, 1),
        "halving": (1, 0, 1),
        "halving of an odd image": (1, 0, 0),
        "point": (0, 0, 1),
        "large kernel": (1, 0, 0),
    }

    @pytest.fixture(autouse=True)
    def _on_several_cores(self, monkeypatch):
        monkeypatch.setattr(cpu_convolution, "several_cores", lambda: True)

    @pytest.mark.parametrize("name", ["winograd", "patches", "halving", "point"])
    def test_kernel_gradients_on_one_core_are_those_of_xla(self, name, monkeypatch):
        monkeypatch.setattr(cpu_convolution, "several_cores", lambda: False)
        x, kernel, slope, fast, plain = arrays(name)
        check_close(all_three(fast)(x, kernel, slope), all_three(plain)(x, kernel, slope))

    @pytest.mark.parametrize("name", CALLS)
    def test_value_and_both_gradients_are_those_of_xla(self, name):
        x, kernel, slope, fast, plain = arrays(name)
        check_close(all_three(fast)(x, kernel, slope), all_three(plain)(x, kernel, slope))
        passes = (
            lambda x, kernel, slope: fast(x, kernel),
            lambda x, kernel, slope: jax.vjp(lambda x: fast(x, kernel), x)[1](slope),
            lambda x, kernel, slope: jax.vjp(lambda kernel: fast(x, kernel), kernel)[1](slope),
        )
        forward, *both = (compiled(each, x, kernel, slope).count("@__onednn$") for each in passes)
        assert (forward, *both) == self.CALLS[name]

    def test_many_channels_are_left_to_winograd_and_on_one_core_or_with_much_work_more_of_them(self, monkeypatch):
        def calls(*channels):
            x, kernel = jnp.ones((2, 4, 4, channels[0])), jnp.ones((3, 3, *channels))
            return compiled(lambda x, kernel: convolve(x, kernel, padding=1), x, kernel).count("@__onednn$")

        sizes = ((16, 64), (32, 32), (64, 64), (96, 96))
        assert [calls(*channels) for channels in sizes] == [1, 1, 1, 0]
        monkeypatch.setattr(cpu_convolution, "_SOME_FLOPS", 2 * 32 * 9 * 64 * 64 - 1)
        assert [calls(*channels) for channels in sizes] == [1, 1, 16, 0]
        monkeypatch.setattr(cpu_convolution, "several_cores", lambda: False)
        assert [calls(*channels) for channels in sizes] == [1, 0, 0, 0]

    def test_products_with_the_hessian_in_a_loop_and_batched(self):
        x, kernel, slope, fast, plain = arrays("rows")

        def compute(function):
            gradient = jax.grad(lambda x, kernel: jnp.sum(jnp.square(function(x, kernel)) * slope), (0, 1))

            def product(index, pair):
                images, kernels = jax.vmap(lambda scale: jax.jvp(gradient, (x, kernel * scale), pair)[1])(jnp.ones(2))
                return images.mean(0) / 100, kernels.mean(0) / 100

            return jax.jit(lambda pair: lax.fori_loop(0, 3, product, pair))((x[::-1], kernel[::-1]))

        check_close(compute(fast), compute(plain))

    def test_exported_programs_have_xlas_convolution(self):
        x, kernel, _, fast, plain = arrays("rows")
        exported = jax.export.export(jax.jit(fast))(x, kernel)
        check_close(exported.call(x, kernel), plain(x, kernel))


class TestWithinALoop:
    KNOWN = ("winograd", "rows", "halving", "point")

    @pytest.mark.parametrize("name", CASES)
    def test_all_three_passes_leave_xlas_convolution_or_none_does(self, name):
        x, kernel, slope, fast, _ = arrays(name)
        with cpu_convolution.within_loop():
            text = compiled(all_three(fast), x, kernel, slope)
        assert ("stablehlo.convolution" in text) == (name not in self.KNOWN)

    def test_values_and_gradients_are_those_of_xla(self):
        x, kernel, slope, fast, plain = arrays("halving")  # whose forward pass is XLA's outside of a loop
        with cpu_convolution.within_loop():
            found = all_three(fast)(x, kernel, slope)
        check_close(found, all_three(plain)(x, kernel, slope))

    def test_it_pays_where_a_convolution_is_large_and_all_are_known(self, monkeypatch):
        def pays(*names):
            cases = [arrays(name) for name in names]
            loss = [lambda x, kernel, fast=fast: jnp.sum(fast(x, kernel) ** 2) for _, _, _, fast, _ in cases]

            def function(pairs):
                return jax.grad(lambda pairs: sum(each(*pair) for each, pair in zip(loss, pairs, strict=True)))(pairs)

            return pays_in_a_loop(function, [(x, kernel) for x, kernel, *_ in cases])

        def pays_in_a_loop(function, *arguments):
            with cpu_convolution.within_loop():
                return cpu_convolution.pays_in_a_loop(jax.make_jaxpr(function)(*arguments))

        assert pays("winograd", "rows")
        assert not pays("winograd", "large kernel")
        monkeypatch.setattr(cpu_convolution, "_LEAST_FLOPS", 1e6)
        assert pays("winograd", "rows"), "one large convolution is enough"
        assert not pays("rows", "point")
        assert not pays_in_a_loop(lambda x: x @ x, jnp.ones((300, 300)))
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert not pays("winograd")


def test_products_with_the_hessian_in_either_order():
    x, kernel, slope, fast, plain = arrays("rows")

    def both_orders(function):
        def loss(x, kernel):
            return jnp.sum(jnp.square(function(x, kernel)) * slope)

        def compute(x, kernel):
            gradient = jax.grad(loss, (0, 1))
            forward = jax.jvp(gradient, (x, kernel), (x[::-1], kernel[::-1]))[1]
            _, reverse = jax.vjp(gradient, x, kernel)
            return forward, reverse((x[::-1], kernel[::-1]))

        return jax.jit(compute)(x, kernel)

    found = both_orders(fast)
    check_close(found[0], found[1])
    check_close(found, both_orders(plain))


def test_batched_images_batched_kernels_and_both():
    x, kernel, _, fast, plain = arrays("point")
    images, kernels = jnp.stack([x, 2 * x, x + 1]), jnp.stack([kernel, -kernel, kernel + 1])
    for axes, operands in (((0, None), (images, kernel)), ((None, 0), (x, kernels)), ((0, 0), (images, kernels))):

        def gradients(function, axes=axes):
            return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(jax.vmap(function, axes)(x, kernel))), (0, 1))

        check_close(gradients(fast)(*operands), gradients(plain)(*operands))


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text()


class TestWhereItIsUsed:
    def test_on_one_cpu_device_nothing_is_left_of_xlas_convolution(self):
        x, kernel, _, fast, plain = arrays("winograd")
        assert "stablehlo.convolution" in compiled(plain, x, kernel)
        assert "stablehlo.convolution" not in compiled(jax.grad(lambda x, k: fast(x, k).sum(), (0, 1)), x, kernel)

    def test_several_devices_get_xlas_convolution(self):
        x, kernel, _, fast, _ = arrays("winograd")
        mesh = jax.sharding.AbstractMesh((2,), ("data",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        lowered = jax.jit(fast).trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
        assert "stablehlo.convolution" in lowered

    def test_accelerators_get_xlas_convolution(self):
        x, kernel, _, fast, _ = arrays("winograd")
        lowered = jax.jit(fast).trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
        assert "stablehlo.convolution" in lowered

    def test_small_or_narrow_inputs_get_xlas_convolution(self, monkeypatch):
        x, kernel, _, fast, _ = arrays("winograd")
        names = {equation.primitive.name for equation in jax.make_jaxpr(fast)(x, kernel).eqns}
        assert names == {"fast_conv_general_dilated"}
        narrow = jax.make_jaxpr(fast)(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
        assert [equation.primitive.name for equation in narrow.eqns] == ["conv_general_dilated"]
        monkeypatch.setattr(cpu_convolution, "_LEAST_FLOPS", 1e9)
        small = jax.make_jaxpr(lambda x, kernel: fast(x, kernel))(x, kernel)  # another function, so that it is traced
        assert [equation.primitive.name for equation in small.eqns] == ["conv_general_dilated"]


def test_xla_counts_the_operations_of_what_is_traced_plainly():
    x, kernel = jax.ShapeDtypeStruct((16, 32, 32, 32), jnp.float32), jax.ShapeDtypeStruct((3, 3, 32, 32), jnp.float32)
    operations = 2 * 16 * 32 * 32 * 9 * 32 * 32

    def counted():
        lowered = jax.jit(lambda x, kernel: convolve(x, kernel, padding=1)).lower(x, kernel)
        return lowered.cost_analysis()["flops"]

    assert counted() < 0.5 * operations  # its chunks are a loop
    with cpu_convolution.plainly():
        assert counted() == pytest.approx(operations, rel=0.1)  # less at the borders
    assert counted() < 0.5 * operations
