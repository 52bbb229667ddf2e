"""The loop: exact resume from every step and after real kills, one compilation, refusals that keep what was good."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import Batch, Data, Method, lift, new_carry
from scissorhands_jax.errors import CheckpointError, InputError, NonFiniteError
from scissorhands_jax.methods import finetune
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training import distributed
from scissorhands_jax.training.checkpoints import Checkpointer
from scissorhands_jax.training.descriptions import named
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.comparison import same_bits
from tests.compilations import Compilations

KEY = jax.random.key(7)
SCISSORHANDS = {"fraction": 0.2, "forget_weight": 0.2}
# The sizes make all batches of authors' mode full, which else are ragged, to compile less.
CASES = {
    "scissorhands, paper": lambda: (tiny.method("scissorhands", **SCISSORHANDS), tiny.data()),
    "scissorhands, authors": lambda: (
        tiny.method("scissorhands", mode="authors", augment=False, **SCISSORHANDS),
        tiny.data(4, 8),
    ),
    "finetune": lambda: (tiny.method("finetune"), tiny.data()),
}


class Stop(Exception):
    """Raised by a test in the place of whatever stops a run."""


class Recorder:
    """An `on_step` that keeps what it is told, and stops the run at a step."""

    def __init__(self, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def __call__(self, progress):
        if progress.step == self.stop_at:
            raise Stop
        self.seen.append(progress)


def start(method, *, epochs=2, data=None, key=KEY, params=None, **options):
    original, model_state = tiny.start()
    params = original if params is None else params
    return run(method, key, params, model_state, tiny.data() if data is None else data, num_epochs=epochs, **options)


def network(result):
    return result.params, result.model_state


@pytest.mark.parametrize("case", CASES)
def test_a_run_stopped_at_every_step_ends_bit_equal_and_compiles_nothing_anew(case, tmp_path):
    method, data = CASES[case]()
    whole, compilations, counts = Recorder(), Compilations(), []

    def record(progress):
        counts.append(len(compilations.names))
        whole(progress)

    with compilations:
        expected = start(method, data=data, on_step=record)
    # In an epoch joint steps come first and then retain-only ones; the second epoch has no other kinds.
    per_epoch = whole.seen[0].steps_in_epoch
    assert len(counts) == 2 * per_epoch
    assert counts[per_epoch - 1] == counts[-1]

    parts, recorder = [], Recorder()
    with Compilations() as again:
        # A step is saved after `on_step` was told of it, so each of these runs goes one step further than the last.
        for stop_at in range(1, len(whole.seen) + 1):
            keeper, stopped = Checkpointer(tmp_path, every_steps=1), Recorder(stop_at)
            assert keeper.latest_step == (stop_at - 2 if stop_at > 2 else None)
            with pytest.raises(Stop):
                start(method, data=data, checkpoint=keeper, on_step=stopped)
            parts += stopped.seen
        result = start(method, data=data, checkpoint=Checkpointer(tmp_path, every_steps=1), on_step=recorder)
    assert set(again.names) <= {"jit(stage)"}  # Orbax's own
    assert same_bits(network(result), network(expected))
    assert result.steps == expected.steps == len(whole.seen)
    # Every step was taken once, with the same numbers.
    for left, right in zip(parts + recorder.seen, whole.seen, strict=True):
        assert left[:-1] == right[:-1]
        chex.assert_trees_all_equal(left.metrics, right.metrics)


def test_a_checkpoint_only_at_the_end_of_an_epoch_resumes_at_the_next(tmp_path):
    method, _ = CASES["scissorhands, paper"]()
    expected, first, second = start(method), Recorder(stop_at=5), Recorder()
    with pytest.raises(Stop):
        start(method, checkpoint=Checkpointer(tmp_path), on_step=first)
    assert Checkpointer(tmp_path).latest_step == 3
    result = start(method, checkpoint=Checkpointer(tmp_path), on_step=second)
    assert same_bits(network(result), network(expected))
    assert [progress.step for progress in second.seen] == [4, 5, 6]
    # A finished run takes no step.
    again = Recorder()
    assert same_bits(network(start(method, checkpoint=Checkpointer(tmp_path), on_step=again)), network(expected))
    assert again.seen == []


def test_the_first_process_says_which_checkpoint_a_run_goes_on_from(tmp_path, monkeypatch):
    """The others may not see the newest one yet."""
    expected, recorder = count(counter()), Recorder()
    count(counter(), checkpoint=Checkpointer(tmp_path))
    assert Checkpointer(tmp_path).latest_step == 6
    monkeypatch.setattr(distributed, "from_first", lambda compute: 3 if (found := compute()) == 6 else found)
    result = count(counter(), checkpoint=Checkpointer(tmp_path), on_step=recorder)
    assert [progress.step for progress in recorder.seen] == [4, 5, 6]
    assert same_bits(network(result), network(expected))


KILLED = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from scissorhands_jax.base import Data, lift
    from scissorhands_jax.training.checkpoints import Checkpointer
    from scissorhands_jax.methods import finetune
    from scissorhands_jax.optimizers import sgd
    from scissorhands_jax.training import run

    def loss(params, batch):
        return jnp.mean(jnp.square(batch["x"][:, None] * params["w"][None] - 1))

    def job(folder, on_step):
        data = Data(None, {"x": np.linspace(0.5, 1.5, 12, dtype=np.float32)})
        params = {"w": jnp.linspace(-1, 1, 100_000)}
        keeper = None if folder is None else Checkpointer(folder, every_steps=1)
        method = finetune(lift(loss), sgd(1.0), batch_size=4)
        return run(method, jax.random.key(0), params, (), data, num_epochs=4, checkpoint=keeper, on_step=on_step)

    if __name__ == "__main__":
        result = job(sys.argv[1], lambda progress: print(progress.step, flush=True))
        np.save(sys.argv[2], np.asarray(result.params["w"]))
"""


