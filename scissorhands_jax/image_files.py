"""The reader of images that need not be trusted.

Pillow recognises a file by its content, and for some formats starts another program (EPS) or follows offsets that a
file chooses (TIFF). Only formats that people keep photographs and drawings in are read, and the number of pixels is
known before any is unpacked.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from scissorhands_jax import reading

if TYPE_CHECKING:
    from PIL import Image

MAX_IMAGE = 2**28  # bytes of a file
MAX_PIXELS = 2**26  # 8192 x 8192
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")  # PPM includes PGM.
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
"""Pillow's modes of grey pixels with more than 8 bits, which its `convert` cuts off at 255."""


@contextlib.contextmanager
def open_image(source: str | os.PathLike | bytes) -> Iterator[Image.Image]:
    """Opens an image: PNG, JPEG, WebP, BMP, PGM or PPM, whatever the file is called.

    Args:
      source: The file, or its content.

    Yields:
      Pillow's image. Its size is known, its pixels are read when they are used.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: The file is damaged, which may show only when the pixels are used, is of another format, or has more
        than `MAX_IMAGE` bytes or `MAX_PIXELS` pixels.
    """
    from PIL import Image

    content = source if isinstance(source, bytes) else reading.read_bytes(source, MAX_IMAGE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata, and the pixels are counted below
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"it has {image.width}x{image.height} pixels, more than {MAX_PIXELS} in all")
                yield image
    except ValueError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ValueError("it is no whole PNG, JPEG, WebP, BMP, PGM or PPM") from error
    except Exception as error:  # Each format of Pillow raises exceptions of its own for damage.
        raise ValueError(str(error).strip()[:200] or type(error).__name__) from error


def in_eight_bits(image: Image.Image) -> Image.Image:
    """The same image; grey values of 16 bits become the nearest of 8.

    Args:
      image: Pillow's image, in any mode.

    Raises:
      ValueError: Its pixels are no grey values of 16 bits, but of a mode of `DEEP_MODES`.
    """
    if image.mode not in DEEP_MODES:
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" or values.min() < 0 or values.max() > 2**16 - 1:
        raise ValueError(f"its pixels are {np.asarray(image).dtype} and not of 8 or 16 bits; save it with 8")
    from PIL import Image

    return Image.fromarray(np.round(values / 257).astype(np.uint8))
