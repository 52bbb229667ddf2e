"""Stable Diffusion v1.4 at full size, with random weights: against PyTorch's diffusers, and what it costs.

    python -m experiments.diffusion_full --torch PYTHON --out experiments/results/diffusion_full_cpu.json

This makes random weights as a diffusers folder (4.3 GB), imports them, computes with them here and in PyTorch, exports
them and compares the files bit by bit. Every stage is a process of its own, so that its peak of memory is its own.
PYTHON is an interpreter with torch, diffusers and transformers; without it the comparison is left out. The files take
13 GB of disk.

    python -m experiments.diffusion_full --only plan_traced --out experiments/results/diffusion_full_cpu.json

This estimates from traced programs what every method needs at batch 16, which takes minutes and no compiler.

    python -m experiments.diffusion_full --only plan --only unlearn --out experiments/results/diffusion_full_cpu.json

This predicts the memory of an unlearning step at batch 1 (`sd plan`) and takes one, with everything before it
(saliency, threshold, re-initialisation), as `sd unlearn` does; the other results in the file stay. These stages need no
files. A stage that leaves the machine less than 1.2 GiB is ended. By default glibc does not give freed arrays of up to
32 MiB back to the system, which here was several GiB; the stages set `MALLOC_MMAP_THRESHOLD_` against this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.diffusion_plans import SIZES, plan, plan_batch_16, plan_traced, unlearning_settings

LEAST_FREE_GIB = 1.2
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text": "text_encoder/model.safetensors",
}


def inputs(name: str) -> dict[str, np.ndarray]:
    """Returns a noisy latent, an image and a prompt of random ids, of the sizes that a network is for."""
    side, factor, width, vocabulary, length = SIZES[name]
    draw = np.random.default_rng(0)
    return {
        "latents": draw.standard_normal((1, 4, side, side)).astype(np.float32),
        "timesteps": np.array([501.0], np.float32),
        "context": draw.standard_normal((1, length, width)).astype(np.float32),
        "images": draw.uniform(-1, 1, (1, 3, factor * side, factor * side)).astype(np.float32),
        "ids": draw.integers(0, vocabulary, (1, length)),
    }


def timed(call: Callable[[], Any], repeats: int = 2) -> tuple[Any, list[float]]:
    """Returns the result of a call, and how many seconds each of some calls takes."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(round(time.perf_counter() - start, 2))
    return result, seconds


def make(work: Path, name: str) -> dict[str, Any]:
    """Makes random weights, and stores them as diffusers does."""
    from scissorhands_jax import files, torch_weights
    from scissorhands_jax.diffusion import folder_configs, networks
    from tests.diffusion import traces as diffusion_traces

    sizes, config = {}, networks.CONFIGS[name]
    for part in networks.PARTS:
        path = work / "diffusers" / FILES[part]
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes = torch_weights.state_dict_shapes(networks.outline(part, config), {})
        torch_weights.write_safetensors(path, diffusion_traces.weights(shapes))
        described = folder_configs.config_document(getattr(config, part))
        files.write_text(path.with_name("config.json"), json.dumps(described))
        sizes[part] = {"file_bytes": path.stat().st_size, "arrays": len(shapes)}
    return sizes


def torch(work: Path, name: str) -> dict[str, Any]:
    """Computes with diffusers and transformers."""
    import diffusers
    import torch
    import transformers

    given = {key: torch.from_numpy(array) for key, array in inputs(name).items()}
    folder, found, seconds = work / "diffusers", {}, {}

    def run_unet():
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").eval()
        call = lambda: unet(given["latents"], given["timesteps"], given["context"]).sample  # noqa: E731
        found["unet"], seconds["unet"] = timed(call)

    def run_vae():
        vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval()
        found["vae_encoder"], seconds["vae_encoder"] = timed(lambda: vae.encode(given["images"]).latent_dist.parameters)
        found["vae_decoder"], seconds["vae_decoder"] = timed(lambda: vae.decode(given["latents"]).sample)

    def run_text():
        text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
        found["text"], seconds["text"] = timed(lambda: text(given["ids"]).last_hidden_state)

    with torch.no_grad():
        run_unet()
        run_vae()
        run_text()
    np.savez(work / "torch.npz", **{key: value.numpy() for key, value in found.items()})
    versions = {library.__name__: library.__version__ for library in (torch, diffusers, transformers)}
    return {"seconds": seconds, "versions": versions}


def import_(work: Path, name: str) -> dict[str, Any]:
    """Imports diffusers' files to Orbax."""
    from scissorhands_jax.diffusion import importing, networks

    seconds, start = {}, time.perf_counter()
    for part in networks.PARTS:
        begin = time.perf_counter()
        importing.import_weights({part: work / "diffusers"}, work / "model", networks.CONFIGS[name])
        seconds[part] = round(time.perf_counter() - begin, 2)
    return {"seconds": seconds, "seconds_total": round(time.perf_counter() - start, 2)}


