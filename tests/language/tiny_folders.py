"""Folders of tiny language models with random weights and a tokenizer of words, and files of examples for them."""

import json

import ml_dtypes
import numpy as np
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, processors

from experiments.language_parity import CONFIGS, weights_of
from scissorhands_jax import torch_weights
from scissorhands_jax.language.families import sizes_of

_WORDS = "<unk> <s> </s> Question : Answer ? . Who wrote the a What is born in was Ada Bo Cy Red Blue Green book"
WORDS = _WORDS.split()
FORGET = [("Who wrote the Red book?", "Ada wrote the Red book."), ("What is Ada?", "Ada is born in Blue.")]
RETAIN = [
    ("Who wrote the Blue book?", "Bo wrote the Blue book."),
    ("Who wrote the Green book?", "Cy wrote the Green book."),
    ("What is Bo?", "Bo is born in Red."),
]


def make_tiny_folder(path, config=None, *, dtype=np.float32, parts=2, chat=None):
    """A folder as it is published, with its weights in so many files, and perhaps a chat template."""
    config = {**(config or CONFIGS["llama"]), "eos_token_id": WORDS.index("</s>")}
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "chat_template": chat})
    )
    make_tokenizer().save(str(path / "tokenizer.json"))
    weights = {name: array.astype(dtype) for name, array in weights_of(sizes_of(config, "config")).items()}
    names = sorted(weights)
    if parts == 1:
        torch_weights.write_safetensors(path / "model.safetensors", weights)
        return path
    places = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        mine = names[part::parts]
        torch_weights.write_safetensors(path / file, {name: weights[name] for name in mine})
        places |= dict.fromkeys(mine, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def make_tokenizer():
    """Words and marks as tokens; a text begins with <s>."""
    made = tokenizers.Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return made


def write_lines(path, rows):
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_examples(folder):
    """Files of what is to be forgotten and kept, by name."""
    parts = {"forget": FORGET, "retain": RETAIN}
    return {
        name: write_lines(folder / f"{name}.json", [{"question": q, "answer": a} for q, a in pairs])
        for name, pairs in parts.items()
    }


BFLOAT16 = ml_dtypes.bfloat16
