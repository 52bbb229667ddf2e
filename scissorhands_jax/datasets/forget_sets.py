"""Specifications of forget sets: a random share, classes, identities, or the positions in a file."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from scissorhands_jax import array_files, reading
from scissorhands_jax.data import check_positions, check_trained_on, check_training_set
from scissorhands_jax.datasets import numerals
from scissorhands_jax.errors import InputError

_logger = logging.getLogger(__name__)

FILE_FORMS = ("indices", "mislabelled")
"""The words of specifications that name a file after a colon."""
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
        `class:3` or `class:cat,dog`, all examples of these labels or class names; where a number is the label of one
        class and the name of another, `class:label=3` or `class:name=3`;
        `identity:NAME` or `identity:NAME,NAME`, all examples of these class names;
        `identity:FILE`, the same with one name per line of a text file;
        `identity:random:4`, this number of identities (labels), drawn with `seed`;
        `indices:FILE`, positions in a file, see `read_positions`;
        `mislabelled:FILE`, the positions of wrongly labelled examples, see `read_mislabelled`.
        In text files, a # at the beginning of a line or after white space begins a comment.
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
    elif (share := random_share(spec)) is not None:
        chosen = _random_share(share, known, seed)
    elif kind == "class":
        chosen = known[np.isin(labels[known], _classes(value, np.unique(labels[known]), class_names))]
    elif kind == "identity":
        chosen = known[np.isin(labels[known], _identities(value, np.unique(labels[known]), seed, class_names))]
    elif kind == "indices":
        chosen = read_positions(Path(value), total)
    elif kind == "mislabelled":
        chosen, _ = read_mislabelled(Path(value), class_names)
    else:
        chosen = None
    if chosen is None:
        raise InputError(f"cannot read the forget set {spec!r}; write {FORGET_FORMS}")
    chosen = check_positions(chosen, total)
    check_trained_on(chosen, known)
    return chosen


def describe_forgotten(
    positions: np.ndarray, labels: np.ndarray, class_names: Sequence[str] = (), *, most: int = 12
) -> str:
    """Says in one line how many examples of which labels a forget set has.

    Args:
      positions: The positions of the forget set, shape=(n,).
      labels: The labels of all examples in the training split, shape=(N,).
      class_names: The names of the labels 0, 1, ...
      most: The number of labels to name, those with the most examples.
    """
    found, counts = np.unique(labels[positions], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    parts = []
    for label, count in zip(found[order].tolist(), counts[order].tolist(), strict=True):
        name = class_names[label] if label < len(class_names) else str(label)
        parts.append(f"{count} of label {label}" + ("" if name == str(label) else f" ({name})"))
    more = f" and {len(found) - most} more labels" if len(found) > most else ""
    return f"{len(positions)} of {len(labels)} training examples to forget: {', '.join(parts)}{more}"


def random_share(spec: str) -> float | None:
    """The share of a specification `random:SHARE`, or None for one of another form.

    Raises:
      InputError: The share is no number strictly between 0 and 1.
    """
    kind, _, value = spec.partition(":")
    if kind != "random" or not value:
        return None
    share = float(value) if numerals.is_numeral(value.strip()) else float("nan")
    if not 0 < share < 1:
        raise InputError(f"the forget share must lie strictly between 0 and 1, got {value!r}; write random:0.1 or so")
    return share


def _random_share(share: float, known: np.ndarray, seed: int) -> np.ndarray:
    return known[np.random.default_rng(seed).choice(len(known), round(share * len(known)), replace=False)]


def _classes(value: str, present: np.ndarray, class_names: Sequence[str]) -> list[int]:
    """Reads labels from numbers, as in `3,5`, or from class names."""
    chosen = []
    for word in value.split(","):
        label = read_label(word, class_names)
        if label not in present:
            shown = ", ".join(map(str, present[:12])) + (", ..." if len(present) > 12 else "")
            raise InputError(f"there is no class {word!r} in the training set; its labels are {shown}")
        chosen.append(label)
    return chosen


def read_label(word: str, class_names: Sequence[str]) -> int:
    """Reads a label from a number or a class name, or -1, which is no label, for an unknown name.

    Args:
      word: `3`, `cat`, `label=3` or `name=3`.
      class_names: The names of the labels 0, 1, ...

    Raises:
      InputError: The number is the label of one class and the name of another, in whatever spelling: 7 may be the
        class named 07.
    """
    form, equals, rest = word.partition("=")
    if equals and form == "name":
        return _label_of(rest, class_names)
    if equals and form == "label" and numerals.is_label(rest):
        return int(rest)
    if not numerals.is_label(word):
        return _label_of(word, class_names)
    label = int(word)
    if word in class_names:
        named = [class_names.index(word)]
    else:  # The class that is called 07 is also meant by 7, and the one called 7 by 07.
        named = [place for place, name in enumerate(class_names) if numerals.value_of(name) == label]
    others = [place for place in named if place != label]
    if others:
        name, other = class_names[others[0]], f"label {label}"
        if label < len(class_names):
            other += f", the class named {class_names[label]!r}"
        raise InputError(
            f"{word} may be the class named {name!r}, which has label {others[0]}, or {other}; write name={name} or "
            f"label={label}"
        )
    return label


def _identities(value: str, present: np.ndarray, seed: int, class_names: Sequence[str]) -> np.ndarray | list[int]:
    """Reads labels from names or from a file of names, or draws them."""
    if value.startswith("random:"):
        text = value.removeprefix("random:")
        if not numerals.is_label(text) or not 0 < int(text) < len(present):
            raise InputError(f"cannot draw {text!r} of {len(present)} identities; write identity:random:4 or so")
        return np.random.default_rng(seed).choice(present, int(text), replace=False)
    words = value.split(",")
    # Names come first: the value is only taken for a file if it is not a list of known names.
    if not set(words) <= set(class_names) and os.path.isfile(value):
        words = [text for _, text in _lines(Path(value), "identities", lambda line: line in class_names)]
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


def lost_classes(labels: np.ndarray, forget: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Says of each example to forget whether no known example outside the forget set has its class.

    Networks that never saw the forget set do not know these classes, however the forget set was specified.

    Args:
      labels: The classes of a data set. shape=(N,)
      forget: The positions of the examples to forget. shape=(n,)
      known: The positions of the examples that the network knows, those to forget perhaps among them. shape=(m,)

    Returns:
      shape=(n,), dtype=bool

    >>> lost_classes(np.array([0, 0, 1, 1]), np.array([0, 2, 3]), np.array([0, 1, 2, 3])).tolist()
    [False, True, True]
    """
    return ~np.isin(labels[forget], labels[np.setdiff1d(known, forget)])


