"""Tokens per second of forgetting beside training, over packed rows: `python -m experiments.token_steps --out FILE`.

    python -m experiments.token_steps --out experiments/results/token_steps_cpu.json
    python -m experiments.token_steps --out token_steps.json --tiny

A transformer of a million parameters takes steps on random examples of TOFU's lengths, in turn: a plain training step
over B packed rows; a projected repair step of Scissorhands and a step of NPO over B rows of each set; and a training
step over B rows of one example each, padded to the longest. Tokens are those of examples, without padding.
Every call takes the next batch of an epoch, so that the number of recompilations is that over examples of all lengths.
Memory is what the compiler asks for a step of a run, beside what network, gradients and optimizer make, and beside what
the planner of `lm plan` says of the same step from shapes alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import scissorhands_jax as sh
from experiments import programs
from experiments.benchmark.timing import Spread, time_in_turn
from scissorhands_jax import data as data_lib
from scissorhands_jax import files, report, trees
from scissorhands_jax.base import Batch, Data, Dataset, Method
from scissorhands_jax.jobs.plan_steps import PlannedRun, StepKind, compile_steps
from scissorhands_jax.language.methods import npo
from scissorhands_jax.language.packing import Encoded, packed_rows
from scissorhands_jax.language.token_losses import token_loss
from scissorhands_jax.language.transformer import Transformer
from scissorhands_jax.methods import TrainingSettings, finetune
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console, say
from scissorhands_jax.training import loop as training

RATIO_AIM = 2.2
"""The most that a repair step, which has two gradients, may take of a training step over as many rows of one set."""
PLAIN, REPAIR, NPO, PADDED = "training step", "repair step", "NPO step", "training step, padded to the longest"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of network and batches."""

    vocabulary: int = 2048
    width: int = 128
    layers: int = 3
    row: int = 256
    rows: int = 4
    examples: int = 120
    longest: int = 160
    repeats: int = 7


TINY = Sizes(vocabulary=50, width=16, layers=1, row=32, rows=2, examples=20, longest=24, repeats=2)


