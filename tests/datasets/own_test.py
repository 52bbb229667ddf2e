"""Data sets of one's own: arrays in a file, and folders of images."""

import re

import numpy as np
import pytest

from scissorhands_jax import datasets
from scissorhands_jax.datasets import own
from scissorhands_jax.errors import InputError
from tests.datasets.samples import pixels, save_image


class TestNpz:
    IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)
    LABELS = np.repeat([0, 1], 6)

    @pytest.fixture
    def save(self, tmp_path):
        def save(**arrays):
            np.savez(tmp_path / "own.npz", **{name: array for name, array in arrays.items() if array is not None})
            return f"npz:{tmp_path / 'own.npz'}"

        return save

    def test_a_split_of_its_own_is_kept(self, save):
        arrays = {"image": self.IMAGES[:8], "label": self.LABELS[:8]}
        arrays |= {"test_image": self.IMAGES[8:], "test_label": self.LABELS[8:]}
        splits = datasets.load(save(**arrays, class_names=np.array(["cats", "dogs", "birds"])))
        np.testing.assert_array_equal(splits.train["image"], self.IMAGES[:8])
        np.testing.assert_array_equal(splits.test["label"], self.LABELS[8:])
        assert splits.train["image"].dtype == np.uint8
        assert splits.class_names == ("cats", "dogs", "birds")
        assert not splits.augmented

    def test_without_one_none_is_taken_unless_it_is_asked_for(self, save):
        name = save(image=self.IMAGES, label=self.LABELS)
        with pytest.raises(InputError, match=r"none is taken from its 12 .* or write npz:.*\?held_out"):
            datasets.load(name)
        for held_out in ([4, 10], np.isin(np.arange(12), [4, 10])):
            save(image=self.IMAGES, label=self.LABELS, held_out=held_out)
            self.check_that_4_and_10_are_held_out(datasets.load(name))
        save(image=self.IMAGES, label=self.LABELS)
        self.check_that_4_and_10_are_held_out(datasets.load(f"{name}?held_out=0.2"))
        assert datasets.load(f"{name}?held_out=0.5").held_out.tolist() == [1, 3, 5, 7, 9, 11]

    def check_that_4_and_10_are_held_out(self, splits):
        assert splits.held_out.tolist() == [4, 10]
        np.testing.assert_array_equal(splits.train["image"], self.IMAGES)  # positions are those of the user's array
        np.testing.assert_array_equal(splits.test["image"], self.IMAGES[[4, 10]])
        assert splits.test["label"].tolist() == [0, 1]
        assert splits.class_names == ("0", "1")

    @pytest.mark.parametrize(
        ("arrays", "share", "message"),
        [
            ({}, "?held_out=0", "share to hold out is '0'"),
            ({}, "?held_out=some", "share to hold out is 'some'; write a number between 0 and 1"),
            ({}, "?held_out=0.1", "less than one; hold out a larger share"),
            ({"held_out": [3]}, "?held_out=0.2", r"with held_out and with \?held_out=0.2; leave one out"),
            ({"held_out": [3, 3]}, "", "1 positions held out are repeated"),
            ({"held_out": [12]}, "", "lie outside 0 to 11"),
            ({"held_out": np.ones(12, bool)}, "", "12 of 12 examples are held out"),
            ({"held_out": np.zeros(12, bool)}, "", "0 of 12 examples are held out"),
        ],
    )
    def test_what_is_held_out_must_be_said_once_and_leave_examples(self, save, arrays, share, message):
        with pytest.raises(InputError, match=message):
            datasets.load(save(image=self.IMAGES, label=self.LABELS, **arrays) + share)

    def test_other_arrays_are_not_read(self, save):
        names = np.array(["a", None], dtype=object)
        splits = datasets.load(save(image=self.IMAGES, label=self.LABELS, held_out=[0], names=names))
        assert len(splits.train["image"]) == 12

    def test_grey_and_floating_point_images_are_taken(self, save):
        splits = datasets.load(save(image=self.IMAGES[..., 0] / 255, label=self.LABELS, held_out=[0]))
        assert splits.image_shape == (4, 5, 1)
        assert splits.train["image"].dtype == np.float32

    def test_images_a_rounding_step_outside_of_the_range_are_moved_to_its_ends(self, save):
        images = np.zeros((12, 4, 4), np.float32)
        images[:, 0] = 0.5, 1 + 1e-7, -1e-7, 1.0009
        taken = datasets.load(save(image=images, label=self.LABELS, held_out=[0])).train["image"]
        assert np.unique(taken).tolist() == [0, 0.5, 1]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image": None}, "has no array 'image', only label"),
            ({"label": None}, "has no array 'label', only image"),
            ({"label": np.arange(5)}, "12 images for 5 labels"),
            ({"label": np.ones(12)}, r"label in .* is float64 of shape \(12,\); convert it with .astype\('int32'\)"),
            ({"label": np.full(12, 0.5)}, "is float64 .* no classes; save them as `target`"),
            ({"label": np.eye(3, dtype=int)[np.arange(12) % 3]}, r"one-hot form; give whole numbers, as with .argmax"),
            ({"label": np.ones((12, 3))}, "several labels for an example; save them as `labels`"),
            ({"label": np.zeros((12, 1), int)}, r"\(12, 1\); give shape \(12,\), as with .ravel"),
            ({"label": np.array(["cat"] * 12)}, "the names in class_names"),
            ({"label": np.array(["cat"] * 12)}, r"as numpy.unique\(labels, return_inverse=True\) makes both"),
            ({"label": np.arange(12) > 5}, r"is bool of shape \(12,\); convert it with .astype\('int32'\)"),
            ({"label": np.where(np.arange(12) > 9, np.nan, 1)}, "with NaN or infinity at 2 examples, the first .* 10"),
            ({"label": np.arange(12) * 10**12}, "labels count classes from 0 to 99999 at most; number the classes"),
            ({"label": np.arange(12) % 2 + 1}, "no label 0, and labels from 1 to 2; .* so subtract 1, or give the na"),
            ({"label": np.full(12, -1)}, "has the label -1; labels count classes from 0"),
            (
                {"label": np.array([None] * 12)},
                r"as a \.npz file \(in 'label' it holds Python objects .*; write arrays of",
            ),
            ({"image": None, "images": np.zeros(1)}, "has no array 'image', only label, held_out, images"),
            ({"image": np.zeros((12, 4))}, r"has shape \(12, 4\); give images of shape"),
            ({"image": np.full((12, 4, 4), 255.0)}, r"from 0 to 255, outside \[0, 1\]; divide it by 255"),
            ({"image": np.full((12, 4, 4), 2.5)}, r"from 0 to 2.5, outside \[0, 1\]; divide it by 255"),
            ({"image": np.full((12, 4, 4), 1.5)}, r"from 0 to 1.5, outside .* before they are normalised"),
            ({"image": np.full((12, 4, 4), 1.01)}, r"from 0 to 1.01, outside \[0, 1\]; clip it with numpy.clip"),
            ({"image": np.full((12, 4, 4), -0.1)}, r"from -0.1 to 0, outside \[0, 1\]; clip it with numpy.clip"),
            ({"image": np.full((12, 4, 4), -1.5)}, "from -1.5 to 0, outside .* before they are normalised"),
            ({"image": np.zeros((12, 3, 32, 32), np.uint8)}, r"channels first; give channels last"),
            ({"image": np.zeros((12, 4, 32, 32), np.uint8)}, "channels first; give channels last"),
            ({"image": np.ones((12, 4, 4), np.uint8)}, "is uint8 from 0 to 1, and uint8 is from 0 to 255; multiply"),
            ({"image": np.full((12, 4, 4), 1 / 255)}, "as if it had been divided by 255 twice"),
            ({"image": np.full((12, 4, 4), np.nan)}, "12 images .* NaN or infinite, the first is image 0"),
            ({"image": np.zeros((12, 4, 4), np.int64)}, r"is int64; convert it with .astype\('uint8'\)"),
            ({"image": np.full((12, 4, 4), 300)}, "is int64; give uint8, or floating point"),
            ({"held_out": None}, "has no test set"),
            ({"test_image": np.zeros((1, 4, 5, 3), np.uint8)}, "only one of test_image and test_label"),
            (
                {"test_image": np.zeros((1, 5, 5, 3), np.uint8), "test_label": np.zeros(1, int)},
                r"test images in .* shape \(5, 5, 3\) and the training images uint8 of shape \(4, 5, 3\)",
            ),
            ({"test_image": np.zeros((2, 4, 5, 3), np.uint8), "test_label": np.zeros(1, int)}, "2 images in test_im"),
            (
                {"held_out": None, "test_image": np.zeros((0, 4, 5, 3), "u1"), "test_label": np.zeros(0, int)},
                "no labels",
            ),
            (
                {"class_names": np.array(["cats", "cats"])},
                "has shape .2,. and 1 different names; give one name",
            ),
            ({"class_names": np.array(["cats"])}, "holds 6 labels outside 0 to 0, the first is 1 of example 6"),
        ],
    )
    def test_arrays_that_do_not_go_together_are_refused(self, save, change, message):
        given = {"image": self.IMAGES, "label": self.LABELS} | ({} if "test_image" in change else {"held_out": [4, 10]})
        name = save(**(given | change))
        with pytest.raises(InputError, match=message):
            datasets.load(name)

    def test_files_that_cannot_be_read_are_named(self, tmp_path):
        with pytest.raises(InputError, match=r"own\.npz does not exist"):
            datasets.load(f"npz:{tmp_path / 'own.npz'}")
        (tmp_path / "own.npz").write_text("pixels")
        with pytest.raises(InputError, match=r"cannot be read as a \.npz file"):
            datasets.load(f"npz:{tmp_path / 'own.npz'}")
        np.save(tmp_path / "own.npy", np.zeros(3))
        with pytest.raises(InputError, match=r"cannot be read as a \.npz file"):
            datasets.load(f"npz:{tmp_path / 'own.npy'}")


