"""A small diffusion network that draws handwritten digits, and forgets one: all of `scissorhands demo diffusion`.

The network is the UNet of Stable Diffusion in small. A picture of 8x8 pixels becomes a latent of 4x4 places with 2x2
pixels each, which takes the place of the VAE; frozen random vectors take the place of the prompts' embeddings, and
zeros that of the empty prompt. Everything else is what Stable Diffusion and classifiers have: `losses`, `schedules`,
`scissorhands` and `run`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.svm import SVC

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import (
    Carry,
    Data,
    Dataset,
    Key,
    Method,
    Model,
    ModelState,
    Params,
    PyTree,
    Scalar,
    StatefulLossFn,
)
from scissorhands_jax.datasets import digits as load_digits
from scissorhands_jax.diffusion import networks, schedules
from scissorhands_jax.diffusion.losses import concept_loss, noise_loss
from scissorhands_jax.diffusion.unet import Noisy, UNetConfig
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import retrain, scissorhands
from scissorhands_jax.metrics import distances, intervals
from scissorhands_jax.training import loop as training

NUM_DIGITS = 10
NETWORK = UNetConfig(widths=(40,), attention=(False,), layers_per_block=1, heads=4, context_width=32, groups=8)
SCHEDULE = schedules.Schedule(kind="cosine")
ORIGINAL, RETRAINED, UNLEARNED = "original", "retrain", "scissorhands"
PUBLISHED = "another text"


class Variant(NamedTuple):
    """A way to unlearn.

    trimmed: salient weights are re-initialised.
    projected: no step makes the forget loss better, by the projection.
    instead: the forget loss is that of the published code for Stable Diffusion, the distance to what is predicted for
      another digit, instead of the paper's, the noise loss.
    """

    trimmed: bool
    projected: bool
    instead: bool = False


VARIANTS = {
    UNLEARNED: Variant(True, True),
    "no re-initialisation": Variant(False, True),
    "no projection": Variant(True, False),
    PUBLISHED: Variant(True, False, instead=True),
}
"""What forgets by unlearning: Algorithm 1 of the paper, the same without either part, and the published code."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsTraining:
    """How networks learn to draw: Adam, whose rate falls by half a cosine to nothing.

    Attributes:
      epochs: passes over the training digits.
      batch_size: examples of a step.
      learning_rate: at the beginning.
      dropped: share of the examples whose text is taken away, so that the network also learns the empty text.
    """

    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 4e-3
    dropped: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsUnlearning:
    """Settings of `scissorhands`; every step has forget and retain examples.

    Adam's rate falls as in `Training`. Only weights of the attention are re-initialised, as in the published code for
    Stable Diffusion. `published_weight` takes the place of `forget_weight` where the loss is that code's.
    """

    epochs: int = 8
    batch_size: int = 128
    forget_batch_size: int = 64
    learning_rate: float = 1e-3
    fraction: float = 0.003
    forget_weight: float = 0.02
    published_weight: float = 1.0
    trim: str | None = ".*/attn."


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsSampling:
    """How digits are drawn and how many of them are judged.

    Attributes:
      steps: of DDIM.
      guidance: see `schedules.guided`.
      forgotten: drawings of the forgotten digit.
      kept: drawings of each other digit.
      unasked: drawings with the empty text.
      batch_size: drawings at a time.
      resamples: of the bootstrap behind the interval of the Fréchet distance.
    """

    steps: int = 20
    guidance: float = 2.0
    forgotten: int = 150
    kept: int = 50
    unasked: int = 100
    batch_size: int = 100
    resamples: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """Everything that the numbers depend on.

    Attributes:
      digit: to be forgotten.
      seed: of texts, networks and noise.
      network: of the UNet; latents have four channels.
      training: of the original and of the retrained network.
      unlearning: of all that unlearn.
      sampling: of what is judged.
    """

    digit: int = 0
    seed: int = 0
    network: UNetConfig = NETWORK
    training: DigitsTraining = DigitsTraining()
    unlearning: DigitsUnlearning = DigitsUnlearning()
    sampling: DigitsSampling = DigitsSampling()

    def __post_init__(self) -> None:
        if not 0 <= self.digit < NUM_DIGITS:
            raise InputError(f"--digit must be 0 to {NUM_DIGITS - 1}, got {self.digit}")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"--seed must be 0 to {2**31 - 1}, got {self.seed}")

    @property
    def instead(self) -> int:
        """The digit that `PUBLISHED` draws in place of the forgotten one."""
        return (self.digit + 1) % NUM_DIGITS


