"""The two file formats of `torch.save`: finding the saved object and the bytes of its tensors."""

from __future__ import annotations

import struct
import zipfile
from io import BufferedReader
from typing import Any

from scissorhands_jax import reading
from scissorhands_jax.torch_weights.pickle_globals import dict_key
from scissorhands_jax.torch_weights.pickles import interpret
from scissorhands_jax.torch_weights.tensors import (
    BIG_ENDIAN,
    Damaged,
    Extent,
    ForbiddenGlobal,
    Refused,
    read_extent,
    show,
    unknown_names,
)

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first object of a file from before PyTorch 1.6
PROTOCOL_VERSION = 1001


def read_legacy(data: Any) -> tuple[object, dict[str, Extent]]:
    """Reads the format from before PyTorch 1.6: five pickles, then the storages one after the other.

    Args:
      data: The file as `bytes` or `mmap`.

    Returns:
      The saved object, with `Tensor`s in place of tensors, and the extent of each storage by its key.

    Raises:
      Refused: The input is not such a file, is damaged, or asks for something that is not permitted.
    """
    magic, at, _ = interpret(data, 0)
    if names := unknown_names(magic):
        raise ForbiddenGlobal(show(names[0]))
    if type(magic) is not int or magic != MAGIC_NUMBER:
        raise Refused("is a pickle, but not one that torch.save wrote; save the model's state dict with torch.save")
    version, at, _ = interpret(data, at)
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise Damaged(f"its protocol version is {show(version)} instead of {PROTOCOL_VERSION}")
    system, at, _ = interpret(data, at)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise Refused(BIG_ENDIAN)
        raise Damaged("its description of the system that wrote it is not readable")
    root, at, storages = interpret(data, at)
    if not storages and (names := unknown_names(root)):
        raise ForbiddenGlobal(show(names[0]))
    keys, at, _ = interpret(data, at)
    if type(keys) is not list or len(keys) != len(storages) or set(map(dict_key, keys)) != set(storages):
        raise Damaged("its list of storages does not match its tensors")
    extents = {}
    for key in keys:
        storage = storages[key]
        size = storage.size * storage.dtype.itemsize
        if at + 8 + size > len(data):
            raise Damaged(f"it is truncated: {at + 8 + size} bytes or more are needed, and it has {len(data)}")
        if int.from_bytes(data[at : at + 8], "little", signed=True) != storage.size:
            raise Damaged(f"the storage at byte {at} does not have the length that its tensors expect")
        extents[key] = Extent(at + 8, size)
        at += 8 + size
    return root, extents


def read_zip(file: BufferedReader, size: int) -> tuple[object, dict[str, Extent]]:
    """Reads the format of PyTorch 1.6 and later: an uncompressed zip with `NAME/data.pkl` and `NAME/data/KEY`.

    Args:
      file: The file, opened for reading.
      size: The size of the file, in bytes.

    Returns:
      The saved object, with `Tensor`s in place of tensors, and the extent of each storage by its key.

    Raises:
      Refused: The input is not such a file, is damaged, or asks for something that is not permitted.
    """
    try:
        entries = reading.read_archive_entries(file)
    except Exception as error:  # zipfile raises many types of exceptions, and here all of them mean damage.
        raise Damaged(f"its zip directory is not readable ({show(str(error))})") from error
    _refuse_other_archives([entry.filename for entry in entries])
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "":
            raise Refused(f"is a zip with the unsafe entry name {show(entry.filename)}; do not trust this file")
        if entry.filename in members:
            raise Refused(f"is a zip with two entries named {show(entry.filename)}; do not trust this file")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise Refused(
                f"is a zip whose entry {show(entry.filename)} is compressed or encrypted, which torch.save never does; "
                "save it again with PyTorch"
            )
        members[entry.filename] = entry
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused("is a zip, but not one that torch.save wrote; save the model's state dict with torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    outside = next((name for name in members if not name.startswith(folder)), None)
    if outside is not None:
        raise Refused(f"is a zip with the foreign entry {show(outside)}; save it again with PyTorch")
    if f"{folder}byteorder" in members:
        order = read_extent(file, _locate(file, size, members[f"{folder}byteorder"])).tobytes()
        if order != b"little":
            raise Refused(BIG_ENDIAN) if order == b"big" else Damaged(f"its byte order is {show(order)}")
    program = read_extent(file, _locate(file, size, members[pickles[0]])).tobytes()
    root, _, storages = interpret(program, 0)
    extents = {}
    for key, storage in storages.items():
        held = members.get(f"{folder}data/{key}")
        if held is None:
            raise Damaged(f"the data of storage {show(key)} is missing")
        if held.file_size != storage.size * storage.dtype.itemsize:
            raise Damaged(f"storage {show(key)} does not have the length that its tensors expect")
        extents[key] = _locate(file, size, held)
    return root, extents


def _refuse_other_archives(names: list[str]) -> None:
    """Refuses zips that are known to be something else, by the names in them."""
    if any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in names):
        raise Refused(
            "is a TorchScript archive; load it with torch.jit.load and save `model.state_dict()` with torch.save"
        )
    held = [name for name in names if name.lower().endswith((".pt", ".pth", ".th", ".ckpt", ".tar", ".safetensors"))]
    if held:
        raise Refused(f"is a zip around {show(held[0])}; unpack it and give that file")


def _locate(file: BufferedReader, size: int, entry: zipfile.ZipInfo) -> Extent:
    """Finds the bytes of a stored entry from the entry's own header, which must agree with the zip directory."""
    where = f"the zip entry {show(entry.filename)}"
    header = struct.Struct("<4s22xHH")
    if not 0 <= entry.header_offset <= size - header.size:
        raise Damaged(f"{where} lies outside the file")
    file.seek(entry.header_offset)
    signature, name_size, extra_size = header.unpack(file.read(header.size))
    name = file.read(name_size)
    encoding = "utf-8" if entry.flag_bits & 0x800 else "cp437"
    if signature != b"PK\x03\x04" or name != entry.orig_filename.encode(encoding):
        raise Damaged(f"{where} has no header")
    start = entry.header_offset + header.size + name_size + extra_size
    if start + entry.file_size > size:
        raise Damaged(f"{where} ends beyond the end of the file")
    # The checksum is 0 in files that were written after torch.serialization.set_crc32_options(False).
    return Extent(start, entry.file_size, entry.CRC or None)
