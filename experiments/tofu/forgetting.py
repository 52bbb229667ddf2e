"""The methods of the experiment, what is tried of each, and how they forget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import scissorhands_jax as sh
from experiments.tofu.scene import Scene, Subject, TofuSettings
from scissorhands_jax import methods
from scissorhands_jax.base import Carry, Data, Method
from scissorhands_jax.errors import NonFiniteError
from scissorhands_jax.language import methods as language_methods
from scissorhands_jax.language.measuring import Network
from scissorhands_jax.language.methods import LANGUAGE_METHODS
from scissorhands_jax.language.token_losses import answers_task, token_loss
from scissorhands_jax.language.transformer import hidden_of


def _rated(make: Callable[[optax.GradientTransformation], Method], steps: int) -> Callable[[float], Method]:
    """A method whose learning rate lies in the state of its optimizer, so that it is compiled once for all rates."""

    def adam(rate):
        decay = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, steps))
        return optax.chain(optax.adamw(rate, weight_decay=0.01), decay)

    method = make(optax.inject_hyperparams(adam)(rate=1.0))

    def at(rate: float) -> Method:
        def init(*arguments: Any) -> Carry:
            carry = method.init(*arguments)
            return carry._replace(opt_state=optax.tree_utils.tree_set(carry.opt_state, rate=jnp.float32(rate)))

        return method._replace(init=init)

    return at


class Candidate(NamedTuple):
    """One choice of settings of a method."""

    rate: float
    setting: Any
    """The value of the setting that `STRENGTHS` names; None if the method has none."""


STRENGTHS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "scissorhands": ("fraction", (0.05, 0.005)),
    "finetune": ("", (None, None)),
    "gradient_ascent": ("", (None, None)),
    "munba": ("", (None, None)),
    "scrub": ("kl_weight", (0.001, 0.5)),
    "bad_teacher": ("temperature", (1.0, 2.0)),
    "ssd": ("dampening", (1.0, 0.1)),
    "gradient_difference": ("forget_weight", (1.0, 0.1)),
    "npo": ("beta", (0.1, 1.0)),
    "simnpo": ("forget_weight", (0.125, 1.0)),
    "dpo": ("beta", (0.1, 1.0)),
    "rmu": ("steering", (2.0, 20.0)),
    "undial": ("retain_weight", (0.0, 1.0)),
    "ce_u": ("retain_weight", (0.0, 1.0)),
    "wga": ("beta", (1.0, 0.3)),
    "task_vector": ("scale", (1.0, 0.3)),
}
"""For each method the setting that is tuned next to the rate, with its default and another value. Methods that have
none are tried at twice as many rates; `ssd` has no rate and is tried at as many values of `selection`."""

HALF_SEEN = ("scrub", "bad_teacher")
"""The methods whose steps see half as many rows of the forget set as those of the others that read it: SCRUB takes its
steps on one set or the other, and each batch of Bad Teacher has rows of both."""


def candidates(settings: TofuSettings, name: str) -> list[Candidate]:
    """What is tried of a method, the same number for all."""
    setting, values = STRENGTHS[name]
    between = [math.sqrt(low * high) for low, high in itertools.pairwise(settings.rates)]
    if not setting:
        count = 2 * len(settings.rates)
        rates = [*settings.rates, *between, settings.rates[-1] * 2, settings.rates[0] / 2][:count]
        return [Candidate(rate, None) for rate in rates]
    return [Candidate(rate, value) for value in values for rate in settings.rates]


class Maker:
    """Makes methods; the same settings give the same compiled step."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._made: dict[tuple[str, Any, float | None], Callable[[float], Method]] = {}

    def method(self, name: str, candidate: Candidate, ceiling: float) -> Method:
        """A method with the settings of a candidate.

        Args:
          name: One of `STRENGTHS`.
          candidate: Its rate and setting.
          ceiling: That of Scissorhands.
        """
        settings, setting = self._subject.settings, STRENGTHS[name][0]
        options = {setting: candidate.setting} if setting else {}
        if name == "ssd":
            selection = 2.5 * candidate.rate / settings.rates[len(settings.rates) // 2]
            size = settings.forget_batch
            return methods.ssd(token_loss(self._subject.model), batch_size=size, selection=selection, **options)
        if name == "scissorhands":
            options["ceiling"] = ceiling
        key = name, candidate.setting, options.get("ceiling")
        if key not in self._made:
            self._made[key] = _rated(lambda adam: self._make(name, adam, options), settings.steps)
        return self._made[key](candidate.rate)

    def _make(self, name: str, optimizer: optax.GradientTransformation, options: Mapping[str, Any]) -> Method:
        subject, size = self._subject, self._subject.settings.forget_batch
        make: Callable[..., Method] = getattr(language_methods if name in LANGUAGE_METHODS else methods, name)
        if name in LANGUAGE_METHODS:
            layer = (subject.settings.layers - 1) // 2
            network = hidden_of(subject.network, layer) if name == "rmu" else subject.model
            return make(network, optimizer, batch_size=size, **options)
        loss_fn = token_loss(subject.model)
        if name in ("scrub", "bad_teacher"):
            more: dict[str, Any] = {"forget_batch_size": size} if name == "scrub" else {"retain_fraction": 1.0}
            size = size if name == "scrub" else 2 * size
            return make(subject.model, optimizer, task=answers_task(), batch_size=size, **more, **options)
        more = {
            "scissorhands": {"forget_weight": 0.2, "trim": r"block\d+/.*kernel"},
            "munba": {"forget_loss": "ascent"},
        }.get(name, {})
        return make(loss_fn, optimizer, batch_size=size, **more, **options)


def all_batches(method: Method, data: Data, key: Any, steps: int) -> Iterator[Any]:
    """The batches of a whole run, epoch after epoch, as far as so many steps reach."""
    for epoch in range(_epochs(method, data, steps)):
        yield from _cut(method, key, data, epoch, steps)


def _epochs(method: Method, data: Data, steps: int) -> int:
    first = list(method.batches(jax.random.key(0), data, 0))
    return -(-steps // max(1, len(first))) if first else 0


def forget(
    subject: Subject, scene: Scene, original: Network, name: str, method: Method, seed: int
) -> tuple[Network, int, float]:
    """Runs a method for the steps of the settings.

    Returns:
      The network, the steps that it took, and the seconds without compilation.

    Raises:
      NonFiniteError: A metric or a weight became NaN or infinite.
    """
    steps, data = subject.settings.steps, scene.refused if name == "dpo" else scene.data
    epochs = _epochs(method, data, steps)
    later = method._replace(batches=lambda key, data, epoch: _cut(method, key, data, epoch, steps))
    key = jax.random.key(1000 + seed)
    found = sh.run(later, key, original.params, original.model_state, data, num_epochs=epochs)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params)):
        raise NonFiniteError(found.steps, "a weight", math.nan, "lower the learning rate")
    return original._replace(params=found.params, model_state=found.model_state), found.steps, found.seconds


def _cut(method: Method, key: Any, data: Data, epoch: int, steps: int) -> Iterator[Any]:
    """The batches of an epoch, as far as the steps of the whole run reach."""
    before = sum(len(list(method.batches(key, data, earlier))) for earlier in range(epoch))
    return itertools.islice(method.batches(key, data, epoch), max(0, steps - before))
