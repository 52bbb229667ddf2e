"""Checkpoints of networks and of runs: round trips bit for bit, and whatever else may lie in such a folder."""

import contextlib
import json
import os
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import files
from scissorhands_jax.base import Carry, Data, lift
from scissorhands_jax.errors import BusyError, CheckpointError, InputError
from scissorhands_jax.methods.finetune import finetune
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training import checkpoints, distributed
from scissorhands_jax.training.checkpoints import Checkpointer, Position
from scissorhands_jax.training.identity import Identity
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.comparison import same_bits

# Orbax's threads, where a damaged file interrupts them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


RUN = Identity({"w": "float32[3]"}, {"cores": "2"})


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


def network(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.bfloat16)},
        "head": [Pair(jnp.asarray([-0.0, np.nan, np.inf, 1e-40], jnp.float32), jnp.asarray(rng.normal(), jnp.float16))],
    }
    return params, {"batch_stats": {"count": jnp.int32(rng.integers(9)), "mean": jnp.asarray(rng.normal(size=3))}}


def carry(step=3, seed=0):
    params, model_state = network(seed)
    opt_state = (Pair(jax.tree.map(lambda leaf: leaf + 1, params), ()), None)
    return Carry(
        jnp.int32(step), jax.random.key(seed), params, model_state, opt_state, {"mask": jnp.array([True, False])}
    )


def outline(tree):
    return jax.eval_shape(lambda: tree)


