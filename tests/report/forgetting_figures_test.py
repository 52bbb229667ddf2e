"""The picture of networks that forget: it has every answer, and those with the forgotten label stand out."""

import numpy as np
import pytest

from scissorhands_jax import report
from scissorhands_jax.errors import InputError


def example(label="3", original="3", unlearned="8", image=None):
    answers = {"original": report.Answer(original, 0.99), "unlearned": report.Answer(unlearned, 0.4)}
    return report.ForgottenExample(np.ones((8, 8, 1)) if image is None else image, label, answers)


GAPS = {"original": 16.85, "unlearned": 2.19}


@pytest.mark.parametrize("image", [np.zeros((8, 8)), np.zeros((8, 8, 1)), np.zeros((8, 8, 3))])
def test_every_answer_and_gap_is_drawn(image):
    figure = report.forgetting_figure([example(), example("5", "5", "5", image)], GAPS)
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert {"original", "unlearned", "99 %", "40 %", "16.9", "2.2"} <= set(texts)
    assert texts.count("3") == 2  # its label, and what the original says
    assert texts.count("8") == 1
    assert len(axes.images) == 2


def test_answers_with_the_forgotten_label_have_a_colour_of_their_own():
    (axes,) = report.forgetting_figure([example()], {"original": 2.0, "unlearned": 0.0}).axes
    still, other = (axes.collections[place].get_facecolor()[0] for place in (0, 2))
    assert still[0] > still[2]  # orange
    assert other[2] > other[0]  # blue
    longest, shortest = (np.ptp(axes.collections[place].get_paths()[0].vertices[:, 0]) for place in (1, 3))
    assert longest > shortest == 0


@pytest.mark.parametrize(
    ("examples", "gaps", "message"),
    [
        ([], GAPS, "there are 0 examples and . networks"),
        ([example()], {}, "1 examples and 0 networks"),
        ([example()], GAPS | {"retrained": 0.0}, "no answer of retrained"),
        ([example(image=np.zeros(8))], GAPS, r"image of shape \(8,\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(examples, gaps, message):
    with pytest.raises(InputError, match=message):
        report.forgetting_figure(examples, gaps)
