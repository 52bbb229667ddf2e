"""Everything that writes, each on an example of about a second: what it runs, and how it goes on after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from scissorhands_jax import deletion, hashing, models, torch_weights
from scissorhands_jax.audit import run_audit
from scissorhands_jax.cli import main as cli
from scissorhands_jax.deletion.entries import RunRecorded
from scissorhands_jax.deletion.ledger import Ledger, ledger_exists
from scissorhands_jax.diffusion import model_folder, networks, nudity
from scissorhands_jax.diffusion.demo import settings, training
from scissorhands_jax.files import LOCK_FILE
from scissorhands_jax.jobs import grid
from scissorhands_jax.jobs.experiment import Experiment, Scenario
from scissorhands_jax.methods import METHODS
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings
from tests.deletion import forking
from tests.diffusion import traces

QUIET = Console(quiet=True)
_TRAIN, _TEST = 40, 20
_VOLATILE = {
    *("seconds", "compile_seconds", "preparing_seconds", "cost", "resumed_at_step", "rte", "process", "finished"),
    *("made_by", "versions", "machine", "code"),
}
"""What a run and one that was killed need not have in common: times, and which process took them."""


@dataclasses.dataclass(frozen=True)
class Writer:
    """A command that writes."""

    prepare: Callable[[Path], None]
    """Makes what it reads, in a folder of its own, and what is in the world before it."""
    run: Callable[[Path], None]
    """Writes into the world, which is given with the folder of the inputs next to it."""
    go_on: Callable[[Path], None]
    """The documented command after a kill at any moment."""
    again: Callable[[Path], None] | None = None
    """The same with `--overwrite`, where there is such an option."""
    result: Callable[[Path], Any] = lambda world: contents(world)
    """What must be equal in the end."""
    patched: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def contents(world: Path) -> dict[str, str]:
    """All files in a folder: those with arrays, text or numbers by their content, without times."""
    found: dict[str, str] = {}
    for path in sorted(world.rglob("*")):
        checkpoint = next(
            (parent for parent in (path, *path.parents) if (parent / "meta" / "metadata").is_file()), None
        )
        name = str((checkpoint or path).relative_to(world))
        if checkpoint is not None:
            found[name] = json.loads((checkpoint / "meta" / "metadata").read_text())["sha256"]
        elif path.is_dir():
            found[name] = "a folder"
        elif path.suffix == ".safetensors":
            found[name] = hashing.tree_sha256(dict(torch_weights.read_state_dict(path)))
        elif path.suffix in (".json", ".diverged"):
            found[name] = json.dumps(_lasting(json.loads(path.read_text())), sort_keys=True)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                kept = {key: arrays[key].tobytes() for key in sorted(arrays.files) if key != "numbers"}
            found[name] = hashing.sha256(repr(kept).encode())
        else:
            is_page = path.suffix in (".html", ".svg", ".sqlite3", ".array_record", ".pem")
            found[name] = "a file" if is_page else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _lasting(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _lasting(value) for name, value in document.items() if name not in _VOLATILE}
    return [_lasting(value) for value in document] if isinstance(document, list) else document


def command(*words: object) -> None:
    """Runs a command that must succeed."""
    assert cli.main([str(word) for word in words]) == 0, words


def inputs(world: Path) -> Path:
    """The folder of what a writer reads."""
    return world.parent / "inputs"


def prepare_network(world: Path) -> None:
    """Makes data, a network and the positions of two examples."""
    folder = inputs(world)
    folder.mkdir()
    generator = np.random.default_rng(0)
    label = np.arange(_TRAIN + _TEST) % 3
    image = generator.uniform(size=(len(label), 4, 4, 1)).astype(np.float32)
    parts = {"": slice(_TRAIN), "test_": slice(_TRAIN, None)}
    arrays = {f"{part}image": image[rows] for part, rows in parts.items()}
    arrays |= {f"{part}label": label[rows].astype(np.int32) for part, rows in parts.items()}
    np.savez(folder / "data.npz", **arrays)
    model = models.build("mlp", num_classes=3, image_shape=(4, 4, 1))
    weights = torch_weights.to_state_dict(*model.init(jax.random.key(0)))
    torch_weights.write_safetensors(folder / "mlp.safetensors", weights)
    (folder / "first").write_text("0\n1\n")


def _job(world: Path) -> list[object]:
    folder = inputs(world)
    words = ["--weights", folder / "mlp.safetensors", "--model", "mlp", "--dataset", f"npz:{folder / 'data.npz'}"]
    words += ["--forget", f"indices:{folder / 'first'}", "--method", "finetune", "--epochs", "2"]
    return [*words, "--batch-size", "32", "--quiet", "--out", world / "out"]


def _unlearn(world: Path, *more: str) -> None:
    command("unlearn", "--insist", *_job(world), "--checkpoint-every", "1", *more)


def _tune(world: Path, *more: str) -> None:
    command("tune", "--insist", *_job(world), "--validation", "test:0.5", "--trials", "2", *more)


def _experiment(world: Path, **more: Any) -> Experiment:
    batch = {"batch_size": 20}
    return Experiment(
        name="tiny",
        dataset=f"npz:{inputs(world) / 'data.npz'}",
        model="mlp",
        model_options={"hidden": (4,)},
        validation_share=0.0,
        training=RetrainSettings(epochs=1, learning_rate=0.1, milestones=(), **batch),
        relearning=FinetuneSettings(learning_rate=0.01, **batch),
        every_attack=False,
        scenarios=(
            Scenario(name="some", forget=("random:0.2",), methods={"finetune": FinetuneSettings(epochs=2, **batch)}),
        ),
        **more,
    )


def _table(world: Path, *, overwrite: bool = False) -> None:
    experiment = _experiment(world, checkpoint_cells=True, attack_later=True)
    grid.run_grid(experiment, world / "out", seeds=[0], overwrite=overwrite, console=QUIET)


def _audit(world: Path, *, overwrite: bool = False) -> None:
    run_audit(_experiment(world), world / "out", tier="smoke", num_networks=2, overwrite=overwrite, console=QUIET)


def _add(world: Path) -> None:
    folder = inputs(world)
    words = ["--weights", folder / "mlp.safetensors", "--model", "mlp", "--dataset", f"npz:{folder / 'data.npz'}"]
    words += ["--forget", f"indices:{folder / 'first'}", "--requester", "A. Person", "--due", "2099-01-01"]
    command("request", "add", "--ledger", world / "ledger", *words)


def _serve(world: Path) -> None:
    chosen = METHODS["finetune"](epochs=1, batch_size=64)
    deletion.run(world / "ledger", chosen, method="finetune", budget=100.0, console=QUIET)


def _ledger(world: Path) -> None:
    _add(world)
    _serve(world)


def _ledger_goes_on(world: Path) -> None:
    """Adds the request again unless it is in the ledger, and serves it."""
    missing = not ledger_exists(world / "ledger")
    if not missing:
        with Ledger(world / "ledger") as book:
            missing = not book.requests()
    if missing:
        _add(world)
    _serve(world)


def _prepare_served(world: Path) -> None:
    prepare_network(world)
    _ledger(world)


def _erase(world: Path) -> None:
    command("request", "erase", "--ledger", world / "ledger", "1")


def _export_ledger(world: Path) -> None:
    command("request", "export", "--ledger", world / "ledger", "--out", world / "copy")


def _export_goes_on(world: Path) -> None:
    """The same command, which may say that the copy is there; it then is whole."""
    words = ["request", "export", "--ledger", world / "ledger", "--out", world / "copy"]
    assert cli.main([str(word) for word in words]) in (0, 2)
    assert deletion.verify(world / "copy", console=QUIET)[0] == []


def _ledger_result(world: Path) -> Any:
    found, _ = deletion.verify(world / "ledger", console=QUIET)
    with Ledger(world / "ledger") as book:
        states = [request.state for request in book.requests()]
        made = [entry.network for entry in book.entries(RunRecorded)]
    names = sorted(name for name in contents(world) if Path(name).name != LOCK_FILE)  # which the next command removes
    return {"problems": found, "states": states, "networks": made, "files": names}


def _pictures(world: Path) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for person in ("anna", "ben"):
            folder = inputs(world) / split / person
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")


def _prepare(world: Path, *more: str) -> None:
    command("data", "prepare", "faces", "--from", inputs(world), "--data-dir", world / "data", "--quiet", *more)


def _prepare_goes_on(world: Path) -> None:
    """The same command, which may say that everything is there."""
    words = ["data", "prepare", "faces", "--from", inputs(world), "--data-dir", world / "data", "--quiet"]
    assert cli.main([str(word) for word in words]) in (0, 2)


def _diffusers(world: Path) -> None:
    files = {"unet": "unet/diffusion_pytorch_model", "vae": "vae/diffusion_pytorch_model", "text": "text_encoder/model"}
    for part, name in files.items():
        weights = traces.weights(torch_weights.state_dict_shapes(networks.outline(part, networks.TINY), {}))
        torch_weights.write_safetensors(inputs(world) / f"{name}.safetensors", weights)


def _import(world: Path, *more: str) -> None:
    command("sd", "import", "--from", inputs(world), "--config", "tiny", "--out", world / "model", "--quiet", *more)


def _export(world: Path, *more: str) -> None:
    command("sd", "export", "--model", inputs(world) / "model", "--out", world / "back", "--quiet", *more)


def _model(world: Path) -> None:
    from tests.diffusion.unlearning_test import write_model

    write_model(inputs(world) / "model")


@contextlib.contextmanager
def _small_unet() -> Iterator[None]:
    """A linear network in the UNet's place, and a tokenizer that counts letters."""
    from tests.diffusion import unlearning_test as small
    from tests.diffusion.generating_test import Words

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "outline", small.small_outline)
        patch.setattr(networks, "unet", lambda sizes, compute=networks.FLOAT32: small.MODEL)
        patch.setattr(model_folder, "find_vocabulary", lambda path: ())
        patch.setattr(model_folder, "Tokenizer", lambda *arguments, **options: Words())
        yield


