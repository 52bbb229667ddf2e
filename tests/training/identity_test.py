"""One identity of a run: what was chosen refuses, the environment warns, and the first differences are named."""

import dataclasses
import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax.base import Data, Method, lift
from scissorhands_jax.errors import BusyError, CheckpointError, InputError
from scissorhands_jax.files import sole_writer
from scissorhands_jax.methods import METHODS, finetune
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training.checkpoints import Checkpointer
from scissorhands_jax.training.identity import Identity, check_same, identify, list_differences
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.training.reproducibility_test import OPTIONS

KEY = jax.random.key(0)
DATA = Data({"x": np.ones((4, 1), np.float32)}, {"x": np.arange(8, dtype=np.float32)[:, None]})


def of(method) -> str:
    return identify({"method": method}).digest


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_every_method_counts(name):
    kind = METHODS[name]
    build = functools.partial(dict, model=tiny.model(), loss_fn=tiny.loss(), num_classes=tiny.CLASSES)

    def digest(settings):
        return of({"method": settings.build(**build()), "epochs": settings.epochs})

    first, tried = digest(kind()), 0
    assert digest(kind()) == first
    for field in dataclasses.fields(kind):
        value = getattr(kind(), field.name)
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, int | float):
            other = value + 1 if isinstance(value, int) else value * 0.9 or 0.1
        else:
            continue
        try:
            changed = kind().changed(**{field.name: other})
            found = digest(changed)
        except InputError:  # Some only go together with another setting.
            continue
        tried += 1
        assert found != first, field.name
    assert tried >= 2


def stopped_run(folder, *, method=None, epochs=3, key=KEY, params=None, stop=True):
    """A run that is stopped in its second epoch, or goes on."""

    def on_step(progress):
        if stop and progress.epoch == 1:
            raise KeyboardInterrupt

    params = jnp.zeros(()) if params is None else params
    keeper = Checkpointer(folder)
    return run(method or own(), key, params, (), DATA, num_epochs=epochs, checkpoint=keeper, on_step=on_step)


