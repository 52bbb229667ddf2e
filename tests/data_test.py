"""Forget sets from specifications and files, batches that see every example, augmentation on the device."""

import itertools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scissorhands_jax import augmentation, data, losses, saliency, tasks, trees
from scissorhands_jax.base import Batch, Data, Model
from scissorhands_jax.datasets import forget_sets, splits
from scissorhands_jax.diffusion import ceilings, encoded, quality
from scissorhands_jax.errors import InputError
from scissorhands_jax.language import generating, unlearning
from scissorhands_jax.methods.amun import closest_adversarial
from scissorhands_jax.metrics import accuracies, answers, attacks, ensemble_attacks, gradcam, probes
from scissorhands_jax.tasks import CLASSIFICATION

LABELS = np.repeat(np.arange(5), 20)


class Counting:
    """What has a length and items, as data sets of PyTorch do."""

    def __len__(self):
        return 2

    def __getitem__(self, place):
        return np.zeros(3), place


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
        drawn = forget_sets.forget_positions("random:0.13", LABELS, seed=1)
        assert drawn.dtype == np.int32
        assert len(drawn) == len(set(drawn.tolist())) == 13
        assert np.all(np.diff(drawn) > 0)
        np.testing.assert_array_equal(drawn, forget_sets.forget_positions("random:0.13", LABELS, seed=1))
        assert drawn.tolist() != forget_sets.forget_positions("random:0.13", LABELS, seed=2).tolist()

    def test_a_class_is_all_of_its_examples(self):
        np.testing.assert_array_equal(forget_sets.forget_positions("class:3", LABELS, seed=0), np.arange(60, 80))

    def test_a_file_names_positions_with_comments_and_blank_lines(self, index_file):
        spec = index_file("# to forget\n\n 7 # requested\r\n+3\n0\n")
        np.testing.assert_array_equal(forget_sets.forget_positions(spec, LABELS, seed=0), [0, 3, 7])

    @pytest.mark.parametrize("share", ["0", "1", "-0.1", "1.5", "nan", "ten", "inf", "0,1"])
    def test_shares_outside_zero_and_one_are_refused(self, share):
        with pytest.raises(InputError, match=f"strictly between 0 and 1, got '{share}'"):
            forget_sets.forget_positions(f"random:{share}", LABELS, seed=0)

    @pytest.mark.parametrize(
        ("share", "message"), [("0.001", "forget set is empty"), ("0.999", "whole training set of 100")]
    )
    def test_shares_that_round_to_nothing_or_everything_are_refused(self, share, message):
        with pytest.raises(InputError, match=message):
            forget_sets.forget_positions(f"random:{share}", LABELS, seed=0)

    @pytest.mark.parametrize("label", ["5", "-1", "cat", "1.0", "99999999999999999999"])
    def test_unknown_classes_are_refused_with_the_known_ones(self, label):
        with pytest.raises(InputError, match=f"no class '{label}' in the training set; its labels are 0, 1, 2, 3, 4$"):
            forget_sets.forget_positions(f"class:{label}", LABELS, seed=0)

    def test_many_classes_are_not_all_listed(self):
        with pytest.raises(InputError, match=r"labels are 0, 1, .*, 11, \.\.\.$"):
            forget_sets.forget_positions("class:100", np.arange(100), seed=0)

    @pytest.mark.parametrize("value", ["1,3", "3,1", "b,d", "1,d", "3,1,b"])
    def test_several_classes_are_named_by_label_or_name(self, value):
        positions = forget_sets.forget_positions(f"class:{value}", LABELS, seed=0, class_names=tuple("abcde"))
        np.testing.assert_array_equal(positions, np.flatnonzero(np.isin(LABELS, [1, 3])))

    @pytest.mark.parametrize("value", ["1,5", "1,", ",", "a,z", "1 2"])
    def test_a_list_with_one_unknown_class_is_refused(self, value):
        with pytest.raises(
            InputError, match=r"there is no class '.*' in the training set; its labels are 0, 1, 2, 3, 4"
        ):
            forget_sets.forget_positions(f"class:{value}", LABELS, seed=0, class_names=tuple("abcde"))

    def test_a_number_that_may_be_a_label_or_a_name_is_refused_until_told(self):
        names = ("4", "3", "2", "1", "0")

        def positions(spec):
            return forget_sets.forget_positions(spec, LABELS, seed=0, class_names=names)

        words = (
            "3 may be the class named '3', which has label 1, or label 3, the class named '1'; write name=3 or label=3"
        )
        for spec in ("class:3", "class:2,3"):
            with pytest.raises(InputError, match=words):
                positions(spec)
        np.testing.assert_array_equal(positions("class:label=3"), np.arange(60, 80))
        np.testing.assert_array_equal(positions("class:name=3"), np.arange(20, 40))
        np.testing.assert_array_equal(positions("identity:3"), np.arange(20, 40))
        np.testing.assert_array_equal(positions("class:2"), np.arange(40, 60))  # both are the same
        with pytest.raises(InputError, match="there is no class 'name=9'"):
            positions("class:name=9")

    @pytest.mark.parametrize(
        ("names", "word", "message"),
        [
            (
                ("3", "4", "5", "6", "7"),
                "03",
                "03 may be the class named '3', which has label 0, or label 3, the class na",
            ),
            (("3", "4", "5", "6", "7"), "0004", "0004 may be the class named '4', which has label 1, or label 4"),
            (
                ("03", "04", "05", "06", "07"),
                "3",
                "3 may be the class named '03', which has label 0, .*; write name=03 or",
            ),
            (("03", "04", "05", "06", "07"), "003", "003 may be the class named '03', which has label 0, or label 3"),
            (
                ("1.0", "2.0", "3.0", "4.0", "5.0"),
                "2",
                r"2 may be the class named '2\.0', which has label 1, or label 2",
            ),
            (("+3", "+4", "a", "b", "c"), "3", r"3 may be the class named '\+3', which has label 0"),
            (("３", "a", "b", "c", "d"), "3", "3 may be the class named '３', which has label 0"),
        ],
    )
    def test_another_spelling_of_a_number_is_no_way_around_that(self, names, word, message):
        with pytest.raises(InputError, match=message):
            forget_sets.forget_positions(f"class:{word}", LABELS, seed=0, class_names=names)

    @pytest.mark.parametrize("names", [(), ("cat", "1", "dog", "x3", "4"), ("00", "01", "02", "03", "04")])
    def test_leading_zeros_change_no_label(self, names):
        for word in ("3", "03", "label=3", "label=03"):
            positions = forget_sets.forget_positions(f"class:{word}", LABELS, seed=0, class_names=names)
            np.testing.assert_array_equal(positions, np.arange(60, 80))

    @pytest.mark.parametrize(
        "word", ["３", "٣", "+3", " 3", "3 ", "3.0", "0_3", "1_0", "label=３", "label=+3", "label= 3"]
    )
    def test_other_things_that_python_takes_for_a_number_are_no_labels(self, word):
        with pytest.raises(InputError, match="there is no class "):
            forget_sets.forget_positions(f"class:{word}", LABELS, seed=0)

    @pytest.mark.parametrize("spec", ["identity:random:٢", "random:٠.٢", "random:0.0_2"])
    def test_counts_and_shares_are_written_in_plain_digits(self, spec):
        with pytest.raises(InputError, match=r"cannot draw|the forget share must lie"):
            forget_sets.forget_positions(spec, LABELS, seed=0)

    @pytest.mark.parametrize("name", ["some.txt", "some.csv"])
    @pytest.mark.parametrize("word", ["٣", "３", "1_0", "3.0"])
    def test_positions_are_written_in_plain_digits(self, tmp_path, name, word):
        (tmp_path / name).write_text(f"2\n{word}\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"line 2 of .* not an integer"):
            forget_sets.read_positions(tmp_path / name)
        with pytest.raises(InputError, match=r"line 2 of .* write a position"):
            forget_sets.read_mislabelled(tmp_path / name)

    def test_what_is_forgotten_is_described_by_label_name_and_count(self):
        found = forget_sets.describe_forgotten(np.array([0, 20, 21, 22]), LABELS, ("cat", "1", "dog"))
        assert found == "4 of 100 training examples to forget: 3 of label 1, 1 of label 0 (cat)"
        many = forget_sets.describe_forgotten(np.arange(30), np.arange(30))
        assert many.endswith("1 of label 11 and 18 more labels")

    def test_the_only_class_cannot_be_forgotten(self):
        with pytest.raises(InputError, match="leaves nothing to retain"):
            forget_sets.forget_positions("class:2", np.full(9, 2), seed=0)

    @pytest.mark.parametrize("spec", ["", "random", "random:", "class:", "identity:", "first:10", "0.1"])
    def test_other_specifications_are_refused_with_the_forms(self, spec):
        with pytest.raises(InputError, match=r"write random:0\.1, class:3, identity:NAME, .* or mislabelled:FILE"):
            forget_sets.forget_positions(spec, LABELS, seed=0)

    @pytest.mark.parametrize("line", ["3.0", "three", "1 2", "0x10", "1e3", "--1", "9" * 30])
    def test_lines_that_are_no_integers_are_refused_by_number(self, index_file, line):
        with pytest.raises(InputError, match=r"line 3 of .*forget\.txt is .*, not an integer"):
            forget_sets.forget_positions(index_file(f"1\n# comment\n{line}\n"), LABELS, seed=0)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "the forget set is empty"),
            ("# nothing\n", "the forget set is empty"),
            ("5\n100\n-1\n", "2 forget positions lie outside 0 to 99, the first is 100"),
            ("5\n7\n5\n7\n5\n", "2 forget positions are repeated, the first is 5"),
            ("\n".join(map(str, range(100))), "whole training set of 100, which leaves nothing to retain"),
            ("999999999999999999", "outside 0 to 99"),
            (b"\xff\xfe1\n", "cannot read the positions"),
        ],
    )
    def test_files_that_name_no_valid_forget_set_are_refused(self, index_file, text, message):
        with pytest.raises(InputError, match=message):
            forget_sets.forget_positions(index_file(text), LABELS, seed=0)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("mark.txt", b"\xef\xbb\xbf3\r\n17\r\n"),
            ("a.csv", b"index\n3\n17\n"),
            ("b.csv", b"\xef\xbb\xbfname,Index\r\ncat,3\r\ndog,17\r\n"),
            ("c.csv", b"3\n17\n"),
            ("d.json", b"[3, 17]"),
            ("e.npy", np.array([17, 3], np.uint16)),
            ("f.npy", np.isin(np.arange(len(LABELS)), [3, 17])),
        ],
    )
    def test_files_of_many_forms_name_positions(self, tmp_path, name, content):
        path = tmp_path / name
        np.save(path, content) if isinstance(content, np.ndarray) else path.write_bytes(content)
        assert forget_sets.forget_positions(f"indices:{path}", LABELS, seed=0).tolist() == [3, 17]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.pt", b"PK", "is a pickle, which could run code"),
            ("a.csv", b"a,b\n1,2\n", "has the columns a, b; name exactly one of them position or positions"),
            ("b.csv", b"index,position\n1,2\n", "has the columns index, position; name exactly one"),
            ("c.csv", b"index\ncat\n", "line 2 of .* is 'cat', not an integer"),
            ("d.json", b"[1.5]", "is no list of integers"),
            ("e.json", b"[true]", "is no list of integers"),
            ("f.json", b"{", "cannot read the positions in"),
            ("g.npy", np.zeros(3), r"holds float64 of shape \(3,\); save integers"),
            ("h.npz", b"PK", "can hold several arrays; save the positions alone"),
            ("h.csv", b"idx;name\n3;x\n", "has the one column 'idx;name'; separate columns by commas"),
            ("h.npy", np.zeros(3, bool), "is a mask of 3 bools, and there are 100 training examples"),
            ("i.npy", np.zeros((2, 2), int), r"holds int64 of shape \(2, 2\)"),
            ("j.npy", b"no array", "cannot read the positions in"),
        ],
    )
    def test_files_of_other_forms_are_refused(self, tmp_path, name, content, message):
        path = tmp_path / name
        np.save(path, content) if isinstance(content, np.ndarray) else path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            forget_sets.forget_positions(f"indices:{path}", LABELS, seed=0)

    @pytest.mark.parametrize(("content", "remarks"), [("0\n3\n", 1), ("3\n0\n", 0), ("position\n0\n3\n", 0)])
    def test_a_heading_that_reads_like_a_position_is_said(self, tmp_path, caplog, content, remarks):
        (tmp_path / "a.csv").write_text(content)
        found = forget_sets.forget_positions(f"indices:{tmp_path / 'a.csv'}", LABELS, seed=0)
        assert sorted(found) == [0, 3]
        assert caplog.text.count("the heading that pandas gives") == remarks

    def test_unreadable_files_are_refused(self, tmp_path):
        for path in (tmp_path / "absent.txt", tmp_path):
            with pytest.raises(InputError, match="cannot read the positions in"):
                forget_sets.forget_positions(f"indices:{path}", LABELS, seed=0)


