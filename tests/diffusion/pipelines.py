"""Pipelines of diffusers, in and out again, beside diffusers itself: `python -m tests.diffusion.pipelines`.

It needs torch, diffusers and transformers (2.13.0, 0.42.1 and 5.24.0 were tried), which the tests do not. For two
networks of random weights, one of them without a middle and trained on the velocity, a pipeline is saved as diffusers
and transformers save it today, in pieces and with `tokenizer.json` alone; it is imported, images are made by all four
samplers in both, it is exported, loaded again by `StableDiffusionPipeline.from_pretrained`, and its images are made
once more. `tiny` or `reduced` after the command checks one of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from scissorhands_jax.cli import main as cli
from scissorhands_jax.diffusion import folder_configs, model_folder, networks
from scissorhands_jax.diffusion import tokenizer as tokenizer_lib
from tests.diffusion import traces

PROMPT = "a Photo of  naïve cats"
STEPS, SIZE = 12, 16


def main(names: Sequence[str]) -> None:
    """Checks networks, by default both, and prints the largest differences."""
    configs = {"tiny": networks.TINY, "reduced": traces.REDUCED}
    for name in names or configs:
        with tempfile.TemporaryDirectory() as folder:
            _check(name, configs[name], Path(folder))


def _check(name: str, config: networks.DiffusionConfig, work: Path) -> None:
    import diffusers
    import torch
    from safetensors.torch import load_file

    pipeline = _pipeline(config, work)
    pipeline.save_pretrained(work / "saved", max_shard_size="300KB")
    saved = sorted(path.relative_to(work / "saved").as_posix() for path in (work / "saved").rglob("*.*"))
    sys.stdout.write(f"{name}: {', '.join(saved)}\n")
    _command("import", "--from", work / "saved", "--out", work / "model")
    assert model_folder.read_model_config(work / "model") == config

    ids = _ids(pipeline.tokenizer)
    assert (model_folder.load_tokenizer(work / "model")([PROMPT]) == np.array(ids)).all()
    schedulers = {
        "pndm": diffusers.PNDMScheduler,
        "ddim": diffusers.DDIMScheduler,
        "lms": diffusers.LMSDiscreteScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
    }
    images = {}
    for sampler, kind in schedulers.items():
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing=_spacing(sampler))
        images[sampler] = _image(pipeline)
        words = ["--sampler", sampler, "--steps", STEPS, "--size", SIZE, "--seed", 3, "--prompt", PROMPT]
        _command("generate", "--model", work / "model", *words, "--out", work / sampler)
        found = np.asarray(Image.open(work / sampler / "00000.png")).astype(int)
        difference = np.abs(found - images[sampler]).max()
        sys.stdout.write(f"{name}, {sampler}: {difference}/255, spread {images[sampler].std():.0f}\n")
        assert difference <= 1

    _command("export", "--model", work / "model", "--out", work / "back")
    again = diffusers.StableDiffusionPipeline.from_pretrained(work / "back")
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler).__name__ == "PNDMScheduler"
    for part in ("unet", "vae", "text_encoder"):
        state, expected = (getattr(each, part).state_dict() for each in (again, pipeline))
        assert set(state) == set(expected)
        assert all(torch.equal(state[key], value) for key, value in expected.items()), part
    assert _ids(again.tokenizer) == ids
    assert (_image(again) == images["pndm"]).all()
    _command("export", "--model", work / "model", "--out", work / "unet.safetensors")
    pipeline.unet.load_state_dict(load_file(work / "unet.safetensors"))
    sys.stdout.write(f"{name}: exports are the same\n")


def _ids(theirs) -> list[list[int]]:
    return theirs([PROMPT], padding="max_length", truncation=True, max_length=theirs.model_max_length).input_ids


def _spacing(sampler: str) -> str:
    return "leading" if sampler in ("pndm", "ddim") else "linspace"


def _pipeline(config: networks.DiffusionConfig, work: Path):
    import diffusers
    import torch
    import transformers

    def settings(part: networks.Part) -> dict:
        described = folder_configs.config_document(getattr(config, part))
        return {name: value for name, value in described.items() if name not in ("_class_name", "architectures")}

    vocabulary = work / "vocabulary"
    vocabulary.mkdir()
    tokens = tokenizer_lib.Vocabulary(tokenizer_lib.byte_tokens(), [], length=config.text.length)
    for name, text in tokenizer_lib.transformers_files(tokens).items():
        (vocabulary / name).write_text(text, encoding="utf-8")
    schedule = {k: v for k, v in folder_configs.scheduler_document(config.schedule).items() if k != "_class_name"}
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(**settings("unet")),
        vae=diffusers.AutoencoderKL(**settings("vae")),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings("text"))),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(vocabulary),
        scheduler=diffusers.PNDMScheduler.from_config(schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _image(pipeline) -> np.ndarray:
    import torch

    generator = torch.Generator().manual_seed(3)
    made = pipeline(PROMPT, height=SIZE, width=SIZE, num_inference_steps=STEPS, generator=generator)
    return np.asarray(made.images[0]).astype(int)


def _command(*words) -> None:
    assert cli.main(["sd", *map(str, words)]) == 0, words


if __name__ == "__main__":
    main(sys.argv[1:])
