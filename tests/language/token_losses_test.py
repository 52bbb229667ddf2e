"""The methods of the package over the tokens of answers: their closed forms, and which of them refuse text."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scissorhands_jax as sh
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.methods import task_vector
from scissorhands_jax.language.token_losses import answers_task, token_loss
from scissorhands_jax.methods import METHODS, bad_teacher, munba, scrub, ssd
from scissorhands_jax.methods.munba import bargain
from scissorhands_jax.methods.settings import of_task
from scissorhands_jax.tasks import task_of

VOCABULARY, SGD, T = 9, optax.sgd(1.0), 2.0
NEED_CLASSES = {"random_label", "salun", "boundary_shrink", "boundary_expand", "delete", "amun", "sfron"}


def apply(params, model_state, tokens, *, train, key=None):
    del train, key
    return params["table"][tokens], model_state


def drawn(key):
    return {"table": 0.5 * jax.random.normal(key, (VOCABULARY, VOCABULARY))}, ()


MODEL = Model(drawn, apply)
LOSS = token_loss(MODEL)
TASK = answers_task()


def rows(seed, count=4):
    generator = np.random.default_rng(seed)
    tokens, last = generator.integers(1, VOCABULARY, (count, 6)).astype(np.int32), generator.integers(4, 7, (count, 1))
    return {"tokens": tokens, "answer": (np.arange(6) >= 2) & (np.arange(6) < last)}


DATA = Data(rows(0), rows(1))
ORIGINAL, STUDENT = ({"table": np.random.default_rng(seed).normal(0, 1, (VOCABULARY,) * 2)} for seed in (2, 3))


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def pairs(*parts):
    """The token before each token of the answers, and that token."""
    found = [(t, a) for part in parts for t, a in zip(part["tokens"], part["answer"], strict=True)]
    return np.array([(row[t - 1], row[t]) for row, mask in found for t in np.flatnonzero(mask)]).T


def nll_gradient(table, *parts):
    """The mean over tokens of the loss, and its gradient."""
    before, token = pairs(*parts)
    gradient = np.zeros_like(table)
    np.add.at(gradient, before, softmax(table[before]) - np.eye(VOCABULARY)[token])
    return -np.log(softmax(table[before])[np.arange(len(token)), token]).mean(), gradient / len(token)


def divergence_gradient(teacher, table, part, weight=1.0):
    """The mean over tokens of T^2 KL, and its gradient."""
    before, _ = pairs(part)
    p, q = softmax(teacher[before] / T), softmax(table[before] / T)
    gradient = np.zeros_like(table)
    np.add.at(gradient, before, T * (q - p))
    return T**2 * (p * np.log(p / q)).sum(axis=1).mean(), weight * gradient / len(before)


def stepped(method, start=ORIGINAL, student=STUDENT):
    """What the first step of an epoch with both sets or with the forget set subtracts, and its metrics."""
    carry = method.init(jax.random.key(0), {"table": jnp.asarray(start["table"], jnp.float32)}, (), DATA)
    student = jnp.asarray(student["table"], jnp.float32)
    found = {}
    for positions in method.batches(jax.random.key(0), DATA, 0):
        batch = data_lib.gather(DATA, positions)
        after, metrics = jax.jit(method.step)(carry._replace(params={"table": student}), batch)
        kind = "+".join(name for name, part in positions._asdict().items() if part is not None)
        found[kind] = np.asarray(student - after.params["table"]), metrics, batch
    return carry, found


def test_scrub_compares_the_predictions_of_tokens():
    method = scrub(
        MODEL, SGD, task=TASK, temperature=T, kl_weight=0.4, loss_weight=0.7, batch_size=4, forget_batch_size=4
    )
    _, found = stepped(method)
    value, gradient = divergence_gradient(ORIGINAL["table"], STUDENT["table"], DATA.forget)
    step, metrics, _ = found["forget"]
    np.testing.assert_allclose(step, -gradient, atol=1e-6)
    assert float(metrics["kl_forget"]) == pytest.approx(value, rel=1e-5)
    step, metrics, _ = found["retain"]
    loss, of_loss = nll_gradient(STUDENT["table"], DATA.retain)
    np.testing.assert_allclose(
        step,
        0.4 * divergence_gradient(ORIGINAL["table"], STUDENT["table"], DATA.retain)[1] + 0.7 * of_loss,
        atol=1e-6,
    )
    assert float(metrics["loss_retain"]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_bad_teacher_weighs_tokens_alike_in_any_number_of_parts(parts):
    method = bad_teacher(MODEL, SGD, task=TASK, temperature=T, retain_fraction=1.0, batch_size=8, microbatches=parts)
    carry, found = stepped(method)
    step, metrics, batch = found["forget+retain"]
    teachers = (np.asarray(carry.aux.incompetent[0]["table"], np.float64), ORIGINAL["table"])
    counts = [part["answer"].sum() for part in batch]
    terms = [divergence_gradient(t, STUDENT["table"], part) for t, part in zip(teachers, batch, strict=True)]
    wanted = sum(count * gradient for count, (_, gradient) in zip(counts, terms, strict=True)) / sum(counts)
    np.testing.assert_allclose(step, wanted, atol=1e-6)
    for name, (value, _) in zip(("kl_forget", "kl_retain"), terms, strict=True):
        assert float(metrics[name]) == pytest.approx(value, rel=1e-5)


def test_munba_bargains_over_tokens():
    step, _, _ = stepped(munba(LOSS, SGD, forget_loss="ascent", batch_size=4))[1]["forget+retain"]
    retain, forget = (nll_gradient(STUDENT["table"], part)[1] for part in (DATA.retain, DATA.forget))
    np.testing.assert_allclose(step, bargain(jnp.asarray(retain), jnp.asarray(-forget))[0], atol=1e-5)


def test_ssd_dampens_by_gradients_over_tokens():
    key = jax.random.key(5)
    params = {"table": jnp.asarray(ORIGINAL["table"], jnp.float32)}
    carry = ssd(LOSS, selection=1.5, dampening=0.5, batch_size=4).init(key, params, (), DATA)
    forget = nll_gradient(ORIGINAL["table"], DATA.forget)[1] ** 2
    whole = {name: np.concatenate([part[name] for part in DATA]) for name in DATA.forget}
    halves = data_lib.shuffled_batches(jax.random.split(key)[1], 8, 4)
    everything = np.mean(
        [nll_gradient(ORIGINAL["table"], data_lib.take(whole, half))[1] ** 2 for half in halves], axis=0
    )
    chosen = forget > 1.5 * everything
    factor = np.where(chosen, np.minimum(0.5 * everything / np.where(chosen, forget, 1), 1), 1)
    assert 0 < chosen.sum() < chosen.size
    np.testing.assert_allclose(carry.params["table"], ORIGINAL["table"] * factor, rtol=1e-4, atol=1e-6)


def test_a_task_vector_is_subtracted():
    params = {"table": jnp.asarray(ORIGINAL["table"], jnp.float32)}
    found = sh.run(task_vector(MODEL, SGD, scale=0.5, batch_size=4), jax.random.key(0), params, (), DATA, num_epochs=1)
    gradient = nll_gradient(ORIGINAL["table"], DATA.forget)[1]
    np.testing.assert_allclose(found.params["table"], ORIGINAL["table"] + 0.5 * gradient, atol=1e-6)
    with pytest.raises(InputError, match="scale must not be negative"):
        task_vector(MODEL, SGD, scale=-1.0)


def test_the_task_of_answers_is_the_token_loss_and_its_metrics_are_percent():
    assert (task_of(LOSS), LOSS) == (TASK, token_loss(MODEL))
    logits = ORIGINAL["table"][DATA.forget["tokens"]]
    probability, exact = (metric.values(logits, DATA.forget) for metric in TASK.metrics)
    for row in range(4):
        one = data_lib.take(DATA.forget, np.array([row]))
        before, token = pairs(one)
        assert probability[row] == pytest.approx(100 * np.exp(-nll_gradient(ORIGINAL["table"], one)[0]), rel=1e-5)
        assert exact[row] == pytest.approx(100 * np.mean(ORIGINAL["table"][before].argmax(axis=1) == token))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_text_or_says_why_not(name):
    settings = METHODS[name](
        **{"batch_size": 2}
        | ({"epochs": 1} if hasattr(METHODS[name](), "learning_rate") else {})
        | ({"forget_loss": "ascent"} if name == "munba" else {})
        | ({"layers": "table"} if name in ("cf_k", "eu_k") else {})
    )
    params = {"table": jnp.asarray(ORIGINAL["table"], jnp.float32)}
    if name == "ct":
        with pytest.raises(InputError, match=r"transposes the kernels of convolutions, .* and this network has none"):
            sh.run(settings.build(MODEL, LOSS, 0), jax.random.key(0), params, (), DATA, num_epochs=1)
        return
    if name not in NEED_CLASSES:
        settings = of_task(settings, TASK) if name != "scissorhands" else METHODS[name](batch_size=2, ceiling=2.0)
        method = settings.build(MODEL, LOSS, 0)
        carry = method.init(jax.random.key(0), params, (), DATA)
        assert np.isfinite(carry.params["table"]).all()
        for batch in itertools.islice(method.batches(jax.random.key(0), DATA, 0), 2):
            jax.eval_shape(method.step, method.begin_epoch(carry, DATA), data_lib.gather(DATA, batch))
        return
    with pytest.raises(InputError, match="reads logits or labels of classes, and the task is answers"):
        of_task(settings, TASK)
    with pytest.raises(InputError, match="reads the class of every example, and those of the task 'answers' have none"):
        sh.run(settings.build(MODEL, LOSS, 3), jax.random.key(0), params, (), DATA, num_epochs=1)


def test_munba_with_random_labels_says_what_to_do_with_text():
    with pytest.raises(InputError, match='give it forget_loss="ascent"'):
        munba(LOSS, SGD, num_classes=3).init(jax.random.key(0), ORIGINAL, (), DATA)
