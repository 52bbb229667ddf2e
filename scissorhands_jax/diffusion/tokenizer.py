"""CLIP's byte-pair tokenizer, from a vocabulary file that the user or an installed package has.

The work is done by the packages `tokenizers`, with the pipeline of transformers' own CLIP tokenizer, and `ftfy`; both
come with the extra `diffusion`. Two formats of the vocabulary are read: `vocab.json` with `merges.txt`, as in the
folder `tokenizer` of a diffusers model, and OpenAI's `bpe_simple_vocab_16e6.txt.gz`, which is part of open_clip.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from scissorhands_jax import reading
from scissorhands_jax.errors import InputError, check_choice

if TYPE_CHECKING:
    import tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_SIZE = 49408
MAX_LENGTH = 77  # tokens of a prompt, START and END included
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
Cleaning = Literal["ftfy", "nfc"]

_NUM_MERGES = VOCABULARY_SIZE - 2 * 256 - 2
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SPECIAL = re.compile(f"({re.escape(START)}|{re.escape(END)})")
_GLUED = re.compile(r"(?<=[^\w\s]|_)(<\|)(startoftext|endoftext)(\|>)")
_INSTALLED = ("open_clip", "clip")  # packages that carry BPE_FILE; they are not imported


class Tokenizer:
    """Turns prompts into ids. shape=(N, 77), dtype=int32: START, the prompt's ids, END, and END again as padding.

    Prompts of more than 75 tokens are cut, as in diffusers' pipelines.

    Args:
      files: The files of the vocabulary, see `find_vocabulary`.
      cleaning: What happens to a text before it is split into words. `ftfy` repairs it (mojibake, HTML entities, curly
        quotes, ligatures, full-width letters), as CLIP's authors do, and as transformers' tokenizer did before version
        5 with ftfy installed; `nfc` only composes characters, as transformers 5 does.

    Raises:
      InputError: A package is missing, or the files are not CLIP's vocabulary.
    """

    def __init__(self, files: Sequence[Path], cleaning: Cleaning = "ftfy") -> None:
        check_choice("cleaning", cleaning, get_args(Cleaning))
        vocabulary, merges = read_vocabulary(files)
        self._clean = _cleaner(cleaning)
        self._tokenizer = _pipeline(vocabulary, merges)

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """The ids of prompts. shape=(N, 77), dtype=int32"""
        encoded = self._tokenizer.encode_batch([self._clean(prompt) for prompt in prompts])
        return np.array([encoding.ids for encoding in encoded], np.int32).reshape(-1, MAX_LENGTH)


def find_vocabulary(path: str | Path | None = None) -> tuple[Path, ...]:
    """The files of the vocabulary: `vocab.json` and `merges.txt`, or one file of merges.

    Args:
      path: A folder that has `vocab.json` and `merges.txt`, or whose folder `tokenizer` has them; one of those two
        files; or OpenAI's `bpe_simple_vocab_16e6.txt.gz`. None looks for the latter in installed packages (open_clip,
        clip), which are not imported.

    Raises:
      InputError: There is no tokenizer file.
    """
    advice = (
        "name the folder `tokenizer` of a diffusers model (vocab.json and merges.txt) or CLIP's "
        f"{BPE_FILE} with --tokenizer"
    )
    if path is None:
        for package in _INSTALLED:
            spec = importlib.util.find_spec(package)
            for place in (spec.submodule_search_locations or ()) if spec is not None else ():
                if (Path(place) / BPE_FILE).is_file():
                    return (Path(place) / BPE_FILE,)
        raise InputError(
            f"there is no tokenizer file; {advice}, or install the package that has one: "
            "`pip install --no-deps open_clip_torch`"
        )
    path = Path(path)
    if path.name in ("vocab.json", "merges.txt"):
        path = path.parent
    if path.is_dir():
        for folder in (path, path / "tokenizer"):
            pair = folder / "vocab.json", folder / "merges.txt"
            if all(file.is_file() for file in pair):
                return pair
            if (folder / BPE_FILE).is_file():
                return (folder / BPE_FILE,)
        raise InputError(f"there is no tokenizer file in {path}; {advice}")
    if not path.is_file():
        raise InputError(f"there is no tokenizer file {path}; {advice}")
    return (path,)


def read_vocabulary(files: Sequence[Path]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The ids of all tokens, and the merges in order.

    Args:
      files: The files of the vocabulary, see `find_vocabulary`.

    Raises:
      InputError: A file cannot be read, or is not the vocabulary of CLIP's 49,408 tokens.
    """
    where = files[-1]
    try:
        text = reading.read_gzip(where, reading.MAX_TEXT).decode()
        vocabulary = reading.read_json(files[0]) if len(files) == 2 else None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the tokenizer file {where}: {error}; copy or download it again") from error
    lines = text.split("\n", _NUM_MERGES + 2)
    if lines[0].startswith(("#version", '"bpe_simple_vocab')):
        lines = lines[1:]
    # OpenAI's file has further merges, which CLIP does not use.
    merges = [tuple(line.split()) for line in lines[:_NUM_MERGES]]
    if len(merges) != _NUM_MERGES or any(len(merge) != 2 for merge in merges):
        raise InputError(f"{where} is not CLIP's tokenizer: it has no {_NUM_MERGES:,} merges of two tokens each")
    tokens = [*_BYTES, *(f"{byte}</w>" for byte in _BYTES), *("".join(merge) for merge in merges), START, END]
    expected = {token: number for number, token in enumerate(tokens)}
    if vocabulary is not None and vocabulary != expected:
        raise InputError(
            f"{files[0]} is not CLIP's vocabulary of {VOCABULARY_SIZE:,} tokens; take it from the same model"
        )
    return expected, merges  # type: ignore[return-value]


def _byte_characters() -> list[str]:
    """The characters that stand for bytes, in the order of CLIP's ids: printable Latin-1 first, as itself."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [*map(chr, printable), *map(chr, range(256, 256 + others))]


_BYTES = _byte_characters()


def _cleaner(cleaning: Cleaning) -> Callable[[str], str]:
    if cleaning == "nfc":
        return lambda text: text  # the pipeline composes
    try:
        import ftfy
    except ImportError as error:
        raise _missing("ftfy") from error

    def clean(text: str) -> str:
        return "".join(part if part in (START, END) else repair(part) for part in _SPECIAL.split(text))

    def repair(part: str) -> str:
        # Lower case depends on the neighbours (the Greek final sigma), which the pipeline's own does not look at.
        # A START or END that was in capitals counts, unless other punctuation runs into it.
        return _GLUED.sub(r"\1 \2 \3", ftfy.fix_text(part).lower())

    return clean


def _pipeline(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise _missing("tokenizers") from error
    from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

    model = models.BPE(
        vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    start, end = vocabulary[START], vocabulary[END]
    tokenizer.post_processor = processors.RobertaProcessing((END, end), (START, start), False, False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (START, END)])
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.enable_padding(length=MAX_LENGTH, pad_id=end, pad_token=END)
    return tokenizer


def _missing(package: str) -> InputError:
    return InputError(
        f"prompts need the package {package}; install the extra: pip install 'scissorhands-jax[diffusion]'"
    )
