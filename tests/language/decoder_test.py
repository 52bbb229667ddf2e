"""The networks of the families: recorded numbers of transformers, tokens one by one, packed rows, LoRA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language_parity import ARRAYS, CONFIGS, batch, computed, largest_difference, params_of
from scissorhands_jax.language.decoder import LanguageDecoder, Norm, decoder, empty_cache, hidden_after
from scissorhands_jax.language.families import sizes_of

GEMMA = sizes_of(CONFIGS["gemma3"], "")  # has windows, two rotations, and every norm


@pytest.fixture(scope="module")
def recorded():
    with np.load(ARRAYS) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_are_those_of_transformers(recorded, name):
    part = {key.removeprefix(f"{name}/"): array for key, array in recorded.items() if key.startswith(f"{name}/")}
    found = computed(name)
    assert part.keys() == found.keys()
    assert largest_difference(found, part) < 1e-4


def test_tokens_one_by_one_give_the_same_logits():
    params, tokens = params_of(GEMMA), jnp.asarray(batch()["tokens"])
    whole = jax.jit(lambda tokens: LanguageDecoder(GEMMA).apply({"params": params}, tokens))(tokens)
    cache = empty_cache(GEMMA, *tokens.shape)
    say = jax.jit(
        lambda tokens, positions, cache: LanguageDecoder(GEMMA).apply({"params": params}, tokens, positions, cache)
    )
    found = []
    for place in range(tokens.shape[1]):
        logits, cache = say(tokens[:, place : place + 1], jnp.full((2, 1), place), cache)
        found.append(logits)
    assert np.allclose(jnp.concatenate(found, axis=1), whole, atol=2e-5)


def test_packed_examples_do_not_see_each_other():
    model, params = decoder(GEMMA), params_of(GEMMA)
    tokens = batch()["tokens"]
    apply = jax.jit(lambda inputs: model.apply(params, {}, inputs, train=False)[0])
    alone = apply(tokens)
    row = np.concatenate([tokens[0, :7], tokens[1], [0, 0, 0]])[None]
    segment = np.array([[1] * 7 + [2] * 10 + [0] * 3])
    packed = apply({"tokens": row, "segment": segment})
    assert np.allclose(packed[0, :7], alone[0, :7], atol=2e-5)
    assert np.allclose(packed[0, 7:17], alone[1], atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_norms_compute_with_rounded_weights_in_float32(name):
    """1 + scale has more digits than bfloat16; other families multiply what was rounded."""
    scale, sizes = jax.random.normal(jax.random.key(0), (16,), jnp.bfloat16) / 8, sizes_of(CONFIGS[name], "")
    x = jax.random.normal(jax.random.key(1), (3, 16), jnp.bfloat16)
    found = Norm(sizes).apply({"params": {"scale": scale}}, x)
    wide, weights = np.asarray(x, np.float32), np.asarray(scale, np.float32)
    wide = wide / np.sqrt(np.mean(np.square(wide), axis=-1, keepdims=True) + sizes.epsilon)
    expected = wide * (1 + weights) if sizes.gemma else wide.astype(jnp.bfloat16).astype(np.float32) * weights
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected.astype(jnp.bfloat16).astype(np.float32))


def test_bfloat16_remat_and_activations():
    params, tokens = params_of(GEMMA), batch()["tokens"]

    def logits(**changes):
        model = decoder(dataclasses.replace(GEMMA, **changes))
        return jax.jit(lambda tokens: model.apply(params, {}, tokens, train=False)[0])(tokens)

    whole = logits()
    assert np.allclose(whole, logits(remat=True), atol=1e-5)
    rounded = logits(dtype="bfloat16")
    assert rounded.dtype == jnp.bfloat16
    assert 0 < np.abs(rounded.astype(np.float32) - whole).max() < 0.3 * np.abs(whole).max()
    assert jax.eval_shape(hidden_after(GEMMA, 0), params, {}, tokens).shape == (2, 10, GEMMA.width)
