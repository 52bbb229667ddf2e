"""Every loss for language models against its closed form, with a network whose logits are a table of its parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scissorhands_jax as sh
from scissorhands_jax import data as data_lib
from scissorhands_jax import methods as classifier_methods
from scissorhands_jax.base import Data, Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.methods import LANGUAGE_METHODS
from scissorhands_jax.language.token_losses import answers_of, token_loss

VOCABULARY = 120  # the published code of UNDIAL takes the label -100 for an index
PAD = 0


def apply(params, model_state, tokens, *, train, key=None):
    del train, key
    return params["table"][tokens], model_state


MODEL = Model(lambda key: ({"table": jnp.zeros((VOCABULARY, VOCABULARY))}, ()), apply)


def activations(params, model_state, tokens):
    del model_state
    return params["table"][tokens][..., :7]


def rows(generator, count, *names):
    found = {}
    for name in names:
        tokens = generator.integers(1, VOCABULARY, (count, 6)).astype(np.int32)
        answer = np.zeros(tokens.shape, bool)
        for row in range(count):
            last = generator.integers(4, 7)
            answer[row, 2:last] = True
            tokens[row, last:] = PAD
        found |= {f"{name}tokens": tokens, f"{name}answer": answer}
    return found


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    return Data(rows(generator, 4, "", "refusal_"), rows(generator, 4, ""))


@pytest.fixture(scope="module")
def tables():
    """The original's table, and another to which it has moved."""
    generator = np.random.default_rng(1)
    before = generator.normal(0, 1, (VOCABULARY, VOCABULARY))
    return before, before + generator.normal(0, 0.3, before.shape)


def log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def nll(table, batch, part=""):
    """The negative log-likelihood of every answer's tokens, as a list for each row."""
    tokens, answer = batch[f"{part}tokens"], batch[f"{part}answer"]
    return [
        np.array([-log_softmax(table[row[t - 1]])[row[t]] for t in range(1, len(row)) if mask[t]])
        for row, mask in zip(tokens, answer, strict=True)
    ]


def sums(table, batch, part=""):
    return np.array([each.sum() for each in nll(table, batch, part)])


def mean(table, batch):
    return np.concatenate(nll(table, batch)).mean()


def over_positions(batch, value, *, everywhere=False, skipped=0):
    """The mean of value(token before, token) over the tokens of answers, or over all."""
    found = []
    for row, mask in zip(batch["tokens"], batch["answer"], strict=True):
        chosen = [t for t in range(1, len(row)) if mask[t]][skipped:]
        found += [value(row[t - 1], row[t], t in chosen) for t in (range(1, len(row)) if everywhere else chosen)]
    return np.mean(found)


def sigmoid_loss(values, beta):
    return np.mean(2 / beta * np.log1p(np.exp(-beta * values)))


def undial_term(before, now, beta, published=False):
    def term(previous, token, in_answer):
        target = before[previous].copy()
        target[token if in_answer or not published else VOCABULARY - 100] -= beta
        return -(np.exp(log_softmax(target)) * log_softmax(now[previous])).sum()

    return term


def ce_u_term(now):
    def term(previous, token, in_answer):
        target = now[previous].copy()
        target[token] = -np.inf
        return -(np.exp(log_softmax(target)) * log_softmax(now[previous])).sum()

    return term


def divergence(before, now):
    def term(previous, token, in_answer):
        target, own = log_softmax(before[previous]), log_softmax(now[previous])
        return (np.exp(target) * (target - own)).sum()

    return term


def wga_value(now, batch, beta):
    each = np.concatenate(nll(now, batch))
    return -(np.exp(-each) ** beta * each).mean()


