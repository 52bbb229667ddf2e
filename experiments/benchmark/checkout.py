"""The cases in which two checkouts of the library are compared, and the worker that times them in one checkout.

As a script it reads names of `CASES` from its standard input, one on each line, and answers each with the seconds that
one more call took. It imports the library and the benchmark of the checkout that PYTHONPATH names, by names that old
and new checkouts share.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

Call = Callable[[], Any]
STEPS = 8  # Training steps of a small network in one call.


class OwnNetwork(nn.Module):
    """A small network of a user's own.

    Attributes:
      conv_general_dilated: The function that computes its convolutions. The default, None, is JAX's own.
      widths: The numbers of channels of its layers. Each layer except the first halves the image.
    """

    conv_general_dilated: Callable | None
    widths: tuple[int, ...] = (32, 64, 128)

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32) / 255
        for index, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), strides=1 + (index > 0), conv_general_dilated=self.conv_general_dilated)(x)
            x = nn.Conv(width, (3, 3), conv_general_dilated=self.conv_general_dilated)(nn.relu(x))
            x = nn.relu(nn.LayerNorm()(x))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


def own_step(batch_size: int, conv_general_dilated: Callable | None, *, quick: bool = False) -> Call:
    """Returns a function that takes some training steps of `OwnNetwork` on random images of 32 x 32 pixels."""
    from scissorhands_jax.losses import classification_loss
    from scissorhands_jax.models import from_linen

    side = 4 if quick else 32
    rng = np.random.default_rng(1)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (batch_size, side, side, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 10, batch_size), jnp.int32),
    }
    network = OwnNetwork(conv_general_dilated, (4, 8) if quick else (32, 64, 128))
    model = from_linen(network, jax.ShapeDtypeStruct(batch["image"].shape, jnp.uint8))
    return _steps(classification_loss(model), model, batch)


def unet_step(batch_size: int, *, quick: bool = False) -> Call:
    """Returns a function that takes some training steps of the digits' UNet on random latents of 8 x 8 pixels."""
    from scissorhands_jax.diffusion import losses, networks
    from scissorhands_jax.diffusion.unet import UNetConfig

    width = 8 if quick else 40
    config = UNetConfig(
        widths=(width,), attention=(False,), layers_per_block=1, heads=4, context_width=32, groups=width // 5 or 1
    )
    rng = np.random.default_rng(1)
    batch = {
        "latents": jnp.asarray(rng.standard_normal((batch_size, 8, 8, config.channels)), jnp.float32),
        "context": jnp.asarray(rng.standard_normal((batch_size, 1, config.context_width)), jnp.float32),
    }
    model = networks.unet(config)
    return _steps(losses.noise_loss(model), model, batch)


def _steps(loss_fn: Callable, model: Any, batch: Any) -> Call:
    params, model_state = model.init(jax.random.key(0))
    optimizer = optax.adam(1e-3)
    held = params, model_state, optimizer.init(params)

    @jax.jit
    def step(params, model_state, opt_state, key):
        gradient, model_state = jax.grad(lambda p: loss_fn(p, model_state, batch, train=True, key=key), has_aux=True)(
            params
        )
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), model_state, opt_state

    def call():
        nonlocal held
        for index in range(STEPS):
            held = step(*held, jax.random.key(index))
        return held

    return call


def _repair_step(network: str, batch_size: int, quick: bool) -> tuple[Call, Call]:
    from experiments.benchmark.settings import Settings
    from experiments.benchmark.steps import repair_of

    step = repair_of(network, Settings(batch_size=batch_size, quick=quick))
    return step, step


def _repair_epoch(network: str, batch_size: int, quick: bool) -> tuple[Call, Call]:
    from experiments.benchmark.epochs import OWN, epochs
    from experiments.benchmark.settings import Settings

    _, epoch, _, single_steps = epochs(network, Settings(batch_size=batch_size, quick=quick))
    return epoch, single_steps[OWN]


def _unet(batch_size: int, quick: bool) -> tuple[Call, Call]:
    call = unet_step(batch_size, quick=quick)
    return call, call


def _own(batch_size: int, quick: bool) -> tuple[Call, Call]:
    """Uses the library's convolutions where the checkout has some that a user can give to a network."""
    try:
        convolution = importlib.import_module("scissorhands_jax.models.cpu_convolution").conv_general_dilated
    except ImportError:
        convolution = None
    call = own_step(batch_size, convolution, quick=quick)
    return call, call


def cases(networks: list[str]) -> dict[str, Callable[[int, bool], tuple[Call, Call]]]:
    """Returns what makes, from a batch size and `quick`, a call to time and one to precede it, by name of the case."""
    listed: dict[str, Callable[[int, bool], tuple[Call, Call]]] = {}
    for network in networks:
        listed[f"{network}/step"] = functools.partial(_repair_step, network)
        listed[f"{network}/epoch"] = functools.partial(_repair_epoch, network)
    return listed | {"unet/train": _unet, "own network/train": _own}


def answer(batch_size: int, quick: bool, networks: list[str]) -> None:
    """Times calls until the standard input ends. Only the arrays and programs of the last case are kept."""
    known = cases(networks)
    made: dict[str, tuple[Call, Call]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in made:
            made = {name: known[name](batch_size, quick)}
            jax.block_until_ready(made[name][0]())
        call, before = made[name]
        jax.block_until_ready(before())
        started = time.perf_counter()
        jax.block_until_ready(call())
        print(json.dumps(time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    answer(int(sys.argv[1]), sys.argv[2] == "quick", sys.argv[3:])
