"""The networks, schedules and samplers compute what PyTorch's diffusers and transformers compute."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import torch_weights, trees
from scissorhands_jax.diffusion import layers, networks, schedules
from scissorhands_jax.diffusion.layers import Compute
from scissorhands_jax.diffusion.networks import TINY
from scissorhands_jax.diffusion.unet import Noisy
from scissorhands_jax.errors import InputError
from tests.diffusion import traces as diffusion_traces


@functools.cache
def recorded():
    with np.load(diffusion_traces.RECORDED) as arrays:
        return dict(arrays)


@functools.cache
def params(part):
    return diffusion_traces.params(networks.outline(part, TINY))


def to_jax(array):
    """From PyTorch's (N, C, H, W)."""
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def to_torch(array):
    return np.asarray(array).transpose(0, 3, 1, 2)


def unet_inputs():
    given = diffusion_traces.inputs()
    return Noisy(to_jax(given["latents"]), jnp.asarray(given["timesteps"]), jnp.asarray(given["context"]))


def output_and_gradient(model, params, x, to_recorded, expected):
    """The output as it was recorded, and the gradient by PyTorch's names."""

    def loss(params):
        output, _ = model.apply(params, {}, x, train=True)
        output = to_recorded(output)
        return 0.5 * jnp.sum(jnp.square(output - diffusion_traces.target(expected.shape))), output

    function = jax.jit(jax.grad(loss, has_aux=True))
    gradient, output = function(params)
    return np.asarray(output), torch_weights.to_state_dict(gradient, {})


def assert_near(found, expected, tolerance):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def assert_agrees(name, output, gradient):
    assert_near(output, recorded()[name], 1e-5)
    found, expected = diffusion_traces.digest(gradient), recorded()[f"{name}_gradient"]
    assert found.shape == expected.shape
    # A gradient that is zero but for rounding, as that of a bias before a softmax is, has no digits to agree in.
    scale = np.maximum(expected[:, :1], 1e-3 * expected[:, 0].max())
    assert (np.abs(found - expected) <= 1e-4 * scale).all()


def nchw(x):
    return x.transpose(0, 3, 1, 2)


NETWORKS = {
    "unet": (networks.unet, "unet", nchw),
    "vae_encoder": (networks.vae_encoder, "vae", lambda moments: jnp.concatenate([nchw(x) for x in moments], axis=1)),
    "vae_decoder": (networks.vae_decoder, "vae", nchw),
    "text": (networks.text_encoder, "text", lambda x: x),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_pytorch(name):
    make, part, to_recorded = NETWORKS[name]
    given = diffusion_traces.inputs()
    x = {
        "unet": unet_inputs(),
        "vae_encoder": to_jax(given["images"]),
        "vae_decoder": to_jax(given["latents"]),
        "text": jnp.asarray(given["ids"]),
    }[name]
    model = make(getattr(TINY, part))
    own = jax.eval_shape(model.init, jax.random.key(0))[0]
    tree = {key: params(part)[key] for key in own}  # the half of the VAE
    output, gradient = output_and_gradient(model, tree, x, to_recorded, recorded()[name])
    assert_agrees(name, output, gradient)


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_of_the_kind(name):
    """Without blocks in the middle, with attention on other levels, another scaling, a perceptron of odd width."""
    make, part, to_recorded = NETWORKS[name]
    given, config = diffusion_traces.inputs(), diffusion_traces.REDUCED
    x = {
        "unet": unet_inputs()._replace(context=jnp.asarray(given["context"][..., :24])),
        "vae_encoder": to_jax(given["images"]),
        "vae_decoder": to_jax(given["latents"]),
        "text": jnp.asarray(given["ids"]),
    }[name]
    model = make(getattr(config, part))
    tree = diffusion_traces.params(networks.outline(part, config))
    tree = {key: tree[key] for key in jax.eval_shape(model.init, jax.random.key(0))[0]}
    found = jax.jit(lambda tree: to_recorded(model.apply(tree, {}, x, train=False)[0]))(tree)
    assert_near(found, recorded()[f"reduced_{name}"], 1e-5)


def test_stable_diffusion_has_its_size():
    sizes = [trees.count_weights(networks.outline(part)) for part in networks.PARTS]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]
    names = torch_weights.state_dict_shapes(networks.outline("unet"), {})
    assert len(names) == 686
    assert names["up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight"] == (1280, 768)


