"""Reads the user's own examples from one file: images or feature vectors, with classes or with other targets.

What the targets are called says what the network is for: `label` are classes, `target` numbers (a regression), and
`labels` zeros and ones, any number of them for an example.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scissorhands_jax import array_files, reading, tasks
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Dataset
from scissorhands_jax.datasets import numerals
from scissorhands_jax.datasets.splits import Splits, check_labels, evenly_chosen, whole_labels
from scissorhands_jax.errors import InputError

Arrays = dict[str, np.ndarray]
"""The arrays of a file by their names."""
_OF_EXAMPLES = ("image", "features", "label", "target", "labels")
_ROUNDING = 1e-3  # by which images may lie outside [0, 1]; half a step of 8 bits is 0.002
_OVERSHOOT = 0.25  # by which resizing puts values outside it
_LOST = 1e-3  # the share of the range of a column by which float32 may round its values
_ROWS = 4096  # that are compared at a time with what float32 makes of them
_KNOWN = (*_OF_EXAMPLES, *(f"test_{name}" for name in _OF_EXAMPLES), "held_out", "class_names")


def npz_file(path: Path, held_out: float | None = None) -> Splits:
    """Reads examples and their targets from one `.npz` file.

    Args:
      path: The file. It holds `image`, of shape (N, H, W, C) or (N, H, W), uint8 or floating point in [0, 1] (see
        `image_array`); or `features`, of shape (N, D), numbers. And it holds `label`, of shape (N,), integers from 0;
        or `target`, of shape (N,) or (N, K), numbers; or `labels`, of shape (N, L), zeros and ones. The test set is in
        arrays of the same names that begin with `test_`; or the array `held_out` says which of the examples it is, by
        their positions or by a bool for each. In any case positions count the examples from 0. Names of classes may be
        in `class_names`. Other arrays are not read.
      held_out: The share of the examples of each label, or of all examples where there are no classes, to test with, in
        a file that does not say it.

    Raises:
      InputError: The file cannot be read, its arrays do not fit together, features or targets lie so near to each other
        that float32 rounds them by more than a thousandth of their range, or nothing says which examples are for
        testing.
    """
    return _splits(read_npz(path, _KNOWN), path, held_out, "npz")


def csv_file(path: Path, held_out: float | None = None) -> Splits:
    """Reads examples and their targets from a table, whose first line names the columns.

    Args:
      path: The file, in UTF-8, with commas between the values. Its column `label` holds classes, as whole numbers from
        0 or as names, whose labels are then in the order of the names; or its column `target` holds numbers. A column
        `held_out` may hold 1 for the examples that are for testing and 0 for the others. All other columns are
        features, and hold numbers.
      held_out: As for `npz_file`.

    Raises:
      InputError: The file cannot be read, a value is missing or no number, float32 rounds those of a column by more
        than a thousandth of their range, or nothing says which examples are for testing.
    """
    return _splits(_read_csv(path), path, held_out, "csv")


def read_npz(path: Path, names: Sequence[str]) -> Arrays:
    """Those of the arrays with these names that a `.npz` file has.

    Raises:
      InputError: The file is missing or damaged, or such an array holds objects.
    """
    try:
        return array_files.read_arrays(path, names)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; name a .npz file with the arrays image and label") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a .npz file ({error}); write arrays of numbers and text with numpy.savez"
        ) from error


def _splits(arrays: Arrays, path: Path, share: float | None, kind: str) -> Splits:
    """The data set in arrays with the names that `npz_file` describes."""
    inputs = _only(arrays, ("image", "features"), path)
    targets = _only(arrays, ("label", "target", "labels"), path)
    tests = f"test_{inputs}", f"test_{targets}"
    if (tests[0] in arrays) != (tests[1] in arrays):
        raise InputError(f"{path} has only one of {tests[0]} and {tests[1]}; give both or neither")
    train = _examples(arrays, inputs, targets, path)
    groups = train["label"] if targets == "label" else np.zeros(len(train["label"]), np.int32)
    chosen = _held_out(arrays, tests, groups, share, f"{kind}:{path}")
    test = _examples(arrays, inputs, targets, path, "test_") if chosen is None else data_lib.take(train, chosen)
    for name, what in ((inputs, "images" if inputs == "image" else inputs), ("label", "targets")):
        forms = [f"{part[name].dtype} of shape {part[name].shape[1:]}" for part in (test, train)]
        if forms[0] != forms[1] and (name == inputs or targets != "label"):
            raise InputError(
                f"the test {what} in {path} are {forms[0]} and the training {what} {forms[1]}; give both one type and "
                "shape"
            )
    for name in (name for name in (inputs, targets) if name in ("features", "target")):
        _check_rounding([arrays[key] for key in (name, f"test_{name}") if key in arrays], f"{name} in {path}")
    if targets != "label":
        known = np.delete(train["label"], [] if chosen is None else chosen, axis=0)
        task = tasks.multi_label() if targets == "labels" else tasks.regression(_usual_error(known, path))
        return complete(Splits(train, test, (), augmented=False, held_out=chosen, task=task), path)
    count = int(max(train["label"].max(), test["label"].max(initial=0))) + 1
    names = _class_names(arrays, path) if "class_names" in arrays else tuple(map(str, range(count)))
    if "class_names" not in arrays and min(part["label"].min(initial=1) for part in (train, test)) > 0:
        raise InputError(
            f"{path} has no label 0, and labels from {train['label'].min()} to {count - 1}; labels count classes from "
            "0, so subtract 1, or give the names of all classes"
        )
    for part in (train, test):
        part["label"] = check_labels(part["label"], len(names), path)
    return complete(Splits(train, test, names, augmented=False, held_out=chosen), path)


def _all_names(path: Path) -> str:
    """The names of all arrays of a file, for messages."""
    return ", ".join(array_files.array_names(path))[:200] or "nothing"


def _class_names(arrays: Arrays, path: Path) -> tuple[str, ...]:
    names = arrays["class_names"]
    listed = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names.ravel()]
    if names.ndim != 1 or len(set(listed)) < len(listed):
        raise InputError(
            f"class_names in {path} has shape {names.shape} and {len(set(listed))} different names; give one name for "
            "each class"
        )
    return tuple(listed)


def _only(arrays: Arrays, names: Sequence[str], path: Path) -> str:
    """The one of these names that the file has."""
    found = [name for name in names if name in arrays]
    if len(found) > 1:
        raise InputError(f"{path} has both {' and '.join(found)}; leave all but one of them out")
    if not found:
        raise InputError(
            f"{path} has no array {names[0]!r}, only {_all_names(path)}; save the images as `image`, or "
            "feature vectors as `features`, and the labels as `label`, or the numbers of a regression as `target`"
        )
    return found[0]


def _examples(arrays: Arrays, inputs: str, targets: str, path: Path, prefix: str = "") -> Dataset:
    """Inputs and targets as a data set, if there is one target for each input."""
    read_inputs = image_array if inputs == "image" else _features
    read_targets = {"label": label_array, "target": _numbers, "labels": _sets_of_labels}[targets]
    found = read_inputs(arrays, prefix + inputs, path), read_targets(arrays, prefix + targets, path)
    if len(found[0]) != len(found[1]):
        what = "images" if inputs == "image" else "feature vectors"
        where = f" in {prefix}{inputs}" if prefix else ""
        raise InputError(
            f"{path} holds {len(found[0])} {what}{where} for {len(found[1])} {targets.rstrip('s')}s; give each "
            f"{what.rstrip('s')} one {targets}"
        )
    return {inputs: found[0], "label": found[1]}


def _held_out(
    arrays: Arrays, tests: tuple[str, str], labels: np.ndarray, share: float | None, name: str
) -> np.ndarray | None:
    """Returns the positions of the examples that are for testing; None if the file has a test set of its own."""
    path = name.partition(":")[2]
    said: list[str] = [known for known in (tests[0], "held_out") if known in arrays]
    if share is not None:
        said.append(f"?held_out={share:g}")
    if len(said) > 1:
        raise InputError(f"{path} is to be tested with {' and with '.join(said)}; leave one out")
    if not said:
        own = "a column held_out with 1 for" if name.startswith("csv:") else "an array held_out with the positions of"
        raise InputError(
            f"{path} has no test set, and none is taken from its {len(labels)} examples unless you ask for it; add "
            + ("" if name.startswith("csv:") else f"{tests[0]} and {tests[1]}, or ")
            + f"{own} examples that the network was not trained on, or write {name}?held_out=0.2"
        )
    if "held_out" in arrays:
        return data_lib.check_held_out(arrays["held_out"], len(labels))
    if share is None:
        return None
    positions = np.flatnonzero(evenly_chosen(labels, share))
    if not len(positions):
        raise InputError(f"{share:g} of the examples of each label in {path} is less than one; hold out a larger share")
    return positions.astype(np.int32)


def _array(arrays: Arrays, name: str, path: Path) -> np.ndarray:
    if name not in arrays:
        raise InputError(
            f"{path} has no array {name!r}, only {_all_names(path)}; save the images as `image` and the labels as "
            "`label`"
        )
    return arrays[name]


def label_array(arrays: Arrays, name: str, path: Path) -> np.ndarray:
    """An array of classes, whole numbers from 0. shape=(N,)

    Raises:
      InputError: It is missing or has another form.
    """
    return whole_labels(_array(arrays, name, path), f"{name} in {path}")


def image_array(arrays: Arrays, name: str, path: Path) -> np.ndarray:
    """An array of images, uint8 or float32 in [0, 1], with an axis of channels added if there is none. (N, H, W, C)

    What rounding puts outside [0, 1], by at most 0.001, is moved to its ends.

    Raises:
      InputError: It is missing or has another form.
    """
    images = _array(arrays, name, path)
    if images.ndim == 3:
        images = images[..., None]
    where = f"{name} in {path}"
    if images.ndim != 4:
        more = "; save feature vectors as `features`" if images.ndim == 2 else ""
        raise InputError(f"{where} has shape {images.shape}; give images of shape (N, H, W, C) or (N, H, W){more}")
    if images.shape[1] in (1, 2, 3, 4) and images.shape[3] not in (1, 2, 3, 4):
        raise InputError(
            f"{where} has shape {images.shape}, which are channels first; give channels last, as with "
            ".transpose(0, 2, 3, 1)"
        )
    if np.issubdtype(images.dtype, np.floating):
        return _check_range(images.astype(np.float32), where)
    if images.dtype != np.uint8:
        fits = np.issubdtype(images.dtype, np.integer) and images.size and images.min() >= 0 and images.max() <= 255
        advice = "convert it with .astype('uint8')" if fits else "give uint8, or floating point in [0, 1]"
        raise InputError(f"{where} is {images.dtype}; {advice}")
    if images.max(initial=0) == 1:
        raise InputError(
            f"{where} is uint8 from 0 to 1, and uint8 is from 0 to 255; multiply it by 255, or convert it to float32"
        )
    return images


def _check_range(images: np.ndarray, where: str) -> np.ndarray:
    """Returns images in [0, 1], unless a value is not finite or outside of it by more than rounding."""
    _check_finite(images, where, "images", "image")
    lowest, highest = float(images.min(initial=0)), float(images.max(initial=0))
    beyond = max(-lowest, highest - 1)
    if beyond > _ROUNDING:
        if beyond <= _OVERSHOOT:
            advice = "clip it with numpy.clip(images, 0, 1), if resizing made these values"
        elif lowest >= 0 and highest > 2:
            advice = "divide it by 255, or give uint8"
        else:
            advice = "give the images before they are normalised"
        raise InputError(f"{where} is floating point from {lowest:g} to {highest:g}, outside [0, 1]; {advice}")
    if beyond > 0:
        images = images.clip(0, 1)
    if 0 < highest <= 1.001 / 255:
        raise InputError(
            f"{where} is floating point from {lowest:g} to {highest:g}, as if it had been divided by 255 twice; give "
            "images in [0, 1]"
        )
    return images


def _check_finite(values: np.ndarray, where: str, what: str, one: str) -> None:
    good = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not good.all():
        bad = np.flatnonzero(~good)
        raise InputError(
            f"{len(bad)} {what} of {where} have values that are NaN or infinite, the first is {one} {bad[0]}; "
            "correct or remove them"
        )


def _features(arrays: Arrays, name: str, path: Path) -> np.ndarray:
    """Feature vectors of shape (N, D) as float32."""
    values, where = _array(arrays, name, path), f"{name} in {path}"
    if values.ndim != 2 or not values.size:
        advice = "; save images as `image`" if values.ndim in (3, 4) else ""
        raise InputError(f"{where} has shape {values.shape}; give feature vectors of shape (N, D){advice}")
    return _as_numbers(values, where, "feature vectors", "example")


def _numbers(arrays: Arrays, name: str, path: Path) -> np.ndarray:
    """The targets of a regression, of shape (N,) or (N, K), as float32."""
    values, where = _array(arrays, name, path), f"{name} in {path}"
    if values.ndim not in (1, 2) or not values.size:
        raise InputError(f"{where} has shape {values.shape}; give targets of shape (N,) or (N, K)")
    return _as_numbers(values[:, 0] if values.shape[1:] == (1,) else values, where, "targets", "example")


def _as_numbers(values: np.ndarray, where: str, what: str, one: str) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise InputError(f"{where} is {values.dtype}; give numbers")
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    _check_finite(found, where, what, one)
    return found


def _check_rounding(parts: Sequence[np.ndarray], where: str) -> None:
    """Refuses columns whose values lie so near to each other that float32 hardly tells them apart.

    Args:
      parts: The arrays that hold the columns one below the other, as a small one alone says little of their range.
        shapes=(N, ...)
      where: What holds them, for the message.
    """
    if all(np.can_cast(part.dtype, np.float32) for part in parts):
        return
    tables = [part.reshape(len(part), -1) for part in parts if len(part)]
    # Integers above 2**53 need long double, which has more bits than float64 on most machines.
    exact = [np.longdouble if table.dtype.kind in "iu" else np.float64 for table in tables]
    lowest = np.min([table.min(axis=0).astype(kind) for table, kind in zip(tables, exact, strict=True)], axis=0)
    highest = np.max([table.max(axis=0).astype(kind) for table, kind in zip(tables, exact, strict=True)], axis=0)
    error = np.zeros_like(lowest)
    for table, kind in zip(tables, exact, strict=True):
        for start in range(0, len(table), _ROWS):
            rows = table[start : start + _ROWS]
            error = np.maximum(error, np.abs(rows.astype(np.float32) - rows.astype(kind)).max(axis=0))
    spread = highest - lowest
    # What differs by the last bits of float64 alone was computed as one number.
    is_float = any(part.dtype.kind == "f" for part in parts)
    noise = 8 * np.finfo(np.float64).eps * np.maximum(abs(lowest), abs(highest)) if is_float else 0
    lost = np.flatnonzero((error > _LOST * spread) & (spread > noise))
    if lost.size:
        first = lost[0]
        column = f"column {first}, counted from 0, of {where}" if len(spread) > 1 else where
        raise InputError(
            f"{column} has values from {float(lowest[first]):.17g} to {float(highest[first]):.17g}, and float32, which "
            f"networks read, rounds them by up to {100 * float(error[first] / spread[first]):.2g} % of that range; "
            "subtract their mean, or give them in another unit"
        )


def _sets_of_labels(arrays: Arrays, name: str, path: Path) -> np.ndarray:
    """Several labels for each example, of shape (N, L), as float32 zeros and ones."""
    values, where = _array(arrays, name, path), f"{name} in {path}"
    if values.ndim != 2 or not values.size or values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise InputError(
            f"{where} is {values.dtype} of shape {values.shape}; give zeros and ones of shape (N, number of labels), "
            "or one class for each example as `label`"
        )
    return values.astype(np.float32)


def _usual_error(targets: np.ndarray, path: Path) -> float:
    """The standard deviation of the targets, which errors are measured in; the root mean square of those of columns."""
    scale = float(np.sqrt(np.mean(np.var(targets.astype(np.float64), axis=0)))) if len(targets) else 0.0
    if not scale > 0:
        raise InputError(f"all targets in {path} are equal, so that nothing can be predicted; give the right ones")
    return scale


def _read_csv(path: Path) -> Arrays:
    """The columns of a table as arrays with the names that `npz_file` describes."""
    try:
        columns, _, rows = reading.read_rows(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; name a .csv file with the columns label or target") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table ({error}); write CSV in UTF-8") from error
    names = [column.strip() for column in columns]
    if len(names) == 1 and re.search(r"[;\t]", names[0]):
        raise InputError(f"{path} has the one column {names[0][:60]!r}; separate values by commas")
    for number, name in enumerate(names, start=1):
        # pandas writes row numbers without a name, and calls what it reads without one `Unnamed: 0` or `Unnamed: 0.1`.
        if not name or re.fullmatch(r"Unnamed: \d+(\.\d+)?", name):
            raise InputError(
                f"column {number} of {path} {'is called ' + repr(name) if name else 'has no name'}, as that of the row "
                "numbers which pandas writes; name each column in the first line, or leave it out, as with "
                "to_csv(index=False)"
            )
    if not rows or len(set(names)) < len(names):
        raise InputError(
            f"{path} has {len(rows)} examples and the columns {', '.join(names)[:200]}; name each column in the first "
            "line, by a name of its own, and give each example a line"
        )
    if not {"label", "target"} & set(names) or not set(names) - {"label", "target", "held_out"}:
        raise InputError(
            f"{path} has the columns {', '.join(names)[:200]}; name the one with the class of an example label, or the "
            "one with the number to predict target, next to columns of features"
        )
    lines = [row.line for row in rows]
    texts = {
        name: [row.values.get(column, "").strip() for row in rows] for name, column in zip(names, columns, strict=True)
    }
    found: Arrays = {}
    if "target" in texts:
        found["target"] = _column(texts.pop("target"), "target", path, lines)
    if "label" in texts:
        labels = texts.pop("label")
        numerals.check_spellings(labels, str(path))
        if all(map(numerals.is_label, labels)):
            found["label"] = np.asarray(labels, np.int64)
        elif not all(labels):
            raise InputError(f"line {lines[labels.index('')]} of {path} has no label; give each example one")
        elif any(map(numerals.is_numeral, labels)):
            place = next(place for place, text in enumerate(labels) if not numerals.is_label(text))
            raise InputError(
                f"line {lines[place]} of {path} has the label {labels[place][:40]!r}, and labels are whole numbers "
                "from 0 or names that are no numbers; write all of one kind, or call the column target, for a "
                "regression"
            )
        else:
            found["class_names"], found["label"] = np.unique(labels, return_inverse=True)
    if "held_out" in texts:
        words = {"true": "1", "false": "0"}
        held = _column([words.get(text.lower(), text) for text in texts.pop("held_out")], "held_out", path, lines)
        if not np.isin(held, (0, 1)).all():
            raise InputError(f"the column held_out of {path} has other values than 0 and 1; write 1 for testing")
        found["held_out"] = held.astype(bool)
    if texts:
        found["features"] = np.stack([_column(values, name, path, lines) for name, values in texts.items()], axis=1)
    return found


def _column(texts: Sequence[str], name: str, path: Path, lines: Sequence[int]) -> np.ndarray:
    """A column of numbers, one on each of these lines of the file."""
    for line, text in zip(lines, texts, strict=True):
        if not numerals.is_numeral(text):
            raise InputError(
                f"line {line} of {path} has {repr(text[:40]) if text else 'nothing'} in the column {name!r}, which "
                "holds numbers; encode it as numbers, fill it in, or leave the column out"
            )
    return np.asarray([float(text) for text in texts])


def complete(splits: Splits, path: Path) -> Splits:
    """Returns the splits.

    Raises:
      InputError: One of them has no examples.
    """
    for part, name in ((splits.train, "train"), (splits.test, "test")):
        if not len(part["label"]):
            raise InputError(f"{path} gives no {name} examples; give some of each kind")
    return splits