class TestNetwork:
    def test_comes_back_bit_for_bit_with_its_types_and_structure(self, tmp_path):
        params, model_state = network()
        checkpoints.save_network(tmp_path / "a" / "net", params, model_state, {"model": "mlp", "hidden": [3, 4]})
        assert checkpoints.read_description(tmp_path / "a" / "net") == {"model": "mlp", "hidden": [3, 4]}
        for templates in ((params, model_state), (outline(params), outline(model_state))):
            loaded = checkpoints.load_network(str(tmp_path / "a" / "net"), *templates)
            assert same_bits(loaded, (params, model_state))
            assert checkpoints.describe_arrays(loaded) == checkpoints.describe_arrays((params, model_state))

    @pytest.mark.skipif(os.name != "posix", reason="elsewhere few of these characters can be in a name")
    @pytest.mark.parametrize("name", [*"*?[\\]{}#&%:|'\"~$ü日", "two words", "tab\there", "[red]", "a\\b"])
    def test_a_folder_of_any_name_is_read_back_or_refused(self, tmp_path, name):
        path = tmp_path / name / "net"
        if set(name) & set("*?[\\"):
            for write in (lambda: checkpoints.save_network(path, *network(), {}), lambda: Checkpointer(path)):
                with pytest.raises(InputError, match=r"whose name has the character .*; name another folder"):
                    write()
            assert list(tmp_path.iterdir()) == []
        else:
            checkpoints.save_network(path, *network(), {})
            assert same_bits(checkpoints.load_network(path, *network()), network())

    def test_an_existing_one_is_replaced_and_leaves_no_other_folder(self, tmp_path):
        path = tmp_path / "net"
        for seed in (0, 1):
            checkpoints.save_network(path, *network(seed), {"seed": seed})
            assert [child.name for child in tmp_path.iterdir()] == ["net"]
        assert checkpoints.read_description(path) == {"seed": 1}
        assert same_bits(checkpoints.load_network(path, *network()), network(1))

    def test_a_failed_write_keeps_the_old_one(self, tmp_path):
        path = tmp_path / "net"
        checkpoints.save_network(path, *network(), {"seed": 0})
        with pytest.raises(TypeError):
            checkpoints.save_network(path, *network(1), {"seed": object()})
        assert checkpoints.read_description(path) == {"seed": 0}
        assert same_bits(checkpoints.load_network(path, *network()), network())

    def test_another_network_is_refused_with_the_first_difference(self, tmp_path):
        path = tmp_path / "net"
        params, model_state = network()
        checkpoints.save_network(path, params, model_state, {})
        wider = {**params, "conv": {"kernel": jnp.zeros((3, 5), jnp.bfloat16)}}
        message = (
            r"1 entries differ, the first is params/conv/kernel with bfloat16\[3, 2\] there and bfloat16\[3, 5\] here"
        )
        with pytest.raises(CheckpointError, match=message):
            checkpoints.load_network(path, wider, model_state)
        with pytest.raises(CheckpointError, match=r"float32\[\] there and nothing here|nothing here"):
            checkpoints.load_network(path, {"conv": params["conv"]}, model_state)
        with pytest.raises(CheckpointError, match="params/extra with nothing there"):
            checkpoints.load_network(path, {**params, "extra": jnp.zeros(1)}, model_state)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "null",
            "3",
            '{"description": {}}',
            '{"description": [], "fingerprint": {}}',
            '{"description": {}, "fingerprint": null, "sha256": ""}',
            '{"description": {}, "fingerprint": {}, "sha256": null}',
            '{"description": {}, "fingerprint": {}}',
            b"\xff\xfe\x00",
        ],
    )
    def test_damaged_metadata_is_refused(self, tmp_path, text):
        path = tmp_path / "net"
        (path / "meta").mkdir(parents=True)
        (path / "meta" / "metadata").write_bytes(text if isinstance(text, bytes) else text.encode())
        for read in (checkpoints.read_description, lambda path: checkpoints.load_network(path, *network())):
            with pytest.raises(CheckpointError, match="net is damaged"):
                read(path)

    def test_a_network_of_an_earlier_version_is_read(self, tmp_path):
        """It has a checksum that could not tell all changes, and that is not compared any more."""
        checkpoints.save_network(tmp_path / "net", {"w": jnp.arange(6.0)}, {}, {})
        metadata = tmp_path / "net" / "meta" / "metadata"
        meta = json.loads(metadata.read_text())
        for name, message in (("checksum", None), ("sha257", "net is damaged")):
            metadata.write_text(json.dumps({**{n: meta[n] for n in ("description", "fingerprint")}, name: "01234567"}))
            with contextlib.nullcontext() if message is None else pytest.raises(CheckpointError, match=message):
                params, _ = checkpoints.load_network(tmp_path / "net", {"w": jnp.zeros(6)}, {})
        np.testing.assert_array_equal(params["w"], np.arange(6.0))

    @pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3)])
    def test_the_same_numbers_in_another_shape_are_refused_whatever_the_metadata_say(self, tmp_path, shape):
        checkpoints.save_network(tmp_path / "net", {"w": jnp.arange(6.0).reshape(2, 3)}, {}, {})
        template = {"w": jnp.zeros(shape)}
        metadata = tmp_path / "net" / "meta" / "metadata"
        arrays = checkpoints.describe_arrays({"params": template, "model_state": {}})
        metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "fingerprint": arrays}))
        with pytest.raises(CheckpointError, match="net is damaged: its numbers have changed since it was written"):
            checkpoints.load_network(tmp_path / "net", template, {})

    def test_a_folder_without_a_network_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("")
        for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
            with pytest.raises(CheckpointError, match=r"there is no network checkpoint in|is damaged"):
                checkpoints.load_network(path, *network())

    def test_missing_or_damaged_arrays_are_refused(self, tmp_path):
        path, large = tmp_path / "net", ({"w": jnp.asarray(np.random.default_rng(0).normal(size=(100, 50)))}, {})
        checkpoints.save_network(path, *large, {})
        refused = 0
        for file in [file for file in path.rglob("*") if file.is_file()]:
            whole = file.read_bytes()
            # Rubbish, and one flipped bit in the middle: Orbax itself does not notice that in an array.
            for content in (
                b"rubbish",
                whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
            ):
                file.write_bytes(content)
                try:
                    loaded = checkpoints.load_network(path, *large)
                except CheckpointError:
                    refused += 1
                else:
                    assert same_bits(loaded, large), file
            file.write_bytes(whole)
        assert refused >= 6
        shutil.rmtree(path / "network")
        with pytest.raises(CheckpointError, match="net is damaged"):
            checkpoints.load_network(path, *large)