def test_a_killed_process_started_again_ends_bit_equal(tmp_path):
    script, folder, output = tmp_path / "job.py", tmp_path / "run", tmp_path / "result.npy"
    script.write_text(textwrap.dedent(KILLED))
    command = [sys.executable, str(script), str(folder), str(output)]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for kill_after in (3, 8):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            steps = []
            for line in process.stdout:
                steps.append(int(line))
                if steps[-1] == kill_after:
                    # Writing a checkpoint takes most of a step's time, so this is often in the middle of one.
                    pause = random.uniform(0, 0.03)
                    print(f"killed {pause} seconds after step {kill_after}")
                    time.sleep(pause)
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        assert not output.exists()
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    # At most the step that was being saved is taken again, besides those whose lines were never read.
    assert not finished.stdout or 8 <= int(finished.stdout.split()[0]) <= 12
    namespace = {"__name__": "job"}
    exec(textwrap.dedent(KILLED), namespace)
    expected = namespace["job"](None, None).params["w"]
    assert np.load(output).tobytes() == np.asarray(expected).tobytes()


def test_params_and_data_of_the_caller_are_left_alone():
    params, model_state = jax.tree.map(jnp.copy, tiny.start())
    for case in CASES.values():
        method, data = case()
        given = params, model_state, jax.tree.map(jnp.asarray, data)
        before = jax.tree.map(np.array, given)
        result = run(method, KEY, *given, num_epochs=1)
        assert same_bits(jax.tree.map(np.asarray, given), before)
        assert not same_bits(result.params, params)
    # NumPy arrays do as well, which no device owns.
    given = jax.tree.map(np.copy, before)
    assert same_bits(network(run(method, KEY, *given, num_epochs=1)), network(result))
    assert same_bits(given, before)


def test_time_spent_compiling_is_told_apart():
    method = counter()
    first, second = count(method), count(method)
    assert first.compile_seconds > 0
    assert second.compile_seconds == 0
    assert first.seconds > 0
    assert second.seconds > 0


