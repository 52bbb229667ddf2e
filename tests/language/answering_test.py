"""Facts, words, greedy answers and token scores, against what they should be by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax.base import Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.answering import greedy_answers, token_scores
from scissorhands_jax.language.facts import FACTS_OF_A_PERSON, WRONG_ANSWERS, flat, make_facts, vocabulary
from scissorhands_jax.language.transformer import Transformer, hidden_of
from scissorhands_jax.language.words import ANSWER, END, PAD, WordTokenizer, rows_of
from scissorhands_jax.models.adapters import from_linen


def test_facts_have_one_right_answer_in_two_forms_and_wrong_ones():
    people = make_facts(0, 30)
    assert len({person[0].person for person in people}) == 30
    assert [len(person) for person in people] == [FACTS_OF_A_PERSON] * 30
    for fact in flat(people):
        assert fact.person in fact.question
        assert fact.value in fact.answer
        assert fact.value in fact.paraphrase
        assert fact.answer != fact.paraphrase
        assert len(set(fact.wrong)) == WRONG_ANSWERS
        assert fact.paraphrase not in fact.wrong
    assert flat(make_facts(0, 30)) == flat(people) != flat(make_facts(1, 30))
    with pytest.raises(InputError, match="not for 2000"):
        make_facts(0, 2000)


def test_rows_are_what_was_said_with_the_answer_marked():
    tokenizer = WordTokenizer(vocabulary())
    pairs = [(fact.question, fact.answer) for fact in flat(make_facts(0, 100))]
    rows = rows_of(tokenizer, pairs, 28)
    for (question, answer), tokens, mask in zip(pairs, rows["tokens"], rows["answer"], strict=True):
        assert tokenizer.decode(tokens[mask]) == answer.replace(" .", ".")
        assert tokens[mask][-1] == END
        assert tokens[mask.argmax() - 1] == ANSWER
        assert tokenizer.decode(tokens[: mask.argmax() - 1]) == question.replace(" ?", "?")
        assert (tokens[mask.argmax() + mask.sum() :] == PAD).all()
    with pytest.raises(InputError, match="a row 5"):
        rows_of(tokenizer, pairs, 5)
    with pytest.raises(InputError, match="the word 'nobody'"):
        tokenizer.encode("nobody")


def next_token(params, model_state, tokens, *, train, key=None):
    """Always predicts the token that is one larger, and END after 9."""
    following = jnp.where(tokens == 9, END, tokens + 1)
    return 5.0 * jax.nn.one_hot(following, 12), model_state


def test_greedy_answers_continue_a_question_until_they_end():
    model = Model(lambda key: ({}, ()), next_token)
    tokens = np.array([[5, 6, 7, 4, 4, 4, 0, 0], [3, 3, 3, 3, 4, 5, 6, 1]], np.int32)
    answer = np.array([[0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]], bool)
    found = greedy_answers(model, {}, (), {"tokens": tokens, "answer": answer})
    np.testing.assert_array_equal(found, [[7, 8, 9, END, 0, 0, 0, 0], [4, 5, 6, 7, 0, 0, 0, 0]])


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


def test_no_token_of_the_transformer_sees_what_comes_after_it():
    network = Transformer(20, width=8, layers=2, heads=2, length=6)
    model = from_linen(network, jax.ShapeDtypeStruct((1, 6), np.int32))
    params, state = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 20)
    other = tokens.at[:, 4:].set((tokens[:, 4:] + 1) % 20)
    one, two = (model.apply(params, state, x, train=False)[0] for x in (tokens, other))
    assert one.shape == (2, 6, 20)
    np.testing.assert_array_equal(one[:, :4], two[:, :4])
    assert not np.array_equal(one[:, 4:], two[:, 4:])
    hidden = hidden_of(network, 0)(params, state, tokens)
    assert hidden.shape == (2, 6, 8)
    assert not np.array_equal(hidden, hidden_of(network, 1)(params, state, tokens))
