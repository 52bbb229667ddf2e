"""Forget sets from specifications and files, batches that see every example, augmentation on the device."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import data
from scissorhands_jax.base import Batch
from scissorhands_jax.errors import InputError

LABELS = np.repeat(np.arange(5), 20)


@pytest.fixture
def index_file(tmp_path):
    """Writes a file of positions and gives its specification."""

    def write(text):
        path = tmp_path / "forget.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"indices:{path}"

    return write


class TestForgetPositions:
    def test_a_random_share_is_drawn_with_the_seed(self):
        drawn = data.forget_positions("random:0.13", LABELS, seed=1)
        assert drawn.dtype == np.int32
        assert len(drawn) == len(set(drawn.tolist())) == 13
        assert np.all(np.diff(drawn) > 0)
        np.testing.assert_array_equal(drawn, data.forget_positions("random:0.13", LABELS, seed=1))
        assert drawn.tolist() != data.forget_positions("random:0.13", LABELS, seed=2).tolist()

    def test_a_class_is_all_of_its_examples(self):
        np.testing.assert_array_equal(data.forget_positions("class:3", LABELS, seed=0), np.arange(60, 80))

    def test_a_file_names_positions_with_comments_and_blank_lines(self, index_file):
        spec = index_file("# to forget\n\n 7 # requested\r\n+3\n0\n")
        np.testing.assert_array_equal(data.forget_positions(spec, LABELS, seed=0), [0, 3, 7])

    @pytest.mark.parametrize("share", ["0", "1", "-0.1", "1.5", "nan", "ten", "inf", "0,1"])
    def test_shares_outside_zero_and_one_are_refused(self, share):
        with pytest.raises(InputError, match=f"strictly between 0 and 1, got '{share}'"):
            data.forget_positions(f"random:{share}", LABELS, seed=0)

    @pytest.mark.parametrize(
        ("share", "message"), [("0.001", "forget set is empty"), ("0.999", "whole training set of 100")]
    )
    def test_shares_that_round_to_nothing_or_everything_are_refused(self, share, message):
        with pytest.raises(InputError, match=message):
            data.forget_positions(f"random:{share}", LABELS, seed=0)

    @pytest.mark.parametrize("label", ["5", "-1", "cat", "1.0", "99999999999999999999"])
    def test_unknown_classes_are_refused_with_the_known_ones(self, label):
        with pytest.raises(InputError, match=f"no class '{label}' in the training set; its labels are 0, 1, 2, 3, 4$"):
            data.forget_positions(f"class:{label}", LABELS, seed=0)

    def test_many_classes_are_not_all_listed(self):
        with pytest.raises(InputError, match=r"labels are 0, 1, .*, 11, \.\.\.$"):
            data.forget_positions("class:100", np.arange(100), seed=0)

    def test_the_only_class_cannot_be_forgotten(self):
        with pytest.raises(InputError, match="nothing is left to retain"):
            data.forget_positions("class:2", np.full(9, 2), seed=0)

    @pytest.mark.parametrize("spec", ["", "random", "random:", "class:", "indices:", "first:10", "0.1"])
    def test_other_specifications_are_refused_with_the_forms(self, spec):
        with pytest.raises(InputError, match=r"write random:0\.1, class:3 or indices:FILE"):
            data.forget_positions(spec, LABELS, seed=0)

    @pytest.mark.parametrize("line", ["3.0", "three", "1 2", "0x10", "1e3", "--1", "9" * 30])
    def test_lines_that_are_no_integers_are_refused_by_number(self, index_file, line):
        with pytest.raises(InputError, match=r"line 3 of .*forget\.txt is .*, not an integer"):
            data.forget_positions(index_file(f"1\n# comment\n{line}\n"), LABELS, seed=0)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "the forget set is empty"),
            ("# nothing\n", "the forget set is empty"),
            ("5\n100\n-1\n", "2 forget positions lie outside 0 to 99, the first is 100"),
            ("5\n7\n5\n7\n5\n", "2 forget positions are repeated, the first is 5"),
            ("\n".join(map(str, range(100))), "whole training set of 100; nothing is left to retain"),
            ("999999999999999999", "outside 0 to 99"),
            (b"\xff\xfe1\n", "cannot read the forget positions"),
        ],
    )
    def test_files_that_name_no_valid_forget_set_are_refused(self, index_file, text, message):
        with pytest.raises(InputError, match=message):
            data.forget_positions(index_file(text), LABELS, seed=0)

    def test_unreadable_files_are_refused(self, tmp_path):
        for path in (tmp_path / "absent.txt", tmp_path):
            with pytest.raises(InputError, match="cannot read the forget positions in"):
                data.forget_positions(f"indices:{path}", LABELS, seed=0)


class TestCheckPositions:
    @pytest.mark.parametrize("positions", [[1.0, 2.0], [True, False], [[1, 2]], ["1"]])
    def test_only_lists_of_integers_are_taken(self, positions):
        with pytest.raises(InputError, match="must be a list of integers"):
            data.check_positions(positions, 10)

    def test_positions_come_back_sorted_as_int32(self):
        for positions in ([4, 0, 2], np.array([4, 0, 2], np.uint64), jnp.array([4, 0, 2])):
            checked = data.check_positions(positions, 5)
            assert checked.tolist() == [0, 2, 4]
            assert checked.dtype == np.int32


class TestSplit:
    def test_both_parts_keep_order_and_together_are_the_whole(self):
        train = {"image": np.arange(20).reshape(10, 2), "label": np.arange(10)}
        parts = data.split(train, np.array([7, 0, 4]))
        assert parts.forget["label"].tolist() == [0, 4, 7]
        assert parts.retain["label"].tolist() == [1, 2, 3, 5, 6, 8, 9]
        np.testing.assert_array_equal(parts.retain["image"], train["image"][[1, 2, 3, 5, 6, 8, 9]])

    def test_arrays_of_different_lengths_are_refused(self):
        with pytest.raises(InputError, match=r"share their first axis, found lengths \[3, 4\]"):
            data.split({"image": np.zeros((4, 2)), "label": np.zeros(3)}, np.array([0]))

    def test_bad_positions_are_refused(self):
        with pytest.raises(InputError, match="outside 0 to 3"):
            data.split({"label": np.zeros(4)}, np.array([4]))

    def test_size_of_nothing_is_zero(self):
        assert data.size(None) == data.size({}) == 0


class TestGather:
    def test_positions_become_examples_also_inside_jit(self):
        parts = data.Data({"x": jnp.arange(5) * 10}, {"x": jnp.arange(7)})
        batch = jax.jit(data.gather)(parts, Batch(np.array([4, 0]), np.array([1, 1, 6])))
        assert batch.forget["x"].tolist() == [40, 0]
        assert batch.retain["x"].tolist() == [1, 1, 6]

    def test_a_part_without_positions_stays_none(self):
        batch = data.gather(data.Data(None, {"x": jnp.arange(3)}), Batch(retain=np.array([2])))
        assert batch.forget is None
        assert batch.retain["x"].tolist() == [2]


class TestBatches:
    @pytest.mark.parametrize(("total", "batch_size"), [(10, 4), (8, 4), (3, 4), (1, 1), (7, 7)])
    def test_every_example_is_seen_and_the_last_batch_is_filled_from_the_front(self, total, batch_size):
        batches = data.shuffled_batches(jax.random.key(0), total, batch_size)
        size = min(total, batch_size)
        assert [len(batch) for batch in batches] == [size] * -(-total // size)
        order = np.concatenate(batches)
        assert order.dtype == np.int32
        assert sorted(order[:total]) == list(range(total))
        np.testing.assert_array_equal(order[total:], order[: len(order) - total])

    def test_without_fill_the_last_batch_is_smaller(self):
        batches = data.shuffled_batches(jax.random.key(0), 10, 4, fill=False)
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(np.concatenate(batches)) == list(range(10))

    def test_order_depends_on_the_key_alone(self):
        key = jax.random.key(5)
        orders = [np.concatenate(data.shuffled_batches(jax.random.fold_in(key, epoch), 50, 7)) for epoch in (0, 0, 1)]
        np.testing.assert_array_equal(orders[0], orders[1])
        assert np.any(orders[0] != orders[2])
        assert np.any(orders[0][:50] != np.arange(50))

    def test_every_order_is_about_equally_likely(self):
        keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(600)]
        counts = np.unique([data.permutation(key, 3) for key in keys], axis=0, return_counts=True)[1]
        assert len(counts) == 6
        assert counts.min() > 60  # 100 expected, standard deviation 9

    def test_cycled_batches_pass_over_everything_again_and_again(self):
        batches = list(itertools.islice(data.cycled_batches(jax.random.key(0), 4, 2), 6))
        passes = [np.concatenate(batches[start : start + 2]).tolist() for start in (0, 2, 4)]
        assert all(sorted(order) == [0, 1, 2, 3] for order in passes)
        assert len({tuple(order) for order in passes}) > 1
        assert list(data.cycled_batches(jax.random.key(0), 0, 2)) == []

    def test_even_batches_are_few_ordered_and_of_almost_one_size(self):
        for (total, batch_size), sizes in {(10, 4): [4, 3, 3], (4, 4): [4], (3, 5): [3], (0, 5): []}.items():
            batches = data.even_batches(total, batch_size)
            assert [len(batch) for batch in batches] == sizes
            assert [int(position) for batch in batches for position in batch] == list(range(total))

    def test_batch_sizes_below_one_are_refused(self):
        for make in (lambda: data.shuffled_batches(jax.random.key(0), 3, 0), lambda: data.even_batches(3, -1)):
            with pytest.raises(InputError, match="batch_size must be at least 1"):
                make()


def windows(image, padding):
    """Every crop of a zero-padded image, by its flip and corner."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    for row, column in itertools.product(range(2 * padding + 1), repeat=2):
        crop = padded[row : row + height, column : column + width]
        yield (False, row, column), crop
        yield (True, row, column), crop[:, ::-1]