class TestCheckpointer:
    def test_a_carry_comes_back_bit_for_bit_with_its_typed_key(self, tmp_path):
        keeper = Checkpointer(tmp_path / "run")
        assert keeper.latest_step is None
        keeper.save(carry(), Position(2, 5), RUN)
        assert keeper.latest_step == 3
        keeper.close()
        again = Checkpointer(str(tmp_path / "run"))
        template = carry(0, seed=1)
        loaded, position = again.restore(template, RUN)
        assert position == Position(2, 5)
        assert same_bits(loaded, carry())
        assert loaded.key.dtype == carry().key.dtype
        assert not any(leaf.committed for leaf in jax.tree.leaves(loaded))  # as in the template
        np.testing.assert_array_equal(jax.random.normal(loaded.key, (3,)), jax.random.normal(carry().key, (3,)))

    def test_only_the_newest_stay_and_a_step_is_written_once(self, tmp_path):
        keeper = Checkpointer(tmp_path, keep=2)
        for step in (1, 2, 3):
            keeper.save(carry(step, seed=step), Position(0, step), RUN)
        keeper.save(carry(3, seed=9), Position(0, 3), RUN)
        assert sorted(folder.name for folder in tmp_path.iterdir()) == ["2", "3"]
        assert same_bits(keeper.restore(carry(), RUN)[0], carry(3, seed=3))

    def test_the_first_process_says_which_is_the_newest(self, tmp_path, monkeypatch):
        keeper = Checkpointer(tmp_path)
        for step in (1, 2):
            keeper.save(carry(step, seed=step), Position(0, step), RUN)
        assert keeper.agreed_step() == 2
        monkeypatch.setattr(distributed, "from_first", lambda compute: compute() - 1)
        assert keeper.agreed_step() == 1
        assert same_bits(keeper.restore(carry(), RUN)[0], carry(1, seed=1))

    def test_the_first_process_says_what_is_there_already(self, tmp_path, monkeypatch):
        """All of them must write together, and one may see the folder later than the others."""
        monkeypatch.setattr(distributed, "from_first", lambda compute: compute() or True)
        keeper = Checkpointer(tmp_path)
        keeper.save(carry(3), Position(0, 3), RUN)
        assert keeper.latest_step is None

    def test_an_interrupted_write_is_ignored(self, tmp_path):
        keeper = Checkpointer(tmp_path)
        keeper.save(carry(3), Position(0, 3), RUN)
        keeper.close()
        shutil.copytree(tmp_path / "3", tmp_path / "4.orbax-checkpoint-tmp")
        shutil.copytree(tmp_path / "3", tmp_path / "5.orbax-checkpoint-tmp-1234567890")
        (tmp_path / "5.orbax-checkpoint-tmp-1234567890" / "_CHECKPOINT_METADATA").unlink()
        again = Checkpointer(tmp_path)
        assert again.latest_step == 3
        assert same_bits(again.restore(carry(), RUN)[0], carry(3))
        again.save(carry(4), Position(0, 4), RUN)
        assert again.latest_step == 4

    def test_another_run_is_refused(self, tmp_path):
        keeper = Checkpointer(tmp_path)
        keeper.save(carry(), Position(0, 3), RUN)
        message = "belongs to another run: v was None and is now 3; w was 'float32.3.' and is now None; repeat its set"
        with pytest.raises(CheckpointError, match=message):
            keeper.restore(carry(), Identity({"v": 3}, RUN.environment))

    def test_arrays_of_another_kind_are_refused(self, tmp_path):
        keeper = Checkpointer(tmp_path)
        keeper.save(carry(), Position(0, 3), RUN)
        other = carry()._replace(aux={"mask": jnp.array([True, False, True])})
        with pytest.raises(CheckpointError, match=r"aux/mask with bool\[2\] there and bool\[3\] here"):
            keeper.restore(other, RUN)

    def test_numbers_in_place_of_a_key_are_refused_whatever_the_metadata_say(self, tmp_path):
        raw = carry()._replace(key=jax.random.key_data(carry().key))
        keeper = Checkpointer(tmp_path)
        keeper.save(raw, Position(0, 3), RUN)
        metadata = tmp_path / "3" / "meta" / "metadata"
        arrays = checkpoints.describe_arrays(carry())
        metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "arrays": arrays}))
        with pytest.raises(CheckpointError, match=r"step 3 in .* is damaged: its numbers have changed since they were"):
            Checkpointer(tmp_path).restore(carry(), RUN)

    def test_a_checkpoint_of_an_earlier_version_is_refused(self, tmp_path):
        keeper = Checkpointer(tmp_path)
        keeper.save(carry(), Position(0, 3), RUN)
        metadata = tmp_path / "3" / "meta" / "metadata"
        metadata.write_text(json.dumps({"epoch": 0, "offset": 3, "fingerprint": {}, "checksum": "0"}))
        with pytest.raises(
            CheckpointError,
            match=r"^an earlier version of scissorhands_jax wrote the checkpoint of step 3 in .*; start again",
        ):
            Checkpointer(tmp_path).restore(carry(), RUN)

    def test_nothing_to_restore_is_refused(self, tmp_path):
        with pytest.raises(CheckpointError, match="no whole checkpoint"):
            Checkpointer(tmp_path / "new").restore(carry(), RUN)

    @pytest.mark.parametrize("meta", ["", "{", "[]", '{"epoch": 1, "offset": 1}', '{"epoch": "x", "offset": 1}'])
    def test_damaged_metadata_is_refused(self, tmp_path, meta):
        keeper = Checkpointer(tmp_path)
        keeper.save(carry(), Position(0, 3), RUN)
        file = tmp_path / "3" / "meta" / "metadata"
        assert json.loads(file.read_text()).items() >= {"epoch": 0, "offset": 3, "run": RUN.document()}.items()
        file.write_text(meta)
        with pytest.raises(CheckpointError, match=r"checkpoint of step 3 in .* is damaged"):
            Checkpointer(tmp_path).restore(carry(), RUN)

    def test_missing_or_changed_arrays_are_refused(self, tmp_path):
        large = carry()._replace(aux=jnp.asarray(np.random.default_rng(0).normal(size=5000)))
        keeper = Checkpointer(tmp_path)
        keeper.save(large, Position(0, 3), RUN)
        file = max((tmp_path / "3" / "carry").rglob("*"), key=lambda file: file.stat().st_size)
        whole = file.read_bytes()
        file.write_bytes(whole[:9000] + bytes([whole[9000] ^ 4]) + whole[9001:])
        with pytest.raises(CheckpointError, match="numbers have changed since they were written"):
            Checkpointer(tmp_path).restore(large, RUN)
        shutil.rmtree(tmp_path / "3" / "carry")
        with pytest.raises(CheckpointError, match=r"checkpoint of step 3 in .* is damaged"):
            Checkpointer(tmp_path).restore(large, RUN)

    def test_saving_less_than_every_step_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="the steps between checkpoints must be at least 1, got 0"):
            Checkpointer(tmp_path, every_steps=0)