class TestOtherTasks:
    FEATURES = np.random.default_rng(0).normal(size=(12, 3))
    TARGET = np.arange(12.0)

    @pytest.fixture
    def save(self, tmp_path):
        def save(**arrays):
            np.savez(tmp_path / "own.npz", **{name: array for name, array in arrays.items() if array is not None})
            return f"npz:{tmp_path / 'own.npz'}"

        return save

    def test_what_targets_are_called_says_what_the_network_is_for(self, save):
        splits = datasets.load(save(features=self.FEATURES, target=self.TARGET, held_out=[10, 11]))
        assert (splits.task.name, splits.num_outputs, splits.image_shape) == ("regression", 1, (3,))
        assert splits.train["label"].dtype == splits.train["features"].dtype == np.float32
        # Errors are in units of the standard deviation of the targets that are trained on.
        wrong = {"label": np.array([0.0, np.std(np.arange(10.0))], np.float32)}
        assert splits.task.metrics[0].values(np.zeros(2, np.float32), wrong).tolist() == pytest.approx([0, 100])
        splits = datasets.load(save(image=np.zeros((12, 2, 2), np.uint8), labels=np.eye(12)[:, :5], held_out=[0]))
        assert (splits.task.name, splits.num_outputs, splits.image_shape) == ("multi-label", 5, (2, 2, 1))
        columns = np.stack([self.TARGET, 9 - self.TARGET], axis=1)
        parts = {"test_features": self.FEATURES[:3], "test_target": columns[:3]}
        splits = datasets.load(save(features=self.FEATURES, target=columns, **parts))
        assert (splits.num_outputs, splits.held_out, len(splits.test["label"])) == (2, None, 3)
        assert splits.groups.tolist() == [0] * 12

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"label": np.arange(12) % 2}, "has both label and target; leave all but one of them out"),
            ({"image": np.zeros((12, 4, 4))}, "has both image and features"),
            ({"features": np.zeros(12)}, r"has shape \(12,\); give feature vectors of shape \(N, D\)"),
            ({"features": np.zeros((12, 4, 4))}, r"shape \(N, D\); save images as `image`"),
            ({"features": np.full((12, 2), np.nan)}, "12 feature vectors .* NaN or infinite, the first is example 0"),
            ({"target": np.array(["a"] * 12)}, "is <U1; give numbers"),
            ({"target": np.ones(12)}, "all targets in .* are equal"),
            ({"target": np.arange(11.0)}, "12 feature vectors for 11 targets; give each feature vector one target"),
            ({"target": np.zeros((12, 2, 2))}, r"give targets of shape \(N,\) or \(N, K\)"),
            ({"target": None, "labels": np.full((12, 2), 0.5)}, "give zeros and ones of shape"),
            ({"held_out": None}, "add test_features and test_target, or an array held_out"),
            ({"test_features": np.zeros((3, 3))}, "only one of test_features and test_target"),
            ({"test_features": np.zeros((3, 2)), "test_target": np.zeros(3)}, r"test features in .* shape \(2,\) and"),
        ],
    )
    def test_arrays_that_do_not_go_together_are_refused(self, save, change, message):
        given = {"features": self.FEATURES, "target": self.TARGET} | ({} if len(change) > 1 else {"held_out": [0]})
        with pytest.raises(InputError, match=message):
            datasets.load(save(**(given | {"held_out": [0]} if "labels" in change else given) | change))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"target": 1_700_000_000 + np.arange(12)},
                "target in .* from 1700000000 to 1700000011, and float32, which",
            ),
            ({"target": 2**60 + np.arange(12)}, "rounds them by up to .* % of that range; subtract their mean"),
            (
                {"target": np.stack([np.arange(12), 2**24 + np.arange(12)], axis=1)},
                "column 1, counted from 0, of target",
            ),
            (
                {"features": (2**24 + np.arange(24.0)).reshape(12, 2)},
                "column 1, counted from 0, of features in .* 1677",
            ),
            ({"features": np.linspace(0, 1e-50, 12)[:, None]}, "features in .* or give them in another unit"),
        ],
    )
    def test_columns_that_float32_does_not_tell_apart_are_refused(self, save, change, message):
        with pytest.raises(InputError, match=message):
            datasets.load(save(**({"features": self.FEATURES, "target": self.TARGET, "held_out": [0]} | change)))

    def test_what_float32_holds_well_enough_passes(self, save):
        """A test set may be small, and columns may be constant, exact, decimals, or equal up to the last bit."""
        columns = [np.full(12, 0.1), np.full(12, 1.7e9), 2**23 + np.arange(12), np.arange(12) / 10, 9e9 * np.arange(12)]
        features = np.stack([*columns, np.where(np.arange(12) % 2, 0.1 + 0.2, 0.3)], axis=1)
        splits = datasets.load(save(features=features, target=2**24 * self.TARGET, held_out=[0, 11]))
        np.testing.assert_array_equal(splits.train["features"], features.astype(np.float32))
        tests = {
            "test_features": features[:2] + 5e7 * np.arange(2)[:, None],
            "test_target": [1_700_000_000, 1_700_000_001],
        }
        datasets.load(save(features=features * 1e9, target=1e9 * self.TARGET, **tests))

    @pytest.fixture
    def table(self, tmp_path):
        def table(text, share="?held_out=0.5", **options):
            (tmp_path / "own.csv").write_text(text, newline="", **options)
            return datasets.load(f"csv:{tmp_path / 'own.csv'}{share}")

        return table

    def test_tables_hold_features_next_to_labels_or_targets(self, table):
        splits = table("\ufeffage,label,size\r\n1,dog,2\r\n3,cat,4\r\n5,dog,6\r\n7,cat,8\r\n", encoding="utf-8")
        assert splits.train["features"].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
        assert (splits.train["label"].tolist(), splits.class_names) == ([1, 0, 1, 0], ("cat", "dog"))
        assert splits.held_out.tolist() == [2, 3]
        splits = table("a,label,held_out\n1,0,0\n2,1,True\n3,1,false\n", "")
        assert (splits.class_names, splits.held_out.tolist()) == (("0", "1"), [1])
        splits = table("target,a\n0.5,1\n1e1,2\n-3,3\n4,4\n")
        assert splits.train["label"].tolist() == [0.5, 10, -3, 4]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a;label\n1;0\n", "has the one column 'a;label'; separate values by commas"),
            ("a,a,label\n1,2,0\n", "name each column in the first line, by a name of its own"),
            ("", "has 0 examples"),
            ("a,Unnamed: 0.1,label\n1,0,0\n2,1,1\n", r"column 2 of .* is called .Unnamed: 0.1., .* leave it out"),
            ("Unnamed: 0,a,label\n0,1,0\n1,2,1\n", r"column 1 of .* is called .Unnamed: 0., .* leave it out"),
            (",a,label\n0,1,0\n1,2,1\n", r"column 1 of .* has no name, .* leave it out, as with to_csv.index=False"),
            ("a,label, \n1,0,3\n", "column 3 of .* has no name"),
            ("a,b\n1,2\n", "name the one with the class of an example label"),
            ("target\n1\n", "next to columns of features"),
            ("a,label\n1,0\nx,1\n", "line 3 of .* has 'x' in the column 'a', which holds numbers; encode it"),
            ("a,label\n1,0\n,1\n", "line 3 of .* has nothing in the column 'a'"),
            ("a,label\n1,0\n2,\n", "line 3 of .* has no label"),
            ("a,label\n1,0.0\n2,1.0\n", "line 2 of .* has the label '0.0', and labels are whole numbers from 0 or na"),
            ("a,label\n1,0\n2,cat\n", "line 3 of .* has the label 'cat'.*; write all of one kind"),
            ('a,b,label\n\n1,"\n2",0\n\n1,x,0\n', "line 6 of .* has 'x' in the column 'b'"),
            ('a,label\n\n1,"\n0"\n\n1,\n', "line 6 of .* has no label"),
            ("a,label\n\n1,0\n\n1,cat\n", "line 5 of .* has the label 'cat'"),
            ("a,label,held_out\n1,0,2\n", "other values than 0 and 1"),
            ("a,label\n1,nan\n", "labels are whole numbers"),
            ("a,target\n1,nan\n2,3\n", "1 targets of .* NaN or infinite, the first is example 0"),
            ("a,target\n1,1700000000\n2,1700000001\n", "target in .* has values from 1700000000 to 1700000001, and"),
            ("a,b,label\n1,16777216,0\n2,16777217,0\n", "column 1, counted from 0, of features in .* has values from"),
        ],
    )
    def test_other_tables_are_refused_with_the_line(self, table, text, message):
        with pytest.raises(InputError, match=message):
            table(text)

    def test_files_that_are_no_tables_are_named(self, table, tmp_path):
        with pytest.raises(InputError, match=r"add a column held_out with 1 for examples .* or write csv:"):
            table("a,label\n1,0\n2,1\n", "")
        with pytest.raises(InputError, match=r"none\.csv does not exist"):
            datasets.load(f"csv:{tmp_path / 'none.csv'}")
        with pytest.raises(InputError, match="write CSV in UTF-8"):
            table("a,label\n1,0\n", encoding="utf-16")