class Scene(NamedTuple):
    """What all networks of one seed share."""

    train: Dataset  # real digits, {"image": (N, 8, 8, 1) in [0, 1], "label": (N,)}
    test: Dataset
    texts: np.ndarray  # one per digit, then the empty one. shape=(11, 1, D)
    judge: SVC  # trained on the real training digits
    keys: Mapping[str, Key]


def fold_images(images: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Images in [0, 1], shape (N, 2H, 2W, 1), as latents in [-1, 1], shape (N, H, W, 4)."""
    count, height, width, _ = images.shape
    tiles = images.reshape(count, height // 2, 2, width // 2, 2).swapaxes(2, 3)
    return 2 * tiles.reshape(count, height // 2, width // 2, 4) - 1


def unfold_latents(latents: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """The inverse of `fold`."""
    count, height, width, _ = latents.shape
    tiles = latents.reshape(count, height, width, 2, 2).swapaxes(2, 3)
    return (tiles.reshape(count, 2 * height, 2 * width, 1) + 1) / 2


@functools.cache
def network(config: UNetConfig) -> Model:
    """The UNet, with an `init` that is compiled as a whole and in a hurry, because it runs a few times only."""
    model = networks.unet(config)
    hurry = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return Model(jax.jit(model.init, compiler_options=hurry), model.apply)


@dataclasses.dataclass(frozen=True)
class _Dropped:
    """A loss whose batches lose some of their texts to the empty one, but for those that say what to draw instead."""

    loss_fn: StatefulLossFn
    share: float

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]:
        if key is not None and "pseudo" not in batch:
            key, drop_key = jax.random.split(key)
            kept = jax.random.bernoulli(drop_key, 1 - self.share, (batch["context"].shape[0], 1, 1))
            batch = {**batch, "context": batch["context"] * kept}
        return self.loss_fn(params, model_state, batch, train=train, key=key)


@functools.cache
def _adam(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """One value per setting, so that networks of one size share compiled code."""
    return optax.adam(optax.cosine_decay_schedule(learning_rate, steps))


@functools.cache
def _learning(config: UNetConfig, settings: DigitsTraining, steps: int) -> Method:
    """One value per setting, so that networks of one size share compiled code."""
    loss_fn = _Dropped(noise_loss(network(config), SCHEDULE), settings.dropped)
    return retrain(network(config), loss_fn, _adam(settings.learning_rate, steps), batch_size=settings.batch_size)


@functools.cache
def _unlearning(config: UNetConfig, dropped: float, settings: DigitsUnlearning, steps: int, way: Variant) -> Method:
    """As `_learning`."""
    return scissorhands(
        _Dropped(concept_loss(network(config), SCHEDULE), dropped),
        _adam(settings.learning_rate, steps),
        fraction=settings.fraction,
        forget_weight=settings.published_weight if way.instead else settings.forget_weight,
        trim=settings.trim,
        projected=way.projected,
        batch_size=settings.batch_size,
        forget_batch_size=settings.forget_batch_size,
        saliency_loss_fn=noise_loss(network(config), SCHEDULE),
        departures={"saliency_train": True, "every_step_joint": True},
    )


def _untrimmed(method: Method) -> Method:
    """The same method, begun at the very weights of the original: the same steps without the re-initialisation."""

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        return method.init(key, params, model_state, data)._replace(params=params)

    return method._replace(init=init)


def make_scene(settings: DigitsSettings) -> Scene:
    """Data, texts and a trained judge; none of it depends on the digit."""
    splits = load_digits()
    names = ("texts", ORIGINAL, RETRAINED, UNLEARNED, "noise", "losses")
    keys = dict(zip(names, jax.random.split(jax.random.key(settings.seed), len(names)), strict=True))
    texts = np.zeros((NUM_DIGITS + 1, 1, settings.network.context_width), np.float32)
    texts[:NUM_DIGITS] = jax.random.normal(keys["texts"], texts[:NUM_DIGITS].shape)
    judge = SVC(C=10, gamma=0.05).fit(_flat(splits.train["image"]), splits.train["label"])
    return Scene(splits.train, splits.test, texts, judge, keys)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _none_of(dataset: Dataset) -> Dataset:
    return data_lib.take(dataset, np.zeros(0, np.int32))


def _cost(result: training.Result) -> dict[str, float]:
    return {"seconds": result.seconds, "compile_seconds": result.compile_seconds, "steps": result.steps}


def examples(scene: Scene, digit: int | None, instead: int | None = None) -> Data:
    """The training digits as diffusion networks take them.

    Args:
      scene: data and texts.
      digit: what is to be forgotten; None forgets nothing, and all digits are retained.
      instead: the digit whose text is the forget examples' `pseudo`.
    """
    labels = scene.train["label"]
    dataset = {"latents": fold_images(scene.train["image"]), "context": scene.texts[labels]}
    if digit is None:
        return Data(_none_of(dataset), dataset)
    data = data_lib.split(dataset, np.flatnonzero(labels == digit))
    if instead is None:
        return data
    pseudo = np.broadcast_to(scene.texts[instead], data.forget["context"].shape)
    return data._replace(forget={**data.forget, "pseudo": pseudo})


class DrawingNetwork(NamedTuple):
    """A network that draws, what it cost, and where its losses came to."""

    params: Params
    cost: dict[str, float]
    losses: dict[str, float]  # means over the last epoch, by metric


def learn(
    settings: DigitsSettings, scene: Scene, digit: int | None, on_step: training.OnStep | None = None
) -> DrawingNetwork:
    """Trains a network from scratch on all digits but one; both kinds take as many steps.

    Args:
      settings: of the training.
      scene: data, texts and keys.
      digit: what it never sees; None trains on all digits.
    """
    data = examples(scene, digit)
    batch_size = settings.training.batch_size
    steps = settings.training.epochs * -(-len(scene.train["label"]) // batch_size)
    epochs = max(1, round(steps / -(-data_lib.size(data.retain) // batch_size)))
    method = _learning(settings.network, settings.training, steps)
    key = scene.keys[ORIGINAL] if digit is None else jax.random.fold_in(scene.keys[RETRAINED], digit)
    return _run(method, key, {}, data, epochs, on_step)


def unlearn_digit(
    settings: DigitsSettings,
    scene: Scene,
    original: Params,
    way: Variant = VARIANTS[UNLEARNED],
    *,
    on_step: training.OnStep | None = None,
) -> DrawingNetwork:
    """Makes the original forget `settings.digit` by Scissorhands.

    Args:
      settings: of the method.
      scene: data, texts and keys.
      original: the network, which stays as it is.
      way: what is left out of it.
    """
    data = examples(scene, settings.digit, settings.instead if way.instead else None)
    chosen = settings.unlearning
    steps = chosen.epochs * -(-data_lib.size(data.retain) // chosen.batch_size)
    method = _unlearning(settings.network, settings.training.dropped, chosen, steps, way)
    key = jax.random.fold_in(scene.keys[UNLEARNED], settings.digit)
    return _run(method if way.trimmed else _untrimmed(method), key, original, data, settings.unlearning.epochs, on_step)


def _run(
    method: Method, key: Key, params: Params, data: Data, epochs: int, on_step: training.OnStep | None
) -> DrawingNetwork:
    last: list[dict[str, float]] = []

    def watch(step: training.Progress) -> None:
        if step.epoch == epochs - 1:
            last.append({name: float(value) for name, value in step.metrics.items() if name.startswith("loss_")})
        if on_step is not None:
            on_step(step)

    result = training.run(method, key, params, {}, data, num_epochs=epochs, on_step=watch)
    means = {name: float(np.mean([row[name] for row in last])) for name in last[0]}
    return DrawingNetwork(result.params, _cost(result), means)


@functools.partial(jax.jit, static_argnames="model")
def _sample(model: Model, params: Params, sampler, noise, context, empty, guidance):
    def predict(noisy: Noisy) -> jax.Array:
        return model.apply(params, {}, noisy, train=False)[0]

    return schedules.sample(sampler, schedules.guided(predict, context, empty, guidance), noise)


def draw_digits(settings: DigitsSettings, scene: Scene, params: Params, asked: np.ndarray) -> np.ndarray:
    """Images in [0, 1] that a network draws when it is asked for these digits. shape=(N, 8, 8, 1)

    The noise that a drawing begins with depends on its digit and number alone, so it is the same for all networks.

    Args:
      settings: of the sampler.
      scene: texts and keys.
      params: the network.
      asked: digits; `NUM_DIGITS` is the empty text. shape=(N,)
    """
    size = settings.sampling.batch_size
    sampler = schedules.ddim(settings.sampling.steps, SCHEDULE)
    sampler = jax.tree.map(jnp.asarray, sampler)
    side = scene.train["image"].shape[1] // 2
    shape = (side, side, settings.network.channels)
    noise = np.empty((len(asked), *shape), np.float32)
    words = np.asarray(jax.random.key_data(scene.keys["noise"])).ravel().tolist()
    for digit in np.unique(asked):
        generator = np.random.default_rng([*words, int(digit)])
        noise[asked == digit] = generator.standard_normal((int(np.sum(asked == digit)), *shape), np.float32)
    drawn = []
    for start in range(0, len(asked), size):
        rows = np.minimum(np.arange(start, start + size), len(asked) - 1)  # the last batch is as large as the others
        context = scene.texts[asked[rows]]
        empty, guidance = scene.texts[NUM_DIGITS:], jnp.float32(settings.sampling.guidance)
        drawn.append(_sample(network(settings.network), params, sampler, noise[rows], context, empty, guidance))
    return np.clip(unfold_latents(np.concatenate(drawn)[: len(asked)]), 0, 1)


def share(count: int, total: int) -> dict[str, float]:
    """A share in percent with its 95 % Clopper-Pearson interval and the counts behind it."""
    found = intervals.share_estimate(count, total)
    percent = 100 * count / total
    return {"count": count, "total": total, "percent": percent, "low": 100 * found.low, "high": 100 * found.high}


def judge_digits(scene: Scene, images: np.ndarray) -> np.ndarray:
    """What the judge takes images for. shape=(N,)"""
    return scene.judge.predict(_flat(images))


def distance(images: np.ndarray, real: np.ndarray, *, resamples: int) -> dict[str, float]:
    """The Fréchet distance of the pixels of two sets of images, with a 95 % interval by bootstrap over both.

    Returns:
      `value`, `low` and `high`, and how many images there are: `images` and `real_images`.
    """
    first, second = _flat(images), _flat(real)
    found = intervals.two_sample_bootstrap(
        distances.frechet_distance, first, second, num_resamples=resamples, bounds=(0, np.inf)
    )
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "images": len(first),
        "real_images": len(second),
    }


@functools.partial(jax.jit, static_argnames="model")
def _errors(model: Model, params: Params, latents, context, timesteps, noise):
    noisy = Noisy(schedules.add_noise(SCHEDULE, latents, noise, timesteps), timesteps, context)
    predicted, _ = model.apply(params, {}, noisy, train=False)
    return jnp.mean(jnp.square(predicted - noise), axis=(1, 2, 3))


def noise_errors(settings: DigitsSettings, scene: Scene, params: Params) -> np.ndarray:
    """The noise loss of each held-out digit: the mean of 8 draws, which are the same for all networks. shape=(N,)"""
    latents, labels = fold_images(scene.test["image"]), scene.test["label"]
    generator = np.random.default_rng(np.asarray(jax.random.key_data(scene.keys["losses"])).ravel().tolist())
    errors = []
    for _ in range(8):
        timesteps = generator.integers(0, SCHEDULE.num_steps, len(latents)).astype(np.int32)
        noise = generator.standard_normal(latents.shape, np.float32)
        errors.append(_errors(network(settings.network), params, latents, scene.texts[labels], timesteps, noise))
    return np.mean(jax.device_get(errors), axis=0)


def requested_digits(settings: DigitsSettings) -> np.ndarray:
    """What networks are asked to draw: the forgotten digit, then the others, then nothing. shape=(N,)"""
    sampling = settings.sampling
    others = [digit for digit in range(NUM_DIGITS) if digit != settings.digit]
    counts = [sampling.forgotten, *[sampling.kept] * len(others), sampling.unasked]
    return np.repeat([settings.digit, *others, NUM_DIGITS], counts)


def measure(
    settings: DigitsSettings, scene: Scene, name: str, network: DrawingNetwork, images: np.ndarray
) -> dict[str, Any]:
    """All numbers of a network.

    Args:
      settings: the digit, and what is drawn.
      scene: judge and real digits.
      name: of the network.
      network: after training or unlearning.
      images: what it drew for `asked_for`.

    Returns:
      `forget` and `kept`, the shares of drawings that the judge takes for what they were asked for; `unasked`, the
      share of drawings of the empty text that it takes for the forgotten digit; `became`, what it takes drawings of the
      forgotten digit for, in counts; `frechet`, from drawings of the other digits to held-out ones; `error_forget` and
      `error_kept`, the noise loss on held-out digits; the last losses, and the cost.
    """
    asked, found, digit = requested_digits(settings), judge_digits(scene, images), settings.digit
    forgotten, empty = asked == digit, asked == NUM_DIGITS
    kept = ~forgotten & ~empty
    real = scene.test["label"] != digit
    errors = noise_errors(settings, scene, network.params)
    return {
        "network": name,
        "digit": digit,
        "forget": share(int(np.sum(found[forgotten] == digit)), int(forgotten.sum())),
        "kept": share(int(np.sum(found[kept] == asked[kept])), int(kept.sum())),
        "unasked": share(int(np.sum(found[empty] == digit)), int(empty.sum())),
        "became": np.bincount(found[forgotten], minlength=NUM_DIGITS).tolist(),
        "frechet": distance(images[kept], scene.test["image"][real], resamples=settings.sampling.resamples),
        "error_forget": _mean(errors[~real]),
        "error_kept": _mean(errors[real]),
        "losses": network.losses,
        "cost": network.cost,
    }


def _mean(values: np.ndarray) -> dict[str, float]:
    found = intervals.mean_estimate(values)
    return {"value": found.value, "low": found.low, "high": found.high, "digits": len(values)}


def real_numbers(settings: DigitsSettings, scene: Scene) -> dict[str, Any]:
    """What drawings can reach at best: the judge on held-out real digits, and the distance of real digits from these.

    The distance is that of as many training digits as a network draws, kept ones alone; `unasked` is the share of the
    forgotten digit among the training digits.
    """
    labels, others = scene.train["label"], [digit for digit in range(NUM_DIGITS) if digit != settings.digit]
    chosen = np.concatenate([np.flatnonzero(labels == digit)[: settings.sampling.kept] for digit in others])
    real = scene.test["label"]
    right = int(np.sum(judge_digits(scene, scene.test["image"]) == real))
    return {
        "judge": share(right, len(real)),
        "frechet": distance(
            scene.train["image"][chosen],
            scene.test["image"][real != settings.digit],
            resamples=settings.sampling.resamples,
        ),
        "unasked": share(int(np.sum(labels == settings.digit)), len(labels)),
    }


class PhaseListener(Protocol):
    """Tells of the beginning of a phase, and gives an `on_step` if the phase has steps."""

    def __call__(self, phase: str, *, steps: bool = True) -> training.OnStep | None: ...


def forget_digit(
    settings: DigitsSettings,
    scene: Scene,
    original: DrawingNetwork,
    tell: PhaseListener,
    *,
    only: Collection[str] | None = None,
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Forgets `settings.digit` in every way, and yields each network's numbers and drawings as soon as it has them.

    The original comes first, then the retrained network, then those of `WAYS`.

    Args:
      settings: the digit, and how.
      scene: what all networks share.
      original: trained on all digits.
      tell: is told of every phase.
      only: the networks to make; default all.
    """
    asked = requested_digits(settings)
    for name in (ORIGINAL, RETRAINED, *VARIANTS):
        if only is not None and name not in only:
            continue
        if name == ORIGINAL:
            network = original
        elif name == RETRAINED:
            network = learn(settings, scene, settings.digit, tell(f"{name}: training"))
        else:
            network = unlearn_digit(
                settings, scene, original.params, VARIANTS[name], on_step=tell(f"{name}: unlearning")
            )
        tell(f"{name}: drawing", steps=False)
        images = draw_digits(settings, scene, network.params, asked)
        tell(f"{name}: judging", steps=False)
        yield measure(settings, scene, name, network, images), images