def test_rematerialisation_changes_nothing_and_bfloat16_little():
    ids, expected = jnp.asarray(diffusion_traces.inputs()["ids"]), recorded()["text"]
    remat, narrow = (
        output_and_gradient(networks.text_encoder(TINY.text, compute), params("text"), ids, lambda x: x, expected)
        for compute in (Compute(remat=True), Compute(dtype="bfloat16", attention="xla"))
    )
    assert_agrees("text", *remat)
    assert narrow[0].dtype == np.float32
    assert all(leaf.dtype == np.float32 for leaf in narrow[1].values())
    error = np.linalg.norm(narrow[0] - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.03


def test_attention_in_chunks_is_the_same(monkeypatch):
    """Forwards and backwards, for queries that do not divide evenly too; short ones and others' levels stay whole."""
    monkeypatch.setattr(layers, "CHUNK", 8)
    draw = np.random.default_rng(0)
    query, key, value = (jnp.asarray(draw.standard_normal((2, length, 6)), jnp.float32) for length in (20, 36, 36))

    def call(attention):
        compute = Compute(attention=attention)

        def loss(query, key, value):
            return jnp.sum(jnp.sin(layers.attend(query, key, value, 2, compute)))

        program = str(jax.make_jaxpr(loss)(query, key, value))
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(query, key, value), "scan" in program

    expected, whole = call("xla")
    assert not whole
    for attention, in_chunks in (("chunked", True), ("4=chunked", True), ("5=chunked,0=xla", False)):
        found, chunked = call(attention)
        assert chunked == in_chunks
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("flash", "--attention is 'flash'; choose one of xla, cudnn, chunked"),
        ("x=xla", "--attention has the level 'x'; give the side of an image of latents, such as 64"),
        ("64=cudnn", "--attention cudnn cannot compute in float32; add --dtype bfloat16"),
    ],
)
def test_other_attention_is_refused(attention, message):
    with pytest.raises(InputError, match=message):
        Compute(attention=attention)


@pytest.mark.parametrize(("name", "blocks"), [("unet", 12), ("vae_encoder", 6), ("vae_decoder", 8)])
def test_switches_reach_every_block(name, blocks):
    make, part, _ = NETWORKS[name]
    x = {"unet": unet_inputs(), "vae_encoder": jnp.zeros((1, 16, 16, 3)), "vae_decoder": jnp.zeros((1, 8, 8, 4))}[name]
    model = make(getattr(TINY, part), Compute(dtype="bfloat16", remat=True))
    program, outputs = jax.make_jaxpr(lambda tree: model.apply(tree, {}, x, train=True)[0], return_shape=True)(
        networks.outline(part, TINY)
    )
    # On CPU by a derivative of its own (`models.layers.checkpoint_late`).
    assert len(re.findall(r"= (?:checkpoint|remat2?|custom_vjp_call)\[", str(program))) == blocks
    convolutions = re.findall(r":(\w+)\[[\d,]*\] = conv_general_dilated", str(program))
    assert len(convolutions) > blocks
    assert set(convolutions) == {"bf16"}
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {np.dtype(np.float32)}


def test_equal_settings_give_one_network():
    assert networks.unet(dataclasses.replace(TINY.unet)) is networks.unet(TINY.unet)


def test_latents_must_be_divisible():
    odd = Noisy(jnp.zeros((1, 6, 7, 4)), jnp.zeros(1), jnp.zeros((1, 3, 32)))
    with pytest.raises(InputError, match=r"latents have shape \(1, 6, 7, 4\); height and width must be multiples of 2"):
        jax.eval_shape(lambda p: networks.unet(TINY.unet).apply(p, {}, odd, train=False), params("unet"))


def test_unknown_parts_are_refused():
    with pytest.raises(InputError, match="there is no network 'safety'; choose one of unet, vae, text"):
        networks.outline("safety", TINY)


