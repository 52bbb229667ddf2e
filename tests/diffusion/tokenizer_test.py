"""CLIP's tokenizer gives transformers' ids, and says which file it lacks."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from scissorhands_jax.diffusion import tokenizer
from scissorhands_jax.errors import InputError
from tests.diffusion.prompts import RECORDED, digests, prompts
from tests.equipment import absent


@pytest.fixture
def published() -> tuple[Path, ...]:
    """The vocabulary of CLIP's authors."""
    try:
        return tokenizer.find_vocabulary()
    except InputError as error:
        absent("VOCABULARY", str(error))


class TestVocabulary:
    @pytest.mark.parametrize("cleaning", ["ftfy", "nfc"])
    def test_ids_are_those_of_transformers(self, published, cleaning):
        texts, recorded = prompts(), json.loads(RECORDED.read_text())[cleaning]["ids"]
        found = digests(tokenizer.Tokenizer(published, cleaning)(texts))
        assert len(recorded) == 8 * len(texts)
        others = [text for text, digest, at in zip(texts, found, range(0, len(recorded), 8), strict=True)
                  if digest != recorded[at : at + 8]]  # fmt: skip
        # CLIP's authors replace entities also beside "<", which ftfy and so transformers leave there.
        assert [text for text in others if cleaning == "nfc" or "<" not in text or "&" not in text] == []

    def test_a_prompt_is_framed_padded_and_cut(self, published):
        ids = tokenizer.Tokenizer(published)(["a photo of a cat", "", "cat " * 100])
        assert ids.dtype == np.int32
        assert ids.shape == (3, 77)
        np.testing.assert_array_equal(ids[0, :8], [49406, 320, 1125, 539, 320, 2368, 49407, 49407])
        assert set(ids[1, 1:]) == {49407}
        assert (ids[2, 0], set(ids[2, 1:76]), ids[2, 76]) == (49406, {2368}, 49407)

    def test_all_formats_are_one_vocabulary(self, published, tmp_path):
        vocabulary = tokenizer.read_vocabulary(published)
        assert vocabulary.size == len(vocabulary.tokens) == tokenizer.VOCABULARY_SIZE
        folder = tmp_path / "tokenizer"
        folder.mkdir()
        for name, text in tokenizer.transformers_files(vocabulary).items():
            (folder / name).write_text(text, encoding="utf-8")
        for path in (tmp_path, folder, folder / "merges.txt"):
            assert tokenizer.read_vocabulary(tokenizer.find_vocabulary(path)) == vocabulary
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        (folder / "merges.txt").write_text("\n".join(lines[:30000]), encoding="utf-8")
        with pytest.raises(InputError, match=r"18,895 of its tokens, such as .*, come from no merge; take all"):
            tokenizer.read_vocabulary(tokenizer.find_vocabulary(folder))

    def test_half_a_file_is_refused(self, published, tmp_path):
        (tmp_path / "half.gz").write_bytes(published[0].read_bytes()[:5000])
        with pytest.raises(
            InputError, match=r"cannot read the tokenizer file .*half.gz: .*; copy or download it again"
        ):
            tokenizer.read_vocabulary((tmp_path / "half.gz",))
        text = gzip.decompress(published[0].read_bytes()).decode().splitlines()[:30000]
        (tmp_path / "half.txt").write_text("\n".join(text))
        with pytest.raises(InputError, match=r"half.txt is not CLIP's tokenizer: it has no 48,894 merges"):
            tokenizer.read_vocabulary((tmp_path / "half.txt",))


WORDS = [("c", "a"), ("ca", "t</w>")]
SMALL = tokenizer.Vocabulary(tokenizer.byte_tokens(WORDS), WORDS, length=9)


