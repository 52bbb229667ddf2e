"""Everything in the package that reads something from outside, each with whole inputs to damage."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import io
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import savemat

from scissorhands_jax import array_files, data, datasets, report, torch_weights
from scissorhands_jax.audit.networks import AuditCell
from scissorhands_jax.datasets import archives, forget_sets, own, own_arrays, prepared
from scissorhands_jax.diffusion import clip_weights, encoded, generating, image_folders, tokenizer
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config, earlier_runs, late_attacks, runs
from scissorhands_jax.jobs.cells import CellFolder
from scissorhands_jax.jobs.table_cells import TableCell
from scissorhands_jax.language.judging import judge_logs
from scissorhands_jax.methods import METHODS
from scissorhands_jax.training import checkpoints
from scissorhands_jax.training.checkpoints import Checkpointer, Position
from scissorhands_jax.training.identity import identify
from tests.comparison import same_bits
from tests.datasets.samples import cifar_members, random_set, svhn_arrays, write_tar
from tests.fuzz.damage import DamagedFolder, damaged, damaged_json
from tests.language.tiny_logs import new_log, numbers, tofu_log
from tests.torch_weights import state_dicts_test as torch_files
from tests.training.checkpoints_test import RUN, carry

Read = Callable[[], object]
Next = Callable[[random.Random, int], Read]
"""Writes an input and returns what reads it, from a generator and the number of the input."""


class Target(NamedTuple):
    """A reader."""

    share: int
    """How many of 5,000 inputs it gets."""
    prepare: Callable[[Path], Next]
    """Makes whole inputs in an empty folder."""
    refused: float
    """The least share of inputs that are refused. What is not refused was harmless damage."""
    native: bool = False
    """Whether it reads with threads of native code, which end the process or wait for ever if there is no room for
    their stacks. The address space is not limited then, only what is used of it."""


def damaged_files(folder: Path, whole: list[bytes], read: Callable[[Path], object], name: str = "file") -> Next:
    """Damages whole contents of one file in turn."""
    path = folder / name

    def make(generator: random.Random, number: int) -> Read:
        path.write_bytes(damaged(whole[number % len(whole)], generator))
        return lambda: read(path)

    return make


def damaged_documents(folder: Path, document, read: Callable[[Path], object], name: str = "file.json") -> Next:
    """Damages a JSON document."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)

    def make(generator: random.Random, number: int) -> Read:
        path.write_bytes(damaged_json(document, generator, number))
        return lambda: read(path)

    return make


def _weights(folder: Path) -> Next:
    torch_weights.write_safetensors(folder / "whole", torch_files.network())
    names = ("plain_zip", "plain_legacy", "checkpoint_zip", "checkpoint_legacy", "tensors_zip", "late_types")
    whole = [(torch_files.FILES / f"{name}.pt").read_bytes() for name in names] + [(folder / "whole").read_bytes()]
    return damaged_files(folder, whole, torch_weights.read_state_dict)


def _safetensors(folder: Path) -> Next:
    document = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    }

    def make(generator: random.Random, number: int) -> Read:
        header = damaged_json(document, generator, number)
        (folder / "file").write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))
        return lambda: torch_weights.read_state_dict(folder / "file")

    return make


def _clip(folder: Path) -> Next:
    torch_weights.write_safetensors(folder / "model.safetensors", {"text_model.self_attn.q_proj": np.zeros(3)})
    raw = (folder / "model.safetensors").read_bytes()
    return damaged_files(folder, [raw], clip_weights.read_clip, "model.safetensors")


def _merges() -> list[str]:
    count = tokenizer.VOCABULARY_SIZE - 2 * 256 - 2
    return [f"{number:x} {number % 7}" for number in range(count)]


def _tokenizer(folder: Path) -> Next:
    text = "\n".join(["#version: 0.2", *_merges(), ""]).encode()
    return damaged_files(folder, [gzip.compress(text, 1), text], lambda path: tokenizer.read_vocabulary((path,)))


def _vocabulary(folder: Path) -> Next:
    merges = folder / "merges.txt"
    merges.write_text("\n".join(_merges()))
    vocabulary = tokenizer.read_vocabulary((merges,)).tokens
    return damaged_documents(folder, vocabulary, lambda path: tokenizer.read_vocabulary((path, merges)))


def _prompts(folder: Path) -> Next:
    rows = "".join(f'"a photo, {number}",{number},x\n' for number in range(40))
    whole = [f"prompt,{seed},case\n{rows}".encode() for seed in ("seed", "evaluation_seed", "other")]
    return damaged_files(folder, whole, generating.read_prompts)