def made_up_examples(sizes: Sizes, seed: int) -> list[Encoded]:
    """Random tokens of the lengths that TOFU's examples have: most are short, and the longest is twice their mean."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.gamma(9.0, sizes.longest / 20, sizes.examples).astype(int), 8, sizes.longest)
    lengths[0] = sizes.longest
    tokens = [generator.integers(3, sizes.vocabulary, length).tolist() for length in lengths]
    return [Encoded(each[: len(each) // 3], each[len(each) // 3 :]) for each in tokens]


def measure(sizes: Sizes, console: Console) -> dict[str, Any]:
    """Times all steps in turn."""
    network = Transformer(sizes.vocabulary, sizes.width, sizes.layers, length=sizes.row)
    model = sh.from_linen(network, jax.ShapeDtypeStruct((1, sizes.row), np.int32))
    given = [made_up_examples(sizes, seed) for seed in (0, 1)]
    data = Data(*(packed_rows(each, sizes.row) for each in given))
    padded = _padded(given[1], sizes)
    params, state = model.init(jax.random.key(0))
    loss_fn, adam = token_loss(model), optax.adamw(1e-4)
    repair = sh.scissorhands(
        loss_fn, adam, fraction=0.05, ceiling=8.0, trim=r"block\d+/.*kernel", batch_size=sizes.rows
    )
    methods: dict[str, tuple[Method, Data]] = {
        PLAIN: (finetune(loss_fn, adam, batch_size=sizes.rows), data),
        REPAIR: (repair, data),
        NPO: (npo(model, adam, batch_size=sizes.rows), data),
        PADDED: (finetune(loss_fn, adam, batch_size=sizes.rows), Data(data.forget, padded)),
    }
    calls, tokens, memory = {}, {}, {}
    for name, (method, own) in methods.items():
        calls[name] = _stepper(method, own, params, state)
        tokens[name] = calls[name].tokens()
        memory[name] = calls[name].memory()
    timed = time_in_turn(calls, sizes.repeats, lambda note: say(console, note))
    rows: dict[str, dict[str, Any]] = {
        name: {
            "seconds": dataclasses.asdict(Spread.of(each.seconds)),
            "ratio_to_training_step": dataclasses.asdict(
                Spread.of([a / b for a, b in zip(each.seconds, timed[PLAIN].seconds, strict=True)])
            ),
            "tokens": tokens[name],
            "tokens_per_second": tokens[name] / float(np.median(each.seconds)),
            "compile_seconds": each.compile_seconds,
            "recompilations": each.recompilations,
            **memory[name],
        }
        for name, each in timed.items()
    }
    ratio = rows[REPAIR]["ratio_to_training_step"]["median"]
    return {
        "sizes": dataclasses.asdict(sizes),
        "parameters": trees.count_weights(params),
        "steps": rows,
        "aim": {"what": f"{REPAIR} / {PLAIN}", "limit": RATIO_AIM, "value": ratio, "met": ratio <= RATIO_AIM},
    }


class _Stepper:
    """A step that goes on where the last call ended, with the next batch of an epoch."""

    def __init__(self, method: Method, data: Data, carry: Any, batches: Sequence[Batch]) -> None:
        self._data = data
        self._method, self._carry, self._batches = method, carry, itertools.cycle(batches)
        self._examples = batches[0]
        self._tokens = [sum(map(_tokens, filter(None, batch))) for batch in batches]

    def __call__(self) -> Any:
        self._carry, metrics = training._step(self._method.step, self._carry, next(self._batches))
        return metrics

    def tokens(self) -> float:
        """The mean number of tokens of a step, without padding."""
        return float(np.mean(self._tokens))

    def memory(self) -> dict[str, int | None]:
        """The bytes of arguments and of temporaries of the compiled step, what makes them up, and what was planned.

        What makes them up: the network and what the step holds besides it, and each gradient as large as the network.
        """
        lowered = training._step.lower(self._method.step, self._carry, self._examples)
        compiled = lowered.compile().memory_analysis()
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(self._carry) if hasattr(leaf, "nbytes"))
        network = sum(leaf.nbytes for leaf in jax.tree.leaves(self._carry.params))
        gradients = sum(part is not None for part in self._examples)
        return {
            "argument_bytes": compiled and compiled.argument_size_in_bytes,
            "temporary_bytes": compiled and compiled.temp_size_in_bytes,
            "planned_held_bytes": held,
            "planned_gradient_bytes": gradients * network,
            "planned_bytes": held + self._planned(),
        }

    def _planned(self) -> int:
        """The bytes of examples and temporaries of a step, by the planner."""
        kind = StepKind(*(None if part is None else data_lib.size(part) for part in self._examples))
        settings = TrainingSettings(epochs=1, batch_size=max(size or 0 for size in kind))
        run = PlannedRun(
            data=self._data,
            seed=0,
            devices=1,
            settings=settings,
            method=self._method,
            whole=self._method,
            kinds={kind: 1},
        )
        program = compile_steps(run, self._method, self._carry, kind)
        return trees.nbytes(run.outline_of(kind)) + program.temporaries


def _stepper(method: Method, data: Data, params: Any, state: Any) -> _Stepper:
    carry = trees.copy(method.begin_epoch(method.init(jax.random.key(1), params, state, data), data))
    batches = [data_lib.gather(data, batch) for batch in method.batches(jax.random.key(2), data, 0)]
    return _Stepper(method, data, carry, batches)


def _padded(examples: Sequence[Encoded], sizes: Sizes) -> Dataset:
    """One example a row, all padded to the longest, in rows of the length of packed ones."""
    tokens, answer = (np.zeros((len(examples), sizes.longest), kind) for kind in (np.int32, bool))
    for row, one in enumerate(examples):
        tokens[row, : one.length] = [*one.prompt, *one.answer]
        answer[row, len(one.prompt) : one.length] = True
    return {"tokens": tokens, "answer": answer}


def _tokens(part: Dataset) -> int:
    return int(np.count_nonzero(np.asarray(part["tokens"])))


@programs.ending("nothing is kept of it")
def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes FILE and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.token_steps", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    parser.add_argument("--note", default="", help="what else the machine did, for the file")
    parser.add_argument("--tiny", action="store_true", help="rehearse at a tiny size")
    options = parser.parse_args(arguments)
    provenance.note_code()
    with programs.sole_writer_of(options.out):
        found = measure(TINY if options.tiny else Sizes(), Console(stderr=True))
        document = found | {"note": options.note} | report.environment()
        files.write_text(options.out, json.dumps(document, indent=1) + "\n")
    aim = found["aim"]
    say(Console(), f"{aim['what']}: {aim['value']:.2f}, at most {aim['limit']}: {'met' if aim['met'] else 'missed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