CASES = [
    ("gradient_difference", {}, lambda b, n, f: -mean(n, f)),
    ("npo", {}, lambda b, n, f: sigmoid_loss(sums(n, f) - sums(b, f), 0.1)),
    ("npo", {"beta": 0.5}, lambda b, n, f: sigmoid_loss(sums(n, f) - sums(b, f), 0.5)),
    (
        "npo",
        {"compared": "logits"},
        lambda b, n, f: np.mean(2 / 0.1 * np.log1p(np.exp(-0.1 * (b[f["tokens"][:, :-1]] - n[f["tokens"][:, :-1]])))),
    ),
    ("simnpo", {"delta": 0.3}, lambda b, n, f: sigmoid_loss(np.array([x.mean() for x in nll(n, f)]) - 0.3, 4.5)),
    (
        "dpo",
        {},
        lambda b, n, f: sigmoid_loss(
            (sums(b, f, "refusal_") - sums(n, f, "refusal_")) - (sums(b, f) - sums(n, f)), 0.1
        ),
    ),
    ("undial", {}, lambda b, n, f: over_positions(f, undial_term(b, n, 10.0))),
    (
        "undial",
        {"positions": "published"},
        lambda b, n, f: over_positions(f, undial_term(b, n, 10.0, published=True), everywhere=True),
    ),
    ("ce_u", {}, lambda b, n, f: over_positions(f, ce_u_term(n), skipped=1)),
    ("ce_u", {"skipped": 0}, lambda b, n, f: over_positions(f, ce_u_term(n))),
    ("wga", {}, lambda b, n, f: wga_value(n, f, 1.0)),
    ("wga", {"beta": 2.0}, lambda b, n, f: wga_value(n, f, 2.0)),
]


def one_step(name, data, before, now, **options):
    """The metrics of a step from `now`, of a method that began with `before`, and how far the weights moved."""
    method = LANGUAGE_METHODS[name](activations if name == "rmu" else MODEL, optax.sgd(1.0), batch_size=4, **options)
    carry = method.init(jax.random.key(0), {"table": jnp.asarray(before, jnp.float32)}, (), data)
    moved = {"table": jnp.asarray(now, jnp.float32)}
    (batch,) = method.batches(jax.random.key(0), data, 0)
    positions = jax.tree.map(np.sort, batch)  # rows in their own order, which does not matter to a mean
    after, metrics = jax.jit(method.step)(carry._replace(params=moved), data_lib.gather(data, positions))
    step = np.asarray(after.params["table"], np.float64) - np.asarray(moved["table"], np.float64)
    return {key: float(value) for key, value in metrics.items()}, step, carry


@pytest.mark.parametrize(
    ("name", "options", "closed"), CASES, ids=lambda value: None if callable(value) else str(value)[:40]
)
def test_losses_are_their_closed_forms_and_steps_go_down(data, tables, name, options, closed):
    before, now = tables
    metrics, step, _ = one_step(name, data, before, now, forget_weight=1.0, retain_weight=0.0, **options)
    assert metrics["loss_forget"] == pytest.approx(closed(before, now, data.forget), rel=1e-5)
    assert "loss_retain" not in metrics
    if name in ("wga", "ce_u"):  # parts of these losses have no gradient; their gradients are tested below
        return
    small = 1e-4
    lower = closed(before, now + small * step, data.forget)
    assert (lower - closed(before, now, data.forget)) / small == pytest.approx(-((step**2).sum()), rel=2e-2)


def test_gradients_of_ce_u_and_wga_are_those_of_their_documentation(data, tables):
    before, now = tables
    _, ce_u, _ = one_step("ce_u", data, before, now, skipped=0)
    _, wga, _ = one_step("wga", data, before, now, retain_weight=0.0)
    wanted = {"ce_u": np.zeros_like(now), "wga": np.zeros_like(now)}
    count = data.forget["answer"].sum()
    for row, mask in zip(data.forget["tokens"], data.forget["answer"], strict=True):
        for t in np.flatnonzero(mask):
            p, y = np.exp(log_softmax(now[row[t - 1]])), row[t]
            right = np.arange(VOCABULARY) == y
            wanted["ce_u"][row[t - 1]] += np.where(right, p[y], -p * p[y] / (1 - p[y])) / count
            wanted["wga"][row[t - 1]] += p[y] * (right - p) / count
    np.testing.assert_allclose(ce_u, -wanted["ce_u"], atol=1e-6)
    np.testing.assert_allclose(wga, -wanted["wga"], atol=1e-6)


