"""Where examples come from: on the device or loaded ahead, one step or many per call, runs end the same."""

import jax
import numpy as np
import pytest

from scissorhands_jax.base import Batch, Data
from scissorhands_jax.errors import InputError
from scissorhands_jax.training import feeding, sharding
from scissorhands_jax.training import loop as training
from scissorhands_jax.training.checkpoints import Checkpointer
from scissorhands_jax.training.feeding import StepGroup, group_steps
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.comparison import same_bits
from tests.compilations import Compilations

KEY = jax.random.key(3)


def batches(*sizes, joint=0):
    """Batches of these sizes, the first ones with forget examples."""
    return [
        Batch(np.zeros(2, np.int32) if index < joint else None, np.zeros(size, np.int32))
        for index, size in enumerate(sizes)
    ]


class TestStepGroupes:
    def test_one_step_per_call_has_no_rows(self):
        found = group_steps(batches(4, 4, 4), 1, per_call=1)
        assert found == [StepGroup(1, 1, None), StepGroup(2, 1, None)]

    def test_kinds_and_shapes_do_not_share_a_call(self):
        found = group_steps(batches(4, 4, 4, 4, 4, 3, joint=2), 0, per_call=8)
        assert found == [StepGroup(0, 2, 2), StepGroup(2, 3, 4), StepGroup(5, 1, 1)]

    def test_many_equal_batches_are_cut_into_calls_with_the_same_room(self):
        assert group_steps(batches(*[4] * 7), 0, per_call=3) == [
            StepGroup(0, 3, 3),
            StepGroup(3, 3, 3),
            StepGroup(6, 1, 3),
        ]

    @pytest.mark.parametrize("done", range(7))
    def test_calls_end_where_checkpoints_are_due_and_room_does_not_depend_on_where_a_run_resumes(self, done):
        found = group_steps(batches(*[4] * 7), done, per_call=64, every=3)
        assert [step for call in found for step in range(call.first, call.first + call.steps)] == list(range(done, 7))
        assert {call.first + call.steps for call in found} == {end for end in (3, 6, 7) if end > done}
        assert {call.rows for call in found} == {8}


class TestStepsPerCall:
    def test_it_is_one_on_cpu_and_many_elsewhere(self, monkeypatch):
        data = Data(None, {"x": np.zeros((10, 3), np.float32)})
        assert feeding.steps_per_call(data, batches(4)) == 1
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert feeding.steps_per_call(data, batches(4)) == 64

    def test_large_batches_take_fewer(self, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        data = Data(None, {"x": np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (1000, 2**20), (0, 0))})
        assert feeding.steps_per_call(data, batches(32, 16)) == 256 // 32
        assert feeding.steps_per_call(data, batches(900)) == 1
        of_a_sweep = [Batch(None, np.zeros((8, 4), np.int32))]  # eight members' batches of four
        assert feeding.steps_per_call(data, of_a_sweep) == 256 // 32

    def test_less_than_one_is_refused(self):
        with pytest.raises(InputError, match="steps_per_call must be at least 1, got 0"):
            run(tiny.method("finetune"), KEY, *tiny.start(), tiny.data(), num_epochs=1, steps_per_call=0)


class TestMakeFeed:
    def test_data_that_fit_go_to_the_device(self):
        assert isinstance(feeding.make_feed(tiny.data()), feeding.DeviceFeed)

    def test_data_that_do_not_fit_stay(self, monkeypatch):
        data = tiny.data()
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(data))
        monkeypatch.setattr(feeding, "device_memory", lambda: 4 * total - 4)
        feed = feeding.make_feed(data)
        assert isinstance(feed, feeding.HostFeed)
        assert feed.data is data
        assert isinstance(feeding.make_feed(data, "device"), feeding.DeviceFeed)

    def test_only_a_layout_over_many_processes_is_fed_from_hosts(self, monkeypatch):
        layout = sharding.make_layout()
        for processes, divided in ((1, layout), (2, None), (1, None)):
            monkeypatch.setattr(jax, "process_count", lambda count=processes: count)
            feeding.check_feed("device", divided)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        feeding.check_feed("host", layout)
        with pytest.raises(InputError, match="with many processes each feeds its share from the host"):
            feeding.check_feed("device", layout)

    def test_another_word_is_refused(self):
        with pytest.raises(InputError, match="feed_from is 'disk'; choose one of auto, device, host"):
            feeding.make_feed(tiny.data(), "disk")


