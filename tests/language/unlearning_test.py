"""`lm unlearn` and `lm generate` on tiny models: the folders that come out, resuming, meshes, and what is refused."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from experiments.language_parity import CHATS, CONFIGS, SPECIAL
from scissorhands_jax import torch_weights
from scissorhands_jax.cli.main import main
from scissorhands_jax.errors import InputError
from scissorhands_jax.language import folder_evaluation, model_folders, planning, unlearning
from scissorhands_jax.language.chat_templates import ChatTemplate
from scissorhands_jax.language.decoder import decoder
from scissorhands_jax.language.generating import generate_texts
from scissorhands_jax.language.method_settings import build_method, token_methods, token_settings
from scissorhands_jax.language.model_folders import load_weights, open_language_folder
from scissorhands_jax.language.text_files import TextPrompt, read_text_examples
from scissorhands_jax.language.text_tokens import TextTokenizer
from scissorhands_jax.language.unlearning import LanguageJob, prepare_language
from tests.language.tiny_folders import make_tiny_folder, make_tokenizer, write_examples, write_lines

QUICK = ("--quiet", "--epochs", "2", "--batch-size", "2", "learning_rate=0.01")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    make_tiny_folder(folder / "model", {**CONFIGS["llama"], "num_hidden_layers": 1})
    write_examples(folder)
    return folder


def command(place, out, *more, method="npo"):
    files = ("--forget", place / "forget.json", "--retain", place / "retain.json")
    words = ("lm", "unlearn", "--model", place / "model", *files, "--method", method, "--out", place / out, *more)
    return main([str(word) for word in words])


def tensors(folder):
    return torch_weights.to_state_dict(load_weights(open_language_folder(folder)), {}, flatten={})


def same(one, other):
    return all(np.array_equal(array, tensors(other)[name]) for name, array in tensors(one).items())


def test_a_model_forgets_by_all_its_weights_and_resumes(place, capsys, monkeypatch):
    assert command(place, "whole", *QUICK) == 0
    results = json.loads((place / "whole" / "results.json").read_text())
    before, after = results["losses"]["before"], results["losses"]["after"]
    assert after["forget"] > before["forget"] + 0.1
    assert results["examples"] == {"forget": 2, "retain": 3}
    assert not same(place / "whole" / "model", place / "model")
    assert command(place, "whole", *QUICK) == 2
    assert "already holds a run; add --resume" in capsys.readouterr().err
    read = [*QUICK, "--overwrite", "--model", place / "whole" / "model"]
    assert command(place, "whole", *read) == 2
    assert "whole/model is read and lies in" in capsys.readouterr().err
    assert (place / "whole" / "model").is_dir()

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(unlearning, "_write", killed)
    assert command(place, "again", *QUICK) == 130
    monkeypatch.undo()
    assert command(place, "again", *QUICK, "--resume") == 0
    assert same(place / "whole" / "model", place / "again" / "model")
    assert command(place, "again", *QUICK, "--resume") == 0
    assert command(place, "again", *QUICK, "beta=0.2", "--resume") == 2
    assert "beta was 0.1 and is now 0.2" in capsys.readouterr().err
    lost = next((place / "again" / "model").glob("*.safetensors"))
    lost.unlink()
    assert command(place, "again", *QUICK, "--resume") == 2
    assert f"has ended, and model/{lost.name} of it is missing; put it back" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_a_seed_is_a_number_that_jax_tells_apart_in_python_as_well(place, seed):
    files = {"forget": place / "forget.json", "retain": place / "retain.json"}
    job = LanguageJob(model=place / "model", **files, method="npo", settings=token_settings("npo")(), seed=seed)
    for call in (prepare_language, planning.plan_language):
        with pytest.raises(InputError, match=f"the seed must be a whole number from 0 to 4294967295, got {seed}"):
            call(job)


def test_lora_moves_its_matrices_alone(place):
    assert command(place, "lora", *QUICK, "--lora", "2", "retain_weight=0") == 0
    before, after = (
        load_weights(open_language_folder(folder)) for folder in (place / "model", place / "lora" / "model")
    )
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    assert all(jax.tree.leaves(moved["model"]["layers"]["0"]["mlp"]))
    assert not any(jax.tree.leaves((moved["lm_head"], moved["model"]["embed_tokens"], moved["model"]["norm"])))
    results = json.loads((place / "lora" / "results.json").read_text())
    assert results["losses"]["after"]["forget"] > results["losses"]["before"]["forget"]


def test_scissorhands_needs_the_loss_of_held_out_answers(place, capsys):
    assert command(place, "scissorhands", *QUICK, method="scissorhands") == 2
    assert "name a file of such answers with --held-out" in capsys.readouterr().err
    assert not (place / "scissorhands").exists()
    folder, settings = open_language_folder(place / "model"), token_settings("scissorhands")()
    with pytest.raises(InputError, match="no method 'npoo' for language models; near matches: npo"):
        token_settings("npoo")
    with pytest.raises(InputError, match="ceiling must be above 0, got -1"):
        build_method("scissorhands", settings, folder.sizes, decoder(folder.sizes), ceiling=-1.0, lora=False)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder whose model has learned both files, asked in the chat template of its folder."""
    folder = tmp_path_factory.mktemp("learned")
    make_tiny_folder(folder / "tiny", {**CONFIGS["llama"], "num_hidden_layers": 1}, chat=CHATS["turns"])
    write_examples(folder)
    both = (folder / "forget.json").read_text() + (folder / "retain.json").read_text()
    (folder / "both.json").write_text(20 * both)  # few long epochs, because each ends with a checkpoint
    other = write_lines(folder / "other.json", [{"question": "What is Cy?", "answer": "a book"}])
    files = ("--forget", other, "--retain", folder / "both.json", "--out", folder / "learning")
    words = ("lm", "unlearn", "--model", folder / "tiny", *files, "--method", "finetune")
    assert main([*map(str, words), "--quiet", "--epochs", "8", "--batch-size", "4", "learning_rate=0.01"]) == 0
    (folder / "learning" / "model").rename(folder / "model")
    (folder / "refusals.txt").write_text("What is a book ?\n")
    return folder


