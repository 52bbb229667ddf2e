"""The facts of the demonstration as rows of tokens, and the network that learns them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
import optax

from scissorhands_jax.base import Data, Method, Model, ModelState, Params, PyTree
from scissorhands_jax.language.demo.settings import FactsSettings
from scissorhands_jax.language.facts import FACTS_OF_A_PERSON, Fact, flat, make_facts, vocabulary
from scissorhands_jax.language.greedy import StepDecoder
from scissorhands_jax.language.packing import Encoded
from scissorhands_jax.language.token_losses import token_loss
from scissorhands_jax.language.transformer import Transformer, decoder_of
from scissorhands_jax.language.words import WordTokenizer, encode_pair, rows_of
from scissorhands_jax.methods.finetune import finetune
from scissorhands_jax.models.adapters import from_linen
from scissorhands_jax.training.loop import OnStep, run

ROW = 28  # tokens; the longest question with its answer has 24


@dataclasses.dataclass(frozen=True)
class FactsScene:
    """What all networks of a demonstration have in common."""

    tokenizer: WordTokenizer
    model: Model
    decoder: StepDecoder
    forget: Sequence[Fact]
    retain: Sequence[Fact]
    held_out: Sequence[Fact]
    training: Method
    """How networks learn; one value for all of them, so that it is compiled once."""

    def rows(self, facts: Sequence[Fact]) -> dict[str, np.ndarray]:
        """Facts in the form in which they are learned, see `words.rows_of`."""
        return rows_of(self.tokenizer, [(fact.question, fact.answer) for fact in facts], ROW)

    def encode(self, question: str, answer: str) -> Encoded:
        """A question and an answer as tokens."""
        return encode_pair(self.tokenizer, question, answer)

    @property
    def data(self) -> Data:
        """The facts to forget and those to keep."""
        return Data(self.rows(self.forget), self.rows(self.retain))


def make_facts_scene(settings: FactsSettings) -> FactsScene:
    """Makes up the people; the first ones are forgotten and the last ones held out."""
    people = make_facts(settings.seed, settings.people + settings.held_out)
    tokenizer = WordTokenizer(vocabulary())
    training = settings.training
    network = Transformer(tokenizer.size, training.width, training.layers, length=ROW)
    model = from_linen(network, jax.ShapeDtypeStruct((1, ROW), np.int32))
    steps = training.epochs * _steps_in_epoch(settings, settings.people)
    rate = optax.warmup_cosine_decay_schedule(0.0, training.learning_rate, steps // 10, steps)
    optimizer = optax.adamw(rate, weight_decay=training.weight_decay)
    forget, known = settings.forgotten, settings.people
    return FactsScene(
        tokenizer=tokenizer,
        model=model,
        decoder=decoder_of(network),
        forget=flat(people[:forget]),
        retain=flat(people[forget:known]),
        held_out=flat(people[known:]),
        training=finetune(token_loss(model), optimizer, batch_size=training.batch_size),
    )


def _steps_in_epoch(settings: FactsSettings, people: int) -> int:
    return math.ceil(people * FACTS_OF_A_PERSON / settings.training.batch_size)


def train_facts(
    settings: FactsSettings, scene: FactsScene, number: int, *, without: bool, on_step: OnStep | None = None
) -> tuple[Params, ModelState]:
    """Trains a network from fresh weights.

    Args:
      settings: How.
      scene: The network and the facts.
      number: The number of the network, of which its seed is made.
      without: Whether it is to learn the facts to keep alone. It then takes the same number of steps, to less than an
        epoch.
      on_step: Shows progress.
    """
    facts = scene.retain if without else [*scene.forget, *scene.retain]
    steps = settings.training.epochs * _steps_in_epoch(settings, settings.people)
    epochs = round(steps / _steps_in_epoch(settings, len(facts) // FACTS_OF_A_PERSON))
    init_key, key = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), number))
    rows = scene.rows(facts)
    nothing = {name: values[:0] for name, values in rows.items()}
    params, model_state = scene.model.init(init_key)
    result = run(scene.training, key, params, model_state, Data(nothing, rows), num_epochs=epochs, on_step=on_step)
    return result.params, result.model_state


def mean_loss(scene: FactsScene, params: Params, model_state: ModelState, rows: PyTree) -> float:
    """The mean negative log-likelihood of a token of the answers, in nats.

    Args:
      scene: The model and its texts.
      params: The parameters of the network that answers.
      model_state: Its state.
      rows: The packed texts.
    """
    return float(token_loss(scene.model)(params, model_state, rows, train=False, key=None)[0])