def read_positions(path: Path, total: int | None = None) -> np.ndarray:
    """Reads integer positions from a file, as int64.

    | file | holds |
    | --- | --- |
    | `.npy` | an array of integers, or a mask with a bool for each example |
    | `.csv` | a column named `position`, `positions`, `index`, `indices` or `idx`, or a single column |
    | `.json` | a list of integers |
    | any other | text in UTF-8 with one position per line; comments begin with # |

    Args:
      path: The file.
      total: The number of examples, which a mask must have. None takes no mask.

    Raises:
      InputError: The file cannot be read, or holds something else. The message names the first such line.
    """
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise InputError(
            f"{path} is a pickle, which could run code when it is read; save the positions as text, or with "
            "numpy.save('forget.npy', positions)"
        )
    if suffix == ".npz":
        raise InputError(f"{path} can hold several arrays; save the positions alone with numpy.save('forget.npy', ...)")
    if suffix == ".npy":
        return _array_of_positions(path, total)
    if suffix == ".json":
        return _json_positions(path)
    lines = _table_column(path, _POSITION_COLUMNS) if suffix == ".csv" else _lines(path, "positions")
    positions = []
    for number, text in lines:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise InputError(f"line {number} of {path} is {text[:40]!r}, not an integer; write one position per line")
        positions.append(int(text))
    return np.asarray(positions, np.int64)


_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".joblib")
_POSITION_COLUMNS = ("position", "positions", "index", "indices", "idx")
_LABEL_COLUMNS = ("label", "labels", "class", "right_label")


