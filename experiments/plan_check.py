"""Compares plans with what is measured: `python -m experiments.plan_check --out experiments/results/plan_cpu.json`.

    python -m experiments.plan_check --language --out experiments/results/plan_language_cpu.json

For each case one process plans a run and another one makes it, on images of noise with random weights. The results
are predicted and measured memory (the largest resident set of the process that ran) and time (its wall time, and that
of the run within it), with their ratios. Memory is only judged on a CPU, where it is the memory of the process.
Of language models, a Llama of random weights that reads random words, only memory is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers

from experiments import programs
from scissorhands_jax import files, models, reading, torch_weights
from scissorhands_jax.errors import InputError, listed
from scissorhands_jax.jobs.progress import status
from scissorhands_jax.language.families import sizes_of
from scissorhands_jax.language.model_folders import outline_of
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console, Table

MEMORY_AIM, TIME_AIM = 0.2, 0.3  # relative
CASES: dict[str, dict[str, Any]] = {
    "mlp": {"model": "mlp", "train": 2_000, "arguments": ["--epochs", "20"]},
    "resnet20": {"model": "resnet20", "train": 1_400, "arguments": ["--epochs", "1"]},
    "resnet20, 4 microbatches": {
        "model": "resnet20",
        "train": 1_400,
        "arguments": ["--epochs", "1", "method.microbatches=4"],
    },
    "resnet18": {"model": "resnet18", "train": 500, "arguments": ["--epochs", "1", "--batch-size", "64"]},
    "resnet20, SFR-on": {"model": "resnet20", "train": 1_400, "arguments": ["--method", "sfron", "--epochs", "1"]},
    "resnet20, SSD": {"model": "resnet20", "train": 1_400, "arguments": ["--method", "ssd"]},
    "mlp, influence": {"model": "mlp", "train": 2_000, "arguments": ["--method", "influence"]},
}
CLASSES, SHAPE, TEST = 10, (32, 32, 3), 200
LANGUAGE_CASES: dict[str, list[str]] = {
    "NPO": ["--method", "npo"],
    "NPO, 2 microbatches": ["--method", "npo", "--microbatches", "2"],
    "Scissorhands": ["--method", "scissorhands", "ceiling=9"],
    "NPO by LoRA, bfloat16": ["--method", "npo", "--lora", "8", "--dtype", "bfloat16"],
    "NPO by LoRA, 2 microbatches": ["--method", "npo", "--lora", "8", "--microbatches", "2"],
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
}
WORDS, EXAMPLES = 100, 4  # of an answer, of a set


@programs.ending("FILE has what was compared; --only NAME goes on with one of the others")
def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the chosen cases and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.plan_check", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the results as JSON; other cases in it are kept"
    )
    parser.add_argument("--language", action="store_true", help="the cases of language models, in place of the others")
    parser.add_argument("--tiny", action="store_true", help="with --language: rehearse with a tiny network")
    parser.add_argument("--only", choices=[*CASES, *LANGUAGE_CASES], action="append", help="this case; may be repeated")
    programs.add_overwrite(parser)
    options = parser.parse_args(arguments)
    provenance.note_code()
    cases: dict[str, Any] = LANGUAGE_CASES if options.language else CASES
    chosen = list(dict.fromkeys(options.only or cases))
    others = [name for name in chosen if name not in cases]
    if others:
        raise InputError(
            f"{listed(others)} is a case {'without' if options.language else 'with'} --language; correct it"
        )
    if options.tiny and not options.language:
        raise InputError("--tiny is for the cases of language models; add --language, or leave it out")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1} if options.tiny else {}
    aims = {"memory": MEMORY_AIM} if options.language else {"memory": MEMORY_AIM, "time": TIME_AIM}

    def compose(results: dict[str, Any]) -> dict[str, Any]:
        return {"results": [*programs.ordered(results, cases).values()], "aims": aims}

    settings = {"language": options.language, "tiny": options.tiny}
    with programs.open_results(
        options.out, settings, results_of=_rows, compose=compose, overwrite=options.overwrite
    ) as results:
        for name in chosen:
            with status(Console(stderr=True), name), tempfile.TemporaryDirectory() as folder:
                if options.language:
                    found = check_language(Path(folder), LLAMA | sizes, cases[name])
                else:
                    found = check(Path(folder), **cases[name])
            results.add(name, {"case": name, **found})
    Console().print(table(results.document()["results"]))
    return 0


def _rows(document: Mapping[str, Any]) -> dict[str, Any]:
    return {row["case"]: row for row in document["results"]}


def check(folder: Path, *, model: str, train: int, arguments: Sequence[str]) -> dict[str, Any]:
    """Plans a run on noise in one process, makes it in another, and compares the two."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("", train), ("test_", TEST)):
        arrays[f"{part}image"] = rng.integers(0, 256, (count, *SHAPE), np.uint8)
        arrays[f"{part}label"] = np.arange(count) % CLASSES
    np.savez(folder / "noise.npz", **arrays)
    network = models.build(model, num_classes=CLASSES, image_shape=SHAPE)
    weights = folder / "weights.safetensors"
    torch_weights.write_safetensors(weights, torch_weights.to_state_dict(*network.init(jax.random.key(0))))
    job = ["--model", model, "--dataset", f"npz:{folder / 'noise.npz'}", "--weights", str(weights)]
    job += ["--forget", "random:0.1", *arguments]

    planned = folder / "plan.json"
    _measured(["plan", *job, "--json"], planned)
    plan = reading.read_json(planned)
    seconds, memory = _measured(["unlearn", *job, "--out", str(folder / "run")], folder / "output.txt")
    cost = reading.read_json(folder / "run" / "results.json")["cost"]
    predicted = plan["seconds"]
    within = sum(predicted[part] for part in ("beginning", "epochs", "steps", "saving"))
    return {
        "steps": {"predicted": plan["steps"], "measured": cost["steps"]},
        "memory_bytes": _compared(plan["memory"]["total_bytes"], memory),
        "seconds": _compared(predicted["total"], seconds),
        "run_seconds": _compared(within, cost["seconds"]),
        "plan": {name: plan[name] for name in ("parameters", "kinds", "seconds")} | {"memory": plan["memory"]},
        "load": list(os.getloadavg()),
    }


