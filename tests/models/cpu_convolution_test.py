"""The fast convolutions against XLA's: values, derivatives of every kind, and where each of them is used."""

import functools

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from scissorhands_jax import models
from scissorhands_jax.diffusion import networks
from scissorhands_jax.diffusion.demo.settings import DIGITS_NETWORK
from scissorhands_jax.diffusion.unet import Noisy
from scissorhands_jax.models import cpu_convolution
from scissorhands_jax.models.cpu_convolution import conv_general_dilated

AXES = ("NHWC", "HWIO", "NHWC")
# By algorithm: images (N, H, W, C), kernel (height, width, C, K), strides and padding.
CASES = {
    "tiles": ((6, 4, 8, 32), (3, 3, 32, 34), (1, 1), "SAME"),
    "tiles without padding": ((6, 6, 8, 32), (3, 3, 32, 32), (1, 1), "VALID"),
    "tiles of an input gradient alone": ((4, 6, 8, 32), (3, 3, 32, 32), (1, 1), [(0, 1), (1, 0)]),
    "few channels": ((6, 5, 4, 3), (3, 3, 3, 5), (1, 1), [(1, 1), (1, 1)]),
    "few channels and uneven padding": ((6, 5, 4, 3), (3, 3, 3, 5), (1, 1), [(0, 2), (2, 1)]),
    "halving": ((6, 4, 8, 32), (3, 3, 32, 6), (2, 2), [(1, 1), (1, 1)]),
    "halving with padding at the end": ((6, 4, 8, 3), (3, 3, 3, 6), (2, 2), "SAME"),
    "halving of an odd image": ((4, 5, 7, 3), (3, 3, 3, 4), (2, 2), [(1, 1), (1, 1)]),
    "point": ((4, 6, 5, 3), (1, 1, 3, 4), (2, 2), "VALID"),
    "padded point": ((4, 6, 5, 3), (1, 1, 3, 4), (1, 1), [(1, 0), (0, 2)]),
    "large kernel": ((4, 9, 8, 2), (7, 7, 2, 3), (2, 2), "SAME"),
    "oblong kernel": ((4, 9, 8, 2), (2, 5, 2, 3), (1, 3), [(0, 1), (4, 0)]),
    "3x3 with much padding": ((4, 3, 4, 2), (3, 3, 2, 3), (1, 1), [(3, 1), (1, 1)]),
}


@pytest.fixture(autouse=True)
def _always_fast_in_small_chunks(monkeypatch):
    monkeypatch.setattr(cpu_convolution, "_LEAST_FLOPS", 0)
    monkeypatch.setattr(cpu_convolution, "_TILED_CHANNELS", 32)
    monkeypatch.setattr(cpu_convolution, "_TILES", 4)
    monkeypatch.setattr(cpu_convolution, "_TILE_FLOATS", 1)
    monkeypatch.setattr(cpu_convolution, "_PATCH_FLOATS", 500)


def arrays(name):
    """Images, kernel, a slope of the output, and both functions."""
    shape, kernel_shape, strides, padding = CASES[name]
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (shape, kernel_shape))

    def fast(x, kernel):
        return conv_general_dilated(x, kernel, strides, padding, dimension_numbers=AXES)

    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=AXES)

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


def test_products_with_the_hessian_in_a_loop_and_batched():
    x, kernel, slope, fast, plain = arrays("few channels")

    def compute(function):
        gradient = jax.grad(lambda x, kernel: jnp.sum(jnp.square(function(x, kernel)) * slope), (0, 1))

        def product(index, pair):
            images, kernels = jax.vmap(lambda scale: jax.jvp(gradient, (x, kernel * scale), pair)[1])(jnp.ones(2))
            return images.mean(0) / 100, kernels.mean(0) / 100

        return jax.jit(lambda pair: lax.fori_loop(0, 3, product, pair))((x[::-1], kernel[::-1]))

    check_close(compute(fast), compute(plain))


def test_products_with_the_hessian_in_either_order():
    x, kernel, slope, fast, plain = arrays("few channels")

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


def test_exported_programs():
    x, kernel, _, fast, plain = arrays("few channels")
    check_close(jax.export.export(jax.jit(fast))(x, kernel).call(x, kernel), plain(x, kernel))