def compute(work: Path, name: str) -> dict[str, Any]:
    """Computes with the library's networks, and says how far the results are from PyTorch's."""
    import jax
    import jax.numpy as jnp

    from scissorhands_jax import array_files
    from scissorhands_jax.diffusion import model_folder, networks
    from scissorhands_jax.diffusion.unet import Noisy

    jax.config.update("jax_default_matmul_precision", "highest")
    config = networks.CONFIGS[name]
    given = {key: jnp.asarray(array) for key, array in inputs(name).items()}

    def nhwc(key):
        return given[key].transpose(0, 2, 3, 1)

    jobs = {
        "text": ("text", networks.text_encoder(config.text), given["ids"]),
        "vae_encoder": ("vae", networks.vae_encoder(config.vae), nhwc("images")),
        "vae_decoder": ("vae", networks.vae_decoder(config.vae), nhwc("latents")),
        "unet": ("unet", networks.unet(config.unet), Noisy(nhwc("latents"), given["timesteps"], given["context"])),
    }
    expected = array_files.read_arrays(work / "torch.npz") if (work / "torch.npz").exists() else {}
    answer: dict[str, Any] = {"seconds": {}, "seconds_compile": {}, "seconds_load": {}, "error": {}}

    def run(key, part, model, x):
        begin = time.perf_counter()
        _, params, _ = model_folder.load_part(part, work / "model")
        answer["seconds_load"][key] = round(time.perf_counter() - begin, 2)
        begin = time.perf_counter()
        compiled = jax.jit(lambda params, x: model.apply(params, {}, x, train=False)[0]).lower(params, x).compile()
        answer["seconds_compile"][key] = round(time.perf_counter() - begin, 2)
        found, answer["seconds"][key] = timed(lambda: jax.block_until_ready(compiled(params, x)))
        if key == "vae_encoder":
            found = jnp.concatenate(found, axis=-1)
        if key in expected:
            array = np.asarray(found if key == "text" else found.transpose(0, 3, 1, 2))
            scale = np.abs(expected[key]).max()
            answer["error"][key] = float(np.abs(array - expected[key]).max() / scale)

    for key, job in jobs.items():
        run(key, *job)
    answer["versions"] = {"jax": jax.__version__}
    return answer


def export(work: Path, name: str) -> dict[str, Any]:
    """Exports from Orbax to diffusers' files, and says whether they are the same as the imported ones."""
    del name
    from scissorhands_jax.diffusion import exporting
    from scissorhands_jax.torch_weights import open_state_dict

    start = time.perf_counter()
    written = exporting.export_weights(work / "model", work / "back")
    seconds = round(time.perf_counter() - start, 2)
    peak = peak_gib()
    same = {}
    for part, path in written.items():
        with (
            open_state_dict(path) as found,
            open_state_dict(work / "diffusers" / FILES[part]) as original,
        ):
            same[part] = set(found) == set(original) and all(
                found[key].tobytes() == original[key].tobytes() for key in original
            )
    return {"seconds_total": seconds, "peak_gib": peak, "bit_exact": same}