PEOPLE = ("ann", "bob", "cy", "dee", "eve")


class TestIdentities:
    def test_names_and_files_of_names_mean_the_same(self, tmp_path):
        file = tmp_path / "people.txt"
        file.write_text("# asked to be forgotten\ndee\n\nbob # on Monday\n")
        expected = np.flatnonzero(np.isin(LABELS, [1, 3]))
        for value in ("bob,dee", "dee,bob", str(file)):
            positions = forget_sets.forget_positions(f"identity:{value}", LABELS, seed=0, class_names=PEOPLE)
            np.testing.assert_array_equal(positions, expected)

    def test_a_name_may_have_the_sign_of_comments(self, tmp_path):
        names = ("C", "C#", "F", "F #minor", "#5")
        file = tmp_path / "names.txt"
        for line, label in (("C#", 1), ("C # all", 0), ("C# # all", 1), ("F #minor", 3), ("#5", 4), ("F\t#5", 2)):
            file.write_text(f"# asked to be forgotten\n{line}\n")
            found = forget_sets.forget_positions(f"identity:{file}", LABELS, seed=0, class_names=names)
            np.testing.assert_array_equal(found, np.flatnonzero(label == LABELS), err_msg=line)
            if label < 4:
                file.write_text(f"7 {line}\n9 {line}\n")
                _, right = forget_sets.read_mislabelled(file, names)
                np.testing.assert_array_equal(right, [label, label], err_msg=line)
        file.write_text("7 # no label\n8\t#\n")
        assert forget_sets.read_mislabelled(file, names)[1] is None

    def test_a_name_is_no_file_even_where_there_is_one(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "bob").write_text("eve\n")
        positions = forget_sets.forget_positions("identity:bob", LABELS, seed=0, class_names=PEOPLE)
        np.testing.assert_array_equal(positions, np.arange(20, 40))

    def test_identities_are_drawn_with_the_seed(self):
        drawn = [
            forget_sets.forget_positions("identity:random:2", LABELS, seed=seed, class_names=PEOPLE)
            for seed in (0, 0, 1)
        ]
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert drawn[0].tolist() != drawn[2].tolist()
        for positions in drawn:
            chosen = np.unique(LABELS[positions])
            assert len(chosen) == 2
            np.testing.assert_array_equal(positions, np.flatnonzero(np.isin(LABELS, chosen)))

    @pytest.mark.parametrize("count", ["0", "5", "-1", "two", "", "1.5"])
    def test_other_numbers_of_identities_are_refused(self, count):
        with pytest.raises(InputError, match=f"cannot draw '{count}' of 5 identities; write identity:random:4"):
            forget_sets.forget_positions(f"identity:random:{count}", LABELS, seed=0, class_names=PEOPLE)

    def test_unknown_names_are_refused_with_near_ones(self, tmp_path):
        with pytest.raises(
            InputError, match=r"no identity 'ev' in the training set, nor a file .*; near names are eve"
        ):
            forget_sets.forget_positions("identity:bob,ev", LABELS, seed=0, class_names=PEOPLE)
        with pytest.raises(InputError, match="the data set names no classes, so use class:LABEL"):
            forget_sets.forget_positions("identity:bob", LABELS, seed=0)
        (tmp_path / "empty.txt").write_text("# nobody\n")
        with pytest.raises(InputError, match="the forget set is empty"):
            forget_sets.forget_positions(f"identity:{tmp_path / 'empty.txt'}", LABELS, seed=0, class_names=PEOPLE)

    def test_a_person_without_training_examples_is_unknown(self):
        with pytest.raises(InputError, match="no identity 'eve' in the training set"):
            forget_sets.forget_positions("identity:eve", LABELS[:80], seed=0, class_names=PEOPLE)


