"""Folders of pictures, made by people or by `sd generate`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from scissorhands_jax import reading
from scissorhands_jax.errors import InputError
from scissorhands_jax.image_files import MAX_IMAGE, in_eight_bits, open_image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def find_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted by name.

    Raises:
      InputError: There is no such folder, or it has no pictures.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; name a folder of images")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
    if not paths:
        raise InputError(f"{folder} has no images ({', '.join(PICTURE_SUFFIXES)})")
    return paths


def check_picture(path: Path) -> bytes:
    """The bytes of a picture whose header can be read. Whether all pixels are there is not checked.

    Raises:
      InputError: The file cannot be read as an image.
    """
    try:
        content = reading.read_bytes(path, MAX_IMAGE)
        with open_image(content) as image:
            image.verify()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return content


def read_picture(path: Path) -> Image.Image:
    """A picture as RGB, rotated as its metadata say.

    Raises:
      InputError: The picture cannot be read.
    """
    try:
        with open_image(path) as image:
            return in_eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read as an image ({error or type(error).__name__}); repair or remove it")