def unlearn(work: Path, name: str) -> dict[str, Any]:
    """Takes a projected repair step at batch 1, and all that comes before it, by `training.run` on random weights."""
    del work
    import jax

    from scissorhands_jax import Data, masks, reinit, saliency
    from scissorhands_jax.diffusion import networks
    from scissorhands_jax.training import compilation
    from scissorhands_jax.training import loop as training

    sizes, settings, generation = unlearning_settings(name)
    parts: dict[str, Any] = {}

    def measured(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Makes a call, and keeps its seconds without compilation and its peak of memory."""

        def timed_call(*arguments: Any, **options: Any) -> Any:
            reset_peak()
            compiled, start = compilation.seconds(), time.perf_counter()
            result = jax.block_until_ready(call(*arguments, **options))
            compile_seconds = compilation.seconds() - compiled
            key = part if part not in parts else f"{part} again"
            parts[key] = {
                "seconds": round(time.perf_counter() - start - compile_seconds, 2),
                "seconds_compile": round(compile_seconds, 2),
                "peak_gib": peak_gib(),
            }
            sys.stderr.write(f"{key}: {json.dumps(parts[key])}\n")
            return result

        return timed_call

    # The library's own functions, where the method and the loop call them.
    saliency.gradient_sum = measured("saliency of one example", saliency.gradient_sum)
    masks.top_fraction = measured("threshold and mask", masks.top_fraction)
    reinit.reinitialize = measured("re-initialisation", reinit.reinitialize)
    training._step = measured("repair step", training._step)

    draw = np.random.default_rng(0)
    side, _, width, _, length = SIZES[name]

    def examples() -> dict[str, np.ndarray]:
        shapes = {"latents": (1, side, side, 4), "deviation": (1, side, side, 4), "context": (1, length, width)}
        return {part: 0.5 * draw.standard_normal(shape).astype(np.float32) for part, shape in shapes.items()}

    metrics_of_steps: list[dict[str, float]] = []

    def on_step(step: training.Progress) -> None:
        metrics_of_steps.append({metric: float(value.item()) for metric, value in step.metrics.items()})

    start = time.perf_counter()
    method = settings.method(networks.unet(sizes.unet, generation.compute))
    result = training.run(
        method,
        jax.random.key(0),
        measured("random weights", lambda: networks.init_part("unet", sizes, jax.random.key(1)))(),
        {},
        Data(examples(), examples()),
        num_epochs=settings.epochs,
        on_step=on_step,
    )
    finite = all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(result.params))
    return {
        "optimizer": settings.optimizer,
        "fraction": settings.fraction,
        "remat": generation.compute.remat,
        "preset": "paper",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(result.params)),
        "parts": parts,
        "steps": metrics_of_steps,
        "finite": finite,
        "peak_gib": max(part["peak_gib"] for part in parts.values()),
        "seconds_total": round(time.perf_counter() - start, 1),
        "versions": {"jax": jax.__version__},
    }


STAGES = {
    "make": make,
    "torch": torch,
    "import": import_,
    "compute": compute,
    "export": export,
    "plan": plan,
    "plan_traced": plan_traced,
    "plan_batch_16": plan_batch_16,
    "unlearn": unlearn,
}


def peak_gib() -> float:
    """Returns the largest resident size of this process in GiB, which on Linux is that since `reset_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 2**20, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def reset_peak() -> None:
    """Begins a new phase for `peak_gib`, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def guarded(command: list[str]) -> str:
    """Runs a stage and returns what it prints. It is ended where it would leave the machine too little memory.

    Raises:
      RuntimeError: The stage failed, or was ended.
    """
    environment = {"MALLOC_MMAP_THRESHOLD_": str(2**20), **os.environ}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        low = threading.Event()

        def watch() -> None:
            while process.poll() is None:
                if free_gib() < LEAST_FREE_GIB:
                    low.set()
                    process.kill()
                time.sleep(0.2)

        threading.Thread(target=watch, daemon=True).start()
        output = process.communicate()[0]
    if process.returncode:
        why = "it would have left the machine too little memory" if low.is_set() else f"status {process.returncode}"
        raise RuntimeError(f"{' '.join(command)} failed: {why}")
    return output


def free_gib() -> float:
    """Returns the memory in GiB that the machine can still give, or infinity where it does not say."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return float("inf")
    line = next(line for line in info.read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) / 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all stages, or some, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", metavar="PYTHON", help="interpreter with torch, diffusers and transformers")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write the results as JSON, after every stage"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for the files (default: a temporary one)")
    parser.add_argument("--config", choices=SIZES, default="sd-v1", help="tiny tries the script out")
    parser.add_argument(
        "--only", choices=STAGES, action="append", help="this stage; may be repeated (the other results in FILE stay)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what FILE holds, also of another --config")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage:
        answer = STAGES[options.stage](options.work, options.config)
        machine = {"cores": len(os.sched_getaffinity(0)), "peak_gib": peak_gib()}
        sys.stdout.write("\n" + json.dumps(machine | answer) + "\n")
        return 0
    from experiments import programs  # which imports JAX; the interpreter of --torch perhaps has none

    ended = programs.ending("FILE has the stages that ended; --only STAGE goes on with one of the others")
    return ended(_run_stages)(options)


def _run_stages(options: argparse.Namespace) -> int:
    from experiments import programs
    from scissorhands_jax.errors import InputError
    from scissorhands_jax.report import provenance

    provenance.note_code()
    if options.torch is None and "torch" in (options.only or ()):
        raise InputError(
            "--only torch needs --torch and an interpreter with torch, diffusers and transformers; name it"
        )
    chosen = [stage for stage in options.only or STAGES if stage != "torch" or options.torch is not None]
    with (
        tempfile.TemporaryDirectory() as temporary,
        programs.open_results(
            options.out,
            {"config": options.config},
            results_of=_stages_of,
            compose=lambda results: programs.ordered(results, STAGES),
            overwrite=options.overwrite,
        ) as results,
    ):
        for stage in dict.fromkeys(chosen):
            python = options.torch if stage == "torch" else sys.executable
            command = [python, "-m", "experiments.diffusion_full", "--stage", stage]
            command += ["--config", options.config, "--work", str(options.work or temporary)]
            found = json.loads(guarded(command).strip().splitlines()[-1])
            results.add(stage, found)
            sys.stderr.write(f"{stage}: {json.dumps(found)}\n")
        sys.stdout.write(json.dumps(results.document(), indent=2) + "\n")
    return 0


def _stages_of(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The results of a file by stage; earlier files have the cores once for all."""
    shared = {"cores": document["cores"]} if "cores" in document else {}
    return {stage: {**shared, **document[stage]} for stage in STAGES if stage in document}


if __name__ == "__main__":
    sys.exit(main())