class TestMislabelled:
    def test_positions_come_with_or_without_right_labels(self, tmp_path):
        file = tmp_path / "wrong.txt"
        file.write_text("7 2\n3\t0 # a zero\n")
        positions, labels = forget_sets.read_mislabelled(file)
        assert positions.tolist() == [3, 7]
        assert labels.tolist() == [0, 2]
        assert forget_sets.forget_positions(f"mislabelled:{file}", LABELS, seed=0).tolist() == [3, 7]
        file.write_text("7\n3 1\n")
        assert forget_sets.read_mislabelled(file)[1] is None
        assert forget_sets.forget_positions(f"mislabelled:{file}", LABELS, seed=0).tolist() == [3, 7]

    @pytest.mark.parametrize("line", ["-1", "1 2 3", "1 cat", "1.5", "a"])
    def test_other_lines_are_refused_by_number(self, tmp_path, line):
        (tmp_path / "wrong.txt").write_text(f"7 2\n{line}\n")
        with pytest.raises(InputError, match=r"line 2 of .*wrong\.txt is .*; write a position, or a position and the"):
            forget_sets.read_mislabelled(tmp_path / "wrong.txt")

    def test_labels_alone_are_no_positions(self, tmp_path):
        (tmp_path / "wrong.csv").write_text("label\n3\n5\n")
        with pytest.raises(InputError, match="has the columns label; name exactly one of them position or"):
            forget_sets.read_mislabelled(tmp_path / "wrong.csv")

    def test_a_row_of_a_table_without_a_position_is_refused(self, tmp_path):
        (tmp_path / "wrong.csv").write_text("position,label\n4,1\n,7\n")
        with pytest.raises(InputError, match=r"line 3 of .*wrong\.csv has no position"):
            forget_sets.read_mislabelled(tmp_path / "wrong.csv")
        (tmp_path / "wrong.csv").write_text('\nposition,label\n"4",1\n\n,7\n')
        with pytest.raises(InputError, match=r"line 5 of .*wrong\.csv has no position"):
            forget_sets.read_mislabelled(tmp_path / "wrong.csv")

    def test_the_lines_of_a_column_of_positions_are_those_of_the_file(self, tmp_path):
        for text, line in (("\n\n4\n\nx\n", 5), ("\nposition\n4\n\nx\n", 5), ("\n4\n\nx\n\n", 4)):
            (tmp_path / "some.csv").write_text(text)
            with pytest.raises(InputError, match=rf"line {line} of .*some\.csv is 'x', not an integer"):
                forget_sets.read_positions(tmp_path / "some.csv")

    def test_positions_of_a_table_stand_one_in_a_row(self, tmp_path):
        (tmp_path / "some.csv").write_text("position\n1\n2,3,4\n5\n")
        with pytest.raises(InputError, match="line 3 has 3 values"):
            forget_sets.read_positions(tmp_path / "some.csv")

    def test_a_long_list_of_names_with_an_error_in_it_gives_the_near_ones(self):
        names = tuple(f"person number {number}" for number in range(40))
        with pytest.raises(InputError, match="there is no identity 'person numbr 3'"):
            forget_sets.forget_positions(
                "identity:" + ",".join([*names[:30], "person numbr 3"]), np.arange(80) % 40, seed=0, class_names=names
            )

    def test_tables_and_names_give_right_labels(self, tmp_path):
        path = tmp_path / "wrong.csv"
        path.write_text("position,label\n9,dog\n4,cat\n")
        positions, labels = forget_sets.read_mislabelled(path, ("cat", "dog"))
        assert (positions.tolist(), labels.tolist()) == ([4, 9], [0, 1])
        path.write_text("position,label\n9,1\n")
        with pytest.raises(InputError, match="1 may be the class named '1', which has label 0, or label 1"):
            forget_sets.read_mislabelled(path, ("1", "2"))
        path.write_text("position\n9\n")
        assert forget_sets.read_mislabelled(path)[1] is None

    def test_repeated_positions_are_refused(self, tmp_path):
        (tmp_path / "wrong.txt").write_text("7 2\n7 1\n")
        with pytest.raises(InputError, match="1 forget positions are repeated, the first is 7"):
            forget_sets.forget_positions(f"mislabelled:{tmp_path / 'wrong.txt'}", LABELS, seed=0)


