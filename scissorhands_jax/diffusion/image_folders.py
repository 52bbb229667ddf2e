"""Images in folders, made by people or by `sd generate`: found, read, and paired with those of another network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageOps

from scissorhands_jax import hashing, reading
from scissorhands_jax.diffusion.generating import IMAGES_FILE, Prompt
from scissorhands_jax.errors import InputError
from scissorhands_jax.image_files import MAX_IMAGE, in_eight_bits, open_image

FOLDER_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class ImageEntry(NamedTuple):
    """An image in a folder."""

    path: Path
    """The file."""
    sha256: str
    """The hash of its content."""
    prompt: Prompt | None
    """The prompt that it was made of, if that is known."""


Pairing = Literal["auto", "prompts", "names", "none"]


def find_folder_images(folder: Path) -> list[Path]:
    """The images in a folder, sorted by name.

    Raises:
      InputError: There is no such folder, or it has no images.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; name a folder of images")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in FOLDER_SUFFIXES and path.is_file())
    if not paths:
        raise InputError(f"{folder} has no images ({', '.join(FOLDER_SUFFIXES)})")
    return paths


def check_image(path: Path) -> bytes:
    """The bytes of an image whose header can be read. Whether all pixels are there is not checked.

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


def read_rgb_image(path: Path) -> Image.Image:
    """An image as RGB, rotated as its metadata say.

    Raises:
      InputError: The file cannot be read as an image.
    """
    try:
        with open_image(path) as image:
            return in_eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_image_folder(folder: Path) -> list[ImageEntry]:
    """The images in a folder: those in its `images.csv`, as `sd generate` writes it, or else all, sorted by name.

    Every file is opened and its header read. Whether all pixels are there is not checked.

    Raises:
      InputError: There is no such folder, it has no images, an image is missing, or a file cannot be read as an image.
    """
    listed = folder / IMAGES_FILE
    prompts: Sequence[Prompt | None]
    if listed.is_file():
        paths, prompts = _read_list(listed)
    else:
        paths = find_folder_images(folder)
        prompts = [None] * len(paths)
    return [
        ImageEntry(path, hashing.sha256(check_image(path)), prompt) for path, prompt in zip(paths, prompts, strict=True)
    ]


def _read_list(listed: Path) -> tuple[list[Path], list[Prompt | None]]:
    try:
        listing = [row.values for row in reading.read_rows(listed).rows]
        rows = [(row["file"], row["prompt"], int(row["seed"])) for row in listing]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{listed} is no list of images with the columns file, seed and prompt; repair or remove it"
        ) from error
    if not rows:
        raise InputError(f"{listed} lists no images; make some with sd generate, or remove it")
    paths = [listed.parent / name for name, _, _ in rows]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{len(missing)} of {len(paths)} images in {listed} are not there ({shown}); finish them with "
            "sd generate --resume"
        )
    return paths, [Prompt(text, seed) for _, text, seed in rows]


def pair_images(
    images: Sequence[ImageEntry], original: Sequence[ImageEntry], pairing: Pairing = "auto"
) -> tuple[list[int] | None, str]:
    """For each image the position of the one that the original network made of the same prompt and seed.

    Args:
      images: The images of the unlearned network.
      original: The images of the original network.
      pairing: `prompts` compares the prompts and seeds in `images.csv`, in any order; `names` compares the names of the
        files; `none` pairs nothing; `auto` is `prompts` where that is possible, and else `none`.

    Returns:
      The positions, or None where images are not paired; and how they are paired, or why they are not, in words.

    Raises:
      InputError: Images cannot be paired as `pairing` demands.
    """
    if pairing == "none":
        return None, "not paired, as was asked for"
    if pairing == "names":
        ours, theirs = ([entry.path.name for entry in entries] for entries in (images, original))
        words, trouble = "paired by the names of files", "the names of their files differ"
    elif any(entry.prompt is None for entry in (*images, *original)):
        ours, theirs = [], [""]
        words, trouble = "", f"not both folders have an {IMAGES_FILE} with prompts and seeds"
    else:
        ours, theirs = (_numbered([entry.prompt for entry in entries]) for entries in (images, original))
        words, trouble = "paired by prompt and seed", "their prompts and seeds differ"
    places = {key: place for place, key in enumerate(theirs)}
    if set(ours) == set(places) and len(ours) == len(theirs):
        return [places[key] for key in ours], words
    if pairing == "auto":
        return None, f"not paired: {trouble}"
    folders = " and ".join(str(entries[0].path.parent) for entries in (images, original))
    raise InputError(f"the images in {folders} cannot be paired: {trouble}; use --pairing none")


def _numbered(prompts: Sequence[Any]) -> list[Any]:
    """Prompts with a number that distinguishes those that are equal."""
    seen: Counter = Counter()
    keys = []
    for prompt in prompts:
        keys.append((prompt, seen[prompt]))
        seen[prompt] += 1
    return keys


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read as an image ({error or type(error).__name__}); repair or remove it")
