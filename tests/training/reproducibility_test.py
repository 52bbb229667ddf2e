"""What the numbers of a run depend on besides what it is given, and a resume elsewhere says so."""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from scissorhands_jax.base import new_carry
from scissorhands_jax.training import reproducibility
from scissorhands_jax.training.checkpoints import Checkpointer, Position
from scissorhands_jax.training.identity import Identity
from scissorhands_jax.training.reproducibility import numerical_environment, numerical_options
from tests.comparison import same_bits

OPTIONS = {
    "jax_default_matmul_precision": "bfloat16",
    "jax_default_prng_impl": "rbg",
    "jax_enable_x64": True,
    "jax_threefry_partitionable": False,
    "jax_numpy_dtype_promotion": "strict",
    "jax_random_seed_offset": 1,
}
"""The options of JAX with which a run computes something else, and a value of each that is not the usual one."""


def carry():
    return new_carry(jax.random.key(1), {"w": jnp.arange(3.0)}, (), ())._replace(step=jnp.int32(3))


def test_it_names_machine_versions_and_flags(monkeypatch):
    jax.devices()  # before the flags change, which would end the process if XLA did not know them
    flags = ("--xla_dump_to=somewhere", "--xla_cpu_enable_fast_math=false", "--xla_backend_optimization_level=1")
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    found, options = numerical_environment(), numerical_options()
    assert found["jax"] == jax.__version__
    assert found["XLA_FLAGS"] == "--xla_backend_optimization_level=1"
    assert options["xla_flags"] == "--xla_cpu_enable_fast_math=false"
    assert options["jax_default_matmul_precision"] == "highest"
    assert all(isinstance(value, str) for value in (found | options).values())
    assert int(found["cores"]) >= 1
    assert found["processor"]
    assert found["scissorhands_jax"].partition(", source ")[2]


def test_what_a_run_depends_on_is_what_the_guarantees_say():
    """Written out here and on the page, so that nothing drops out of it unnoticed."""
    page = (Path(__file__).parents[2] / "docs" / "explanations" / "guarantees.md").read_text()
    sentence = page[page.index("* **The environment**") :].partition("\n\n")[0]
    assert "Python, jax, jaxlib, numpy, flax, optax, scipy, chex, equinox and this package" in " ".join(
        sentence.split()
    )
    libraries = {"jax", "jaxlib", "numpy", "flax", "optax", "scipy", "chex", "equinox", "scissorhands_jax"}
    assert set(reproducibility.library_versions()) == libraries | {"python"}
    assert set(numerical_options()) == {*OPTIONS, "xla_flags"}
    machine = {"device", "devices", "processes", "processor", "cores"}
    variables = {"SCISSORHANDS_CPU_CONVOLUTION", "NVIDIA_TF32_OVERRIDE", "XLA_FLAGS"}
    assert set(numerical_environment()) == {*libraries, "python", *machine, *variables}


@pytest.mark.parametrize("moved", [False, True])
def test_a_resume_elsewhere_goes_on_and_says_so(moved, tmp_path, caplog):
    here = Identity({"w": 3}, numerical_environment())
    there = Identity(here.chosen, {**here.environment, "jaxlib": "9.9", "cores": "64"})
    Checkpointer(tmp_path).save(carry(), Position(0, 3), here)
    with caplog.at_level(logging.WARNING, logger="scissorhands_jax"):
        found, position = Checkpointer(tmp_path).restore(carry(), there if moved else here)
    assert same_bits(found, carry())
    assert position == Position(0, 3)
    if moved:
        (message,) = caplog.messages
        assert message.startswith(f"the checkpoint in {tmp_path} is continued in another environment (jaxlib was '")
        assert "is now '9.9'; cores was '" in message
    else:
        assert caplog.messages == []


def test_a_system_that_does_not_name_its_processor(monkeypatch):
    monkeypatch.setattr(reproducibility.Path, "read_text", lambda *_, **__: "flags: fast\n")
    reproducibility._processor.cache_clear()
    assert numerical_environment()["processor"]
    reproducibility._processor.cache_clear()