class TestTrainedOn:
    """What was never trained on cannot be forgotten: the published scripts draw such examples, this library cannot."""

    SPECS = ("random:0.2", "class:1,3", "identity:bob", "identity:random:2")

    @pytest.mark.parametrize("spec", SPECS)
    @pytest.mark.parametrize("share", [0.1, 0.5])
    def test_every_forget_example_was_in_the_training_set_of_the_network(self, spec, share):
        for seed in range(10):
            trained_on, held_out = splits.validation_split(LABELS, share, seed)
            positions = forget_sets.forget_positions(
                spec, LABELS, seed=seed + 1, class_names=PEOPLE, trained_on=trained_on
            )
            assert set(positions.tolist()) <= set(trained_on.tolist())
            assert not set(positions.tolist()) & set(held_out.tolist())
            parts = data.split({"position": np.arange(len(LABELS))}, positions, trained_on)
            assert parts.forget["position"].tolist() == positions.tolist()
            both = np.concatenate([parts.forget["position"], parts.retain["position"]])
            np.testing.assert_array_equal(np.sort(both), trained_on)

    def test_without_it_held_out_examples_would_be_drawn(self):
        trained_on, _ = splits.validation_split(LABELS, 0.1, 1)
        positions = forget_sets.forget_positions("random:0.5", LABELS, seed=2)
        with pytest.raises(
            InputError, match=r"\d of the 50 examples to forget were not in the training set of this net"
        ):
            data.check_trained_on(positions, trained_on)

    def test_a_random_share_is_one_of_the_training_set(self):
        trained_on = np.arange(0, 100, 2)
        drawn = forget_sets.forget_positions("random:0.2", LABELS, seed=0, trained_on=trained_on)
        assert len(drawn) == 10
        everything = forget_sets.forget_positions("random:0.2", LABELS, seed=0, trained_on=np.arange(100))
        np.testing.assert_array_equal(everything, forget_sets.forget_positions("random:0.2", LABELS, seed=0))

    @pytest.mark.parametrize("kind", ["indices", "mislabelled"])
    def test_a_file_that_names_strangers_is_refused_with_their_number(self, tmp_path, kind):
        (tmp_path / "file.txt").write_text("1\n2\n3\n9\n")
        with pytest.raises(InputError, match=r"2 of the 4 examples to forget were not in .* the first is 1; name only"):
            forget_sets.forget_positions(
                f"{kind}:{tmp_path / 'file.txt'}", LABELS, seed=0, trained_on=np.array([0, 2, 4, 9, 50])
            )

    def test_a_class_that_was_not_trained_on_is_unknown(self):
        with pytest.raises(InputError, match=r"no class '4' in the training set; its labels are 0, 1, 2, 3$"):
            forget_sets.forget_positions("class:4", LABELS, seed=0, trained_on=np.arange(80))

    def test_all_that_was_trained_on_cannot_be_forgotten(self):
        for act in (
            lambda: forget_sets.forget_positions("class:2", LABELS, seed=0, trained_on=np.arange(40, 60)),
            lambda: data.split({"label": LABELS}, np.arange(40, 60), np.arange(40, 60)),
        ):
            with pytest.raises(InputError, match="whole training set of 20, which leaves nothing to retain"):
                act()

    @pytest.mark.parametrize(
        ("positions", "message"),
        [
            ([], "training set of the network has 0 positions"),
            ([3], "training set of the network has 1 positions; name at least two"),
            ([1, 1], "1 positions of the training set are repeated, the first is 1"),
            ([0, 100], "1 positions of the training set lie outside 0 to 99"),
            ([0.5, 1.0], "positions of the training set are float64 and not integers; positions count examples"),
            ("012", "positions of the training set are '012'; give a list of integers"),
        ],
    )
    def test_training_sets_that_cannot_be_are_refused(self, positions, message):
        with pytest.raises(InputError, match=message):
            data.check_training_set(positions, 100)