def _image_list(folder: Path) -> Next:
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    rows = "".join(f"a.png,prompt {number},{number}\n" for number in range(20)).encode()
    return damaged_files(
        folder, [b"file,prompt,seed\n" + rows], lambda path: image_folders.read_image_folder(folder), "images.csv"
    )


def _pictures(folder: Path) -> Next:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    whole = []
    for form, image in (
        *(("png", colours), ("jpeg", colours), ("webp", colours), ("bmp", colours), ("ppm", colours)),
        *(("png", colours.convert("P")), ("png", colours.convert("LA")), ("ppm", colours.convert("L"))),
        *(("tiff", colours), ("gif", colours), ("eps", colours)),  # which are refused, whole or not
    ):
        buffer = io.BytesIO()
        image.save(buffer, form)
        whole.append(buffer.getvalue())

    def read(path: Path) -> None:
        image_folders.check_image(path)
        image_folders.read_rgb_image(path)

    return damaged_files(folder, whole, read, "a.png")


def _image_folder(folder: Path) -> Next:
    for name in ("cat", "dog"):
        (folder / "set" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (6, 5), number).save(folder / "set" / name / f"{number}.png")
    spoiled = DamagedFolder(folder / "set")

    def make(generator: random.Random, number: int) -> Read:
        spoiled.damage(generator, number)
        return lambda: own.image_folder(folder / "set", 0.2)

    return make


def _image_listing(folder: Path) -> Next:
    for number in range(5):
        Image.new("L", (6, 5), number).save(folder / f"{number}.png")
    (folder / "test.txt").write_text("0.png cat\n")
    rows = "".join(f"{number}.png {'cat' if number % 2 else 'dog'}\n" for number in range(5)).encode()
    return damaged_files(folder, [rows], lambda path: own.find_labelled_images(folder), "train.txt")


def _packed(arrays: dict[str, np.ndarray], *, compressed: bool) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def _own_arrays(folder: Path) -> Next:
    images, labels = random_set(30, 0)
    arrays = {"image": images, "label": labels.astype(np.int32)}
    names = {"class_names": np.array([f"class {number}" for number in range(10)])}
    whole = [_packed(arrays, compressed=True), _packed(arrays | names, compressed=False)]
    return damaged_files(folder, whole, lambda path: own_arrays.npz_file(path, 0.2))


def _own_tables(folder: Path) -> Next:
    lines = [f"{number},{number / 7:.3f},{number % 3}" for number in range(30)]
    tables = ["\n".join([header, *lines]).encode() for header in ("a,b,label", "a,target,b")]
    return damaged_files(folder, tables, lambda path: own_arrays.csv_file(path, 0.2))


def _compact(folder: Path) -> Next:
    splits = datasets.Splits(*({"image": i, "label": n} for i, n in (random_set(30, 0), random_set(9, 1))), (), True)
    datasets.compact.pack_cifar10(splits, folder, parts=1)
    (folder / "cifar10_files.json").unlink()  # without the hashes, which would notice everything
    raw = (folder / "cifar10_test.npz").read_bytes()
    return damaged_files(folder, [raw], lambda path: datasets.cifar10(folder), "cifar10_test.npz")


def _compact_list(folder: Path) -> Next:
    splits = datasets.Splits(*({"image": i, "label": n} for i, n in (random_set(30, 0), random_set(9, 1))), (), True)
    datasets.compact.pack_cifar10(splits, folder, parts=1)
    document = json.loads((folder / "cifar10_files.json").read_text())
    return damaged_documents(folder, document, lambda path: datasets.cifar10(folder), "cifar10_files.json")


def _archives(folder: Path) -> Next:
    write_tar(folder / "cifar-10-binary.tar.gz", cifar_members("cifar10"))
    packed = (folder / "cifar-10-binary.tar.gz").read_bytes()
    plain = gzip.decompress(packed)
    path = folder / "cifar-10-binary.tar.gz"

    def make(generator: random.Random, number: int) -> Read:
        raw = damaged(packed, generator) if number % 4 == 0 else gzip.compress(damaged(plain, generator), 1)
        path.write_bytes(raw)
        return lambda: archives.read_archives("cifar10", [path], unverified=True)

    return make


def _matlab(folder: Path) -> Next:
    savemat(folder / "train_32x32.mat", svhn_arrays("train"))
    savemat(folder / "test_32x32.mat", svhn_arrays("test"), do_compression=True)
    whole = [(folder / f"{split}_32x32.mat").read_bytes() for split in ("test", "train")]
    return damaged_files(
        folder, whole, lambda path: archives.read_archives("svhn", [folder], unverified=True), "test_32x32.mat"
    )


