"""Stable Diffusion v1.4 at full size, with random weights: against PyTorch's diffusers, and what it costs.

    python -m experiments.diffusion_full --torch PYTHON --out experiments/results/diffusion_full_cpu.json

makes random weights as a diffusers folder (4.3 GB), imports them, computes with them here and in PyTorch, exports them
and compares the files bit by bit. Every stage is a process of its own, so that its peak of memory is its own. PYTHON is
an interpreter with torch, diffusers and transformers; without it the comparison is left out. The files take 13 GB of
disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Side of the latents, pixels to a latent, width of the prompts, tokens, length of a prompt. The stage in PyTorch does
# not import the library.
SIZES = {"sd-v1": (64, 8, 768, 49408, 77), "tiny": (8, 2, 32, 99, 11)}
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text": "text_encoder/model.safetensors",
}


def inputs(name: str) -> dict[str, np.ndarray]:
    """One noisy latent, one image and one prompt of random ids, of the size that a network is for."""
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
    """The result of a call, and the seconds of each of some calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(round(time.perf_counter() - start, 2))
    return result, seconds


def make(work: Path, name: str) -> dict[str, Any]:
    """Random weights, as diffusers stores them."""
    from scissorhands_jax import files, torch_weights
    from scissorhands_jax.diffusion import networks
    from scissorhands_jax.diffusion import weights as weights_lib
    from tests import diffusion_traces

    sizes, config = {}, networks.CONFIGS[name]
    for part in networks.PARTS:
        path = work / "diffusers" / FILES[part]
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes = torch_weights.state_dict_shapes(networks.outline(part, config), {})
        torch_weights.write_safetensors(path, diffusion_traces.weights(shapes))
        described = weights_lib.diffusers_config(part, getattr(config, part))
        files.write_text(path.with_name("config.json"), json.dumps(described))
        sizes[part] = {"file_bytes": path.stat().st_size, "arrays": len(shapes)}
    return sizes


def torch(work: Path, name: str) -> dict[str, Any]:
    """What diffusers and transformers compute."""
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
    """From diffusers' files to Orbax."""
    from scissorhands_jax.diffusion import networks, weights

    seconds, start = {}, time.perf_counter()
    for part in networks.PARTS:
        begin = time.perf_counter()
        weights.import_weights({part: work / "diffusers"}, work / "model", networks.CONFIGS[name])
        seconds[part] = round(time.perf_counter() - begin, 2)
    return {"seconds": seconds, "seconds_total": round(time.perf_counter() - start, 2)}


def compute(work: Path, name: str) -> dict[str, Any]:
    """What our networks compute, and how far that is from PyTorch."""
    import jax
    import jax.numpy as jnp

    from scissorhands_jax.diffusion import networks, weights
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
    expected = np.load(work / "torch.npz") if (work / "torch.npz").exists() else {}
    answer: dict[str, Any] = {"seconds": {}, "seconds_compile": {}, "seconds_load": {}, "error": {}}

    def run(key, part, model, x):
        begin = time.perf_counter()
        _, params, _ = weights.load_network(part, work / "model")
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
    """From Orbax back to diffusers' files, and whether they are the same."""
    del name
    from scissorhands_jax import torch_weights
    from scissorhands_jax.diffusion import weights

    start = time.perf_counter()
    written = weights.export_weights(work / "model", work / "back")
    seconds = round(time.perf_counter() - start, 2)
    peak = peak_gib()
    same = {}
    for part, path in written.items():
        with (
            torch_weights.open_state_dict(path) as found,
            torch_weights.open_state_dict(work / "diffusers" / FILES[part]) as original,
        ):
            same[part] = set(found) == set(original) and all(
                found[key].tobytes() == original[key].tobytes() for key in original
            )
    return {"seconds_total": seconds, "peak_gib": peak, "bit_exact": same}


STAGES = {"make": make, "torch": torch, "import": import_, "compute": compute, "export": export}


def peak_gib() -> float:
    """The largest resident size that this process has had."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def main() -> None:
    """Runs all stages, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", metavar="PYTHON", help="interpreter with torch, diffusers and transformers")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the result as JSON")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for the files (default: a temporary one)")
    parser.add_argument("--config", choices=SIZES, default="sd-v1", help="tiny tries the script out")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        answer = STAGES[options.stage](options.work, options.config)
        sys.stdout.write("\n" + json.dumps({"peak_gib": peak_gib()} | answer) + "\n")
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        document: dict[str, Any] = {"config": options.config, "cores": len(os.sched_getaffinity(0))}
        for stage in STAGES:
            if stage == "torch" and options.torch is None:
                continue
            python = options.torch if stage == "torch" else sys.executable
            command = [python, "-m", "experiments.diffusion_full", "--stage", stage]
            command += ["--config", options.config, "--work", str(work)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            document[stage] = json.loads(done.stdout.strip().splitlines()[-1])
            sys.stderr.write(f"{stage}: {json.dumps(document[stage])}\n")
    text = json.dumps(document, indent=2) + "\n"
    if options.out is not None:
        options.out.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