@pytest.mark.parametrize("name", ["scissorhands", "salun"])
def test_data_on_the_host_give_the_same_bits(name, tmp_path):
    method, data = tiny.method(name), tiny.data()
    mapped = jax.tree.map(lambda leaf: _mapped(tmp_path, leaf), data)
    expected = run(method, KEY, *tiny.start(), data, num_epochs=2, feed_from="device")
    result = run(method, KEY, *tiny.start(), mapped, num_epochs=2, feed_from="host")
    assert same_bits(result[:2], expected[:2])


def _mapped(folder, leaf):
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, leaf)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("feed_from", ["device", "host"])
def test_many_steps_per_call_give_the_same_numbers_and_resume_bit_equal(feed_from, tmp_path):
    # Two joint steps and three others, for which a call has room for four.
    method, data, start = tiny.method("scissorhands"), tiny.data(6, 18), tiny.start()
    histories = {}

    def history(name):
        return lambda progress: histories.setdefault(name, []).append(progress)

    single = run(method, KEY, *start, data, num_epochs=2, on_step=history("single"))
    many = run(method, KEY, *start, data, num_epochs=2, on_step=history("many"), steps_per_call=8, feed_from=feed_from)
    assert many.steps == single.steps == 10
    for left, right in zip(jax.tree.leaves(many[:2]), jax.tree.leaves(single[:2]), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-5, atol=2e-6)
    for left, right in zip(histories["many"], histories["single"], strict=True):
        assert left[:-1] == right[:-1]
        for name, value in right.metrics.items():
            np.testing.assert_allclose(left.metrics[name], value, rtol=2e-4, atol=1e-5)

    def stop(progress):
        if progress.step == 7:
            raise KeyboardInterrupt

    options = {"num_epochs": 2, "steps_per_call": 8, "feed_from": feed_from}
    with pytest.raises(KeyboardInterrupt):
        run(method, KEY, *start, data, checkpoint=Checkpointer(tmp_path, every_steps=2), on_step=stop, **options)
    assert Checkpointer(tmp_path).latest_step == 5
    with Compilations() as again:
        resumed = run(method, KEY, *start, data, checkpoint=Checkpointer(tmp_path, every_steps=2), **options)
    assert same_bits(resumed[:2], many[:2])
    assert "jit(_steps)" not in again.names


def test_the_host_waits_for_nothing_within_an_epoch(monkeypatch):
    reads = []
    read = jax.device_get
    monkeypatch.setattr(training, "_is_ready", lambda metrics: False)
    monkeypatch.setattr(
        training, "broken", lambda *network: set()
    )  # It reads before the first and after the last epoch.
    monkeypatch.setattr(jax, "device_get", lambda tree: reads.append(len(tree)) or read(tree))
    run(tiny.method("finetune"), KEY, *tiny.start(), tiny.data(), num_epochs=2)
    assert [count for count in reads if count] == [3, 3]


def test_a_layout_is_fed_the_same_from_its_devices_and_from_the_host():
    chosen, calls = [Batch(np.arange(4), np.arange(4)[::-1])], [StepGroup(0, 1, None)]
    resident, read = (feeding.make_feed(tiny.data(), source, sharding.make_layout()) for source in ("device", "host"))
    assert type(resident) is feeding.ResidentFeed
    pairs = zip(resident.examples(chosen, calls), read.examples(chosen, calls), strict=True)
    assert [same_bits(*pair) for pair in pairs] == [True]