class TestFolder:
    def test_classes_are_folders_and_positions_count_all_images(self, tmp_path):
        for person in ("s1", "s2", "s10"):
            for number in range(1, 12):
                save_image(tmp_path / person / f"{number:02}.png", pixels(number + 20 * len(person), 3, 4, 3))
        (tmp_path / "s1" / "notes.txt").write_text("no image")
        with pytest.raises(InputError, match=r"no test set, and none is taken from its images"):
            datasets.load(f"folder:{tmp_path}")
        splits = datasets.load(f"folder:{tmp_path}?held_out=0.2")
        assert splits.class_names == ("s1", "s10", "s2")
        assert splits.test["label"].tolist() == [0, 0, 1, 1, 2, 2]
        expected = [pixels(number + 40, 3, 4, 3) for number in range(1, 12)]
        np.testing.assert_array_equal(splits.train["image"][:11], expected)
        np.testing.assert_array_equal(splits.test["image"][:2], [expected[4], expected[9]])
        assert splits.held_out.tolist() == [4, 9, 15, 20, 26, 31]
        np.testing.assert_array_equal(splits.train["image"][splits.held_out], splits.test["image"])
        assert splits.train["label"].dtype == np.int32

    def test_a_test_set_that_is_there_is_not_added_to(self, tmp_path):
        for split in ("train", "test"):
            save_image(tmp_path / split / "cats" / "a.png", pixels(0, 3, 3))
        with pytest.raises(InputError, match=r"has a test set of its own; leave \?held_out=0.2 out"):
            datasets.load(f"folder:{tmp_path}?held_out=0.2")

    def test_labels_and_order_are_those_of_imagefolder(self, tmp_path):
        names = [
            "10/1.png",
            "10/10.png",
            "10/2.png",
            "10/b/1.png",
            "2/3.png",
            "2/4.png",
            "2/5.png",
            "2/6.png",
            "2/a/0.png",
        ]
        for number, name in enumerate(reversed(names)):
            save_image(tmp_path / "train" / name, pixels(len(names) - 1 - number, 3, 3))
            save_image(tmp_path / "test" / name, pixels(0, 3, 3))
        splits = datasets.load(f"folder:{tmp_path}")
        # torchvision: class_to_idx == {"10": 0, "2": 1}; samples by class, by folder, by name.
        assert splits.class_names == ("10", "2")
        assert splits.train["label"].tolist() == [0] * 4 + [1] * 5
        expected = [pixels(number, 3, 3) for number in range(len(names))]
        np.testing.assert_array_equal(splits.train["image"][..., 0], expected)

    def test_linked_folders_are_read_as_imagefolder_reads_them(self, tmp_path):
        for number in range(5):
            save_image(tmp_path / "root/a" / f"{number}.png", pixels(number, 3, 3))
            save_image(tmp_path / "elsewhere/deep" / f"{number}.png", pixels(number, 3, 3))
        (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "root/a/more").symlink_to(tmp_path / "elsewhere/deep")
        found = own.find_labelled_images(tmp_path / "root")
        assert found.class_names == ("a", "b")
        files = [file.path.relative_to(tmp_path / "root") for files in found.splits.values() for file in files]
        expected = [f"{place}/{number}.png" for place in ("a", "a/more", "b/deep") for number in range(5)]
        assert sorted(map(str, files)) == sorted(expected)

    @pytest.mark.parametrize("target", ["root", "root/a", "root/a/deep", "."])
    def test_a_link_without_end_is_refused(self, tmp_path, target):
        save_image(tmp_path / "root/a/deep/0.png", pixels(0, 3, 3))
        (tmp_path / "root/a/deep/again").symlink_to(tmp_path / target)
        with pytest.raises(InputError, match="root/a/deep/again leads back to a folder that holds it"):
            own.find_labelled_images(tmp_path / "root")

    def test_folders_named_train_and_test_are_the_split(self, tmp_path):
        save_image(tmp_path / "train" / "cats" / "a.png", pixels(0, 3, 3))
        save_image(tmp_path / "train" / "dogs" / "b.PNG", pixels(1, 3, 3))
        save_image(tmp_path / "test" / "dogs" / "c.bmp", pixels(2, 3, 3))
        splits = datasets.load(f"folder:{tmp_path}")
        assert splits.train["label"].tolist() == [0, 1]
        np.testing.assert_array_equal(splits.train["image"][..., 0], [pixels(0, 3, 3), pixels(1, 3, 3)])
        np.testing.assert_array_equal(splits.test["image"], pixels(2, 3, 3)[None, ..., None])
        assert splits.test["label"].tolist() == [1]

    @pytest.mark.parametrize(("labels", "names"), [((0, 1, 10), ("0", "1", "10")), (("bo", "al", "c d"), None)])
    def test_lists_name_images_and_labels(self, tmp_path, labels, names):
        lines = []
        for index, label in enumerate(labels):
            save_image(tmp_path / "all images" / f"{index}.png", pixels(index, 2, 2))
            lines.append(f"all images/{index}.png {label}")
        save_image(tmp_path / "test.png", pixels(1, 2, 2))
        (tmp_path / "train.txt").write_text("\n".join(lines) + "\n\n")
        (tmp_path / "test.txt").write_text(f"test.png {labels[1]}")
        if names is None:  # the last word is the label
            with pytest.raises(InputError, match=r"all images/2\.png c cannot be opened as an image"):
                datasets.load(f"folder:{tmp_path}")
            return
        splits = datasets.load(f"folder:{tmp_path}")
        assert splits.class_names == names
        assert splits.train["label"].tolist() == [0, 1, 2]
        assert splits.test["label"].tolist() == [1]
        np.testing.assert_array_equal(splits.test["image"], pixels(1, 2, 2)[None, ..., None])

    def test_numbers_in_names_are_decimal_ones(self, tmp_path):
        names = ["3²4", "①", "10", "٩"]
        for split in ("train", "test"):
            lines = [f"{split}{number}.png {name}\n" for number, name in enumerate(names)]
            (tmp_path / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
            for number in range(4):
                save_image(tmp_path / f"{split}{number}.png", pixels(number, 2, 2))
        assert datasets.load(f"folder:{tmp_path}").class_names == ("3²4", "٩", "10", "①")

    @pytest.mark.parametrize("tested", [True, False])
    def test_images_of_a_list_keep_the_order_of_its_lines(self, tmp_path, tested):
        lines = ["z.png 1", "a.png 0", "b.png 1", "c.png 0"]
        for number, line in enumerate(lines):
            save_image(tmp_path / line[:5], pixels(number, 2, 2))
            save_image(tmp_path / "tested" / line[:5], pixels(number + 4, 2, 2))
        (tmp_path / "train.txt").write_text("\n".join(lines))
        if tested:
            (tmp_path / "test.txt").write_text("\n".join(f"tested/{line}" for line in lines[::-1]))
        splits = datasets.load(f"folder:{tmp_path}" + ("" if tested else "?held_out=0.5"))
        assert splits.train["label"].tolist() == [1, 0, 1, 0]
        np.testing.assert_array_equal(splits.train["image"][..., 0], [pixels(number, 2, 2) for number in range(4)])
        expected = (7, 6, 5, 4) if tested else (2, 3)
        np.testing.assert_array_equal(splits.test["image"][..., 0], [pixels(number, 2, 2) for number in expected])
        assert tested or splits.held_out.tolist() == [2, 3]

    @pytest.mark.parametrize("form", ["train.txt", "train"])
    def test_training_images_alone_are_divided_where_a_share_is_given(self, tmp_path, form):
        for number in range(4):
            save_image(tmp_path / "train" / "a" / f"{number}.png", pixels(number, 2, 2))
        if form == "train.txt":
            (tmp_path / form).write_text("".join(f"train/a/{number}.png a\n" for number in range(4)))
        with pytest.raises(InputError, match=r"no test set, .* or write folder:.*\?held_out=0.2"):
            datasets.load(f"folder:{tmp_path}")
        splits = datasets.load(f"folder:{tmp_path}?held_out=0.5")
        assert splits.held_out.tolist() == [1, 3]
        np.testing.assert_array_equal(splits.train["image"][..., 0], [pixels(number, 2, 2) for number in range(4)])

    @pytest.mark.parametrize("form", ["listed", "linked"])
    def test_one_file_is_not_for_training_and_for_testing(self, tmp_path, form):
        save_image(tmp_path / "train" / "a" / "1.png", pixels(0, 2, 2))
        if form == "listed":
            (tmp_path / "train.txt").write_text("train/a/1.png a\n")
            (tmp_path / "test.txt").write_text("train/../train/a/1.png a\n")
        else:
            (tmp_path / "test").symlink_to(tmp_path / "train")
        with pytest.raises(InputError, match=r"1 images of .* are for training and for testing, the first is .*1\.png"):
            datasets.load(f"folder:{tmp_path}")

    def test_one_coloured_image_makes_all_of_them_rgb(self, tmp_path):
        for number in range(5):
            save_image(tmp_path / "a" / f"{number}.png", pixels(number, 2, 2) if number else pixels(9, 2, 2, 3))
        splits = datasets.load(f"folder:{tmp_path}?held_out=0.2")
        np.testing.assert_array_equal(splits.train["image"][0], pixels(9, 2, 2, 3))
        np.testing.assert_array_equal(splits.train["image"][1], np.repeat(pixels(1, 2, 2)[..., None], 3, axis=-1))

    def test_images_of_other_sizes_are_refused_or_rescaled(self, tmp_path):
        for number in range(5):
            save_image(tmp_path / "a" / f"{number}.png", np.full((8, 8 + number // 4, 3), number, np.uint8))
        with pytest.raises(InputError, match=r"4\.png has 9x8 pixels and other images have 8x8; .* --image-size N"):
            datasets.load(f"folder:{tmp_path}?held_out=0.2")
        folder = own.find_labelled_images(tmp_path, image_size=4)
        assert folder.image_shape == (4, 4, 3)
        np.testing.assert_array_equal(next(folder.read("test")), np.full((4, 4, 3), 4))

    def test_damaged_images_are_named(self, tmp_path):
        for number in range(5):
            save_image(tmp_path / "a" / f"{number}.png", pixels(number, 20, 20, 3))
        whole = (tmp_path / "a" / "2.png").read_bytes()
        for length in (0, 10, len(whole) // 2):
            (tmp_path / "a" / "2.png").write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"2\.png cannot be (opened|read) as an image"):
                datasets.load(f"folder:{tmp_path}?held_out=0.2")

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ((), "holds no train images; it needs CLASS"),
            (("a/1.png", "a/2.png"), "holds no test images"),
            (("train/a/1.png",), "has no test set"),
            (("train/a/1.png", "test/b/1.png"), "no training images of 1 classes, the first is b"),
        ],
    )
    def test_folders_of_another_form_are_refused(self, tmp_path, files, message):
        for file in files:
            save_image(tmp_path / file, pixels(0, 2, 2))
        with pytest.raises(InputError, match=message):
            datasets.load(f"folder:{tmp_path}" + ("" if any("/" in file[2:] for file in files) else "?held_out=0.2"))

    def test_lists_that_cannot_be_read_are_named(self, tmp_path):
        (tmp_path / "train.txt").write_text("a/1.png 0\na/2.png\n")
        with pytest.raises(InputError, match=r"line 2 of .*train\.txt is 'a/2\.png'; write `relative/path label`"):
            own.find_labelled_images(tmp_path)
        (tmp_path / "train.txt").write_text("a/1.png 0\n")
        with pytest.raises(InputError, match=r"cannot read the list of images .*test\.txt"):
            own.find_labelled_images(tmp_path)
        with pytest.raises(InputError, match="is not a folder"):
            own.find_labelled_images(tmp_path / "absent")
        with pytest.raises(InputError, match="--image-size must be 1 to 4096 pixels, got 0"):
            own.find_labelled_images(tmp_path, image_size=0)


class TestOrlFaces:
    def test_every_person_has_eight_to_train_and_two_to_test(self, shared):
        splits = datasets.load("orl_faces", shared / "data")
        assert splits.image_shape == (112, 92, 1)
        assert splits.train["image"].dtype == np.uint8
        assert np.bincount(splits.train["label"]).tolist() == [8] * 40
        assert np.bincount(splits.test["label"]).tolist() == [2] * 40
        assert splits.class_names == tuple(f"s{i}" for i in range(1, 41))
        everything = np.load(shared / "data" / "orl_faces.npz")["image"]
        np.testing.assert_array_equal(splits.test["image"][:4, ..., 0], everything[[4, 9, 14, 19]])

    def test_files_with_other_contents_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="needs --data-dir"):
            datasets.load("orl_faces")
        np.savez(tmp_path / "orl_faces.npz", image=np.zeros((4, 3, 3), np.uint8), subject=np.full(4, 40))
        with pytest.raises(InputError, match="4 labels outside 0 to 39, the first is 40 of example 0"):
            datasets.load("orl_faces", tmp_path)
        np.savez(tmp_path / "orl_faces.npz", image=np.zeros((4, 3, 3), np.uint8), subject=np.zeros(3, int))
        with pytest.raises(InputError, match="4 images of 3 people"):
            datasets.load("orl_faces", tmp_path)


@pytest.mark.parametrize("suffix", ["png", "pgm"])
def test_grey_images_of_16_bits_are_read_as_the_nearest_of_8(tmp_path, suffix):
    values = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    for place in ("train/a/1", "train/b/1", "test/a/1", "test/b/1"):
        save_image(tmp_path / f"{place}.{suffix}", values)
    splits = datasets.load(f"folder:{tmp_path}")
    assert splits.train["image"].shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(splits.train["image"][0, ..., 0], np.round(values / 257).astype(np.uint8))


def test_grey_images_of_more_bits_are_refused(tmp_path):
    for place in ("train/a/1", "test/a/1"):
        save_image(tmp_path / f"{place}.png", np.zeros((4, 4), np.uint8))
    floats = np.full((4, 4), 1e6, "<f4")
    (tmp_path / "train/a/2.pgm").write_bytes(b"Pf\n4 4\n-1.0\n" + floats.tobytes())  # a float map, which is PGM's kind
    with pytest.raises(InputError, match=r"2\.pgm cannot be read as an image \(its pixels are float32"):
        datasets.load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["1234567890", "1234567891"], "line 2 of .* has the label '1234567890'"),
        (["1", "1.5"], r"line 3 of .* has the label '1\.5'"),
        (["cat", "7"], "line 2 of .* has the label 'cat'"),
    ],
)
def test_labels_of_a_table_that_are_neither_numbers_nor_names_are_named(tmp_path, labels, message):
    rows = "".join(f"{label},{number}\n" for number, label in enumerate(labels))
    (tmp_path / "own.csv").write_text(f"label,x\n{rows}")
    with pytest.raises(InputError, match=message):
        datasets.load(f"csv:{tmp_path / 'own.csv'}?held_out=0.5")


