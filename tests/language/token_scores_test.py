"""Measures of what was learned by heart, against their definitions."""

import builtins

import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax.base import Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.rouge import rouge_l
from scissorhands_jax.language.token_scores import (
    TokenScores,
    answer_probability,
    exact_memorization,
    extraction_strength,
    min_k,
    token_scores,
)


def scores(probabilities, right=None, mask=None):
    logs = np.log(np.array(probabilities, float))
    right = np.ones(logs.shape, bool) if right is None else np.array(right, bool)
    mask = np.ones(logs.shape, bool) if mask is None else np.array(mask, bool)
    return TokenScores(logs, right, np.full(logs.shape, -1.0), np.full(logs.shape, 0.5), mask)


def test_probability_is_the_geometric_mean_of_the_answers_tokens():
    found = answer_probability(scores([[0.5, 0.125, 0.9], [0.2, 0.2, 0.2]], mask=[[1, 1, 0], [0, 0, 1]]))
    np.testing.assert_allclose(found, [0.25, 0.2])


@pytest.mark.parametrize(
    ("right", "strength", "exact"),
    [
        ([1, 1, 1, 1], 1, 1),
        ([0, 1, 1, 1], 0.75, 0.75),
        ([1, 1, 0, 1], 0.25, 0.75),
        ([1, 1, 1, 0], 0, 0.75),
        ([0] * 4, 0, 0),
    ],
)
def test_extraction_strength_and_exact_memorization(right, strength, exact):
    padded = scores([[0.5] * 6], right=[[0, *right, 0]], mask=[[0, 1, 1, 1, 1, 0]])
    assert extraction_strength(padded) == [strength]
    assert exact_memorization(padded) == [exact]


def test_min_k_takes_the_least_probable_tokens():
    one = scores([[0.9, 0.1, 0.2, 0.001]], mask=[[1, 1, 1, 0]])
    assert min_k(one, share=0.4) == pytest.approx(-np.log(0.1))
    assert min_k(one, share=0.7) == pytest.approx(-np.log([0.1, 0.2]).mean())
    assert min_k(one, share=0.1) == pytest.approx(-np.log(0.1))
    assert min_k(one, share=0.4, normalized=True) == pytest.approx(-(np.log(0.1) + 1) / 0.5)
    for share in (0, 1.5):
        with pytest.raises(InputError, match=f"share is {share}"):
            min_k(one, share=share)


def test_an_answer_without_tokens_is_named():
    for measure in (answer_probability, exact_memorization, extraction_strength, min_k):
        with pytest.raises(InputError, match="answer 1 has no token"):
            measure(scores([[0.5], [0.5]], mask=[[1], [0]]))


def test_rouge_stems_words_and_counts_the_longest_common_subsequence(monkeypatch):
    found = rouge_l(["she writes novels", ""], ["She wrote a novel about novels", "a b"])
    # "she", "novel" (stemmed) of six words: "writes" has another stem than "wrote".
    np.testing.assert_allclose(found.recall, [2 / 6, 0])
    np.testing.assert_allclose(found.f_measure, [2 * (2 / 6) * (2 / 3) / (2 / 6 + 2 / 3), 0])
    with pytest.raises(InputError, match="1 texts and 0 references"):
        rouge_l(["a"], [])
    for reference in ("Москва - столица", "東京", "!"):
        with pytest.raises(
            InputError, match=f"reference 1 is '{reference}', and ROUGE-L counts words of Latin letters"
        ):
            rouge_l(["a", reference], ["A", reference])
    assert rouge_l(["año 2"], ["Año 2"]).recall == 1
    usual = builtins.__import__

    def without(name, *rest):
        if name.startswith("rouge_score"):
            raise ModuleNotFoundError(name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="install the extra `language`"):
        rouge_l([], [])


def test_token_scores_are_those_of_the_predictions():
    generator = np.random.default_rng(0)
    table = generator.normal(0, 1, (12, 12)).astype(np.float32)
    model = Model(lambda key: ({}, ()), lambda p, s, x, *, train, key=None: (jnp.asarray(table)[x], s))
    tokens = generator.integers(0, 12, (3, 6)).astype(np.int32)
    rows = {"tokens": tokens, "answer": tokens > 3}
    found = token_scores(model, {}, (), rows)
    logs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    for row in range(3):
        for t in range(5):
            p = logs[tokens[row, t]]
            assert found.log_probability[row, t] == pytest.approx(p[tokens[row, t + 1]], rel=1e-4)
            assert found.is_largest[row, t] == (p.argmax() == tokens[row, t + 1])
            assert found.mean[row, t] == pytest.approx((np.exp(p) * p).sum(), rel=1e-4)
            wanted = ((np.exp(p) * p**2).sum() - (np.exp(p) * p).sum() ** 2) ** 0.5
            assert found.deviation[row, t] == pytest.approx(wanted, rel=1e-3)
    np.testing.assert_array_equal(found.mask, (tokens > 3)[:, 1:])


def test_packed_rows_are_refused():
    model = Model(lambda key: None, lambda params, state, tokens, *, train, key=None: (params[tokens], state))
    rows = {"tokens": np.zeros((1, 4), int), "answer": np.ones((1, 4), bool), "segment": np.array([[1, 1, 2, 2]])}
    with pytest.raises(InputError, match="packed with several examples"):
        token_scores(model, jnp.zeros((3, 3)), (), rows)
