"""Greedy decoding: every decoder says what the network says if each prompt is asked alone, as far as it may."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language_parity import CONFIGS, params_of
from scissorhands_jax.base import Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.decoder import decoder, step_decoder
from scissorhands_jax.language.families import sizes_of
from scissorhands_jax.language.greedy import greedy_tokens, recomputing
from scissorhands_jax.language.transformer import Transformer, decoder_of
from scissorhands_jax.models.adapters import from_linen

END, CONTEXT = 1, 24
GENERATOR = np.random.default_rng(0)
PROMPTS = [GENERATOR.integers(2, 13, length).tolist() for length in (3, 19, 17, 7, 18)]
LIMITS = [5, 5, 7, 1, 6]  # three reach the context


def next_token(params, model_state, tokens, *, train, key=None):
    """Always predicts the token that is one larger, and END after 9."""
    following = jnp.where(tokens == 9, END, tokens + 1)
    return 5.0 * jax.nn.one_hot(following, 12), model_state


COUNTING = recomputing(Model(lambda key: ({}, ()), next_token))


def test_answers_end_with_the_end_token_or_at_their_limit():
    said = greedy_tokens(COUNTING, {}, (), [[3], [5, 6, 7], [9]], limits=[4, 9, 2], ends=(END,), batch_size=2)
    assert said == [[4, 5, 6, 7], [8, 9, END], [END]]
    assert greedy_tokens(COUNTING, {}, (), [[8]], limits=4) == [[9, END, 2, 3]]
    assert greedy_tokens(COUNTING, {}, (), [[3]], limits=9, ends=(END, 6)) == [[4, 5, 6]]
    assert greedy_tokens(COUNTING, {}, (), [], limits=9) == []


def test_sets_of_near_lengths_share_a_program():
    """Where it is known how much the network reads; the program is traced once."""
    rooms = []

    def start(*given):
        rooms.append(given[-1])
        return COUNTING.start(*given)

    counting = COUNTING._replace(start=start, context=64)
    for length in (17, 20, 31):
        assert greedy_tokens(counting, {}, (), [[3] * length], limits=4) == [[4, 5, 6, 7]]
    assert rooms == [36]


@functools.cache
def networks():
    """A network with positions that are learned, and one of a published family whose attention looks back four tokens;
    each with its weights and a decoder that keeps keys and values."""
    network = Transformer(13, width=16, layers=2, heads=2, length=CONTEXT)
    model = from_linen(network, jax.ShapeDtypeStruct((1, CONTEXT), np.int32))
    sharper = jax.tree.map(lambda leaf: 3 * leaf, model.init(jax.random.key(0))[0])
    sizes = sizes_of({**CONFIGS["gemma3"], "max_position_embeddings": CONTEXT}, "config")
    return {
        "transformer": (model, sharper, decoder_of(network)),
        "gemma3": (decoder(sizes), params_of(sizes), step_decoder(sizes)),
    }


@functools.cache
def alone(name):
    """The answers of prompts that are asked one by one, by the logits of all positions."""
    model, params, _ = networks()[name]
    apply = jax.jit(lambda tokens: model.apply(params, {}, tokens, train=False)[0])
    found = []
    for prompt, limit in zip(PROMPTS, LIMITS, strict=True):
        numbers = list(prompt)
        for _ in range(limit):
            logits = apply(np.array([numbers + [0] * (CONTEXT - len(numbers))]))
            numbers.append(int(logits[0, len(numbers) - 1].argmax()))
        found.append(numbers[len(prompt) :])
    return found


@pytest.mark.parametrize(
    ("name", "kept"), [("transformer", True), ("transformer", False), ("gemma3", True), ("gemma3", False)]
)
def test_prompts_of_all_lengths_are_answered_as_if_alone(name, kept):
    model, params, stepwise = networks()[name]
    how = stepwise if kept else recomputing(model)
    said = greedy_tokens(how, params, {}, PROMPTS, limits=LIMITS, batch_size=3)
    assert said == alone(name)
    assert len(set(np.concatenate(said).tolist())) > 4
    end = said[4][3]
    cut = [answer[: answer.index(end) + 1] if end in answer else answer for answer in said]
    assert greedy_tokens(how, params, {}, PROMPTS, limits=LIMITS, batch_size=3, ends=(end,)) == cut != said


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[2], []], {"limits": 3}, "prompt 1 has no tokens"),
        ([[2] * 5], {"limits": 6}, "prompt 0 has 5 tokens, which with 6 for the answer are more than the 10"),
        ([[2], [2]], {"limits": [1, 0]}, "limits must be at least 1, got 0"),
        ([[2]], {"limits": 1, "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ([[2]], {"limits": 1, "batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
    ],
)
def test_what_cannot_be_answered_is_refused(prompts, options, message):
    with pytest.raises(InputError, match=message):
        greedy_tokens(COUNTING._replace(context=10), {}, (), prompts, **options)