def test_tracing_is_part_of_compiling():
    method, pause = counter(), 0.3

    def slow_to_trace(carry, batch):
        time.sleep(pause)
        return method.step(carry, batch)

    began = time.perf_counter()
    result = count(method._replace(step=slow_to_trace))
    assert result.compile_seconds >= pause
    assert result.seconds + result.compile_seconds <= time.perf_counter() - began


def test_steps_taken_while_others_are_compiled_count_as_running():
    positions = np.zeros(1, np.int32)
    both = [Batch(positions, positions), Batch(None, positions)]

    def new_method():
        def step(carry, batch):
            taken = carry._replace(step=carry.step + 1)
            if batch.forget is None:
                time.sleep(1.0)  # while it is traced
                return taken, {"loss": jnp.zeros(())}
            product = jax.lax.fori_loop(0, batch.forget["times"][0], lambda _, m: m @ m, jnp.eye(512))
            return taken, {"loss": product[0, 0]}

        return counter()._replace(step=step, batches=lambda *_: both)

    def seconds(method, times):
        data = Data({"times": np.array([times])}, {"x": np.zeros(1)})
        return run(method, KEY, {"w": jnp.zeros(())}, {}, data, num_epochs=1).seconds

    compiled = new_method()
    seconds(compiled, 1)
    times = round(100 * 0.5 / min(seconds(compiled, 100) for _ in range(3)))
    # Whatever else the machine does makes a run slower, and none faster.
    alone = min(seconds(compiled, times) for _ in range(3))
    assert alone > 0.1
    assert min(seconds(new_method(), times) for _ in range(2)) > 0.5 * alone


def counter(bad_step=None, value=np.nan):
    """A method that counts on one weight, and whose loss is bad at one step."""

    def step(carry, batch):
        params = {"w": carry.params["w"] + jnp.sum(batch.retain["x"])}
        loss = params["w"] if bad_step is None else jnp.where(carry.step + 1 == bad_step, value, params["w"])
        return carry._replace(step=carry.step + 1, params=params), {"loss": loss, "pair": jnp.stack([loss, 2 * loss])}

    def batches(key, data, epoch):
        return [Batch(retain=np.array([(epoch + i) % 4], np.int32)) for i in range(3)]

    def init(key, params, model_state, data):
        return new_carry(key, params, model_state, ())

    return Method(init, step, batches)


def count(method, *, epochs=2, x=(1.0, 10.0, 100.0, 1000.0), key=KEY, params=None, **options):
    params = {"w": jnp.zeros(())} if params is None else params
    return run(method, key, params, {}, Data(None, {"x": np.array(x, np.float32)}), num_epochs=epochs, **options)


class TestProgress:
    def test_steps_epochs_and_metrics_are_reported_in_order(self):
        recorder = Recorder()
        result = count(counter(), on_step=recorder)
        assert [progress[:5] for progress in recorder.seen] == [
            (1, 0, 1, 3, 2),
            (2, 0, 2, 3, 2),
            (3, 0, 3, 3, 2),
            (4, 1, 1, 3, 2),
            (5, 1, 2, 3, 2),
            (6, 1, 3, 3, 2),
        ]
        assert [float(progress.metrics["loss"]) for progress in recorder.seen] == [1, 11, 111, 121, 221, 1221]
        assert recorder.seen[-1].metrics["pair"].tolist() == [1221, 2442]
        assert float(result.params["w"]) == 1221
        assert result.steps == 6

    def test_whole_numbers_of_other_libraries_count(self, tmp_path):
        keeper = Checkpointer(tmp_path, every_steps=np.int64(2), keep=np.int32(1))
        assert float(count(counter(), epochs=np.int64(2), checkpoint=keeper).params["w"]) == 1221

    def test_no_epoch_gives_what_init_made(self):
        result = count(counter(), epochs=0)
        assert float(result.params["w"]) == result.steps == 0

    def test_epochs_without_steps_are_allowed(self):
        begun = []
        method = counter()._replace(
            batches=lambda key, data, epoch: [],
            begin_epoch=lambda carry, data: begun.append(int(carry.step)) or carry,
            finish=lambda carry: ({"w": carry.params["w"] + 5}, carry.model_state),
        )
        assert float(count(method).params["w"]) == 5
        assert begun == [0, 0]

    @pytest.mark.parametrize(
        ("epochs", "message"), [(-1, "at least 0, got -1"), (1e2, r"a whole number, got 100\.0; make an int of it")]
    )
    def test_a_number_of_epochs_that_cannot_be_is_refused(self, epochs, message):
        with pytest.raises(InputError, match=f"the number of epochs must be {message}"):
            count(counter(), epochs=epochs)