def test_classes_may_be_called_like_what_python_takes_for_a_number(tmp_path):
    rows = "".join(f"{name},{number}\n" for number, name in enumerate(["1_0", "2_0"] * 4))
    (tmp_path / "own.csv").write_text(f"label,x\n{rows}")
    assert datasets.load(f"csv:{tmp_path / 'own.csv'}?held_out=0.5").class_names == ("1_0", "2_0")


def listed(folder, labels, splits=("train", "test")):
    """Writes lists of images with these labels, in the order in which they are given."""
    for split in splits:
        names = [f"{split}{number}.png" for number in range(len(labels))]
        for number, name in enumerate(names):
            save_image(folder / name, pixels(number, 2, 2))
        lines = [f"{name} {label}\n" for name, label in zip(names, labels, strict=True)]
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1", "-1"], ("-1", "1")),
        (["1", "0", "-2", "-10"], ("-10", "-2", "0", "1")),
        (["0.5", "0.25", "1"], ("0.25", "0.5", "1")),
        (["+2", "-.5", "1."], ("-.5", "1.", "+2")),
        (["10", "9", "0"], ("0", "9", "10")),
        (["s10", "s-2", "s2", "s-1"], ("s2", "s10", "s-1", "s-2")),
        (["-1", "-2", "cat"], ("-1", "-2", "cat")),
        (["1e-3", "1e-2"], ("1e-2", "1e-3")),
        (["1_0", "2", "10"], ("1_0", "2", "10")),
    ],
)
def test_labels_of_a_list_are_in_the_order_of_their_values(tmp_path, labels, names):
    listed(tmp_path, labels)
    splits = datasets.load(f"folder:{tmp_path}")
    assert splits.class_names == names
    assert [names[label] for label in splits.train["label"]] == labels
    assert own.find_labelled_images(tmp_path, image_size=4).class_names == names, "as `data prepare faces` reads it"


