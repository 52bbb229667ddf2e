"""Tiny networks of every family of language models, next to `transformers` with the same weights.

    python -m experiments.language_parity

needs PyTorch and transformers (`pip install torch transformers`). For every family it records the logits of
transformers and the gradient of the mean loss of the answers' tokens in `results/language_parity.npz`, which the tests
compare with this package's, so that they need neither. It also has tiny models forget by all their weights and by LoRA,
reads the folders that come out with transformers, and records how far its logits are from this package's in
`results/language_parity.json`. What its `apply_chat_template` makes of a few templates is recorded in
`results/chat_templates.json`, and with the argument `chats` nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import programs
from scissorhands_jax import files, torch_weights
from scissorhands_jax.base import Params
from scissorhands_jax.language.decoder import Sizes, decoder
from scissorhands_jax.language.families import sizes_of
from scissorhands_jax.language.model_folders import outline_of
from scissorhands_jax.language.token_losses import token_loss
from scissorhands_jax.report import provenance

RESULTS = Path(__file__).parent / "results"
ARRAYS, SUMMARY = RESULTS / "language_parity.npz", RESULTS / "language_parity.json"
CHATS_FILE = RESULTS / "chat_templates.json"
VOCABULARY = 40
_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
_ROTATIONS = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_BOTH = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_BASE, "model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "llama_scaled": {
        **_BASE,
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {**_ROTATIONS, "rope_theta": 1e4},
    },
    "qwen2": {
        **{name: value for name, value in _BASE.items() if name != "head_dim"},
        "model_type": "qwen2",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "qwen3": {**_BASE, "model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "gemma": {**_BASE, "model_type": "gemma"},
    "gemma2": {**_BASE, "model_type": "gemma2", "sliding_window": 4, "query_pre_attn_scalar": 10},
    "gemma3": {
        **_BASE,
        "model_type": "gemma3_text",
        "sliding_window": 4,
        "query_pre_attn_scalar": 10,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": _BOTH,
    },
}
"""The configurations of the networks by name."""

CHATS: dict[str, str] = {
    # What most templates are: a mark before each turn and the end token behind it.
    "turns": """{{ bos_token }}{% for message in messages %}