@pytest.mark.parametrize("feed_from", ["device", "host"])
@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([0, 4], "names position 4 of the retain set, which has 4 examples; positions count examples from 0"),
        ([-1, 0], "names position -1 of the retain set"),
        ([0.0, 1.0], "has float64 as positions of the retain set; give integers"),
    ],
)
def test_batches_of_examples_that_are_not_there_are_refused(positions, message, feed_from):
    batches = [Batch(retain=np.zeros(2, np.int32)), Batch(retain=np.array(positions))]
    begun = []
    method = counter()._replace(batches=lambda *_: iter(batches), init=lambda *_: begun.append(1))
    with pytest.raises(InputError, match=f"batch 1 of the epoch {message}"):
        count(method, feed_from=feed_from)
    assert not begun


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_call": 0}, "steps_per_call must be at least 1, got 0"),
        ({"feed_from": "gpu"}, "feed_from is 'gpu'; choose one of auto, device, host"),
    ],
)
def test_what_is_seen_at_once_is_refused_before_the_data_are_read(options, message, monkeypatch):
    monkeypatch.setattr(data_lib, "check_values", None)
    with pytest.raises(InputError, match=message):
        count(counter(), **options)


def test_the_batches_of_an_epoch_are_listed_once():
    epochs, batches = [], counter().batches
    method = counter()._replace(batches=lambda *given: epochs.append(given[-1]) or iter(batches(*given)))
    assert float(count(method).params["w"]) == 1221
    assert epochs == [0, 1]


class TestNonFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("backend", ["cpu", "gpu"])  # On accelerators metrics are read rarely.
    def test_the_step_is_named_and_good_checkpoints_stay(self, tmp_path, monkeypatch, value, backend):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        recorder, keeper = Recorder(), Checkpointer(tmp_path, every_steps=2)
        with pytest.raises(
            NonFiniteError, match=f"loss is {value} at step 5; the checkpoint of step 3 is good"
        ) as error:
            count(named("counter", counter(5, value)), checkpoint=keeper, on_step=recorder)
        assert (error.value.step, error.value.metric) == (5, "loss")
        assert [progress.step for progress in recorder.seen] == [1, 2, 3, 4]
        # Offsets 2 and 3 of epoch 0 were saved; the bad step and what came after it never is.
        assert Checkpointer(tmp_path).latest_step == 3
        result = count(named("counter", counter()), checkpoint=Checkpointer(tmp_path, every_steps=2))
        assert float(result.params["w"]) == 1221

    def test_of_several_numbers_the_one_that_is_not_finite_is_named(self):
        def step(carry, batch):
            return carry._replace(step=carry.step + 1), {"dots": jnp.array([0.3, np.nan])}

        with pytest.raises(NonFiniteError, match="dots is nan at step 1"):
            start(finetune(tiny.loss(), sgd(0.1), batch_size=4)._replace(step=step))

    def test_without_a_checkpoint_the_advice_says_so(self):
        with pytest.raises(NonFiniteError, match="step 1; nothing was saved; lower the learning rate"):
            count(counter(1))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_network_that_the_last_step_breaks_is_no_result(self, bad):
        """The metrics of that step are of the network before it."""

        def step(carry, batch):
            last = carry.step == 2
            params = jax.tree.map(lambda leaf: jnp.where(last, bad, leaf), carry.params)
            return carry._replace(step=carry.step + 1, params=params), {"loss": jnp.zeros(())}

        method = finetune(tiny.loss(), sgd(0.1), batch_size=4)._replace(step=step)
        with pytest.raises(
            NonFiniteError,
            match=rf"^params/bn/bias is {bad} at step 6; nothing was saved; lower the learning rate or the",
        ):
            start(method)

    @pytest.mark.parametrize("part", ["params", "model_state"])
    def test_a_network_that_a_step_breaks_is_not_saved(self, part, tmp_path):
        def method(bad_step=None):
            def step(carry, batch):
                value = jnp.where(carry.step + 1 == bad_step, jnp.nan, 1.0) if bad_step else 1.0
                changed = jax.tree.map(lambda leaf: leaf + value, getattr(carry, part))
                return carry._replace(step=carry.step + 1, **{part: changed}), {"loss": jnp.zeros(())}

            return named("adding", counter()._replace(step=step))

        def go_on(made):
            keeper, data = Checkpointer(tmp_path, every_steps=1), Data(None, {"x": np.ones(4, np.float32)})
            return run(made, KEY, {"w": jnp.zeros(())}, {"w": jnp.zeros(())}, data, num_epochs=2, checkpoint=keeper)

        with pytest.raises(
            NonFiniteError, match=f"{part}/w is nan at step 5; the checkpoint of step 4 is good and stays"
        ):
            go_on(method(5))
        assert Checkpointer(tmp_path).latest_step == 4
        assert float(getattr(go_on(method()), part)["w"]) == 6

    def test_a_network_may_have_infinity_among_its_parameters_from_the_beginning(self, tmp_path):
        loss = lift(lambda params, batch: jnp.mean(jax.nn.softmax(batch["image"] @ params["w"] + params["mask"])[:, 0]))
        params = {"w": jnp.ones((3, 2)), "mask": jnp.array([[0.0, -jnp.inf]])}
        data = Data({"image": np.ones((4, 3), np.float32)}, {"image": np.ones((8, 3), np.float32)})
        plain, keeper = finetune(loss, optax.sgd(0.1), batch_size=4), Checkpointer(tmp_path)
        done = run(plain, KEY, params, {}, data, num_epochs=1, checkpoint=keeper)
        assert done.steps == 2
        assert np.isneginf(done.params["mask"][0, 1])
        # With weight decay -inf becomes inf - inf.
        with pytest.raises(NonFiniteError, match="params/mask is nan at step 1"):
            run(finetune(loss, sgd(0.1), batch_size=8), KEY, params, {}, data, num_epochs=1)

    @pytest.mark.parametrize("saves", [True, False])
    def test_an_array_with_infinity_may_have_it_nowhere_else(self, saves, tmp_path):
        def step(carry, batch):
            mask = carry.params["mask"]
            mask = jnp.where(carry.step == 4, mask.at[0].set(jnp.inf), mask)
            return carry._replace(step=carry.step + 1, params={"mask": mask}), {"loss": jnp.zeros(())}

        method = named("masked", counter()._replace(step=step))
        keeper = Checkpointer(tmp_path, every_steps=1) if saves else None
        with pytest.raises(NonFiniteError, match=f"params/mask is inf at step {5 if saves else 6};"):
            count(method, params={"mask": jnp.array([0.0, -jnp.inf])}, checkpoint=keeper)

    def test_a_diverging_network_is_stopped(self):
        method = finetune(tiny.loss(), sgd(1e30), batch_size=4)
        with pytest.raises(NonFiniteError, match=r"(loss_retain|grad_norm) is (nan|inf) at step [23];"):
            start(method)