def _array_of_positions(path: Path, total: int | None) -> np.ndarray:
    try:
        values = array_files.read_array(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the positions in {path} ({error}); write it with numpy.save") from error
    if values.ndim == 1 and values.dtype == np.bool_:
        if total is not None and len(values) != total:
            raise InputError(f"{path} is a mask of {len(values)} bools, and there are {total} training examples")
        if total is not None:
            return np.flatnonzero(values)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise InputError(
            f"{path} holds {values.dtype} of shape {values.shape}; save integers of shape (number of positions,)"
        )
    return values.astype(np.int64)


def _json_positions(path: Path) -> np.ndarray:
    try:
        values = reading.parse_json(reading.read_text(path))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the positions in {path} ({error}); write a list of integers") from error
    if not isinstance(values, list) or not all(type(value) is int and abs(value) < 2**62 for value in values):
        raise InputError(f"{path} is no list of integers; write the positions as [3, 17, ...]")
    return np.asarray(values, np.int64)


def _table_column(path: Path, names: Sequence[str]) -> list[tuple[int, str]]:
    """Returns a column of a CSV file with numbers of lines: that of a name, or the only one if it is no other."""
    columns, line, rows = _table(path)
    if len(columns) == 1 and re.search(r"[;\t]", columns[0]):
        raise InputError(f"{path} has the one column {columns[0][:60]!r}; separate columns by commas")
    others = (*_POSITION_COLUMNS, *_LABEL_COLUMNS)
    if len(columns) == 1 and (columns[0].strip().lower() in names or columns[0].strip().lower() not in others):
        (column,) = columns
        first = [(line, column.strip())] if re.fullmatch(r"[+-]?[0-9]+", column.strip()) else []
        if column.strip() == "0":
            _logger.warning(
                "the first line of %s, 0, was read as a position; remove it if it is the heading that pandas gives a "
                "column without a name",
                path,
            )
        return first + [(row.line, row.values[column].strip()) for row in rows]
    found = [column for column in columns if column.strip().lower() in names]
    if len(found) != 1:
        raise InputError(
            f"{path} has the columns {', '.join(columns)[:200]}; name exactly one of them {' or '.join(names)}"
        )
    return [(row.line, row.values.get(found[0], "").strip()) for row in rows]


def _table(path: Path) -> reading.CsvTable:
    try:
        return reading.read_rows(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the positions in {path} ({error}); write CSV in UTF-8") from error


def read_mislabelled(path: Path, class_names: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads wrongly labelled examples from a text file, or from a CSV file with columns `position` and `label`.

    A line is `POSITION`, or `POSITION LABEL` with the right label. A # after white space begins a comment.

    Args:
      path: The file.
      class_names: The names of the labels 0, 1, ..., which a right label may be written as (`read_label`). By default
        labels are numbers.

    Returns:
      The positions, sorted and as int64; and the right labels in the same order, as int32, or None unless every line
      has one.

    Raises:
      InputError: The file cannot be read, or a line has another form. The message names the first such line.
    """
    rows = []
    if path.suffix.lower() == ".csv":
        of_positions = _table_column(path, _POSITION_COLUMNS)
        has_labels = any(column.strip().lower() in _LABEL_COLUMNS for column in _table(path).columns)
        labels = _table_column(path, _LABEL_COLUMNS) if has_labels else [(number, "") for number, _ in of_positions]
        for number, at in of_positions:
            if not at:
                raise InputError(f"line {number} of {path} has no position; write one, or leave the line out")
        lines = [(n, f"{at} {label}".strip()) for (n, at), (_, label) in zip(of_positions, labels, strict=True)]
    else:
        lines = list(_lines(path, "positions", lambda line: " ".join(line.split(maxsplit=1)[1:]) in class_names))
    for number, text in lines:
        position, *words = text.split(maxsplit=1)
        label = read_label(words[0], class_names) if words else None
        if not re.fullmatch(r"[0-9]{1,18}", position) or label == -1:
            raise InputError(
                f"line {number} of {path} is {text[:40]!r}; write a position, or a position and the right label"
            )
        rows.append((int(position), label))
    rows.sort(key=lambda row: row[0])
    positions = np.asarray([position for position, _ in rows], np.int64)
    right = [label for _, label in rows if label is not None]
    return positions, np.asarray(right, np.int32) if rows and len(right) == len(rows) else None


def _lines(path: Path, what: str, whole: Callable[[str], bool] = lambda text: False) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file that are not empty, with their numbers, without comments.

    A comment begins with a # at the beginning of a line or after white space, so that a class may be called C#. A line
    of which `whole` is true has none.
    """
    try:
        lines = reading.read_lines(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the {what} in {path} ({error}); name a text file in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not whole(text):
            text = re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()
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