class TestValidationSplit:
    def test_every_class_gives_its_share_and_no_example_is_lost(self):
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [100, 50, 7, 3]))
        train, validation = splits.validation_split(labels, 0.29, 5)
        assert np.bincount(labels[validation]).tolist() == [29, 14, 2]
        assert train.dtype == validation.dtype == np.int32
        assert np.all(np.diff(train) > 0)
        assert np.all(np.diff(validation) > 0)
        assert sorted([*train, *validation]) == list(range(160))

    def test_the_seed_alone_decides(self):
        held_out = [splits.validation_split(LABELS, 0.2, seed)[1].tolist() for seed in (0, 0, 1)]
        assert held_out[0] == held_out[1] != held_out[2]

    def test_a_share_of_zero_holds_nothing_out(self):
        train, validation = splits.validation_split(LABELS, 0, 0)
        assert len(train) == 100
        assert validation.size == 0

    def test_what_is_held_out_for_testing_is_in_neither_part(self):
        held_out = np.arange(0, 100, 4)
        parts = splits.validation_split(LABELS, 0.2, 0, held_out)
        assert np.array_equal(np.sort(np.concatenate([*parts, held_out])), np.arange(100))
        assert parts[1].size

    @pytest.mark.parametrize("share", [-0.1, 1, float("nan")])
    def test_other_shares_are_refused(self, share):
        with pytest.raises(InputError, match=r"validation share must lie in \[0, 1\), got"):
            splits.validation_split(LABELS, share, 0)

    def test_a_share_below_one_example_is_refused(self):
        with pytest.raises(InputError, match=r"0\.04 is less than one example of every class"):
            splits.validation_split(LABELS, 0.04, 0)


