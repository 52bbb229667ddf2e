"""The limits themselves: what measures nothing would bound nothing."""

import gc
import time

import pytest

from tests import limits


def test_what_is_held_and_computed_is_measured_and_waiting_is_not():
    with limits.spent(memory=True) as work:
        held = bytearray(3_000_000)
        del held
        time.sleep(0.3)
    assert 3_000_000 <= work.peak < 4_000_000
    assert work.seconds < 0.2
    with limits.spent() as work:
        began = time.thread_time()
        while time.thread_time() - began < 0.1:
            pass
    assert work.seconds >= 0.1
    assert work.peak == 0


def test_work_is_told_in_measures_whatever_the_speed():
    for memory in (False, True):
        with limits.spent(memory=memory) as work:
            for _ in range(20):
                limits.measure()
        assert 5 < work.measures < 40
        assert work.peak < 10_000_000


def test_what_other_tests_left_to_the_collector_is_not_measured():
    with limits.spent():
        with limits.spent():
            pass
        before = [generation["collections"] for generation in gc.get_stats()]
        held = [[] for _ in range(10 * gc.get_threshold()[0])]
        assert [generation["collections"] for generation in gc.get_stats()] == before
        del held
    assert gc.isenabled()


def fail():
    held = bytearray(3_000_000)
    raise KeyError(len(held))


def test_what_fails_leaves_nothing_that_is_traced():
    with limits.spent(memory=True) as first, pytest.raises(KeyError):
        fail()
    with pytest.raises(KeyError), limits.spent(memory=True):
        fail()
    with limits.spent(memory=True) as second:
        pass
    assert first.peak >= 3_000_000 > second.peak, "the trace ended with what failed"
