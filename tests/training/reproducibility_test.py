"""The environment that a checkpoint was made in is known, and a resume in another one says so."""

import logging

import jax
import jax.numpy as jnp
import pytest

from scissorhands_jax.base import new_carry
from scissorhands_jax.training import checkpoints, reproducibility
from scissorhands_jax.training.checkpoints import Checkpointer, Position
from scissorhands_jax.training.reproducibility import environment_changes, numerical_environment
from tests.comparison import same_bits


def carry():
    return new_carry(jax.random.key(1), {"w": jnp.arange(3.0)}, (), ())._replace(step=jnp.int32(3))


def test_it_names_machine_versions_and_flags(monkeypatch):
    jax.devices()  # before the flags change, which would end the process if XLA did not know them
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    found = numerical_environment()
    assert found["jax"] == jax.__version__
    assert found["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"
    assert found["jax_default_matmul_precision"] == "highest"
    assert all(isinstance(value, str) for value in found.values())
    assert int(found["cores"]) >= 1
    assert found["processor"]


def test_differences_are_named():
    assert environment_changes({"jax": "1", "cores": "2"}, {"jax": "1", "cores": "2"}) == ""
    changes = environment_changes({"jax": "1", "XLA_FLAGS": ""}, {"jax": "2", "XLA_FLAGS": "--a", "cores": "4"})
    assert changes == "jax: 1, now 2; XLA_FLAGS: none, now --a; cores: none, now 4"


@pytest.mark.parametrize("moved", [False, True])
def test_a_resume_elsewhere_goes_on_and_says_so(moved, tmp_path, monkeypatch, caplog):
    Checkpointer(tmp_path).save(carry(), Position(0, 3), {})
    here = numerical_environment()
    if moved:
        monkeypatch.setattr(checkpoints, "numerical_environment", lambda: here | {"jaxlib": "9.9", "cores": "64"})
    with caplog.at_level(logging.WARNING, logger="scissorhands_jax"):
        found, position = Checkpointer(tmp_path).restore(carry(), {})
    assert same_bits(found, carry())
    assert position == Position(0, 3)
    if moved:
        (message,) = caplog.messages
        assert message.startswith("the run is resumed in another environment than step 3 was saved in (jaxlib: ")
        assert "now 9.9; cores: " in message
    else:
        assert caplog.messages == []


def test_a_system_that_does_not_name_its_processor(monkeypatch):
    monkeypatch.setattr(reproducibility.Path, "read_text", lambda *_, **__: "flags: fast\n")
    assert numerical_environment()["processor"]