Question {{ message['role'] }} : {{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
Question assistant : {% endif %}""",
    # A message of its own at the beginning, and empty thoughts before the last answer that are not in the prompt.
    "thoughts": """{%- set ns = namespace(last=-1) -%}
{%- for message in messages if message.role == 'user' -%}
    {%- set ns.last = loop.index0 -%}
{%- endfor -%}
{{- bos_token }}What is a book ? {{ eos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' and loop.last %} Answer : ( ) {{ message.content }}
    {%- elif message.role == 'assistant' %} Answer : {{ message.content }}
    {%- else %} Question {{ ns.last }} : {{ message.content }}
    {%- endif %}{{ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %} Answer : {% endif -%}""",
    # What else the language of templates has: macros, breaks, JSON, marks of answers, and errors of their own.
    "everything": """{% macro turn(role) %}<{{ role | upper }}>{% endmacro %}
{%- if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}
{%- if tools is not none or documents is not none %}{{ tools | tojson }}{% endif %}
{%- if strftime_now is defined and pad_token is not defined %}What {% endif %}
{%- for message in messages %}
    {%- if loop.index0 > 1 %}{% break %}{% endif %}
    {{- turn(message.role) }} {{ {'is': "<é>", 'in': [1, none]} | tojson }}
    {%- if message.role == 'assistant' %}
        {%- generation %} {{ message.content.strip() }}{{ eos_token }}{% endgeneration %}
    {%- else %} {{ message.content }} ? {% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ turn('assistant') }} {{ {'is': "<é>", 'in': [1, none]} | tojson }} {% endif %}""",
}
"""Chat templates by name."""
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
"""The special tokens of the tokenizer of the tests."""
ASKED = [("Who wrote the Red book?", "Ada wrote the Red book."), ("What is Bo?", "Bo is born in {{ Red }}.")]
"""Questions and answers, of which the last is to come out as it is."""


def weights_of(sizes: Sizes) -> dict[str, np.ndarray]:
    """Random weights of a network by the names of its family, the same wherever they are drawn."""
    shapes = torch_weights.state_dict_shapes(outline_of(sizes), {})
    generator = np.random.default_rng(0)
    weights = {}
    for name in sorted(shapes):
        drawn = generator.uniform(-1.0, 1.0, shapes[name]).astype(np.float32)
        weights[name] = 1 + 0.5 * drawn if name.endswith("norm.weight") else 0.6 * drawn
    return weights


def params_of(sizes: Sizes) -> Params:
    """The same weights as parameters of this package's network."""
    return torch_weights.from_state_dict(weights_of(sizes), outline_of(sizes), {}, flatten={})[0]


def batch() -> dict[str, np.ndarray]:
    """Two rows of tokens, in the form of `token_losses`."""
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, 10)).astype(np.int32)
    return {"tokens": tokens, "answer": np.arange(10) >= np.array([[3], [5]])}


def computed(name: str) -> dict[str, np.ndarray]:
    """The logits of this package's network with a name in `CONFIGS`, and its gradient by the names of the family."""
    sizes = sizes_of(CONFIGS[name], name)
    model, params, rows = decoder(sizes), params_of(sizes), batch()

    @jax.jit
    def both(params: Params) -> tuple[jax.Array, Params]:
        gradient = jax.grad(lambda p: token_loss(model)(p, {}, rows, train=False, key=None)[0])(params)
        return model.apply(params, {}, rows["tokens"], train=False)[0], gradient

    logits, gradient = both(params)
    return {"logits": np.asarray(logits), **torch_weights.to_state_dict(gradient, {}, flatten={})}


def largest_difference(found: Mapping[str, np.ndarray], recorded: Mapping[str, np.ndarray]) -> float:
    """The largest difference of two results, as a share of the largest number of the array that it is in."""
    return max(float(np.abs(found[name] - array).max() / np.abs(array).max()) for name, array in recorded.items())


def _by_transformers(name: str) -> dict[str, np.ndarray]:
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**CONFIGS[name], attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    weights = {key: torch.tensor(value) for key, value in weights_of(sizes_of(CONFIGS[name], name)).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    rows = {key: torch.tensor(value) for key, value in batch().items()}
    tokens = rows["tokens"].long()
    logits = model(tokens).logits
    logs = torch.log_softmax(logits[:, :-1], dim=-1).gather(2, tokens[:, 1:, None])[..., 0]
    mask = rows["answer"][:, 1:]
    (-(logs * mask).sum() / mask.sum()).backward()
    gradients = {key: value.grad.numpy() for key, value in model.named_parameters() if key in weights}
    return {"logits": logits.detach().numpy(), **gradients}


def _exported(folder: Path) -> dict[str, float]:
    """Writes folders of every family, and has two forget, reads them with transformers, and compares logits."""
    from scissorhands_jax.language import lora as lora_lib
    from scissorhands_jax.language.method_settings import token_settings
    from scissorhands_jax.language.model_folders import load_weights, open_language_folder, write_language_folder
    from scissorhands_jax.language.unlearning import MODEL_FOLDER, LanguageJob, unlearn_language
    from scissorhands_jax.terminal import Console
    from tests.language.tiny_folders import make_tiny_folder, write_examples

    examples = write_examples(folder)
    written = {}
    for name, config in CONFIGS.items():
        source = open_language_folder(make_tiny_folder(folder / name, config))
        written[name] = folder / f"{name} written"
        write_language_folder(source, written[name], jax.tree.map(lambda leaf: 1.1 * leaf, load_weights(source)))
    for name, lora in {"llama": None, "qwen2": lora_lib.Lora(2)}.items():
        job = LanguageJob(
            model=folder / name,
            forget=examples["forget"],
            retain=examples["retain"],
            method="npo",
            settings=token_settings("npo")().changed(epochs=2, batch_size=2, learning_rate=0.01),
            lora=lora,
        )
        title = f"{name} after NPO {'by LoRA' if lora else 'by all weights'}"
        unlearn_language(job, folder / title, console=Console(quiet=True))
        written[title] = folder / title / MODEL_FOLDER
    return {title: _read_by_transformers(path) for title, path in written.items()}


def _read_by_transformers(path: Path) -> float:
    """How far the logits of transformers are from this package's, for the same folder."""
    import torch
    import transformers

    from scissorhands_jax.language.model_folders import load_weights, open_language_folder

    folder, tokens = open_language_folder(path), batch()["tokens"]
    ours, _ = decoder(folder.sizes).apply(load_weights(folder), {}, tokens, train=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype="float32")
    with torch.no_grad():
        read = theirs.eval()(torch.tensor(tokens).long()).logits.numpy()
    return largest_difference({"logits": np.asarray(ours)}, {"logits": read})


def conversation(question: str, answer: str | None = None) -> list[dict[str, str]]:
    """A question, perhaps with its answer, as chat templates take it."""
    asked = [{"role": "user", "content": question}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def _record_chats() -> None:
    """What transformers makes of the templates, as text and as tokens."""
    import transformers

    from tests.language.tiny_folders import make_tokenizer

    found = {}
    for name, template in CHATS.items():
        tokenizer: Any = transformers.PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), **SPECIAL)
        tokenizer.chat_template = template
        found[name] = [
            {
                "text": tokenizer.apply_chat_template(conversation(question, answer), tokenize=False),
                "tokens": tokenizer.apply_chat_template(conversation(question, answer), return_dict=True)["input_ids"],
                "prompt": tokenizer.apply_chat_template(
                    conversation(question), tokenize=False, add_generation_prompt=True
                ),
            }
            for question, answer in ASKED
        ]
    document = {"versions": {"transformers": transformers.__version__}, "chats": found, "made_by": provenance.made_by()}
    files.write_text(CHATS_FILE, json.dumps(document, ensure_ascii=False) + "\n")


@programs.ending("what was written is whole")
def main(arguments: Sequence[str] | None = None) -> int:
    """Records everything, or chat templates alone, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("all", "chats"), default="all", help="what is recorded")
    part = parser.parse_args(arguments).part
    provenance.note_code()
    _record_chats()
    if part == "all":
        _record_networks()
    return 0


def _record_networks() -> None:
    import torch
    import transformers

    recorded = {name: _by_transformers(name) for name in CONFIGS}
    arrays = {f"{name}/{key}": array for name, part in recorded.items() for key, array in part.items()}
    with files.writing(ARRAYS) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        exported = _exported(Path(folder))
    summary = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "jax": jax.__version__},
        "largest difference of logits and gradients, as a share of the largest number": {
            name: largest_difference(computed(name), part) for name, part in recorded.items()
        },
        "largest difference of the logits of exported folders": exported,
        "made_by": provenance.made_by(),
    }
    files.write_text(SUMMARY, json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    sys.exit(main())