class TestAnotherRun:
    @pytest.fixture
    def folder(self, tmp_path):
        with pytest.raises(Stop):
            count(counter(), checkpoint=Checkpointer(tmp_path), on_step=Recorder(stop_at=5))
        return tmp_path

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"key": jax.random.key(8)}, r"run: key was \[0, 7\] and is now \[0, 8\]; repeat"),
            ({"x": (1.0, 10.0, 100.0)}, "run: retain examples was '4, .*' and is now '3, .*'; repeat"),
            ({"x": (1.0, 10.0, 100.0, 1001.0)}, "run: retain examples was '4, .*' and is now '4, .*'; repeat"),
            ({"params": {"w": jnp.ones(())}}, "run: original network was 'SHA-256 .*' and is now '.*'; repeat"),
            ({"params": {"w": jnp.zeros(()), "b": jnp.zeros(2)}}, "run: original network was"),
            ({"params": {"w": jnp.zeros((), jnp.bfloat16)}}, "run: original network was"),
            ({"epochs": 1}, "run: epochs was 2 and is now 1; repeat"),
            ({"epochs": 3}, "run: epochs was 2 and is now 3; repeat"),
        ],
    )
    def test_is_refused_and_named(self, folder, changes, message):
        with pytest.raises(CheckpointError, match=message):
            count(counter(), checkpoint=Checkpointer(folder), **changes)

    def test_the_same_run_goes_on(self, folder):
        assert float(count(counter(), checkpoint=Checkpointer(folder)).params["w"]) == 1221


def test_an_interrupted_write_is_ignored(tmp_path):
    with pytest.raises(Stop):
        count(counter(), checkpoint=Checkpointer(tmp_path, every_steps=1), on_step=Recorder(stop_at=5))
    half = tmp_path / "5.orbax-checkpoint-tmp"
    (half / "carry").mkdir(parents=True)
    (half / "carry" / "rubbish").write_text("")
    assert float(count(counter(), checkpoint=Checkpointer(tmp_path, every_steps=1)).params["w"]) == 1221


def test_one_array_in_two_places_of_a_carry_can_be_donated():
    def init(key, params, model_state, data):
        return new_carry(key, params, model_state, params, {"teacher": params})

    assert float(count(counter()._replace(init=init)).params["w"]) == 1221


def test_plain_losses_run_through_lift():
    method = finetune(lift(lambda w, batch: jnp.mean(jnp.square(w - batch["x"]))), sgd(0.5, momentum=0), batch_size=4)
    data = Data(None, {"x": np.full((4,), 3.0, np.float32)})
    result = run(method, KEY, jnp.zeros(()), (), data, num_epochs=1)
    assert float(result.params) == pytest.approx(3.0)


def test_a_network_that_only_the_run_holds_is_let_go_of():
    start, held = [trees.copy(part) for part in tiny.start()], []
    leaves = [weakref.ref(leaf) for leaf in jax.tree.leaves(start[0])]

    def on_step(step):
        held.append(sum(leaf() is not None for leaf in leaves))

    method = tiny.method("finetune")
    run(method, KEY, start.pop(0), start.pop(0), tiny.data(), num_epochs=1, on_step=on_step, steps_per_call=1)
    assert held == [0] * 3


def test_such_a_network_is_never_there_twice(monkeypatch):
    """Each of its arrays is let go of as soon as the run has its own copy."""
    start, held, copy = [trees.copy(part) for part in tiny.start()], [], jnp.copy
    leaves = [weakref.ref(leaf) for leaf in jax.tree.leaves(start[0])]

    def watched(leaf):
        held.append(sum(leaf() is not None for leaf in leaves))
        return copy(leaf)

    monkeypatch.setattr(jnp, "copy", watched)
    run(tiny.method("finetune"), KEY, start.pop(0), start.pop(0), tiny.data(), num_epochs=1)
    assert held[0] == len(leaves)
    assert held[-1] == 0