class TestFlipLabels:
    def test_the_positions_are_those_where_labels_are_wrong(self):
        changed, positions = forget_sets.flip_labels(LABELS, 0.3, 5, seed=1)
        np.testing.assert_array_equal(np.flatnonzero(changed != LABELS), positions)
        assert len(positions) == 30
        assert changed.dtype == LABELS.dtype
        assert set(changed.tolist()) <= set(range(5))
        np.testing.assert_array_equal(forget_sets.flip_labels(LABELS, 0.3, 5, seed=1)[0], changed)
        assert np.any(forget_sets.flip_labels(LABELS, 0.3, 5, seed=2)[0] != changed)

    def test_every_wrong_label_is_about_equally_likely(self):
        changed, _ = forget_sets.flip_labels(np.full(4000, 2), 1.0, 5, seed=0)
        counts = np.bincount(changed, minlength=5)
        assert counts[2] == 0
        assert np.delete(counts, 2).min() > 880  # 1,000 expected, standard deviation 27

    def test_the_forget_set_of_the_same_seed_is_drawn_independently(self):
        forget = forget_sets.forget_positions("random:0.5", np.zeros(2000, int), seed=3)
        flipped = forget_sets.flip_labels(np.zeros(2000, int), 0.5, 2, seed=3)[1]
        assert abs(np.intersect1d(forget, flipped).size - 500) < 50  # standard deviation 11

    @pytest.mark.parametrize(("share", "classes"), [(-0.1, 5), (1.1, 5), (float("nan"), 5), (0.1, 1)])
    def test_numbers_out_of_range_are_refused(self, share, classes):
        with pytest.raises(InputError, match="choose a share from 0 to 1 and at least 2 classes"):
            forget_sets.flip_labels(LABELS, share, classes, 0)


def test_classes_that_are_forgotten_as_a_whole_are_not_tested():
    test = {"image": np.arange(6), "label": np.array([0, 1, 2, 0, 1, 2])}
    kept = answers.known_examples(CLASSIFICATION, test, {"label": np.array([2, 0, 0])})
    assert kept["image"].tolist() == [0, 2, 3, 5]
    assert answers.known_examples(CLASSIFICATION, test, {"label": np.array([2, 0, 1])})["image"].tolist() == list(
        range(6)
    )


UNKNOWN_TO_JAX = [
    (
        np.zeros(2, ">f4"),
        r"an array of float32 whose bytes are in another .* \(>f4\); convert it, .*astype\('float32'\)",
    ),
    (np.zeros(2, ">i8"), "an array of int64 whose bytes are in another order"),
    (np.zeros(2, [("a", "f4"), ("b", "i4")]), "an array of records with the fields a, b; give plain arrays of numbers"),
    (np.zeros(2, "V4"), r"an array of \|V4; give plain arrays"),
    (np.ma.masked_array(np.zeros(2), [True, False]), r"a masked array of float64; leave out .* \.filled\(0\)"),
]
if np.dtype(np.longdouble) != np.float64:  # on most machines
    UNKNOWN_TO_JAX.append(
        (np.zeros(2, np.longdouble), r"an array of float\d+, which JAX does not have; .*\('float32'\)")
    )


