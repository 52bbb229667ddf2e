"""Prompts of many kinds for the tokenizer, the same in every process, and a digest of their ids.

`python -m tests.diffusion.prompts FILE` records what the installed transformers makes of them (its own tokenizer, with
ftfy where that transformers knows it; versions 4.57 and 5.23 made the two columns of `token_ids.json`). It
needs transformers and the vocabulary inside of the package open_clip_torch.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_name("token_ids.json")

_TEXT = (
    "a photo of the person wearing clothes naked nude portrait oil painting by Van Gogh, trending on artstation. "
    "Intricate ultra-detailed 8k 4K hdr f/1.8 35mm cinematic lighting; it's we're they've I'm he'll she'd don't isn't "
    "(masterpiece:1.2) [best quality] {red|blue} hair!! ... -- __init__ snake_case CamelCase ALLCAPS x2 3rd 1,000,000 "
    "100% $5 #hashtag @user http://a.b/c?d=e&f <b>bold</b> <|endoftext|> &amp; &lt;3 \\n don’t “quoted” ‘single’ café "
    "naïve Zürich fiancée œuvre straße İstanbul ŞİŞLİ ΟΔΥΣΣΕΥΣ Москва киев 東京 写真 서울 한국어 ภาษาไทย हिन्दी العربية "
    "עברית 👩‍🎨 🎨🖌️ 🇨🇭 ½ ² ³ Ⅷ ① ㎏ ﬁne ﬂow Ｆｕｌｌ ｗｉｄｔｈ cafeÌ rÃ©sumÃ© â€œmojibakeâ€\x9d ’ … — – • ™ € ¿ ¡ "
    "´ ` ~ ^ ẞ ǅ "
    "e\u0301 n\u0303 \u212b \u00ad \u200b \u2028 \ufeff \ufffd \u0130 ١٢٣ ٪ 〇 々 a\u0300\u0301 zalgo\u0336"
)
_WORDS = _TEXT.split(" ")


def prompts() -> list[str]:
    """1,400 prompts: words of every kind, random characters of all of Unicode, and some special cases."""
    draw = random.Random(20221128)
    chosen = ["", " ", "a", "\n\t a  \r\n b \u00a0 c\u3000d", "word " * 120, "é" * 90, "'s't're've'm'll'd", "'S 'T 'RE"]
    chosen += _WORDS
    while len(chosen) < 1000:
        words = draw.choices(_WORDS, k=draw.randint(1, 25))
        text = draw.choice((" ", " ", ", ", "  ", "")).join(words)
        chosen.append(draw.choice((str, str, str.upper, str.title, str.swapcase))(text))
    # Old assigned characters only, so that the Unicode version of Python or of a package makes no difference.
    ranges = [(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x45F), (0x5D0, 0x5EA), (0x627, 0x64A)]
    ranges += [(0x904, 0x939), (0xE01, 0xE2E), (0x2010, 0x2027), (0x2190, 0x21FF), (0x2460, 0x24FF), (0x3041, 0x3096)]
    ranges += [(0x30A1, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xFF01, 0xFF5E), (0x1F300, 0x1F5FF)]
    while len(chosen) < 1400:
        low, high = draw.choice(ranges)
        if draw.random() < 0.5:
            characters = [draw.randint(low, high) for _ in range(draw.randint(1, 40))]
        else:
            characters = [draw.randint(*draw.choice(ranges)) for _ in range(draw.randint(1, 40))]
        chosen.append("".join(map(chr, characters)))
    return chosen


def digests(ids: np.ndarray) -> list[str]:
    """A short digest of every row of ids, shape (N, 77)."""
    return [hashlib.sha256(np.ascontiguousarray(row, "<i4").tobytes()).hexdigest()[:8] for row in ids]


def _record(file: Path) -> None:
    import tempfile

    import transformers

    from scissorhands_jax.diffusion import tokenizer

    vocabulary, merges, *_ = tokenizer.read_vocabulary(tokenizer.find_vocabulary())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(merge) for merge in merges), ""]
        (Path(folder) / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        theirs = transformers.CLIPTokenizer.from_pretrained(folder)
        ids = theirs(prompts(), padding="max_length", truncation=True, max_length=77, return_tensors="np")["input_ids"]
    cleaning = "ftfy" if getattr(theirs, "fix_text", None) is not None else "nfc"
    recorded = json.loads(file.read_text()) if file.exists() else {}
    recorded[cleaning] = {"transformers": transformers.__version__, "ids": "".join(digests(ids))}
    file.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    _record(Path(sys.argv[1]))
