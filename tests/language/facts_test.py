"""Facts, words, and the network that learns them, against what they should be by construction."""

import jax
import numpy as np
import pytest

from scissorhands_jax.errors import InputError
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