class TestCropAndFlip:
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_each_image_is_a_shifted_and_perhaps_flipped_crop_with_zero_padding(self, dtype):
        # Distinct positive numbers, so that a crop tells where it came from.
        images = np.random.default_rng(0).permutation(np.arange(1, 255)).astype(dtype)[: 8 * 5 * 6].reshape(8, 5, 6, 1)
        augmented = np.asarray(data.crop_and_flip(jax.random.key(0), images, padding=2))
        assert augmented.shape == images.shape
        assert augmented.dtype == images.dtype
        found = set()
        for image, result in zip(images, augmented, strict=True):
            matches = [where for where, crop in windows(image, 2) if np.array_equal(crop, result)]
            assert len(matches) == 1
            found |= set(matches)
        assert {flip for flip, _, _ in found} == {True, False}
        assert len(found) > 4

    def test_corners_are_uniform_and_half_of_the_images_are_flipped(self):
        image = np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1)
        augmented = np.asarray(data.crop_and_flip(jax.random.key(1), np.repeat(image[None], 900, axis=0), padding=1))
        where = {crop.tobytes(): place for place, crop in windows(image, 1)}
        counts = dict.fromkeys(where.values(), 0)
        for result in augmented:
            counts[where[result.tobytes()]] += 1
        assert min(counts.values()) > 20  # 50 expected in each of 18 places
        assert abs(sum(count for (flip, _, _), count in counts.items() if flip) - 450) < 60

    def test_the_key_alone_decides(self):
        images = np.random.default_rng(0).random((6, 4, 4, 2)).astype(np.float32)
        crop = jax.jit(data.crop_and_flip)
        np.testing.assert_array_equal(crop(jax.random.key(0), images), crop(jax.random.key(0), images))
        assert np.any(crop(jax.random.key(0), images) != crop(jax.random.key(1), images))