STEPS = ("--epochs", "4", "--batch-size", "4", "learning_rate=0.003")
OTHERS = {
    "scissorhands": (*STEPS, "ceiling=1", "fraction=0.02"),
    "rmu": (*STEPS[:-1], "learning_rate=0.1", "steering=10"),
    "ssd": ("selection=4",),
}
"""Settings of methods that take others than most."""
LORA = ("--lora", 2, "learning_rate=0.05")  # the last of two values of a setting counts


@pytest.mark.parametrize(
    ("method", "lora"), [*((name, ()) for name in token_methods() if name not in ("npo", "finetune")), ("dpo", LORA)]
)
def test_every_method_forgets_from_folder_to_folder(learned, method, lora):
    """`npo` does above, and `finetune` made the model that is forgotten from."""
    refusals = ("--refusals", learned / "refusals.txt") if method == "dpo" else ()
    out = f"{method} by LoRA" if lora else method
    words = (*OTHERS.get(method, STEPS), *refusals, *lora)
    assert command(learned, out, "--quiet", *words, method=method) == 0
    results = json.loads((learned / out / "results.json").read_text())
    before, after = results["losses"]["before"], results["losses"]["after"]
    assert before["forget"] < 0.2
    rise = {part: after[part] - before[part] for part in before}
    assert rise["forget"] > 0.01
    # SSD trains nothing that would repair what it damages: measured, 1.5 times as much as it forgets.
    assert rise["retain"] < (2 if method == "ssd" else 1) * rise["forget"]
    flat, other = (tensors(learned / name) for name in ("model", f"{out}/model"))
    still = {name for name in flat if np.array_equal(flat[name], other[name])}
    if method == "rmu":
        assert {name for name in flat if name not in still} == {"model.layers.0.mlp.down_proj.weight"}
    else:
        assert still == ({name for name in flat if not name.endswith("_proj.weight")} if lora else set())
    assert results["config"]["template"] == CHATS["turns"]