class TestSampling:
    @pytest.mark.parametrize("name", list(schedules.SAMPLERS))
    @pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
    def test_every_step_is_that_of_diffusers(self, name, prediction):
        """All numbers of steps at once, so that little is compiled."""
        schedule = dataclasses.replace(schedules.SD_V1_SCHEDULE, prediction=prediction)
        chosen = {number: schedules.SAMPLERS[name](number, schedule) for number in diffusion_traces.STEPS}
        start = to_jax(diffusion_traces.sampled_from(diffusion_traces.inputs()["start"]))

        @jax.jit
        def paths(samplers):
            walk = functools.partial(schedules.sample_path, denoise=diffusion_traces.toy_noise, noise=start)
            ends = functools.partial(schedules.sample, denoise=diffusion_traces.toy_noise, noise=start)
            return {number: (walk(sampler), ends(sampler)) for number, sampler in samplers.items()}

        for number, (path, end) in paths(chosen).items():
            times = recorded()[f"{name}_{number}_timesteps"]
            np.testing.assert_allclose(chosen[number].timesteps, times, rtol=1e-6, atol=1e-4)
            expected = recorded()[f"{name}_{number}_{prediction}"]
            assert len(path) == len(expected) == number + (name == "pndm")
            for found, latents in zip(path, expected, strict=True):
                assert_near(to_torch(found), latents, 1e-5)
            np.testing.assert_allclose(end, path[-1], rtol=1e-6)

    @pytest.mark.parametrize("name", list(schedules.SAMPLERS))
    def test_one_known_image_is_found(self, name):
        """If all images are x0, the exact prediction leads every sampler to x0, but for the noise of its last step."""
        shares = schedules.signal_shares(schedules.SD_V1_SCHEDULE).astype(np.float64)
        image = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 2, 1)), jnp.float32)

        def exact(latents, timestep):
            share = jnp.interp(timestep, jnp.arange(1000.0), jnp.asarray(shares, jnp.float32))
            return (latents - jnp.sqrt(share) * image) / jnp.sqrt(1 - share)

        start = jnp.asarray(np.random.default_rng(1).standard_normal(image.shape), jnp.float32)
        found = schedules.sample(schedules.SAMPLERS[name](50), exact, start)
        assert np.abs(found - image).max() < 0.1

    def test_noise_is_added_as_diffusers_adds_it(self):
        given = diffusion_traces.inputs()
        noisy = schedules.add_noise(
            schedules.SD_V1_SCHEDULE, to_jax(given["latents"]), to_jax(given["start"]), jnp.array([0, 999])
        )
        assert_near(to_torch(noisy), recorded()["noisy"], 1e-5)

    def test_a_linear_schedule_and_the_velocity(self):
        schedule, given = diffusion_traces.REDUCED.schedule, diffusion_traces.inputs()
        np.testing.assert_allclose(schedules.signal_shares(schedule)[::37], recorded()["linear_shares"], rtol=2e-5)
        found = schedules.training_target(
            schedule, to_jax(given["latents"]), to_jax(given["start"]), jnp.array([0, 999])
        )
        assert_near(to_torch(found), recorded()["velocity"], 1e-5)

    def test_a_cosine_schedule_ends_in_noise(self):
        share = schedules.signal_shares(schedules.Schedule(num_steps=100, kind="cosine"))
        assert share.shape == (100,)
        assert (np.diff(share) < 0).all()
        assert share[0] > 0.999
        assert share[-1] < 1e-4
        assert share[49] == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize("number", [0, 501])
    def test_impossible_numbers_of_steps_are_refused(self, number):
        for make in schedules.SAMPLERS.values():
            with pytest.raises(InputError, match=rf"number of steps must be \d to 500, got {number}"):
                make(number)

    def test_guidance_goes_beyond_the_prompt(self):
        def predict(noisy):
            return jnp.broadcast_to(noisy.context.mean((1, 2))[:, None, None, None], noisy.latents.shape)

        latents, context = jnp.zeros((2, 1, 1, 1)), jnp.array([1.0, 2.0]).reshape(2, 1, 1)
        empty = jnp.full((1, 1, 1), 0.5)
        found = schedules.guided(predict, context, empty, 3.0)(latents, jnp.float32(7))
        np.testing.assert_allclose(found.reshape(-1), [0.5 + 3 * 0.5, 0.5 + 3 * 1.5])
        each = schedules.guided(predict, context, empty, jnp.array([1.0, 0.0]))(latents, jnp.float32(7))
        np.testing.assert_allclose(each.reshape(-1), [1.0, 0.5])

    @pytest.mark.parametrize("seed", diffusion_traces.SEEDS)
    def test_draws_of_a_torch_seed(self, seed):
        for shape in ((4, 8, 8), (3, 7), (4, 64, 64)):
            found = schedules.torch_normal(seed, shape).reshape(-1)[:: 37 if shape[-1] == 64 else 1]
            np.testing.assert_allclose(found, recorded()[f"randn_{seed}_{shape[-1]}"], rtol=0, atol=2e-6)
        with pytest.raises(InputError, match=r"16 numbers or more, not for shape \(3, 5\)"):
            schedules.torch_normal(seed, (3, 5))
