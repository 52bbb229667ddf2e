"""CLIP's byte-pair tokenizer, from a vocabulary file that the user or an installed package has.

The work is done by the packages `tokenizers`, with the pipeline of transformers' own CLIP tokenizer, and `ftfy`; both
come with the extra `diffusion`. Three formats of the vocabulary are read: `vocab.json` with `merges.txt` and
`tokenizer.json`, as in the folder `tokenizer` of a diffusers model, and OpenAI's `bpe_simple_vocab_16e6.txt.gz`, which
is part of open_clip.
"""

from __future__ import annotations

import html
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from scissorhands_jax import hashing, reading
from scissorhands_jax.errors import InputError, check_choice

if TYPE_CHECKING:
    import tokenizers

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
VOCABULARY_SIZE = 49408
MAX_LENGTH = 77  # tokens of a prompt, START_TOKEN and END_TOKEN included
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
JSON_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
Cleaning = Literal["nfc", "ftfy"]

_NUM_MERGES = VOCABULARY_SIZE - 2 * 256 - 2
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SPECIAL = re.compile(f"({re.escape(START_TOKEN)}|{re.escape(END_TOKEN)})")
_GLUED = re.compile(r"(?<=[^\w\s]|_)(<\|)(startoftext|endoftext)(\|>)")
_INSTALLED = ("open_clip", "clip")  # packages that carry BPE_FILE; they are not imported


class Vocabulary(NamedTuple):
    """What a tokenizer knows."""

    tokens: dict[str, int]
    """The ids of the tokens, from 0 on without gaps."""
    merges: list[tuple[str, str]]
    """The pairs of tokens that become one, in the order of their importance."""
    added: tuple[dict[str, Any], ...] = ()
    """Further tokens, such as those of a textual inversion, as transformers describes them, in the order of their ids,
    which follow those of `tokens`."""
    pad: str = END_TOKEN
    """What prompts are filled up with."""
    length: int = MAX_LENGTH
    """The largest number of tokens of a prompt."""

    @property
    def size(self) -> int:
        """The number of ids."""
        return len(self.tokens) + len(self.added)


class Tokenizer:
    """Turns prompts into ids. shape=(N, length), dtype=int32: the start, the prompt's ids, the end, and padding.

    Padding is `END_TOKEN` unless the files name another token. `end` is its id, and `cleaning` what was chosen.

    Prompts that are longer are cut, as in diffusers' pipelines; at CLIP's 77 that is after 75 tokens.

    Args:
      files: The files of the vocabulary, see `find_vocabulary`.
      cleaning: What happens to a text before it is split into words. `nfc` only composes characters, as transformers 5
        does; `ftfy` repairs it (mojibake, curly quotes, ligatures, full-width letters) and replaces HTML entities, up
        to twice, as CLIP's authors do. So did transformers' tokenizer before version 5 with ftfy installed, apart from
        entities of entities and those in a text with `<`.
      length: The largest number of tokens of a prompt, where the tokenizer's own is not smaller.
      limit: The number of ids that the text encoder knows; None if there is no text encoder to ask.

    Raises:
      InputError: A package is missing, the files are not a vocabulary of CLIP's kind, or it has more ids than `limit`.
    """

    def __init__(
        self, files: Sequence[Path], cleaning: Cleaning = "nfc", *, length: int = MAX_LENGTH, limit: int | None = None
    ) -> None:
        check_choice("cleaning", cleaning, get_args(Cleaning))
        vocabulary = read_vocabulary(files)
        check_size(vocabulary, files, limit)
        self.files, self.size = tuple(files), vocabulary.size
        self.cleaning: Cleaning = cleaning
        self.end = vocabulary.tokens[END_TOKEN]
        self._clean = _cleaner(cleaning)
        self._length = min(length, vocabulary.length)
        self._tokenizer = _pipeline(vocabulary, self._length)
        known = [vocabulary.tokens, vocabulary.merges, vocabulary.added, vocabulary.pad, self._length]
        self._sha256 = hashing.sha256(hashing.stable_json(known))

    @property
    def __identity__(self) -> str:
        """What runs are compared by, wherever the files lie and in whichever form; `cleaning` counts for itself."""
        return self._sha256

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """The ids of prompts. shape=(N, length), dtype=int32"""
        encoded = self._tokenizer.encode_batch([self._clean(prompt) for prompt in prompts])
        return np.array([encoding.ids for encoding in encoded], np.int32).reshape(-1, self._length)


def check_size(vocabulary: Vocabulary, files: Sequence[Path], limit: int | None) -> None:
    """Refuses a tokenizer with more ids than a text encoder knows.

    Args:
      vocabulary: What the tokenizer knows.
      files: Its files, for the message.
      limit: The number of ids of the text encoder, or None.

    Raises:
      InputError: There are more.
    """
    if limit is not None and vocabulary.size > limit:
        raise InputError(
            f"the tokenizer {files[0]} has {vocabulary.size:,} tokens, and the text encoder knows {limit:,}; take both "
            "from the same model"
        )


