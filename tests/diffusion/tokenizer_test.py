"""CLIP's tokenizer gives transformers' ids, and says which file it lacks."""

import gzip
import json

import numpy as np
import pytest

from scissorhands_jax.diffusion import tokenizer
from scissorhands_jax.errors import InputError
from tests.diffusion.prompts import RECORDED, digests, prompts

try:
    FILES = tokenizer.find_vocabulary()
except InputError:
    FILES = ()
needs_vocabulary = pytest.mark.skipif(not FILES, reason="needs the vocabulary inside of open_clip_torch")


@needs_vocabulary
class TestVocabulary:
    @pytest.mark.parametrize("cleaning", ["ftfy", "nfc"])
    def test_ids_are_those_of_transformers(self, cleaning):
        texts, recorded = prompts(), json.loads(RECORDED.read_text())[cleaning]["ids"]
        found = digests(tokenizer.Tokenizer(FILES, cleaning)(texts))
        assert len(recorded) == 8 * len(texts)
        assert [text for text, digest, at in zip(texts, found, range(0, len(recorded), 8), strict=True)
                if digest != recorded[at : at + 8]] == []  # fmt: skip

    def test_a_prompt_is_framed_padded_and_cut(self):
        ids = tokenizer.Tokenizer(FILES)(["a photo of a cat", "", "cat " * 100])
        assert ids.dtype == np.int32
        assert ids.shape == (3, 77)
        np.testing.assert_array_equal(ids[0, :8], [49406, 320, 1125, 539, 320, 2368, 49407, 49407])
        assert set(ids[1, 1:]) == {49407}
        assert (ids[2, 0], set(ids[2, 1:76]), ids[2, 76]) == (49406, {2368}, 49407)

    def test_both_formats_are_one_vocabulary(self, tmp_path):
        vocabulary, merges = tokenizer.read_vocabulary(FILES)
        assert len(vocabulary) == tokenizer.VOCABULARY_SIZE
        folder = tmp_path / "tokenizer"
        folder.mkdir()
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
        for path in (tmp_path, folder, folder / "merges.txt"):
            assert tokenizer.read_vocabulary(tokenizer.find_vocabulary(path)) == (vocabulary, merges)
        (folder / "vocab.json").write_text(json.dumps(vocabulary | {"cat</w>": 0}))
        with pytest.raises(InputError, match=r"vocab.json is not CLIP's vocabulary of 49,408 tokens"):
            tokenizer.read_vocabulary(tokenizer.find_vocabulary(folder))

    def test_half_a_file_is_refused(self, tmp_path):
        (tmp_path / "half.gz").write_bytes(FILES[0].read_bytes()[:5000])
        with pytest.raises(
            InputError, match=r"cannot read the tokenizer file .*half.gz: .*; copy or download it again"
        ):
            tokenizer.read_vocabulary((tmp_path / "half.gz",))
        text = gzip.decompress(FILES[0].read_bytes()).decode().splitlines()[:30000]
        (tmp_path / "half.txt").write_text("\n".join(text))
        with pytest.raises(InputError, match=r"half.txt is not CLIP's tokenizer: it has no 48,894 merges"):
            tokenizer.read_vocabulary((tmp_path / "half.txt",))


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
    with pytest.raises(InputError, match="cleaning is 'none'; choose one of ftfy, nfc"):
        tokenizer.Tokenizer((), "none")
