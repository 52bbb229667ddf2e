"""The cells of the experiment: a JSON file for every network that was measured, and one for every method's settings.

They lie in a folder of one run (`jobs.runs`), which belongs to the settings and the files of TOFU.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import scissorhands_jax as sh
from experiments.tofu.forgetting import STRENGTHS, Candidate, Maker, candidates, forget
from experiments.tofu.page import read_cell
from experiments.tofu.scene import DATA_FILES, ORIGINAL, RETRAINED, Scene, Subject, make_scene
from scissorhands_jax import files, hashing, report
from scissorhands_jax.base import Data, Method
from scissorhands_jax.errors import NonFiniteError
from scissorhands_jax.jobs import runs
from scissorhands_jax.language.measuring import Network, measure_answers, measure_knowledge, membership_areas
from scissorhands_jax.language.recovering import relearn, relearning_method, rounded_weights
from scissorhands_jax.language.token_losses import token_loss
from scissorhands_jax.language.transformer import decoder_of
from scissorhands_jax.methods import finetune
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console, say
from scissorhands_jax.training import checkpoints
from scissorhands_jax.training.identity import check_same, identify


class Cells:
    """Fills the cells that are missing, in a folder that belongs to one setting.

    Args:
      subject: What all networks have in common.
      folder: The folder of TOFU.
      out: Where cells and networks are.
      console: Is told what was done.
    """

    def __init__(self, subject: Subject, folder: Path, out: Path, console: Console) -> None:
        self._subject, self._folder, self._out, self._console = subject, folder, out, console
        self.scenes = {tuning: make_scene(subject, folder, tuning=tuning) for tuning in (False, True)}
        self._chosen = {
            "experiment": "tofu",
            "settings": dataclasses.asdict(subject.settings),
            "data_sha256": {name: hashing.file_sha256(folder / name) for name in DATA_FILES},
        }
        self._training = self._learner()
        self._decoder = decoder_of(subject.network)
        self._relearning: Method | None = None
        self._maker = Maker(subject)
        self._ceilings: dict[int, float] = {}

    def fill(self, *, overwrite: bool = False) -> None:
        """Chooses settings, then trains, forgets and measures for one seed after the other.

        Args:
          overwrite: Whether what is in the folder is replaced.

        Raises:
          InputError: The folder belongs to other settings or other data, or holds something else.
          BusyError: Another process writes to the folder.
        """
        names = self._subject.settings.methods or tuple(STRENGTHS)
        opened = runs.open_folder(
            self._out, identify(self._chosen), inputs=[self._folder], overwrite=overwrite, resume=True
        )
        with opened as fresh, runs.cleared_if_refused(self._out, fresh, "cells/**/*.json", "networks/*"):
            chosen = {name: self.tuned(name) for name in names}
            for seed in self._subject.settings.seeds:
                for name in (ORIGINAL, RETRAINED, *names):
                    self._cell(f"seed{seed}/{name}", functools.partial(self._measured, seed, name, chosen))

    def tuned(self, name: str) -> Candidate:
        """The settings of a method with the smallest `proxy` among its candidates."""
        found = self._cell(f"tuning/{name}", lambda: self._tried(name))
        best = min(found["trials"], key=lambda trial: np.inf if trial["score"] is None else trial["score"])
        return Candidate(best["rate"], best["setting"])

    def _cell(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        path = self._out / "cells" / f"{name}.json"
        if not path.is_file():
            started, used = time.perf_counter(), time.process_time()
            found = {**make(), "wall_seconds": None, "cpu_seconds": None}
            found |= {"wall_seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used}
            files.write_text(path, json.dumps(found | report.environment(), allow_nan=False) + "\n")
            say(self._console, f"{name}: {found['wall_seconds']:.0f} s")
        return read_cell(path)

    def _learner(self) -> Method:
        settings, rows = self._subject.settings, self.scenes[False].data
        total = settings.epochs * -(-sum(len(part["tokens"]) for part in rows) // settings.batch_size)
        rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, total // 10, total)
        self._steps = total
        return finetune(
            token_loss(self._subject.model),
            optax.adamw(rate, weight_decay=settings.weight_decay),
            batch_size=settings.batch_size,
        )

    def network(self, seed: int, name: str, scene: Scene) -> Network:
        """An original or retrained network, which is trained if it is not there.

        Both take the same steps, to less than an epoch, over the whole schedule.
        """
        rows = {part: array for part, array in scene.data.retain.items()}
        if name == ORIGINAL:
            rows = {part: np.concatenate([scene.data.forget[part], array]) for part, array in rows.items()}
        tuning = "tuning_" if scene is self.scenes[True] else ""
        path = self._out / "networks" / f"{tuning}seed{seed}_{name}"
        about = {**self._chosen, "seed": seed, "network": name, "trained_on_sha256": hashing.tree_sha256(rows)}
        identity = identify(about, noted={"code": provenance.running_code().name})
        init_key, key = jax.random.split(jax.random.key(2 * seed + (name == RETRAINED)))
        params, state = jax.eval_shape(self._subject.model.init, init_key)
        if path.exists():
            found, advice = checkpoints.read_description(path), "remove it, or name another folder with --out"
            check_same(found, identity, f"the network in {path}", advice, warn=False)
        else:
            params, state = jax.jit(self._subject.model.init)(init_key)
            epochs = round(self._steps / -(-len(rows["tokens"]) // self._subject.settings.batch_size))
            nothing = {part: array[:0] for part, array in rows.items()}
            result = sh.run(self._training, key, params, state, Data(nothing, rows), num_epochs=epochs)
            checkpoints.save_network(path, result.params, state, identity.document())
        params, state = checkpoints.load_network(path, params, state)
        return Network(self._subject.model, params, state, self._decoder)

    def _ceiling(self, seed: int, original: Network) -> float:
        """Scissorhands' ceiling is the original's loss on people whom nobody learned: those for choosing settings."""
        if seed not in self._ceilings:
            unseen = measure_answers(original, self._subject.flat(self.scenes[True].held_out))
            self._ceilings[seed] = float(np.mean(unseen.loss))
        return self._ceilings[seed]

    def _tried(self, name: str) -> dict[str, Any]:
        subject, seed, scene = self._subject, self._subject.settings.tuning_seed, self.scenes[True]
        original = self.network(seed, ORIGINAL, scene)
        ceiling, before = self._ceiling(seed, original), self._proxy_numbers(original, scene)
        trials = []
        for candidate in candidates(subject.settings, name):
            started, score, numbers = time.perf_counter(), None, None
            try:
                method = self._maker.method(name, candidate, ceiling)
                network, _, _ = forget(subject, scene, original, name, method, seed)
                numbers = self._proxy_numbers(network, scene)
                score = 50 * (numbers["distance"] + abs(numbers["retain"] - before["retain"]))
            except NonFiniteError:
                pass  # the trial has no score, so it is not chosen
            trials.append({**candidate._asdict(), "score": score, "numbers": numbers})
            trials[-1]["seconds"] = time.perf_counter() - started
        return {"trials": trials, "original": before}

    def _proxy_numbers(self, network: Network, scene: Scene) -> dict[str, float]:
        """How far losses of forgotten answers are from those of unseen ones, and what is left of the rest.

        The distance is the difference of the mean losses as a share of that of unseen answers, at most 1: it is 1 for a
        network that knows the answers and for one whose loss of them is twice as large as that of unseen ones.
        """
        subject = self._subject
        lost, unseen = (
            float(measure_answers(network, subject.flat(authors)).loss.mean())
            for authors in (scene.forget, scene.held_out)
        )
        asked = subject.questions(scene.retain, subject.settings.retain_asked).answers
        return {
            "distance": min(1.0, abs(lost - unseen) / unseen),
            "loss_forget": lost,
            "loss_unseen": unseen,
            "retain": float(measure_answers(network, asked).probability.mean()),
        }

    def _measured(self, seed: int, name: str, chosen: Mapping[str, Candidate]) -> dict[str, Any]:
        scene = self.scenes[False]
        if name in (ORIGINAL, RETRAINED):
            return self._cell_of(self.network(seed, name, scene), seed)
        original = self.network(seed, ORIGINAL, scene)
        method = self._maker.method(name, chosen[name], self._ceiling(seed, original))
        try:
            network, steps, seconds = forget(self._subject, scene, original, name, method, seed)
        except NonFiniteError as error:
            return {"settings": chosen[name]._asdict(), "failed": str(error)}
        return {
            "settings": chosen[name]._asdict(),
            "steps": steps,
            "seconds": seconds,
            **self._cell_of(network, seed),
        }

    def _cell_of(self, network: Network, seed: int) -> dict[str, Any]:
        """Every measure of a network, for each example and as means."""
        subject, scene = self._subject, self.scenes[False]
        forget_questions = subject.questions(scene.forget)
        knowledge = {
            "forget": measure_knowledge(network, forget_questions, subject.decode),
            "retain": measure_knowledge(
                network, subject.questions(scene.retain, subject.settings.retain_asked), subject.decode
            ),
        }
        held_out = measure_answers(network, subject.flat(scene.held_out))
        return {
            "means": {part: each.means(forget=part == "forget") for part, each in knowledge.items()},
            "areas": membership_areas(knowledge["forget"].answers, held_out),
            "rounded": {str(bits): self._rounded(network, bits) for bits in (8, 4)},
            "relearned": self._relearned(network, seed)._asdict(),
            "examples": {part: each.document() for part, each in knowledge.items()},
            "held_out": {
                part: [float(f"{value:.5g}") for value in values] for part, values in held_out._asdict().items()
            },
        }

    def _rounded(self, network: Network, bits: int) -> dict[str, float]:
        subject, scene = self._subject, self.scenes[False]
        later = network._replace(params=rounded_weights(network.params, bits))
        forget_answers = measure_answers(later, subject.flat(scene.forget))
        retain_answers = measure_answers(later, subject.questions(scene.retain, subject.settings.retain_asked).answers)
        return {
            "probability_forget": float(forget_answers.probability.mean()),
            "exact_forget": float(forget_answers.exact_memorization.mean()),
            "probability_retain": float(retain_answers.probability.mean()),
        }

    def _relearned(self, network: Network, seed: int) -> Any:
        """Two passes over every second question about each forgotten author, and what that does to the others."""
        subject, settings = self._subject, self._subject.settings
        answers = [subject.encoded(author) for author in self.scenes[False].forget]
        if self._relearning is None:
            self._relearning = relearning_method(network, learning_rate=settings.learning_rate / 4, batch_size=2)
        return relearn(
            network,
            [one for each in answers for one in each[::2]],
            [one for each in answers for one in each[1::2]],
            self._relearning,
            jax.random.key(seed),
            length=settings.row,
            num_epochs=2,
        )