def find_vocabulary(path: str | Path | None = None) -> tuple[Path, ...]:
    """The files of the vocabulary: `vocab.json` and `merges.txt`, `tokenizer.json` alone, or one file of merges.

    Args:
      path: A folder that has `vocab.json` and `merges.txt`, or `tokenizer.json`, or whose folder `tokenizer` has them;
        one of these files; or OpenAI's `bpe_simple_vocab_16e6.txt.gz`. None looks for the latter in installed packages
        (open_clip, clip), which are not imported.

    Raises:
      InputError: There is no tokenizer file.
    """
    advice = (
        "name the folder `tokenizer` of a diffusers model (vocab.json and merges.txt, or tokenizer.json) or CLIP's "
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
            for names in (("vocab.json", "merges.txt"), (JSON_FILE,), (BPE_FILE,)):
                if all((folder / name).is_file() for name in names):
                    return tuple(folder / name for name in names)
        held = ", ".join(sorted(child.name for child in path.iterdir())[:10]) or "nothing"
        raise InputError(f"there is no tokenizer file in {path}, it holds {held}; {advice}")
    if not path.is_file():
        raise InputError(f"there is no tokenizer file {path}; {advice}")
    return (path,)


def read_vocabulary(files: Sequence[Path]) -> Vocabulary:
    """The ids of all tokens, and the merges in order.

    Beside `vocab.json` and `tokenizer.json`, what `tokenizer_config.json` says about padding, length and added tokens
    is read as well.

    Args:
      files: The files of the vocabulary, see `find_vocabulary`.

    Raises:
      InputError: A file cannot be read, or is not a vocabulary of CLIP's kind.
    """
    where = files[-1]
    try:
        if len(files) == 1 and where.suffix != ".json":
            return Vocabulary(*_published(where))
        if len(files) == 2:
            found: dict[str, Any] = {}
            tokens = reading.read_json(files[0])
            lines = reading.read_lines(where)
            merges = [line.split() for line in lines[bool(lines and lines[0].startswith("#version")) :] if line]
        else:
            found = reading.read_json(where)
            tokens, merges = found["model"]["vocab"], found["model"]["merges"]
            merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        beside = files[0].with_name(SETTINGS_FILE)
        settings = reading.read_json(beside) if beside.is_file() else {}
        pairs = [tuple(merge) for merge in merges]
        if not isinstance(tokens, dict) or any(len(pair) != 2 or set(map(type, pair)) != {str} for pair in pairs):
            raise ValueError("it holds no merges of two tokens each")
        _check(tokens, pairs)
        return Vocabulary(tokens, pairs, *_settings(tokens, found, settings))  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"cannot read the tokenizer file {where}: {reason}; copy or download it again") from error


def _published(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary of OpenAI's file of merges, of which CLIP does not use all."""
    lines = reading.read_gzip(path, reading.MAX_TEXT).decode().split("\n", _NUM_MERGES + 2)
    if lines[0].startswith(("#version", '"bpe_simple_vocab')):
        lines = lines[1:]
    merges = [tuple(line.split()) for line in lines[:_NUM_MERGES]]
    if len(merges) != _NUM_MERGES or any(len(merge) != 2 for merge in merges):
        raise InputError(f"{path} is not CLIP's tokenizer: it has no {_NUM_MERGES:,} merges of two tokens each")
    return byte_tokens(merges), merges  # type: ignore[arg-type, return-value]


def byte_tokens(merges: Sequence[tuple[str, str]] = ()) -> dict[str, int]:
    """The ids of CLIP's tokens: 256 bytes, 256 bytes that end a word, the results of the merges, start and end.

    Args:
      merges: The merges; none make a tokenizer that spells every word.
    """
    tokens = [
        *_BYTES,
        *(f"{byte}</w>" for byte in _BYTES),
        *("".join(merge) for merge in merges),
        START_TOKEN,
        END_TOKEN,
    ]
    return {token: number for number, token in enumerate(tokens)}


def transformers_files(vocabulary: Vocabulary) -> dict[str, str]:
    """The files from which transformers makes the same tokenizer, by name.

    Args:
      vocabulary: What it knows.
    """
    lines = ["#version: 0.2", *(" ".join(merge) for merge in vocabulary.merges), ""]
    special = {
        number: _described(token) for token, number in vocabulary.tokens.items() if token in (START_TOKEN, END_TOKEN)
    }
    added = dict(enumerate(vocabulary.added, len(vocabulary.tokens)))
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): each for number, each in sorted((special | added).items())},
        "bos_token": START_TOKEN,
        "do_lower_case": True,
        "eos_token": END_TOKEN,
        "errors": "replace",
        "model_max_length": vocabulary.length,
        "pad_token": vocabulary.pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": END_TOKEN,
    }
    return {
        "vocab.json": json.dumps(vocabulary.tokens, ensure_ascii=False) + "\n",
        "merges.txt": "\n".join(lines),
        SETTINGS_FILE: json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
    }