def _prepared(folder: Path) -> Next:
    def examples(split: str, count: int):
        images, labels = random_set(count, count, size=32)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield prepared.LabelledImage(f"{split}_{number:05d}", image, {"label": int(label)})

    names = {"label": tuple("0123456789")}
    splits = {"train": examples("train", 20), "test": examples("test", 5)}
    spoiled = DamagedFolder(prepared.write_prepared("svhn", splits, names, (32, 32, 3), folder))

    def make(generator: random.Random, number: int) -> Read:
        spoiled.damage(generator, number)
        return lambda: datasets.load("svhn", folder)

    return make


def _array(folder: Path) -> Next:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(60, dtype=np.float32).reshape(3, 20))
    return damaged_files(folder, [buffer.getvalue()], lambda path: encoded._read(path, (3, 20)))


def _predictions(folder: Path) -> Next:
    arrays: dict[str, np.ndarray] = {"network": np.array("0" * 8)}
    for part in late_attacks._SETS:
        arrays |= {f"{part}_logits": np.zeros((5, 3), np.float32), f"{part}_labels": np.zeros(5, np.int16)}
    whole = [_packed(arrays, compressed=True), _packed(arrays, compressed=False)]
    read = functools.partial(late_attacks.read_predictions, name="x", network="0" * 8)
    return damaged_files(folder, whole, lambda path: read(path.read_bytes()))


def _audit_cells(folder: Path) -> Next:
    numbers = dict.fromkeys(("seconds", "compile_seconds", "mia"), 1.0)
    quality = dict.fromkeys(("acc_forget", "acc_retain", "acc_test"), 1.0)
    logits = np.zeros((20, 3), np.float32)
    cell = AuditCell(**numbers, quality=quality, network="0" * 8, inside=None, logits=logits)
    cells = CellFolder(folder, AuditCell)
    return damaged_files(folder, [cell.encode()], lambda path: cells.read_all(), "a.npz")


def _table_cells(folder: Path) -> Next:
    document = {
        **{"scenario": "one class", "method": "finetune", "seed": 3, "sweep": None, "settings": {"epochs": 2}},
        **{"metrics": {"mia": 3.0}, "cost": {"seconds": 1.0, "compile_seconds": 2.0, "steps": 3}},
        **{"process": "x", "network": "0" * 8, "relearn": None},
        "forget": {"requests": ["class=1"], "count": 3, "sha256": "0" * 64},
    }
    cells = CellFolder(folder, TableCell)
    return damaged_documents(folder, document, lambda path: cells.read_all(), "a.json")


def _diverged_cells(folder: Path) -> Next:
    document = {"place": {"scenario": "one class", "seed": 3}, "reason": "loss is nan at step 3", "code": None}
    cells = CellFolder(folder, TableCell)
    return damaged_documents(folder, document, lambda path: cells.read_all(), "a.diverged")


def _networks(folder: Path) -> Next:
    arrays = {"a": np.arange(20, dtype=np.float32), "b": {"c": np.ones((3, 3), np.float32)}}
    checkpoints.save_network(folder / "network", arrays, {}, {"model": "x"})
    spoiled = DamagedFolder(folder / "network")

    def read() -> None:
        params, _ = checkpoints.load_network(folder / "network", arrays, {})
        assert same_bits(params, arrays), "what is read is what was written"
        checkpoints.read_description(folder / "network")

    def make(generator: random.Random, number: int) -> Read:
        spoiled.damage(generator, number)
        return read

    return make


def _checkpoints(folder: Path) -> Next:
    keeper = Checkpointer(folder / "run")
    keeper.save(carry(), Position(0, 3), RUN)
    keeper.close()
    spoiled = DamagedFolder(folder / "run")

    def read() -> None:
        with contextlib.closing(Checkpointer(folder / "run")) as reader:
            found, _ = reader.restore(carry(), RUN)
        assert same_bits(found, carry())

    def make(generator: random.Random, number: int) -> Read:
        spoiled.damage(generator, number)
        return read

    return make


def _runs(folder: Path) -> Next:
    chosen = {"model": "mlp", "weights": None, "seed": 3, "method": {"epochs": 2, "learning_rate": 0.1}}
    run = identify(chosen)

    def resume(path: Path) -> None:
        with runs.open_folder(path.parent, run, resume=True, warn=False):
            pass

    return damaged_documents(folder, run.document(), resume, f"run/{runs.RUN_FILE}")


def _earlier_runs(folder: Path) -> Next:
    settings = config.RunConfig(model="mlp", dataset="digits", forget="class=1", method=METHODS["scissorhands"]())
    document = {"config": json.loads(json.dumps(dataclasses.asdict(settings)))}
    return damaged_documents(folder, document, earlier_runs.read_run_config)


def _results(folder: Path) -> Next:
    row = dict.fromkeys(report.ROW_FIELDS, 1.0) | {"scenario": "s", "method": "m"}
    return damaged_documents(
        folder, {"rows": [row], "config": {}, "versions": {}, "machine": {}}, report.read_results, "results.json"
    )