class TestSmallVocabularies:
    """What is no published CLIP's: reduced ones, those of `tokenizer.json` alone, and those with added tokens."""

    def write(self, folder, *names, changes=None):
        """The files of `SMALL` with changes of `tokenizer_config.json`."""
        texts = tokenizer.transformers_files(SMALL)
        settings = json.loads(texts["tokenizer_config.json"]) | (changes or {})
        texts["tokenizer_config.json"] = json.dumps(settings)
        model = {"type": "BPE", "vocab": SMALL.tokens, "merges": [list(merge) for merge in WORDS]}
        texts["tokenizer.json"] = json.dumps({"version": "1.0", "added_tokens": [], "model": model})
        for name in names:
            (folder / name).write_text(texts[name], encoding="utf-8")
        return tokenizer.find_vocabulary(folder)

    def ids(self, files, *prompts, **options):
        return tokenizer.Tokenizer(files, **options)(prompts).tolist()

    def test_are_read_from_either_form(self, tmp_path):
        start, end = SMALL.tokens["<|startoftext|>"], SMALL.tokens["<|endoftext|>"]
        cat, t = SMALL.tokens["cat</w>"], SMALL.tokens["t</w>"]
        expected = [[start, cat, SMALL.tokens["a"], t, end, end, end, end, end]]
        (tmp_path / "one").mkdir()
        for folder, names in ((tmp_path, ("vocab.json", "merges.txt")), (tmp_path / "one", ("tokenizer.json",))):
            files = self.write(folder, *names, "tokenizer_config.json")
            assert self.ids(files, "Cat at") == expected
            assert self.ids(files, "Cat at", length=4) == [[*expected[0][:3], end]]

    def test_entities_are_replaced_twice_whatever_is_beside_them(self, tmp_path):
        files = self.write(tmp_path, "vocab.json", "merges.txt")
        for text, meant in (("< &amp;", "< &"), ("&amp;lt; <", "< <"), ("&amp;amp;", "&"), ("&lt;", "<")):
            found = self.ids(files, text, meant, cleaning="ftfy", length=20)
            assert found[0] == found[1]
            assert self.ids(files, text, length=20) != found[:1]

    def test_padding_and_added_tokens_are_those_of_the_model(self, tmp_path):
        added = {"content": "<cat-toy>", "lstrip": False, "normalized": True, "rstrip": False, "special": False}
        decoder = {str(len(SMALL.tokens)): added}
        names = ("vocab.json", "merges.txt", "tokenizer_config.json")
        changes = {"pad_token": {"content": "!"}, "added_tokens_decoder": decoder}
        files = self.write(tmp_path, *names, changes=changes)
        ids = self.ids(files, "<cat-toy> cat")[0]
        assert ids[1:4] == [len(SMALL.tokens), SMALL.tokens["cat</w>"], SMALL.tokens["<|endoftext|>"]]
        assert set(ids[4:]) == {SMALL.tokens["!"]}
        with pytest.raises(
            InputError, match=r"has 517 tokens, and the text encoder knows 516; take both from the same"
        ):
            tokenizer.Tokenizer(files, limit=516)
        assert tokenizer.Tokenizer(files, limit=517)
        shifted = self.write(tmp_path, *names, changes={"added_tokens_decoder": {"900": added}})
        with pytest.raises(InputError, match=r"the ids of its added tokens, \[900\], do not follow"):
            tokenizer.read_vocabulary(shifted)
        strange = self.write(tmp_path, *names, changes={"pad_token": "[PAD]"})
        with pytest.raises(InputError, match=r"it pads with '\[PAD\]', which is no token"):
            tokenizer.read_vocabulary(strange)

    @pytest.mark.parametrize(
        ("tokens", "message"),
        [
            (SMALL.tokens | {"cat</w>": 0}, "do not have the ids from 0 to 515"),
            ({token: number for number, token in enumerate(list(SMALL.tokens)[:-2])}, "it lacks <|startoftext|> or"),
            ({"ca": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, "a merge has 'c', which is no token; take all files"),
            (SMALL.tokens | {"dog</w>": 516}, "1 of its tokens, such as 'dog</w>', come from no merge; take all"),
            (["a"], "it holds no merges of two tokens each"),
        ],
    )
    def test_that_do_not_hold_together_are_refused(self, tmp_path, tokens, message):
        files = self.write(tmp_path, "merges.txt", "vocab.json")
        files[0].write_text(json.dumps(tokens))
        with pytest.raises(InputError, match=re.escape(message)):
            tokenizer.read_vocabulary(files)

    def test_a_tokenizer_json_of_another_kind(self, tmp_path):
        for text in ("{}", "[]", '{"model": {"type": "WordPiece", "vocab": {}}}', "{"):
            (tmp_path / "tokenizer.json").write_text(text)
            with pytest.raises(
                InputError, match=r"cannot read the tokenizer file .*tokenizer.json: .*; copy or download"
            ):
                tokenizer.read_vocabulary(tokenizer.find_vocabulary(tmp_path))


def test_a_missing_file_is_one_sentence(tmp_path, monkeypatch):
    advice = r"name the folder `tokenizer` of a diffusers model .* with --tokenizer"
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=f"there is no tokenizer file .*; {advice}"):
            tokenizer.find_vocabulary(path)
    monkeypatch.setattr(tokenizer, "_INSTALLED", ("not_installed_at_all",))
    with pytest.raises(
        InputError, match=rf"there is no tokenizer file; {advice}.*pip install --no-deps open_clip_torch"
    ):
        tokenizer.find_vocabulary()


def test_unknown_cleaning_is_refused():
    with pytest.raises(InputError, match="cleaning is 'none'; choose one of nfc, ftfy"):
        tokenizer.Tokenizer((), "none")