class TestComparing:
    def test_equal_means_bit_for_bit(self):
        assert same_bits(carry(), carry())
        for name, value in {
            "step": jnp.int32(4),
            "key": jax.random.key(1),
            "params": network(1)[0],
            "aux": {"mask": jnp.array([True, True])},
            "opt_state": (),
        }.items():
            assert not same_bits(carry(), carry()._replace(**{name: value})), name
        assert not same_bits({"a": jnp.array(0.0)}, {"a": jnp.array(-0.0)})
        assert not same_bits(jnp.zeros(()), jnp.zeros((1,)))
        assert not same_bits(jnp.zeros(3), jnp.zeros(3, jnp.int32))
        assert same_bits({"a": jnp.array(np.nan)}, {"a": jnp.array(np.nan)})


@pytest.mark.parametrize("content", [b"{}", b"[]", b"{", b"\xff", b'{"commit": 1, "custom_metadata": {}}', None])
def test_damage_to_what_orbax_notes_of_a_checkpoint_is_a_checkpoint_error_or_none(tmp_path, content):
    keeper = Checkpointer(tmp_path)
    keeper.save(carry(), Position(0, 3), RUN)
    keeper.close()
    for path in tmp_path.rglob("_CHECKPOINT_METADATA"):
        path.unlink() if content is None else path.write_bytes(content)
    with contextlib.suppress(CheckpointError), contextlib.closing(Checkpointer(tmp_path)) as reader:
        found, _ = reader.restore(carry(), RUN)
        assert same_bits(found, carry())