def _settings(folder: Path) -> Next:
    settings = [config.RunConfig(model="m", dataset="d", forget="f", method=make()) for make in METHODS.values()]
    words = ["", ".", "=", "none", "-1", "1e999", "nan", "\0", "é", "true", "1,2", "__class__"]
    words += ["9" * 5000, "[" * 5000, '{"a":' * 5000]

    def make(generator: random.Random, number: int) -> Read:
        base = settings[number % len(settings)]
        name = generator.choice([*config.setting_names(base), "method.departures.x", "method", "x" * 50, "a." * 20])
        if generator.random() < 0.3:
            name = damaged(name.encode(), generator).decode(errors="replace")
        value = generator.choice([*words, damaged(b"0.05", generator).decode(errors="replace")])

        def read() -> None:
            changed = config.override(base, [f"{name}={value}"])
            assert type(changed) is type(base)
            assert type(changed.method) is type(base.method)
            hash(str(dataclasses.asdict(changed)))

        return read

    return make


def _positions(folder: Path) -> Next:
    raw = "".join(f"{number} # {number}\n" for number in range(0, 900, 9)).encode()

    def read(path: Path) -> None:
        with contextlib.suppress(InputError):
            forget_sets.read_mislabelled(path)
        data.check_positions(forget_sets.read_positions(path), 900)

    return damaged_files(folder, [raw], read)


def _evaluation_logs(folder: Path) -> Next:
    """Both formats in turn, each as the log in question and as the one that it is compared with."""
    (folder / "whole.json").write_text(json.dumps(tofu_log(numbers(1))))
    makes = [
        damaged_documents(folder, make(numbers()), lambda path: judge_logs(path, [folder / "whole.json"]))
        for make in (tofu_log, new_log)
    ]
    return lambda generator, number: makes[number % 2](generator, number // 2)


def _any_arrays(folder: Path) -> Next:
    """Headers of arrays with any Python in them."""
    words = ["(3, 4)", "(-1,)", "(10**12,)", "(9" + "9" * 20 + ",)", "()", "(0,)", "'<f4'", "'|O'", "'<U0'", "'V8'"]
    words += ["[('a', '<f4')]", "True", "None", "(" * 900, "{" * 50, "1e400", "'\\q'", "x", "__import__('os')"]

    def make(generator: random.Random, number: int) -> Read:
        fields = [generator.choice(words) for _ in range(3)]
        if number % 3:
            fields[number % 3 - 1] = ("'<f4'", "False", "(3, 4)")[number % 3 - 1]
        text = "{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}\n".format(*fields).encode()
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(48)

        def read() -> None:
            try:
                array_files.read_array(content)
            except ValueError as error:
                raise InputError(str(error)) from error

        return read

    return make


TARGETS = {
    "weight files": Target(700, _weights, 0.5),
    "headers of .safetensors": Target(350, _safetensors, 0.5),
    "CLIP's weights": Target(60, _clip, 0.9),
    "tokenizers": Target(60, _tokenizer, 0.3),
    "vocabularies": Target(20, _vocabulary, 0.9),
    "prompts": Target(310, _prompts, 0.05),
    "lists of images": Target(150, _image_list, 0.2),
    "images": Target(450, _pictures, 0.3),
    "folders of images": Target(80, _image_folder, 0.2),
    "lists of labelled images": Target(120, _image_listing, 0.1),
    "own arrays": Target(300, _own_arrays, 0.5),
    "own tables": Target(200, _own_tables, 0.5),
    "compact files": Target(150, _compact, 0.5),
    "lists of compact files": Target(80, _compact_list, 0.5),
    "CIFAR's archives": Target(100, _archives, 0.2),
    "SVHN's files": Target(100, _matlab, 0.2),
    "prepared sets": Target(100, _prepared, 0.3, native=True),
    "cached arrays": Target(150, _array, 0.2),
    "headers of arrays": Target(200, _any_arrays, 0.5),
    "predictions": Target(150, _predictions, 0.5),
    "cells of audits": Target(120, _audit_cells, 0.5),
    "cells of tables": Target(150, _table_cells, 0.3),
    "diverged cells": Target(80, _diverged_cells, 0.2),
    "networks": Target(150, _networks, 0.25, native=True),
    "checkpoints": Target(40, _checkpoints, 0.25, native=True),
    "descriptions of runs": Target(150, _runs, 0.8),
    "earlier runs": Target(200, _earlier_runs, 0.3),
    "results": Target(150, _results, 0.3),
    "settings": Target(350, _settings, 0.3),
    "positions": Target(200, _positions, 0.1),
    "evaluation logs": Target(120, _evaluation_logs, 0.5),
}


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
