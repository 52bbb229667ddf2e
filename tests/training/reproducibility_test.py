"""What the numbers of a run depend on besides what it is given, and a resume elsewhere says so."""

import logging

import jax
import jax.numpy as jnp
import pytest

from scissorhands_jax.base import new_carry
from scissorhands_jax.training import reproducibility
from scissorhands_jax.training.checkpoints import Checkpointer, Position
from scissorhands_jax.training.identity import Identity
from scissorhands_jax.training.reproducibility import numerical_environment, numerical_options
from tests.comparison import same_bits


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
