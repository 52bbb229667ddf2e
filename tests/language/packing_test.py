"""Packed rows and buckets hold what was put in, and mean the same to networks, losses and devices."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scissorhands_jax as sh
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.methods import LANGUAGE_METHODS
from scissorhands_jax.language.packing import Encoded, bucketed_rows, packed_rows
from scissorhands_jax.language.token_losses import token_loss
from scissorhands_jax.language.transformer import Transformer
from scissorhands_jax.models.adapters import from_linen
from scissorhands_jax.training import make_layout

VOCABULARY, LENGTH = 13, 16


def examples(seed, count, end=1):
    generator = np.random.default_rng(seed)

    def some(most):
        return generator.integers(2, VOCABULARY, generator.integers(1, most)).tolist()

    return [Encoded(some(5), [*some(7), end]) for _ in range(count)]


def one_a_row(given, refusals=None):
    rows = packed_rows(given, LENGTH, refusals=refusals)
    found = {name: np.zeros((len(given), LENGTH), array.dtype) for name, array in rows.items() if "segment" not in name}
    for part, them in (("", given), ("refusal_", refusals or [])):
        for row, one in enumerate(them):
            found[f"{part}tokens"][row, : one.length] = [*one.prompt, *one.answer]
            found[f"{part}answer"][row, len(one.prompt) : one.length] = True
    return found


GIVEN, OTHERS = examples(0, 9), examples(1, 8)
REFUSALS = [Encoded(one.prompt, [3, 4, 1]) for one in GIVEN]
NETWORK = Transformer(VOCABULARY, width=16, layers=1, heads=2, length=LENGTH)
MODEL = from_linen(NETWORK, jax.ShapeDtypeStruct((1, LENGTH), np.int32))
PARAMS, STATE = MODEL.init(jax.random.key(0))


def test_rows_hold_every_example_once(caplog):
    with caplog.at_level(logging.INFO):
        rows = packed_rows(GIVEN, LENGTH, refusals=REFUSALS)
    assert "packed 9 examples of" in caplog.text
    assert "padded to the longest" in caplog.text
    count = len(rows["tokens"])
    assert count < len(GIVEN)
    held = []
    for part, wanted in (("", GIVEN), ("refusal_", REFUSALS)):
        found = {}
        for row in range(count):
            tokens, answer, segment = (rows[f"{part}{name}"][row] for name in ("tokens", "answer", "segment"))
            assert (np.diff(segment[segment > 0]) >= 0).all()
            assert not tokens[segment == 0].any()
            assert not answer[segment == 0].any()
            for number in range(1, segment.max() + 1):
                own = segment == number
                found[row, number] = tokens[own & ~answer].tolist(), tokens[own & answer].tolist()
        assert sorted(found.values()) == sorted((list(one.prompt), list(one.answer)) for one in wanted)
        held.append(found)
    assert held[1] == {place: (prompt, [3, 4, 1]) for place, (prompt, _) in held[0].items()}


def test_a_network_sees_one_example_at_a_time():
    def gradient(rows):
        return jax.jit(
            jax.value_and_grad(lambda params: token_loss(MODEL)(params, STATE, rows, train=True, key=None)[0])
        )(PARAMS)

    (packed, of_packed), (single, of_single) = (
        gradient(make(GIVEN)) for make in (lambda g: packed_rows(g, LENGTH), one_a_row)
    )
    assert float(packed) == pytest.approx(float(single), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), of_packed, of_single)


def table(params, model_state, inputs, *, train, key=None):
    del train, key
    return params["table"][inputs["tokens"] if isinstance(inputs, dict) else inputs], model_state


@pytest.mark.parametrize("name", [name for name in LANGUAGE_METHODS if name not in ("undial", "wga", "task_vector")])
def test_losses_of_answers_are_those_of_rows_with_one_answer(name):
    """The others are means over tokens, as the token loss is."""
    if name == "rmu":
        made = LANGUAGE_METHODS[name](
            lambda params, state, inputs: table(params, state, inputs, train=True)[0], optax.sgd(1.0)
        )
    else:
        made = LANGUAGE_METHODS[name](Model(lambda key: None, table), optax.sgd(1.0))
    params = {"table": jnp.asarray(np.random.default_rng(0).normal(0, 1, (VOCABULARY,) * 2), jnp.float32)}
    moved = {"table": params["table"] + 0.3 * jnp.asarray(np.random.default_rng(1).normal(0, 1, (VOCABULARY,) * 2))}
    found = []
    for make in (lambda given, refusals=None: packed_rows(given, LENGTH, refusals=refusals), one_a_row):
        data = Data(make(GIVEN, REFUSALS), make(OTHERS))
        carry = made.init(jax.random.key(0), params, (), data)
        whole = sh.base.Batch(*(np.arange(data_lib.size(part)) for part in data))
        batch = data_lib.gather(data, whole)
        batch = batch if name != "ce_u" else batch._replace(retain=None)
        after, metrics = jax.jit(made.step)(carry._replace(params=moved), batch)
        found.append((float(metrics["loss_forget"]), after.params["table"]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)


def largest_difference_on_four_devices():
    """Between the weights of a network that forgot on one device and on four, and how far they moved at most.

    `tests.training.sharding_test` calls it where there are several devices.
    """
    data = Data(packed_rows(GIVEN * 3, LENGTH), packed_rows(OTHERS * 4, LENGTH))
    method = LANGUAGE_METHODS["npo"](MODEL, optax.sgd(0.3), batch_size=4)
    one, four = (
        sh.run(method, jax.random.key(0), PARAMS, STATE, data, num_epochs=1, layout=layout).params
        for layout in (None, make_layout(4))
    )
    return [
        max(
            float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(*map(jax.tree.leaves, pair), strict=True)
        )
        for pair in ((one, four), (one, PARAMS))
    ]


def test_buckets_have_few_lengths_and_hold_every_example_once(caplog):
    with caplog.at_level(logging.INFO):
        buckets = bucketed_rows(GIVEN, step=4, size=3)
    lengths = {bucket.rows["tokens"].shape for bucket in buckets}
    assert "9 examples in" in caplog.text
    assert {rows for rows, _ in lengths} == {3}
    assert all(length % 4 == 0 for _, length in lengths)
    assert sorted(np.concatenate([bucket.positions for bucket in buckets])) == list(range(9))
    for bucket in buckets:
        for row, number in enumerate(bucket.positions):
            tokens, answer = bucket.rows["tokens"][row], bucket.rows["answer"][row]
            assert tokens[answer].tolist() == list(GIVEN[number].answer)
            assert tokens[: answer.argmax()].tolist() == list(GIVEN[number].prompt)
        assert not bucket.rows["answer"][len(bucket.positions) :].any()


def test_what_makes_no_row_is_named():
    for given, message in [
        ([], "no example to pack"),
        ([Encoded([], [1])], "the prompt of example 0 is empty"),
        ([GIVEN[0], Encoded([1], [])], "the answer of example 1 is empty"),
        ([Encoded([2] * LENGTH, [1])], "example 0 has 17 tokens and a row 16"),
    ]:
        with pytest.raises(InputError, match=message):
            packed_rows(given, LENGTH)
    with pytest.raises(InputError, match="9 examples and 1 refusals"):
        packed_rows(GIVEN, LENGTH, refusals=REFUSALS[:1])
    rows = packed_rows(GIVEN, LENGTH)
    with pytest.raises(InputError, match="segment has shape"):
        token_loss(MODEL)(PARAMS, STATE, {**rows, "segment": rows["segment"][:, 1:]}, train=True, key=None)