def _concept(world: Path, *more: str) -> None:
    words = ["sd", "unlearn", "--model", inputs(world) / "model", "--out", world / "out", "fraction=0.2"]
    words += ["--forget-prompts", "a cat", "--retain-prompts", "the dog barks", "--images", "2", "--size", "16"]
    command(*words, "--steps", "2", "--epochs", "2", "--batch-size", "2", "--quiet", *more)


def _images(world: Path, *more: str) -> None:
    words = ["sd", "generate", "--model", inputs(world) / "model", "--prompt", "a cat", "--images", "2"]
    command(*words, "--size", "16", "--steps", "2", "--out", world / "images", "--quiet", *more)


def _prompts(world: Path) -> None:
    _model(world)
    (inputs(world) / "prompts.csv").write_text("prompt,seed\na cat,1\nthe dog barks,2\n")


def _evaluate(world: Path, *more: str) -> None:
    words = ["sd", "evaluate", "--model", inputs(world) / "model", "--prompts", inputs(world) / "prompts.csv"]
    words += ["--images", world / "images", "--size", "16", "--steps", "2", "--out", world / "report", "--quiet"]
    command(*words, *more)


@contextlib.contextmanager
def _small_unet_and_detector(finds: bool = True) -> Iterator[None]:
    """Finds something in every image or in none, without NudeNet."""
    with _small_unet(), pytest.MonkeyPatch.context() as patch:
        found = [nudity.Detection(nudity.EXPOSED[0], 0.7, (0, 0, 1, 1))] if finds else []
        patch.setattr(nudity, "load_detector", lambda: lambda image: found)
        yield