def lowered(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text()


def primitives(function, *arguments):
    return [equation.primitive.name for equation in jax.make_jaxpr(function)(*arguments).eqns]


class TestWhereItIsUsed:
    def test_on_one_cpu_device_nothing_is_left_of_xlas_convolution(self):
        x, kernel, _, fast, plain = arrays("tiles")
        assert "stablehlo.convolution" in lowered(plain, x, kernel)
        assert "stablehlo.convolution" not in lowered(jax.grad(lambda x, k: fast(x, k).sum(), (0, 1)), x, kernel)

    def test_several_devices_get_xlas_convolution(self):
        x, kernel, _, fast, _ = arrays("tiles")
        mesh = jax.sharding.AbstractMesh((2,), ("data",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        text = jax.jit(fast).trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
        assert "stablehlo.convolution" in text

    def test_accelerators_get_xlas_convolution(self, monkeypatch):
        x, kernel, _, fast, _ = arrays("tiles")
        text = jax.jit(fast).trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
        assert "stablehlo.convolution" in text
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert primitives(lambda x, kernel: fast(x, kernel), x, kernel) == ["conv_general_dilated"]

    @pytest.mark.parametrize(("limit", "value"), [("_LEAST_FLOPS", 1e9), ("_MOST_PIXELS", 31)])
    def test_small_and_huge_images_get_xlas_convolution(self, limit, value, monkeypatch):
        x, kernel, _, fast, _ = arrays("tiles")
        assert primitives(fast, x, kernel) == ["cpu_conv_general_dilated"]
        monkeypatch.setattr(cpu_convolution, limit, value)
        assert primitives(lambda x, kernel: fast(x, kernel), x, kernel) == ["conv_general_dilated"]

    def test_one_option_turns_it_off(self, monkeypatch):
        x, kernel, _, fast, _ = arrays("tiles")
        monkeypatch.setenv("SCISSORHANDS_CPU_CONVOLUTION", "off")
        assert primitives(lambda x, kernel: fast(x, kernel), x, kernel) == ["conv_general_dilated"]

    @pytest.mark.parametrize(
        ("shape", "kernel_shape", "dtype", "options"),
        [
            ((2, 6, 6, 4), (3, 3, 4, 4), jnp.bfloat16, {}),
            ((2, 6, 6, 4), (3, 3, 4, 4), jnp.float32, {"lhs_dilation": (2, 1)}),
            ((2, 6, 6, 4), (3, 3, 4, 4), jnp.float32, {"rhs_dilation": (1, 2)}),
            ((2, 6, 6, 4), (3, 3, 2, 4), jnp.float32, {"feature_group_count": 2}),
            ((2, 6, 6, 4), (3, 3, 4, 4), jnp.float32, {"batch_group_count": 2}),
            ((2, 6, 6, 4), (3, 3, 4, 4), jnp.float32, {"precision": lax.Precision.HIGHEST}),
            ((2, 6, 6, 4), (3, 3, 4, 4), jnp.bfloat16, {"preferred_element_type": jnp.float32}),
            ((2, 4, 6, 6), (4, 4, 3, 3), jnp.float32, {"dimension_numbers": None}),
            ((2, 6, 4), (3, 4, 4), jnp.float32, {"dimension_numbers": ("NHC", "HIO", "NHC")}),
        ],
    )
    def test_what_is_not_a_plain_convolution_of_images_gets_xlas(self, shape, kernel_shape, dtype, options):
        x, kernel = jnp.ones(shape, dtype), jnp.ones(kernel_shape, dtype)
        options = {"dimension_numbers": AXES, **options}
        arguments = (1,) * (len(shape) - 2), [(1, 1)] * (len(shape) - 2)
        jaxpr = jax.make_jaxpr(lambda x, kernel: conv_general_dilated(x, kernel, *arguments, **options))(x, kernel)
        expected = jax.make_jaxpr(lambda x, kernel: lax.conv_general_dilated(x, kernel, *arguments, **options))
        assert str(jaxpr) == str(expected(x, kernel))

    def test_mistakes_are_reported_by_lax(self):
        x, kernel = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 5, 4))
        for function in (lax.conv_general_dilated, conv_general_dilated):
            with pytest.raises((TypeError, ValueError), match=r"feature_group_count|feature dimension"):
                function(x, kernel, (1, 1), "SAME", dimension_numbers=AXES)


class LinenNet(linen.Module):
    """A user's own network."""

    conv: object

    @linen.compact
    def __call__(self, images):
        x = linen.Conv(8, (3, 3), conv_general_dilated=self.conv)(images)
        x = linen.Conv(8, (3, 3), strides=2, conv_general_dilated=self.conv)(linen.relu(x))
        x = linen.Conv(8, (1, 1), use_bias=False, conv_general_dilated=self.conv)(linen.relu(x))
        x = linen.Conv(8, (3, 3), feature_group_count=8, conv_general_dilated=self.conv)(x)
        return x.mean((1, 2))


class NnxNet(nnx.Module):
    """The same in nnx."""

    def __init__(self, conv, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), conv_general_dilated=conv, rngs=rngs)
        self.second = nnx.Conv(8, 8, (3, 3), strides=2, conv_general_dilated=conv, rngs=rngs)
        self.third = nnx.Conv(8, 8, (1, 1), use_bias=False, conv_general_dilated=conv, rngs=rngs)
        self.fourth = nnx.Conv(8, 8, (3, 3), feature_group_count=8, conv_general_dilated=conv, rngs=rngs)

    def __call__(self, images):
        x = self.second(nnx.relu(self.first(images)))
        return self.fourth(self.third(nnx.relu(x))).mean((1, 2))


IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))


def linen_gradient(conv):
    variables = LinenNet(lax.conv_general_dilated).init(jax.random.key(0), IMAGES)
    return jax.grad(lambda v, x: jnp.sum(LinenNet(conv).apply(v, x) ** 2), (0, 1)), variables


def nnx_gradient(conv):
    graph, state = nnx.split(NnxNet(conv, nnx.Rngs(0)))
    return jax.grad(lambda s, x: jnp.sum(nnx.merge(graph, s)(x) ** 2), (0, 1)), state


@pytest.mark.parametrize("gradient_of", [linen_gradient, nnx_gradient])
def test_it_can_be_given_to_a_network_of_ones_own(gradient_of):
    fast, variables = gradient_of(conv_general_dilated)
    plain, _ = gradient_of(lax.conv_general_dilated)
    chex.assert_trees_all_close(
        jax.jit(fast)(variables, IMAGES), jax.jit(plain)(variables, IMAGES), rtol=1e-4, atol=1e-5
    )
    text = str(jax.make_jaxpr(fast)(variables, IMAGES))
    for name, count in (("general_dilated", 3), ("input_gradient", 3), ("kernel_gradient", 3)):
        assert text.count(f"cpu_conv_{name}[") == count


def convolutions_of(model, *inputs):
    """How many of a forward pass are of either kind."""
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    text = str(jax.make_jaxpr(functools.partial(model.apply, train=False))(params, state, *inputs))
    return text.count("cpu_conv_general_dilated["), text.count(" conv_general_dilated[")


@pytest.mark.parametrize(("name", "count"), [("resnet20", 19), ("resnet18", 20), ("vgg16_bn", 13), ("resnet9", 7)])
def test_every_bundled_classifier_has_it(name, count):
    model = models.build(name, num_classes=10, image_shape=(32, 32, 3))
    assert convolutions_of(model, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)) == (count, 0)


def test_the_networks_of_stable_diffusion_have_it():
    latents = jnp.zeros((1, 8, 8, 4))
    noisy = Noisy(latents, jnp.zeros(1), jnp.zeros((1, 3, networks.TINY.unet.context_width)))
    for model, inputs in (
        (networks.unet(networks.TINY.unet), noisy),
        (networks.vae_encoder(networks.TINY.vae), jnp.zeros((1, 16, 16, 3))),
        (networks.vae_decoder(networks.TINY.vae), latents),
    ):
        count, left = convolutions_of(model, inputs)
        assert count > 5
        assert left == 0


def test_the_digits_unet_has_it_where_it_is_large_enough(monkeypatch):
    monkeypatch.undo()  # the limits that users have
    model = networks.unet(DIGITS_NETWORK)
    config = DIGITS_NETWORK
    inputs = Noisy(jnp.zeros((64, 8, 8, config.channels)), jnp.zeros(64), jnp.zeros((64, 1, config.context_width)))
    count, left = convolutions_of(model, inputs)
    assert count > left