def own(factor=1.0, rate=0.1, batch_size=4) -> Method:
    """A method of one's own, with a loss of one's own."""
    loss = lift(lambda w, batch: factor * jnp.mean(jnp.square(w - batch["x"])))
    return finetune(loss, sgd(rate), batch_size=batch_size)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.raises(KeyboardInterrupt):
        stopped_run(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": own(factor=2.0)}, "factor was 1.0 and is now 2.0"),
        ({"method": own(rate=0.2)}, "learning_rate was 0.1 and is now 0.2"),
        ({"method": own(batch_size=2)}, "batch_size was 4 and is now 2"),
        ({"method": finetune(lift(lambda w, b: jnp.mean(jnp.abs(w - b["x"]))), sgd(0.1), batch_size=4)}, r"\(code\)"),
        ({"method": tiny.method("finetune")}, r"\(type\) was"),
        ({"epochs": 2}, "epochs was 3 and is now 2"),
        ({"epochs": 4}, "epochs was 3 and is now 4"),
        ({"params": jnp.ones(())}, "original network was"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(begun, changes, message):
    with pytest.raises(CheckpointError, match=rf"belongs to another run: .*{message}.*; repeat its settings, or name"):
        stopped_run(begun, **changes)


@pytest.mark.parametrize(("flag", "value"), OPTIONS.items())
def test_a_checkpoint_made_with_other_flags_is_refused(begun, flag, value):
    was = getattr(jax.config, flag)
    jax.config.update(flag, value)
    try:
        with pytest.raises(CheckpointError, match=rf"run: .*options.{flag} was '{was}' and is now '{value}'; repeat"):
            stopped_run(begun)
    finally:
        jax.config.update(flag, was)


def test_the_same_run_goes_on_and_others_wait(begun):
    with sole_writer(begun), pytest.raises(BusyError, match="is being written to by process"):
        stopped_run(begun, stop=False)
    assert stopped_run(begun, stop=False).steps == 6
    assert not list(begun.glob(".lock"))


CHOSEN = {"rate": 0.1, "seed": 3, "sizes": (1, 2), "method": {"fraction": 0.5, "names": ["a"]}}


class TestComparing:
    def test_equal_ones_pass(self, caplog):
        now = identify(CHOSEN)
        check_same(identify(CHOSEN).document(), now, "it", "stop")
        check_same(identify({"rate": float("nan")}).document(), identify({"rate": np.nan}), "it", "stop")
        assert caplog.messages == []
        assert now.digest == identify(CHOSEN).digest

    def test_what_was_saved_is_read_again_and_any_change_is_refused(self):
        now = dataclasses.replace(identify(CHOSEN | {"limit": float("inf")}), noted={"place": "here"})
        saved = json.loads(json.dumps(now.document()))
        read = Identity.of_document(saved, ["place"])
        assert (read.document(), read.digest, read.noted) == (saved, now.digest, {"place": "here"})
        for change in ({"seed": 4}, {"environment": {}}, {"more": None}, {"identity": None}):
            with pytest.raises(InputError, match="does not have the digest that it names"):
                Identity.of_document(saved | change, ["place"])

    def test_checksums_of_earlier_versions_are_passed_over(self):
        saved = identify(CHOSEN).document() | {"train_checksum": "01234567"}
        check_same(saved, identify(CHOSEN), "it", "stop")
        with pytest.raises(InputError, match="train_checksum was '01234567' and is now 'new'"):
            check_same(saved, identify(CHOSEN | {"train_checksum": "new"}), "it", "stop")

    def test_the_first_three_differences_are_named(self):
        other = identify({"rate": 0.2, "seed": 4, "sizes": (1, 3), "method": {"fraction": 0.4, "names": ["a"]}})
        message = (
            r"^it belongs to another run: rate was 0.1 and is now 0.2; seed was 3 and is now 4; sizes was \[1, 2\] and "
            r"is now \[1, 3\]; and 1 more; stop$"
        )
        with pytest.raises(InputError, match=message):
            check_same(identify(CHOSEN).document(), other, "it", "stop")

    @pytest.mark.parametrize("saved", [{"rate": 0.1}, {**CHOSEN, "more": 1}])
    def test_what_is_missing_or_added_counts(self, saved):
        with pytest.raises(InputError, match=r"belongs to another run: (seed was None|more was 1 and is now None)"):
            check_same(identify(saved).document(), identify(CHOSEN), "it", "stop")

    def test_what_is_only_noted_does_not(self):
        first, second = (identify(CHOSEN, noted={"weights": path}) for path in ("a", "b"))
        check_same(first.document(), second, "it", "stop")
        assert first.digest == second.digest
        assert first.document()["weights"] == "a"
        assert first.compared() == second.compared()

    @pytest.mark.parametrize("name", ["jax", "python", "device", "layout", "processor", "scissorhands_jax"])
    def test_another_environment_warns_in_one_sentence(self, name, caplog):
        now = identify(CHOSEN)
        there = dataclasses.replace(now, environment={**now.environment, name: "another"})
        assert there.digest != now.digest
        with caplog.at_level(logging.WARNING):
            check_same(there.document(), now, "it", "stop", warn=False)
            assert caplog.messages == []
            check_same(there.document(), now, "it", "stop")
        (message,) = caplog.messages
        assert message.startswith(f"it is continued in another environment ({name} was 'another' and is now '")
        assert (there.compared() == now.compared()) == (name == "processor")

    def test_code_of_another_python_is_not_compared(self, caplog):
        now, other = (identify({"loss": function}) for function in (lambda x: x + 1, lambda x: x + 2))
        with pytest.raises(InputError, match=r"loss.\(code\) was"):
            check_same(other.document(), now, "it", "stop")
        older = {**other.document(), "environment": {**other.environment, "python": "3.1.4"}}
        with caplog.at_level(logging.WARNING):
            check_same(older, now, "it", "stop")
        assert "python was '3.1.4'" in caplog.text

    def test_what_an_earlier_version_saved_is_compared_as_far_as_it_goes(self, caplog):
        with caplog.at_level(logging.WARNING):
            check_same({"rate": 0.1, "seed": 3, "sizes": [1, 2]}, identify(CHOSEN), "it", "stop")
        (message,) = caplog.messages
        assert message.startswith(
            "it is from an earlier version of scissorhands_jax, which did not save method, options"
        )
        with pytest.raises(InputError, match="seed was 4 and is now 3"):
            check_same({"rate": 0.1, "seed": 4}, identify(CHOSEN), "it", "stop")

    def test_long_values_and_repeated_ones_are_shortened(self):
        found = [("a.b.c.d.rate", 1, 2), ("e.f.g.rate", 1, 2), ("h", "x" * 100, "0" * 64), ("a.b.c.d.e.(code)", 1, 2)]
        text = list_differences(found, "is {} here and {} there")
        assert text == (
            f"a...rate is 1 here and 2 there; h is '{'x' * 19}...{'x' * 29}' here and {'0' * 16} there; "
            "a...e.(code) is 1 here and 2 there"
        )