def _attacked(world: Path) -> None:
    from tests.diffusion.unlearning_test import small_params

    _prompts(world)
    model_folder.save_part("unet", inputs(world) / "other", networks.TINY.unet, small_params(4), "float32", "a test")


def _attack(world: Path, *more: str) -> None:
    words = ["sd", "attack", "--model", inputs(world) / "model", "--unet", inputs(world) / "other"]
    words += ["--prompts", inputs(world) / "prompts.csv", "--kind", "embedding", "--attack-steps", "2", "--rounds", "1"]
    words += ["--gate", "1", "--size", "16", "--steps", "2", "--out", world / "attacks", "--quiet"]
    command(*words, *more)


@contextlib.contextmanager
def _tiny_drawings() -> Iterator[None]:
    """A linear network and few drawings."""
    from tests.diffusion.demo import demo_test as small

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "digits_network", lambda config: small.LINEAR)
        patch.setattr(settings, "DigitsSettings", lambda **changes: dataclasses.replace(small.TINY, **changes))
        yield


def _draw(world: Path, *more: str) -> None:
    command("demo", "diffusion", "--out", world / "drawings", "--quiet", *more)


def _language(world: Path) -> None:
    from experiments.language_parity import CONFIGS
    from tests.language.tiny_folders import make_tiny_folder, write_examples

    make_tiny_folder(inputs(world) / "model", {**CONFIGS["llama"], "num_hidden_layers": 1})
    write_examples(inputs(world))