def test_rmu_steers_to_one_vector_and_keeps_the_rest(data, tables):
    before, now = tables
    metrics, step, carry = one_step("rmu", data, before, now, steering=3.0)
    vector = np.asarray(carry.aux[1], np.float64)
    assert np.linalg.norm(vector) == pytest.approx(3.0, rel=1e-6)
    assert (vector > 0).all()

    def distance(batch, target):
        found = []
        for row, mask in zip(batch["tokens"], batch["answer"], strict=True):
            each = [np.mean((now[token][:7] - target(token)) ** 2) for token in row[mask]]
            found.append(np.mean(each))
        return np.mean(found)

    assert metrics["loss_forget"] == pytest.approx(distance(data.forget, lambda token: vector), rel=1e-5)
    assert metrics["loss_retain"] == pytest.approx(distance(data.retain, lambda token: before[token][:7]), rel=1e-5)
    assert step.any()
    with pytest.raises(InputError, match="nothing/like/it"):
        one_step("rmu", data, before, now, trained="nothing/like/it")


@pytest.mark.parametrize(("kind", "everywhere"), [("nll", None), ("kl", False), ("kl_everywhere", True)])
def test_retain_losses(data, tables, kind, everywhere):
    before, now = tables
    metrics, _, _ = one_step("gradient_difference", data, before, now, retain_loss=kind)
    if everywhere is None:
        wanted = mean(now, data.retain)
    else:
        wanted = over_positions(data.retain, divergence(before, now), everywhere=everywhere)
    assert metrics["loss_retain"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", LANGUAGE_METHODS)
def test_every_method_runs_and_pads_and_prompts_count_for_nothing(data, name):
    params, _ = MODEL.init(jax.random.key(0))
    params = {"table": params["table"] + jax.random.normal(jax.random.key(1), params["table"].shape)}
    method = LANGUAGE_METHODS[name](activations if name == "rmu" else MODEL, optax.adam(1e-2), batch_size=2)
    result = sh.run(method, jax.random.key(2), params, (), data, num_epochs=2)
    assert result.steps == 4
    answers = data.forget["tokens"], data.forget["answer"]
    changed = [np.where(answers[1] | np.roll(answers[1], -1, axis=1), answers[0], 7)]
    other = data._replace(forget={**data.forget, "tokens": changed[0]})
    again = sh.run(method, jax.random.key(2), params, (), other, num_epochs=2)
    np.testing.assert_array_equal(result.params["table"], again.params["table"])


def test_methods_without_code_of_their_own_take_the_token_loss(data, tables):
    before = tables[0].copy()
    for tokens in (part["tokens"] for part in data):
        before[tokens[:, :-1], tokens[:, 1:]] += 4  # a network that knows both sets
    loss_fn, params = token_loss(MODEL), {"table": jnp.asarray(before, jnp.float32)}
    value, _ = loss_fn(params, (), data.retain, train=True, key=None)
    assert float(value) == pytest.approx(mean(before, data.retain), rel=1e-5)
    assert loss_fn == token_loss(MODEL)
    methods = {
        "scissorhands": classifier_methods.scissorhands(
            loss_fn, optax.adam(1e-2), fraction=0.1, ceiling=5.0, batch_size=2
        ),
        "finetune": classifier_methods.finetune(loss_fn, optax.adam(1e-2), batch_size=2),
        "neggrad_plus": classifier_methods.neggrad_plus(loss_fn, optax.adam(1e-2), batch_size=2),
        "gradient_ascent": classifier_methods.gradient_ascent(loss_fn, optax.adam(1e-2), batch_size=2),
    }
    for name, method in methods.items():
        result = sh.run(method, jax.random.key(0), params, (), data, num_epochs=2)
        forget, retain = (mean(np.asarray(result.params["table"], np.float64), part) for part in data)
        if name != "finetune":
            assert forget > mean(before, data.forget), name
        if name in ("finetune", "neggrad_plus"):
            assert retain < mean(before, data.retain), name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("npo", {"beta": 0.0}, "beta must be above 0"),
        ("simnpo", {"beta": -1.0}, "beta must be above 0"),
        ("dpo", {"beta": float("nan")}, "beta must be above 0"),
        ("simnpo", {"delta": math.inf}, "delta must be a finite number, got inf"),
        ("simnpo", {"delta": math.nan}, "delta must be a finite number, got nan"),
        ("npo", {"beta": math.inf}, "beta must be finite, got inf"),
        ("rmu", {"steering": math.inf}, "steering must be finite"),
        ("npo", {"compared": "tokens"}, "choose one of answers, logits"),
        ("undial", {"positions": "x"}, "choose one of answers, published"),
        ("undial", {"beta": -1.0}, "beta must not be negative"),
        ("wga", {"beta": -1.0}, "beta must not be negative"),
        ("ce_u", {"skipped": -1}, "skipped must not be negative"),
        ("npo", {"retain_loss": "x"}, "choose one of nll, kl"),
        ("npo", {"forget_weight": -1.0}, "forget_weight must not be negative"),
        ("rmu", {"steering": 0.0}, "steering must be above 0"),
        ("rmu", {"retain_weight": -1.0}, "retain_weight must not be negative"),
        ("npo", {"batch_size": 0}, "batch"),
    ],
)
def test_settings_out_of_range_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        LANGUAGE_METHODS[name](MODEL, optax.sgd(1.0), **options)