class TestCheckValues:
    def test_data_that_are_not_divided_are_refused(self):
        with pytest.raises(InputError, match=r"the data are a dict; give the two parts, as split\(train, positions\)"):
            data.check_values({"x": np.zeros(3)})

    @pytest.mark.parametrize(
        ("retain", "message"),
        [
            (
                {"x": np.array([[0.0], [np.nan], [np.inf]])},
                "2 examples of the retain set have NaN or infinity in 'x', .* 1;",
            ),
            (
                {"x": jnp.array([1.0, jnp.inf])},
                "1 examples of the retain set have NaN or infinity in 'x', the first is ex",
            ),
            ({"label": np.array(["cat", "dog"])}, r"'label' of the retain set is an array of <U3, not of numbers"),
            ({"label": np.array([0, 2, -1])}, "1 examples of the retain set have a negative label in 'label', .* 2;"),
            ({"label": np.array([-1])}, "or give them as floats if they are no classes"),
        ],
    )
    def test_examples_that_no_training_can_use_are_named(self, retain, message):
        with pytest.raises(InputError, match=message):
            data.check_values(Data({"x": np.zeros(1)}, retain))

    def test_arrays_of_one_name_have_one_type(self):
        message = "'image' is uint8 in the forget set and float32 in the retain set; make both of one type before you"
        forget, retain = {"image": np.zeros((2, 3), np.uint8)}, {"image": np.zeros((4, 3), np.float32)}
        with pytest.raises(InputError, match=message):
            data.check_values(Data(forget, retain))
        data.check_values(Data({"label": np.zeros(2, np.int64)}, {"label": np.zeros(3, np.int32)}))  # one type for JAX
        data.check_values(Data(data.take(forget, slice(0)), retain))
        data.check_values(
            Data({"image": jax.random.split(jax.random.key(0))}, {"image": jax.random.split(jax.random.key(1))})
        )

    def test_plain_training_has_no_parts(self):
        with pytest.raises(InputError, match="1 examples of the training set have NaN"):
            data.check_values(Data(None, {"x": jnp.array([1.0, jnp.nan], jnp.bfloat16)}))

    @pytest.mark.parametrize("dtype", ["float64", "float16", jnp.bfloat16])
    def test_images_up_to_255_are_warned_of(self, caplog, dtype):
        data.check_values(Data(None, {"image": np.full((2, 3), 255.0, dtype)}))
        assert f"images of the training set are {np.dtype(dtype)} up to 255; networks of the regist" in caplog.text

    @pytest.mark.parametrize(("given", "message"), UNKNOWN_TO_JAX)
    def test_arrays_that_jax_cannot_take_are_refused_with_what_makes_others_of_them(self, given, message):
        with pytest.raises(InputError, match=f"'x' of the training set is {message}"):
            data.check_values(Data(None, {"x": given}))
        with pytest.raises(InputError, match=f"the input of predict is {message}"):
            accuracies.predict(Model(None, None), {}, (), given)
        with pytest.raises(InputError, match=f"the array of images is {message}"):
            probes.features(Model(None, None), {}, (), given)
        with pytest.raises(InputError, match=f"the array of images is {message}"):
            gradcam.heatmaps(Model(None, None), {}, (), given, np.zeros(2, int), layer="a")
        with pytest.raises(InputError, match=f"the set of examples is {message}"):
            losses.average_loss(lambda *given: None, {}, (), given)
        with pytest.raises(InputError, match=f"batch 0 is {message}"):
            saliency.connection_sensitivity(lambda w, x: w, jnp.ones(()), [given])
        with pytest.raises(InputError, match=f"'w' of the parameters is {message}"):
            trees.check_trained({"w": given}, "the parameters")
        with pytest.raises(InputError, match=f"'w' of the parameters is {message}"):
            saliency.connection_sensitivity(lambda w, x: x, {"w": given}, [jnp.ones(2)])

    @pytest.mark.parametrize("dtype", ["<f4", "i1", "?", "f2", "c8", jnp.bfloat16, jnp.float8_e4m3fn, jnp.int4])
    def test_arrays_of_every_type_of_jax_pass(self, dtype):
        data.check_values(Data(None, {"x": np.ones(2, dtype)}))
        trees.check_arrays({"w": np.ones(2, dtype)}, "the state")

    def test_what_is_masked_out_is_not_counted_in_silence(self):
        masked = np.ma.masked_array([0, 1], [True, False])
        logits = np.ones((2, 2), np.float32)
        task, examples = (
            tasks.regression(1.0),
            {"x": np.zeros(2), "label": np.ma.masked_array([0.0, 1.0], [True, False])},
        )
        for call in (
            lambda: data.check_positions(masked, 9),
            lambda: accuracies.accuracy(logits, masked),
            lambda: answers.quality(CLASSIFICATION, logits, {"label": masked}),
            lambda: answers.quality(task, np.zeros(2, np.float32), examples),
            lambda: attacks.membership_inference(masked, masked, masked),
            lambda: ensemble_attacks.tpr_at_fpr(masked, masked, 0.5),
            lambda: probes.linear_probe(masked[:, None], masked, (logits, masked)),
        ):
            with pytest.raises(InputError, match="are a masked array, and all of its entries would count; leave out"):
                call()

    def test_lists_are_no_arrays(self):
        with pytest.raises(InputError, match=r"a data set has a int at label/0; .* as numpy.asarray makes them"):
            data.size({"image": np.zeros((2, 3)), "label": [0, 1]})

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([{"x": np.zeros(3)}, {"x": np.zeros(3)}], "the data set is a list of 2 dicts; give one dict of arrays"),
            ({"x": types.SimpleNamespace(shape=(3,), dtype="torch.int64")}, "a SimpleNamespace at x; give arrays"),
            (Counting(), "a Counting at its root; give arrays"),
        ],
    )
    def test_batches_and_arrays_of_other_libraries_are_named(self, given, message):
        with pytest.raises(InputError, match=message):
            data.size(given)

    def test_the_largest_label_is_found_in_either_part(self):
        assert data.largest_label(Data({"label": np.array([0, 3])}, {"x": np.zeros(9)})) == 3
        assert data.largest_label(Data({"x": np.full(2, 7)}, {"label": np.zeros(2)})) is None

    def test_everything_else_passes(self):
        data.check_values(Data({"label": np.array([0, 3]), "offset": np.array([-1, 1])}, {"x": np.zeros((0, 3))}))
        data.check_values(Data(None, {"label": np.array([[0, 2], [1, -1]])}))  # steps, of which one only fills up


@pytest.mark.parametrize(
    "call",
    [
        lambda **size: ceilings.other_prompts_ceiling(None, None, None, None, None, **size),
        lambda **size: unlearning.mean_answer_loss(None, None, None, None, **size),
        lambda **size: generating.encode_prompts(None, None, [], **size),
        lambda **size: quality.image_features([], None, progress=None, description="", **size),
        lambda **size: quality.picture_features([], None, **size),
        lambda **size: quality.prompt_features([], None, **size),
        lambda **size: encoded.prompt_embeddings(
            pathlib.Path("none"), np.zeros((1, 2)), types.SimpleNamespace(width=1), None, network="", **size
        ),
        lambda **size: closest_adversarial(
            None, None, None, {"image": np.zeros((2, 1)), "label": np.zeros(2, int)}, epsilon=1.0, **size
        ),
    ],
)
def test_what_works_in_batches_refuses_sizes_that_cannot_be(call):
    for size, message in ((-1, "at least 0|at least 1"), (2.5, "a whole number, got 2.5")):
        with pytest.raises(InputError, match=f"batch_size must be ({message})"):
            call(batch_size=size)