def _described(token: str) -> dict[str, Any]:
    """A token that splits texts, as transformers describes it."""
    flags = {
        "lstrip": False,
        "normalized": token == START_TOKEN,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    return {"content": token, **flags}


def _settings(
    tokens: Mapping[str, int], document: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[tuple[dict[str, Any], ...], str, int]:
    """The added tokens, the padding and the length that `tokenizer.json` and `tokenizer_config.json` say."""
    listed = {int(each["id"]): each for each in document.get("added_tokens") or []}
    listed |= {int(number): each for number, each in (settings.get("added_tokens_decoder") or {}).items()}
    added = [listed[number] for number in sorted(listed) if str(listed[number]["content"]) not in tokens]
    numbers = [number for number in sorted(listed) if str(listed[number]["content"]) not in tokens]
    if numbers != list(range(len(tokens), len(tokens) + len(added))):
        raise ValueError(f"the ids of its added tokens, {numbers[:5]}, do not follow those of the vocabulary")
    pad = settings.get("pad_token", END_TOKEN)
    pad = pad["content"] if isinstance(pad, dict) else pad
    if pad not in tokens and pad not in [each["content"] for each in added]:
        raise ValueError(f"it pads with {str(pad)[:40]!r}, which is no token")
    length = settings.get("model_max_length", MAX_LENGTH)
    known = isinstance(length, int) and 2 < length <= MAX_LENGTH
    return tuple(added), pad, length if known else MAX_LENGTH


def _check(tokens: Mapping[str, int], merges: Sequence[Any]) -> None:
    """Refuses tokens and merges that do not belong together."""
    if tokens == byte_tokens(merges):
        return
    if set(tokens.values()) != set(range(len(tokens))) or any(type(number) is not int for number in tokens.values()):
        raise ValueError(f"its {len(tokens):,} tokens do not have the ids from 0 to {len(tokens) - 1:,}")
    if START_TOKEN not in tokens or END_TOKEN not in tokens:
        raise ValueError(f"it lacks {START_TOKEN} or {END_TOKEN}, so it is not of CLIP's kind")
    made = {"".join(merge) for merge in merges}
    lacking = next((part for merge in merges for part in (*merge, "".join(merge)) if part not in tokens), None)
    if lacking is not None:
        raise ValueError(f"a merge has {lacking[:40]!r}, which is no token; take all files from the same model")
    never = [
        token
        for token in tokens
        if token not in made and len(token.removesuffix("</w>")) > 1 and not token.startswith("<|")
    ]
    if never:
        raise ValueError(
            f"{len(never):,} of its tokens, such as {never[0][:40]!r}, come from no merge; take all files from the "
            "same model"
        )


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
        return "".join(part if part in (START_TOKEN, END_TOKEN) else repair(part) for part in _SPECIAL.split(text))

    def repair(part: str) -> str:
        # Lower case depends on the neighbours (the Greek final sigma), which the pipeline's own does not look at.
        # A START_TOKEN or END_TOKEN that was in capitals counts, unless other punctuation runs into it.
        return _GLUED.sub(r"\1 \2 \3", html.unescape(html.unescape(ftfy.fix_text(part))).lower())

    return clean


def _pipeline(vocabulary: Vocabulary, length: int) -> tokenizers.Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise _missing("tokenizers") from error
    from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

    tokens = vocabulary.tokens
    model = models.BPE(
        vocab=tokens,
        merges=vocabulary.merges,
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        unk_token=END_TOKEN,
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
    start, end = tokens[START_TOKEN], tokens[END_TOKEN]
    tokenizer.post_processor = processors.RobertaProcessing((END_TOKEN, end), (START_TOKEN, start), False, False)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (START_TOKEN, END_TOKEN)]
    )
    flags = ("lstrip", "normalized", "rstrip", "single_word", "special")
    tokenizer.add_tokens(
        [
            AddedToken(each["content"], **{flag: bool(each[flag]) for flag in flags if flag in each})
            for each in vocabulary.added
        ]
    )
    tokenizer.enable_truncation(length)
    pad = tokenizer.token_to_id(vocabulary.pad)
    tokenizer.enable_padding(length=length, pad_id=pad, pad_token=vocabulary.pad)
    return tokenizer


def _missing(package: str) -> InputError:
    return InputError(
        f"prompts need the package {package}; install the extra: pip install '.[diffusion]' in a clone of the "
        "repository"
    )