@pytest.mark.parametrize(
    ("more", "method", "said"),
    [
        (("--lora", "2"), "scissorhands", "cannot be used with --lora"),
        (("--lora", "2"), "rmu", "cannot be used with --lora"),
        (("--lora", "2"), "task_vector", "cannot be used with --lora: it negates a change"),
        (("--lora", "2"), "l1_sparse", "cannot be used with --lora"),
        (("--lora", "99"), "npo", "from 1 to 12"),
        (("--lora-alpha", "2"), "npo", "--lora-alpha has no effect without --lora"),
        (("layer=2",), "rmu", "layer must be from 0 to 0"),
        (("--microbatches", "2"), "rmu", "computes its batches whole"),
        (("--microbatches", "3"), "npo", "cannot be divided"),
        (("--microbatches", "32"), "npo", "cannot be divided into 32"),
        (("--microbatches", "32"), "finetune", "cannot be divided into 32"),
        (("ceiling=1", "trim=nothing"), "scissorhands", "matches none of the"),
        (("ceiling=1", "rank=nothing"), "scissorhands", "matches none of the"),
        (("ceiling=1", "project=nothing"), "scissorhands", "matches none of the"),
        (("ceiling=1", "trim=model/norm"), "scissorhands", "selects only biases and scales"),
        (("trained=nothing",), "rmu", "matches none of the"),
        (("gamma=2", "beta=-1"), "npo", "beta must be above 0"),
        ((), "dpo", "name a file with one on each line with --refusals"),
        (("--refusals", "x"), "npo", "--refusals is for the method dpo"),
        (("--template", "Q"), "npo", "no {question}"),
        (("--template", "chat"), "npo", "model has no chat template"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(place, capsys, monkeypatch, more, method, said):
    monkeypatch.setattr(unlearning, "load_weights", None)
    assert command(place, "bad", *more, method=method) == 2
    assert said in capsys.readouterr().err
    assert not (place / "bad").exists()


def test_examples_that_do_not_fit(place, capsys):
    long = write_lines(place / "long.json", [{"text": "book " * 80}])
    files = ("--retain", str(place / "retain.json"), "--method", "npo", "--out", str(place / "bad"))
    assert main(["lm", "unlearn", "--model", str(place / "model"), "--forget", str(long), *files]) == 2
    assert "long.json, line 1 has 82 tokens, and the network reads 64" in capsys.readouterr().err
    assert main(["lm", "unlearn", "--model", str(place / "model"), "--forget", str(place / "retain.json"), *files]) == 2
    assert "share 3 examples" in capsys.readouterr().err
    assert command(place, "bad", "--held-out", place / "retain.json") == 2
    assert "retain.json and the held-out set" in capsys.readouterr().err


def test_a_run_that_is_refused_after_it_began_does_not_block_the_corrected_one(place, monkeypatch):
    def refused(*arguments):
        raise InputError("the device has no room")

    monkeypatch.setattr(unlearning, "_network", refused)
    assert command(place, "refused", *QUICK) == 2
    assert not (place / "refused").exists()


def test_generating(place, capsys, monkeypatch):
    folder = open_language_folder(place / "model")
    params, tokenizer = load_weights(folder), folder.tokenizer
    prompts = ["Who wrote the Red book?", "What"]
    together = generate_texts(folder.sizes, params, tokenizer, [*map(TextPrompt, prompts)], max_tokens=5, batch_size=2)
    model = decoder(folder.sizes)
    apply = jax.jit(lambda tokens: model.apply(params, {}, tokens, train=False)[0])
    for prompt, answer in zip(prompts, together, strict=True):
        numbers = list(tokenizer.encode(prompt).numbers)
        for _ in range(5):
            logits = apply(np.array([numbers + [0] * (16 - len(numbers))]))
            numbers.append(int(logits[0, len(numbers) - 1].argmax()))
        assert answer == tokenizer.decode(numbers[len(tokenizer.encode(prompt).numbers) :])
    words = ("lm", "generate", "--model", str(place / "model"), "--max-tokens", "5", "--json")
    assert main([*words, "--prompt", "What", "--file", str(place / "forget.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [entry["prompt"] for entry in printed][1:] == [
        f"Question: {question}\nAnswer:" for question in ("Who wrote the Red book?", "What is Ada?")
    ]
    assert printed[0]["answer"] == together[1]
    assert main([*words]) == 2
    assert "there is nothing to answer" in capsys.readouterr().err
    monkeypatch.setattr(model_folders, "load_weights", None)
    for more, said in ((("--max-tokens", "99"), "more than the 64"), (("--template", "caht"), "has no {question}")):
        assert main([*words, "--question", "What?", *more]) == 2
        assert said in capsys.readouterr().err


def test_questions_are_asked_in_the_chat_template_of_the_folder(learned, capsys):
    words = (
        "lm",
        "generate",
        "--model",
        str(learned / "model"),
        "--max-tokens",
        "9",
        "--json",
        "--question",
        "What is Bo?",
    )
    found = []
    for more in ((), ("--template", "plain", "--prompt", "What")):
        assert main([*words, *more]) == 0
        out, err = capsys.readouterr()
        found.append(json.loads(out))
        assert ("in the model's own chat template" in err) == (not more)
    chat = ChatTemplate(CHATS["turns"], SPECIAL, "x")
    assert found[0] == [{"prompt": chat.turn("What is Bo?").before, "answer": "Bo is born in Red ."}]
    assert [entry["prompt"] for entry in found[1]] == ["What", "Question: What is Bo?\nAnswer:"]
    (example, _) = read_text_examples(learned / "forget.json", template=chat)
    numbers, start = TextTokenizer(make_tokenizer(), [2]).encode(example.prompt, example.answer, after=example.after)
    settings = token_settings("npo")()
    files = {name: learned / f"{name}.json" for name in ("forget", "retain")}
    rows = prepare_language(
        LanguageJob(model=learned / "model", method="npo", settings=settings, **files)
    ).rows.data.forget
    (row,) = np.flatnonzero((rows["tokens"][:, : len(numbers)] == numbers).all(axis=1))
    assert rows["answer"][row, : len(numbers)].tolist() == [place >= start for place in range(len(numbers))]


@pytest.mark.parametrize("method", token_methods())
def test_settings_say_that_batches_count_rows(method, capsys):
    for words in (("--help-settings", method), ("--method", method, "--help")):
        with pytest.raises(SystemExit):
            main(["lm", "unlearn", *words])
        shown = " ".join(capsys.readouterr().out.split())
        assert method == "ssd" or "batch_size (default: 32) The number of rows that a step sees" in shown
    assert "--batch-size N Rows of packed examples of each set in a step" in shown


def test_a_byte_order_mark_is_no_part_of_a_refusal(place):
    def refused(start):
        path = place / "refusals.txt"
        path.write_text(f"{start}Who wrote ?\n", encoding="utf-8")
        files = {name: place / f"{name}.json" for name in ("forget", "retain")}
        job = LanguageJob(model=place / "model", method="dpo", settings=token_settings("dpo")(), refusals=path, **files)
        return prepare_language(job).rows.data.forget["refusal_tokens"]

    np.testing.assert_array_equal(refused("\ufeff"), refused(""))


def test_a_refusal_that_the_chat_template_changes_is_refused(tmp_path):
    template = "{% for message in messages %}{{ message.content | replace('Sorry', 'No') }} {% endfor %}"
    make_tiny_folder(tmp_path / "model", {**CONFIGS["llama"], "num_hidden_layers": 1}, chat=template)
    (tmp_path / "refusals.txt").write_text("What ?\nSorry .\n")
    job = LanguageJob(
        model=tmp_path / "model",
        method="dpo",
        settings=token_settings("dpo")(),
        refusals=tmp_path / "refusals.txt",
        **write_examples(tmp_path),
    )
    with pytest.raises(
        InputError, match=r"refusals\.txt, line 2: the chat template in .* does not keep the answer 'Sorry \.'"
    ):
        prepare_language(job)
    prepare_language(dataclasses.replace(job, template="plain"))


def test_what_no_set_can_be_asked_with_is_refused_before_weights_are_read(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(folder_evaluation, "load_weights", None)
    words = ["lm", "evaluate", "--model", place / "model", "--forget", place / "forget.json"]
    words += ["--retain", place / "retain.json", "--out", tmp_path / "log.json"]
    for more, said in ((("--max-tokens", "0"), "at least 1, got 0"), (("--max-tokens", "60"), "more than the 64")):
        assert main([*map(str, words), *more]) == 2
        assert said in capsys.readouterr().err
    assert main([*map(str, words), "--out", str(tmp_path), "--overwrite"]) == 2
    assert "is a folder; name a file for the log" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    assert main([*map(str, words), "--max-tokens", "5"]) == 2
    assert "ROUGE needs the package rouge-score" in capsys.readouterr().err


def test_evaluating_a_folder(place, capsys):
    wrong = [{"question": "Who wrote the Red book?", "answer": "Ada", "perturbed_answer": ["Bo", "Cy Red"]}]
    asked = ("--forget", write_lines(place / "asked.json", wrong), "--retain", place / "retain.json")
    words = ["lm", "evaluate", "--model", place / "model", *asked, "--out", place / "log.json", "--max-tokens", "5"]
    assert main([*map(str, words), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    folder = open_language_folder(place / "model")
    (example,) = read_text_examples(place / "asked.json")
    numbers, start = folder.tokenizer.encode(example.prompt, example.answer)
    logits = decoder(folder.sizes).apply(load_weights(folder), {}, np.array([numbers]), train=False)[0]
    logs = jax.nn.log_softmax(logits)[0, start - 1 : -1]
    loss = -float(np.mean([logs[place, number] for place, number in enumerate(numbers[start:])]))
    assert found["sets"]["forget"]["probability"] == pytest.approx(np.exp(-loss), rel=1e-4)
    assert found["sets"]["forget"]["truth_ratio"].keys() == {"arithmetic", "geometric", "right_share"}
    assert found["sets"]["retain"]["examples"] == 3
    assert main([*map(str, words)]) == 2
    assert "exists already; add --overwrite" in capsys.readouterr().err
    for taken in (place / "asked.json", place / "model" / "config.json"):
        assert main([*map(str, words), "--out", str(taken), "--overwrite"]) == 2
        assert f"{taken} is read and is where the result goes" in capsys.readouterr().err
    foreign = write_lines(place / "foreign.json", [{"text": "", "question": "What?", "answer": text} for text in "a東"])
    words[5], words[7:] = foreign, [place / "retain.json", "--out", place / "foreign_log.json", "--max-tokens", "2"]
    assert main([*map(str, words), "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)["sets"]
    assert found["forget"].keys() == {"examples", "probability"}
    assert "rouge_l_recall" in found["retain"]
    assert (
        f"no ROUGE of forget: it counts words of Latin letters and digits, and the answer in line 2 of {foreign} has"
        in (printed.err)
    )
    assert main(["lm", "evaluate", "--model", str(place / "model")]) == 2
    assert "give --forget and --out" in capsys.readouterr().err
