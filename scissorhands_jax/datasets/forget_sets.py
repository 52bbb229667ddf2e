"""Specifications of forget sets: a random share, classes, identities, or the positions in a file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scissorhands_jax import reading
from scissorhands_jax.data import check_positions, check_trained_on, check_training_set
from scissorhands_jax.errors import InputError

FORGET_FORMS = "random:0.1, class:3, identity:NAME, identity:random:4, indices:FILE or mislabelled:FILE"


def forget_positions(
    spec: str,
    labels: np.ndarray,
    *,
    seed: int,
    class_names: Sequence[str] = (),
    trained_on: np.ndarray | None = None,
) -> np.ndarray:
    """Finds the positions that a specification of a forget set names.

    Args:
      spec: One of
        `random:0.1`, this share of the training set, drawn with `seed`;
        `class:3` or `class:3,5`, all examples of these labels or class names;
        `identity:NAME` or `identity:NAME,NAME`, all examples of these class names;
        `identity:FILE`, the same with one name per line of a text file;
        `identity:random:4`, this number of identities (labels), drawn with `seed`;
        `indices:FILE`, one integer position per line;
        `mislabelled:FILE`, the positions of wrongly labelled examples, see `read_mislabelled`.
        In files, text after # is ignored.
      labels: The labels of all examples in the training split of the data set, of shape (N,).
      seed: The seed of random draws.
      class_names: The names of the labels 0, 1, ... By default classes have no names.
      trained_on: The positions of the examples that the network was trained on. Draws are made from these. By default
        the network was trained on all examples.

    Returns:
      Positions in `labels`, sorted and as int32.

    Raises:
      InputError: The specification cannot be read, names no valid forget set, or names examples that the network was
        not trained on.
    """
    kind, _, value = spec.partition(":")
    total = len(labels)
    known = np.arange(total) if trained_on is None else check_training_set(trained_on, total)
    if not value:
        chosen = None
    elif kind == "random":
        chosen = _random_share(value, known, seed)
    elif kind == "class":
        chosen = known[np.isin(labels[known], _classes(value, np.unique(labels[known]), class_names))]
    elif kind == "identity":
        chosen = known[np.isin(labels[known], _identities(value, np.unique(labels[known]), seed, class_names))]
    elif kind == "indices":
        chosen = read_positions(Path(value))
    elif kind == "mislabelled":
        chosen, _ = read_mislabelled(Path(value))
    else:
        chosen = None
    if chosen is None:
        raise InputError(f"cannot read the forget set {spec!r}; write {FORGET_FORMS}")
    chosen = check_positions(chosen, total)
    check_trained_on(chosen, known)
    return chosen


def _random_share(value: str, known: np.ndarray, seed: int) -> np.ndarray:
    try:
        share = float(value)
    except ValueError:
        share = float("nan")
    if not 0 < share < 1:
        raise InputError(f"the forget share must lie strictly between 0 and 1, got {value!r}; write random:0.1 or so")
    return known[np.random.default_rng(seed).choice(len(known), round(share * len(known)), replace=False)]


def _classes(value: str, present: np.ndarray, class_names: Sequence[str]) -> list[int]:
    """Reads labels from numbers, as in `3,5`, or from class names. A number is always a label."""
    chosen = []
    for word in value.split(","):
        label = int(word) if re.fullmatch(r"\d+", word) else _label_of(word, class_names)
        if label not in present:
            shown = ", ".join(map(str, present[:12])) + (", ..." if len(present) > 12 else "")
            raise InputError(f"there is no class {word!r} in the training set; its labels are {shown}")
        chosen.append(label)
    return chosen


def _identities(value: str, present: np.ndarray, seed: int, class_names: Sequence[str]) -> np.ndarray | list[int]:
    """Reads labels from names or from a file of names, or draws them."""
    if value.startswith("random:"):
        text = value.removeprefix("random:")
        if not re.fullmatch(r"\d{1,9}", text) or not 0 < int(text) < len(present):
            raise InputError(f"cannot draw {text!r} of {len(present)} identities; write identity:random:4 or so")
        return np.random.default_rng(seed).choice(present, int(text), replace=False)
    words = value.split(",")
    # Names come first: the value is only taken for a file if it is not a list of known names.
    if not set(words) <= set(class_names) and Path(value).is_file():
        words = [text for _, text in _lines(Path(value), "identities")]
    chosen = []
    for word in words:
        label = _label_of(word, class_names)
        if label not in present:
            known = [class_names[i] for i in present if i < len(class_names)]
            near = difflib.get_close_matches(word, known, n=3, cutoff=0.4) or known[:5]
            advice = (
                f"near names are {', '.join(near)}" if near else "the data set names no classes, so use class:LABEL"
            )
            raise InputError(f"there is no identity {word!r} in the training set, nor a file of that name; {advice}")
        chosen.append(label)
    return chosen


def _label_of(name: str, class_names: Sequence[str]) -> int:
    """Returns the label of a class name, or -1, which is no label, for an unknown name."""
    return class_names.index(name) if name in class_names else -1


def forgets_classes(spec: str) -> bool:
    """Says whether the specification of a forget set names whole classes or identities."""
    return spec.startswith(("class:", "identity:"))


def read_positions(path: Path) -> np.ndarray:
    """Reads integer positions from a text file, one per line, as int64. Text after # is ignored.

    Raises:
      InputError: The file cannot be read, or a line is not an integer. The message names the first such line.
    """
    positions = []
    for number, text in _lines(path, "positions"):
        if not re.fullmatch(r"[+-]?\d{1,18}", text):
            raise InputError(f"line {number} of {path} is {text[:40]!r}, not an integer; write one position per line")
        positions.append(int(text))
    return np.asarray(positions, np.int64)


def read_mislabelled(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads wrongly labelled examples from a text file.

    A line is `POSITION`, or `POSITION LABEL` with the right label. Text after # is ignored.

    Returns:
      The positions, sorted and as int64; and the right labels in the same order, as int32, or None unless every line
      has one.

    Raises:
      InputError: The file cannot be read, or a line has another form. The message names the first such line.
    """
    rows = []
    for number, text in _lines(path, "positions"):
        if not re.fullmatch(r"\d{1,18}(\s+\d{1,9})?", text):
            raise InputError(
                f"line {number} of {path} is {text[:40]!r}; write a position, or a position and the right label"
            )
        rows.append([int(word) for word in text.split()])
    rows.sort()
    positions = np.asarray([row[0] for row in rows], np.int64)
    labelled = all(len(row) == 2 for row in rows) and bool(rows)
    return positions, np.asarray([row[1] for row in rows], np.int32) if labelled else None


