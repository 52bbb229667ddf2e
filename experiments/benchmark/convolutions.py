"""Times networks other than the bundled classifiers, with the library's convolutions and with XLA's in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

import jax

from experiments.benchmark import checkout
from experiments.benchmark.settings import Settings
from experiments.benchmark.timing import OnRound, Result, compare
from scissorhands_jax.models.cpu_convolution import conv_general_dilated

XLA = "XLA's convolutions"
_VARIABLE = "SCISSORHANDS_CPU_CONVOLUTION"


def unet_case(name: str, settings: Settings, on_round: OnRound) -> Result:
    """Times training steps of the digits' UNet."""
    return _compare(name, "the UNet of the digits", checkout.unet_step, settings, on_round)


def own_case(name: str, settings: Settings, on_round: OnRound) -> Result:
    """Times training steps of a user's linen network, with and without `conv_general_dilated=`."""

    def make(batch_size: int, *, quick: bool) -> checkout.Call:
        on = os.environ.get(_VARIABLE) != "off"
        return checkout.own_step(batch_size, conv_general_dilated if on else None, quick=quick)

    return _compare(name, "a small linen network", make, settings, on_round)


def _compare(name: str, what: str, make: Callable[..., checkout.Call], settings: Settings, on_round: OnRound) -> Result:
    call = make(settings.batch_size, quick=settings.quick)
    with _switched_off():
        reference = make(settings.batch_size, quick=settings.quick)
        jax.block_until_ready(reference())  # so that it is traced here
    what = f"{checkout.STEPS} training steps of {what}, {settings.batch_size} images each"
    result = compare(name, what, call, {XLA: reference}, settings, on_round)
    assert result.seconds is not None
    rate = checkout.STEPS * settings.batch_size / result.seconds.median
    return dataclasses.replace(result, numbers={"images_per_second": rate})


@contextlib.contextmanager
def _switched_off() -> Iterator[None]:
    was = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "off"
    try:
        yield
    finally:
        if was is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = was