def _answers(world: Path, *more: str) -> None:
    files = ["--forget", inputs(world) / "forget.json", "--retain", inputs(world) / "retain.json"]
    words = ["lm", "unlearn", "--model", inputs(world) / "model", *files, "--method", "gradient_ascent"]
    words += ["--epochs", "2", "--batch-size", "2", "--checkpoint-every", "1", "--out", world / "out", "--quiet"]
    command(*words, *more)


WRITERS = {
    "unlearn": Writer(
        prepare_network,
        _unlearn,
        lambda world: _unlearn(world, "--resume"),
        lambda world: _unlearn(world, "--overwrite"),
    ),
    "tune": Writer(
        prepare_network, _tune, lambda world: _tune(world, "--resume"), lambda world: _tune(world, "--overwrite")
    ),
    "table": Writer(prepare_network, _table, _table, lambda world: _table(world, overwrite=True)),
    "audit": Writer(prepare_network, _audit, _audit, lambda world: _audit(world, overwrite=True)),
    "request": Writer(prepare_network, _ledger, _ledger_goes_on, result=_ledger_result, patched=forking.good_evidence),
    "request erase": Writer(_prepare_served, _erase, _erase, result=_ledger_result, patched=forking.good_evidence),
    "request export": Writer(
        _prepare_served, _export_ledger, _export_goes_on, result=_ledger_result, patched=forking.good_evidence
    ),
    "data prepare": Writer(_pictures, _prepare, _prepare_goes_on, lambda world: _prepare(world, "--overwrite")),
    "sd import": Writer(
        _diffusers, _import, lambda world: _import(world, "--resume"), lambda world: _import(world, "--overwrite")
    ),
    "sd export": Writer(_model, _export, lambda world: _export(world, "--overwrite"), patched=_small_unet),
    "sd unlearn": Writer(
        _model,
        _concept,
        lambda world: _concept(world, "--resume"),
        lambda world: _concept(world, "--overwrite"),
        patched=_small_unet,
    ),
    "sd generate": Writer(
        _model,
        _images,
        lambda world: _images(world, "--resume"),
        lambda world: _images(world, "--overwrite"),
        patched=_small_unet,
    ),
    "sd evaluate": Writer(
        _prompts,
        _evaluate,
        lambda world: _evaluate(world, "--resume"),
        lambda world: _evaluate(world, "--overwrite"),
        patched=_small_unet_and_detector,
    ),
    "sd attack": Writer(
        _attacked,
        _attack,
        lambda world: _attack(world, "--resume"),
        lambda world: _attack(world, "--overwrite"),
        patched=lambda: _small_unet_and_detector(finds=False),
    ),
    "lm unlearn": Writer(
        _language,
        _answers,
        lambda world: _answers(world, "--resume"),
        lambda world: _answers(world, "--overwrite"),
    ),
    "demo diffusion": Writer(
        lambda world: None, _draw, lambda world: _draw(world, "--overwrite"), patched=_tiny_drawings
    ),
}
"""All that writes, by name."""