def _lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file that are not empty, with their numbers. Text after # is removed."""
    try:
        lines = reading.read_lines(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the {what} in {path} ({error}); name a text file in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if text:
            yield number, text


def flip_labels(labels: np.ndarray, share: float, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gives a random share of the examples a wrong label; all wrong labels are equally likely.

    Args:
      labels: Integers from 0 to `num_classes` - 1, of shape (N,).
      share: The share of the examples to change, in [0, 1].
      num_classes: The number of classes, at least 2.
      seed: The seed of the draws.

    Returns:
      The labels, of the same type, and the positions at which they are now wrong, sorted and as int32.

    Raises:
      InputError: `share` or `num_classes` is out of its range.
    """
    if not 0 <= share <= 1 or num_classes < 2:
        raise InputError(
            f"a share of {share} of labels among {num_classes} classes cannot be flipped; "
            "choose a share from 0 to 1 and at least 2 classes"
        )
    # The second word makes the stream independent of the one that draws a forget set with the same seed.
    generator = np.random.default_rng([seed, 7])
    flipped = generator.choice(len(labels), round(share * len(labels)), replace=False)
    changed = labels.copy()
    changed[flipped] = (labels[flipped] + generator.integers(1, num_classes, len(flipped))) % num_classes
    return changed, np.sort(flipped).astype(np.int32)