@pytest.mark.parametrize(
    ("one", "other"),
    [("01", "1"), ("0", "00"), ("+7", "7"), ("7", "7.0"), ("7", "７"), ("7", "٧"), ("-0", "0"), ("-1", "-1.0")],
)
@pytest.mark.parametrize("more", [["2", "3"], ["cat", "2"]])
def test_two_spellings_of_one_number_are_refused_in_a_list_and_in_a_table(tmp_path, one, other, more):
    labels = [one, other, *more]
    first, second = sorted((one, other))
    message = re.escape(f"the labels {first!r} and {second!r} in ") + ".* are two spellings of one number; write each"
    listed(tmp_path, labels)
    with pytest.raises(InputError, match=message):
        datasets.load(f"folder:{tmp_path}")
    rows = "".join(f"{label},{number}\n" for number, label in enumerate(labels * 2))
    (tmp_path / "own.csv").write_text(f"label,x\n{rows}", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        datasets.load(f"csv:{tmp_path / 'own.csv'}?held_out=0.5")


def test_two_spellings_of_one_number_are_refused_between_the_lists_too(tmp_path):
    listed(tmp_path, ["0", "1"])
    (tmp_path / "test.txt").write_text("test0.png 00\ntest1.png 01\n")
    with pytest.raises(InputError, match="the labels '0' and '00' in the lists of"):
        datasets.load(f"folder:{tmp_path}")


@pytest.mark.parametrize("labels", [["٣", "1", "0"], ["３", "x", "0"]])
def test_digits_of_other_scripts_are_no_labels_of_a_table(tmp_path, labels):
    rows = "".join(f"{label},{number}\n" for number, label in enumerate(labels * 2))
    (tmp_path / "own.csv").write_text(f"label,x\n{rows}", encoding="utf-8")
    with pytest.raises(InputError, match="labels are whole numbers from 0 or names that are no numbers"):
        datasets.load(f"csv:{tmp_path / 'own.csv'}?held_out=0.5")


def test_one_spelling_with_leading_zeros_is_read_as_before(tmp_path):
    (tmp_path / "own.csv").write_text("label,x\n" + "00,1\n01,2\n" * 2)
    splits = datasets.load(f"csv:{tmp_path / 'own.csv'}?held_out=0.5")
    assert (splits.class_names, splits.train["label"].tolist()) == (("0", "1"), [0, 1, 0, 1])
    listed(tmp_path, ["01", "00"])
    assert datasets.load(f"folder:{tmp_path}").class_names == ("00", "01")


def test_folders_of_classes_are_those_of_imagefolder_whatever_they_are_called(tmp_path):
    for split in ("train", "test"):
        for name in ("1", "01", "-1"):
            save_image(tmp_path / split / name / "a.png", pixels(0, 2, 2))
    assert datasets.load(f"folder:{tmp_path}").class_names == ("-1", "01", "1")


@pytest.mark.parametrize("share", ["0.2_5", "٠.٢", "half"])
def test_a_share_to_hold_out_is_written_in_plain_digits(tmp_path, share):
    with pytest.raises(InputError, match="the share to hold out is "):
        datasets.load(f"csv:{tmp_path / 'own.csv'}?held_out={share}")