class TestCheckPositions:
    @pytest.mark.parametrize(
        ("positions", "message"),
        [
            ([1.0, 2.0], r"float64 and not integers; convert them with .astype\(int\)"),
            (
                (np.arange(10) < 3).astype(int),
                "are zeros and ones, one for each of the 10 examples; give a mask of bools",
            ),
            ([True, False], r"a mask of shape \(2,\), and there are 10 training examples"),
            (np.ones((10, 1), bool), r"a mask of shape \(10, 1\), and there are 10"),
            ([[1, 2]], r"an array of shape \(1, 2\); flatten it"),
            (["1"], "give a list of integers"),
            ("12", "are '12'; give a list of integers, or a mask"),
            (3, "are 3; give a list of integers, or a mask"),
            (np.zeros(10, bool), "the forget set is empty"),
        ],
    )
    def test_only_integers_and_masks_are_taken(self, positions, message):
        with pytest.raises(InputError, match=message):
            data.check_positions(positions, 10)

    def test_sets_generators_and_masks_are_taken(self):
        mask = np.arange(10) % 4 == 3
        given = (
            {7, 3},
            (n for n in (7, 3)),
            dict.fromkeys((3, 7)),
            range(3, 8, 4),
            mask,
            mask.tolist(),
            jnp.asarray(mask),
        )
        for positions in given:
            assert data.check_positions(positions, 10).tolist() == [3, 7]

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
        with pytest.raises(
            InputError, match=r"first axes of lengths \[3, 4\]; give arrays with one entry for each example"
        ):
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
    @pytest.mark.parametrize(("total", "batch_size"), [(10, 4), (9, 4), (11, 4), (8, 4), (3, 4), (1, 1), (7, 7)])
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
        augmented = np.asarray(augmentation.crop_and_flip(jax.random.key(0), images, padding=2))
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
        augmented = np.asarray(
            augmentation.crop_and_flip(jax.random.key(1), np.repeat(image[None], 900, axis=0), padding=1)
        )
        where = {crop.tobytes(): place for place, crop in windows(image, 1)}
        counts = dict.fromkeys(where.values(), 0)
        for result in augmented:
            counts[where[result.tobytes()]] += 1
        assert min(counts.values()) > 20  # 50 expected in each of 18 places
        assert abs(sum(count for (flip, _, _), count in counts.items() if flip) - 450) < 60

    def test_without_padding_images_are_whole_or_mirrored(self):
        images = np.random.default_rng(0).random((12, 3, 5, 2)).astype(np.float32)
        augmented = np.asarray(augmentation.crop_and_flip(jax.random.key(2), images, padding=0))
        mirrored = [not np.array_equal(*pair) for pair in zip(augmented, images, strict=True)]
        assert {True, False} == set(mirrored)
        expected = np.where(np.array(mirrored)[:, None, None, None], images[:, :, ::-1], images)
        np.testing.assert_array_equal(augmented, expected)

    def test_the_key_alone_decides(self):
        images = np.random.default_rng(0).random((6, 4, 4, 2)).astype(np.float32)
        crop = jax.jit(augmentation.crop_and_flip)
        np.testing.assert_array_equal(crop(jax.random.key(0), images), crop(jax.random.key(0), images))
        assert np.any(crop(jax.random.key(0), images) != crop(jax.random.key(1), images))

    @pytest.mark.parametrize(("padding", "mode"), [(-1, "constant"), (-1, "reflect"), (4, "reflect"), (50, "reflect")])
    def test_a_border_that_cannot_be_added_is_refused(self, padding, mode):
        with pytest.raises(InputError, match=r"the padding of a crop must not be negative|cannot be mirrored"):
            augmentation.crop(jax.random.key(0), jnp.zeros((1, 4, 5, 1)), padding=padding, mode=mode)

    @pytest.mark.parametrize(("size", "message"), [(0, "at least 1, got 0"), (-1, "at least"), (2.5, "a whole number")])
    def test_sizes_of_a_batch_that_cannot_be_are_refused(self, size, message):
        with pytest.raises(InputError, match=f"batch_size must be {message}"):
            augmentation.resize(np.zeros((5, 4, 4, 3), np.uint8), (2, 5), batch_size=size)

    def test_no_images_are_resized_to_none(self):
        resized = augmentation.resize(np.zeros((0, 4, 4, 3), np.uint8), (2, 5))
        assert (resized.shape, resized.dtype) == ((0, 2, 5, 3), np.uint8)


def test_sets_are_joined_without_what_only_one_has():
    one, other = {"a": jnp.arange(2), "id": jnp.arange(2)}, {"a": jnp.arange(3)}
    assert {name: part.tolist() for name, part in data.joined(one, other).items()} == {"a": [0, 1, 0, 1, 2]}
    assert data.joined(jnp.arange(2), jnp.arange(1)).tolist() == [0, 1, 0]
    assert data.joined(one) == one


class TestSplitOfWhatWasTrainedOn:
    TRAIN = np.arange(5) * 10

    @pytest.mark.parametrize("trained_on", [[0, 1, 3], np.array([3, 1, 0]), np.array([True, True, False, True, False])])
    def test_what_was_not_trained_on_is_in_neither_part(self, trained_on):
        parts = data.split(self.TRAIN, [0], trained_on)
        np.testing.assert_array_equal(parts.forget, [0])
        np.testing.assert_array_equal(parts.retain, [10, 30])

    @pytest.mark.parametrize("trained_on", [[0, 1, -1], [0, 1, 9], [0, 1, 1], [0.0, 1.0], np.array([True, True])])
    def test_positions_that_cannot_be_meant_are_refused(self, trained_on):
        with pytest.raises(InputError, match="training set"):
            data.split(self.TRAIN, [0], np.asarray(trained_on))


def test_nothing_held_out_is_said_as_such():
    for empty in ([], (), np.zeros(0, int), np.zeros(10, bool)):
        with pytest.raises(InputError, match="0 of 10 examples are held out; hold out at least one"):
            data.check_held_out(empty, 10)


def test_arrays_in_boxes_are_named_as_without_them():
    boxed = {"image": nnx.Param(np.array(["a", "b"])), "label": nnx.Variable(jnp.array([3, 9]))}
    assert data.size(boxed) == 2
    assert data.largest_label(Data(boxed, None)) == 9
    with pytest.raises(InputError, match="'image' of the forget set"):
        data.check_numbers(boxed, "the forget set")