def test_what_orbax_cannot_read_when_it_opens_a_folder_is_a_checkpoint_error(tmp_path):
    keeper = Checkpointer(tmp_path)
    keeper.save(carry(), Position(0, 3), RUN)
    keeper.close()
    (path,) = tmp_path.glob("*/_CHECKPOINT_METADATA")
    path.write_bytes(path.read_bytes().replace(b"timestamp", b"timestimp"))
    with pytest.raises(CheckpointError, match="are damaged: ValueError"):
        Checkpointer(tmp_path).restore(carry(), RUN)
    with pytest.raises(CheckpointError, match="are damaged: ValueError"):
        Checkpointer(tmp_path).open()


def test_only_who_writes_changes_the_folder(tmp_path):
    keeper = Checkpointer(tmp_path, keep=3)
    with files.sole_writer(tmp_path):
        for step in (1, 2, 3):
            keeper.save(carry(step), Position(0, step), RUN)
        shutil.copytree(tmp_path / "3", tmp_path / "4.orbax-checkpoint-tmp")
        there = sorted(path.name for path in tmp_path.iterdir())
        other = Checkpointer(tmp_path, keep=1)
        assert other.latest_step == 3
        assert same_bits(other.restore(carry(), RUN)[0], carry(3))
        with pytest.raises(BusyError):
            tiny_run(checkpoint=other)
        assert sorted(path.name for path in tmp_path.iterdir()) == there
    with pytest.raises(CheckpointError, match="belongs to another run"):
        tiny_run(checkpoint=other)
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.name.isdecimal()] == ["1", "2", "3"]


def test_a_checkpointer_sees_what_others_saved_since_it_was_made(tmp_path):
    early, keeper = Checkpointer(tmp_path), Checkpointer(tmp_path)
    assert early.latest_step is None
    for step in (3, 4):
        keeper.save(carry(step, seed=step), Position(0, step), RUN)
        assert early.latest_step == step
        assert same_bits(early.restore(carry(), RUN)[0], carry(step, seed=step))


def test_numbers_among_the_parameters_are_kept_as_arrays(tmp_path):
    loss = lift(lambda params, batch: jnp.mean(jnp.square(params["w"] * batch["x"] + params["b"])))
    method, x = finetune(loss, sgd(0.1), batch_size=2), {"x": np.arange(4, dtype=np.float32)}
    found = [
        run(method, jax.random.key(0), {"w": jnp.ones(()), "b": b}, {"n": 3}, Data(x, x), num_epochs=1, checkpoint=to)
        for b, to in ((0.5, Checkpointer(tmp_path)), (jnp.float32(0.5), None))
    ]
    assert same_bits(*(result.params for result in found))
    assert found[0].model_state["n"].dtype == jnp.int32
    assert Checkpointer(tmp_path).latest_step == 2


def test_arrays_without_entries_are_kept(tmp_path):
    loss = lift(lambda params, batch: jnp.mean(jnp.square(params["w"] - batch["x"])) + jnp.sum(params["none"]))
    x = {"x": np.arange(4, dtype=np.float32)}
    start = {"w": jnp.ones(()), "none": jnp.zeros((0, 3))}, {"rows": jnp.zeros((2, 0), jnp.bfloat16)}

    def two_epochs():
        method = finetune(loss, sgd(0.1), batch_size=2)
        return run(method, jax.random.key(0), *start, Data(x, x), num_epochs=2, checkpoint=Checkpointer(tmp_path))

    expected = two_epochs()
    shutil.rmtree(tmp_path / "4")
    found = two_epochs()
    assert same_bits((found.params, found.model_state), (expected.params, expected.model_state))
    checkpoints.save_network(tmp_path / "net", *start, {})
    assert same_bits(checkpoints.load_network(tmp_path / "net", *start), start)


def tiny_run(**options):
    return run(tiny.method("finetune"), jax.random.key(0), *tiny.start(), tiny.data(), num_epochs=1, **options)


@pytest.mark.parametrize(("keep", "message"), [(0, "at least 1, got 0"), (-1, "at least 1, got -1"), (2.0, "a whole")])
def test_at_least_one_checkpoint_is_kept(tmp_path, keep, message):
    with pytest.raises(InputError, match=f"keep must be {message}"):
        Checkpointer(tmp_path, keep=keep)