def test_batches_that_are_no_text_are_refused(data):
    for batch, message in [
        ({"tokens": data.retain["tokens"]}, "has tokens; give a dict"),
        ({"tokens": data.retain["tokens"], "answer": data.retain["answer"][:2]}, "has shape"),
        ({"tokens": data.retain["tokens"] * 1.0, "answer": data.retain["answer"]}, "float"),
        ((), "has tuple"),
    ]:
        with pytest.raises(InputError, match=message):
            answers_of(batch)
    method = LANGUAGE_METHODS["dpo"](MODEL, optax.sgd(1.0), batch_size=4)
    with pytest.raises(InputError, match="refusal_tokens"):
        sh.run(
            method,
            jax.random.key(0),
            MODEL.init(jax.random.key(0))[0],
            (),
            Data(data.retain, data.retain),
            num_epochs=1,
        )
    empty = jax.tree.map(lambda leaf: leaf[:0], data.retain)
    with pytest.raises(InputError, match="forget set is empty"):
        sh.run(method, jax.random.key(0), MODEL.init(jax.random.key(0))[0], (), Data(empty, data.retain), num_epochs=1)


def test_parts_of_a_batch_give_the_step_of_the_whole(data):
    """Losses that are means over answers; the original is compared with in both."""
    params = {"table": 0.1 * jax.random.normal(jax.random.key(0), (VOCABULARY, VOCABULARY))}
    steps = []
    for parts in (1, 2):
        method = LANGUAGE_METHODS["npo"](MODEL, optax.sgd(1.0), batch_size=4, retain_weight=0.0, microbatches=parts)
        carry = method.init(jax.random.key(1), params, (), data)
        steps.append(
            method.step(carry, data_lib.gather(data, next(iter(method.batches(jax.random.key(2), data, 0)))))[0]
        )
    np.testing.assert_allclose(steps[0].params["table"], steps[1].params["table"], atol=1e-6)
    assert np.abs(steps[0].params["table"] - params["table"]).max() > 1e-3
    with pytest.raises(InputError, match="cannot be divided into 3"):
        LANGUAGE_METHODS["npo"](MODEL, optax.sgd(1.0), batch_size=4, microbatches=3)