def check_language(folder: Path, config: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Plans a run of a language model in one process, makes it in another, and compares their memory.

    Args:
      folder: An empty folder for the model and the run.
      config: The `config.json` of the model.
      arguments: The method and its settings, as `lm plan` and `lm unlearn` take them.
    """
    make_language_model(folder / "model", config)
    job = ["--model", str(folder / "model"), "--batch-size", "2", "--epochs", "2"]
    for seed, name in enumerate(("forget", "retain")):
        words = np.random.default_rng(seed).integers(2, config["vocab_size"], (EXAMPLES, WORDS))
        lines = [json.dumps({"question": "0", "answer": " ".join(map(str, row))}) for row in words.tolist()]
        files.write_text(folder / f"{name}.json", "\n".join(lines) + "\n")
        job += [f"--{name}", str(folder / f"{name}.json")]
    planned = folder / "plan.json"
    _measured(["lm", "plan", *job, *arguments, "--json"], planned)
    plan = reading.read_json(planned)
    _, memory = _measured(["lm", "unlearn", *job, *arguments, "--out", str(folder / "run")], folder / "output.txt")
    steps = reading.read_json(folder / "run" / "results.json")["steps"]
    return {
        "steps": {"predicted": plan["steps"], "measured": steps},
        "memory_bytes": _compared(plan["total_bytes"], memory),
        "plan": {name: plan[name] for name in ("parameters", "trained_parameters", "row_length", "phases_bytes")},
    }


def make_language_model(folder: Path, config: dict[str, Any]) -> None:
    """Writes a folder of a language model with small random weights, whose words are the numbers of its tokens."""
    folder.mkdir()
    files.write_text(folder / "config.json", json.dumps(config))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(n): n for n in range(config["vocab_size"])}, "0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    weights, generator = {}, np.random.default_rng(0)
    for name, shape in torch_weights.state_dict_shapes(outline_of(sizes_of(config, "config")), {}).items():
        scale = 0.0 if name.endswith("norm.weight") else 0.02
        weights[name] = np.float32(float(not scale) + scale * generator.standard_normal(shape, np.float32))
    torch_weights.write_safetensors(folder / "model.safetensors", weights)


def _measured(arguments: Sequence[str], output: Path) -> tuple[float, int]:
    """Returns the wall time of a command in a new process in seconds, and its largest resident set in bytes."""
    with output.open("w", encoding="utf-8") as file:
        start = time.perf_counter()
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), 1)]
        command = [sys.executable, "-m", "scissorhands_jax", *arguments]
        _, status, usage = os.wait4(os.posix_spawn(sys.executable, command, os.environ, file_actions=actions), 0)
        seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{' '.join(command)} failed with {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _compared(predicted: float, measured: float) -> dict[str, float]:
    return {"predicted": predicted, "measured": measured, "ratio": predicted / measured}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Returns a table with predictions and measurements next to each other."""
    made = Table("case", "MB predicted", "measured", "ratio", "s predicted", "measured", "ratio", "run alone")
    for row in rows:
        memory, seconds = row["memory_bytes"], row.get("seconds")
        times = ["", "", "", ""]
        if seconds is not None:
            times = [f"{seconds[name]:.1f}" for name in ("predicted", "measured")]
            times += [_judged(ratio, TIME_AIM) for ratio in (seconds["ratio"], row["run_seconds"]["ratio"])]
        made.add_row(
            row["case"],
            *(f"{memory[name] / 1e6:,.0f}" for name in ("predicted", "measured")),
            _judged(memory["ratio"], MEMORY_AIM),
            *times,
        )
    return made


def _judged(ratio: float, aim: float) -> str:
    return f"[{'green' if abs(ratio - 1) <= aim else 'red'}]{ratio:.2f}"


if __name__ == "__main__":
    sys.exit(main())
