"""What PyTorch's diffusers and transformers compute with tiny networks of made-up weights.

`python -m tests.diffusion.traces` writes `traces.npz`; it needs torch, diffusers and transformers (2.13.0,
0.42.1 and 5.24.0 made the file). The tests make the same weights again and need none of them. Arrays are laid out as
PyTorch does; a gradient is kept as its norm and its dot products with two random directions.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from scissorhands_jax import torch_weights
from scissorhands_jax.diffusion.networks import DiffusionConfig
from scissorhands_jax.diffusion.schedules import Schedule
from scissorhands_jax.diffusion.text import TextConfig
from scissorhands_jax.diffusion.unet import UNetConfig
from scissorhands_jax.diffusion.vae import VAEConfig

RECORDED = Path(__file__).with_name("traces.npz")
SEEDS = (0, 42, 2**31 + 5)
STEPS = (50, 20)
REDUCED = DiffusionConfig(
    UNetConfig(
        widths=(16, 24),
        attention=(False, True),
        layers_per_block=1,
        heads=2,
        context_width=24,
        groups=4,
        middle=False,
        side=4,
    ),
    VAEConfig(widths=(8, 16), layers_per_block=1, groups=4, scaling=0.5),
    TextConfig(vocabulary=600, length=16, width=24, layers=1, heads=3, hidden=37),
    Schedule(kind="linear", start=0.0001, end=0.02, prediction="v_prediction"),
)
"""Other networks of the kind, with everything in which such networks differ."""


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Made-up weights by name, which keep activations at about 1. dtype=float32"""
    arrays = {}
    for name, shape in shapes.items():
        normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) == 1:
            normal = 0.1 * normal + ("norm" in name and name.endswith("weight"))
        else:
            normal /= np.sqrt(np.prod(shape[1:])) if "embedding.weight" not in name else 1
        arrays[name] = normal.astype(np.float32)
    return arrays


def params(outline):
    """The same as a tree like the outline."""
    made = weights(torch_weights.state_dict_shapes(outline, {}))
    return torch_weights.from_state_dict(made, outline, {}, flatten={})[0]


def inputs() -> dict[str, np.ndarray]:
    """What the networks are shown, and what their outputs are compared with for a gradient."""
    draw = np.random.default_rng(5)

    def normal(*shape):
        return draw.standard_normal(shape).astype(np.float32)

    return {
        "latents": normal(2, 4, 8, 8),
        "timesteps": np.array([981.0, 17.3], np.float32),
        "context": normal(2, 11, 32),
        "images": normal(2, 3, 16, 16),
        "ids": draw.integers(0, 99, (2, 11)),
        "start": normal(2, 4, 8, 8),
        "pixels": normal(2, 3, 16, 16),
        "photograph": draw.integers(0, 256, (21, 34, 3)).astype(np.uint8),
    }


def target(shape: tuple[int, ...]) -> np.ndarray:
    """Outputs to come near to: the loss of the gradients is half the sum of squares of the difference."""
    return np.random.default_rng(6).standard_normal(shape).astype(np.float32)


def digest(gradients: Mapping[str, np.ndarray]) -> np.ndarray:
    """Norm and two dot products of each gradient, by sorted names. shape=(number, 3), dtype=float64"""
    rows = []
    for name in sorted(gradients):
        gradient = gradients[name].astype(np.float64)
        directions = np.random.default_rng(zlib.crc32(name.encode())).standard_normal((2, *gradient.shape))
        rows.append([np.linalg.norm(gradient), *(np.sum(direction * gradient) for direction in directions)])
    return np.array(rows)


def sampled_from(start):
    """The few numbers of `inputs()["start"]`, in PyTorch's layout, whose way through the samplers is kept."""
    return start[:, :, :2, :1]


def toy_noise(latents: np.ndarray, timestep: float):
    """A prediction that is not linear and depends on the timestep; for NumPy, JAX and torch arrays."""
    return latents / (1 + 0.1 * latents**2) + 0.001 * timestep * latents[..., ::1] / (1 + latents**2)


def _record() -> None:
    import diffusers
    import torch
    import transformers
    from PIL import Image

    from scissorhands_jax.diffusion import folder_configs, networks, vision

    torch.set_num_threads(1)
    given = {name: torch.from_numpy(array) for name, array in inputs().items()}
    out: dict[str, np.ndarray] = {}

    def settings(part, config=networks.TINY):
        described = folder_configs.config_document(getattr(config, part))
        return {name: value for name, value in described.items() if name != "_class_name"}

    def fill(module, prefix=""):
        state = module.state_dict()
        named = {prefix + name: tuple(value.shape) for name, value in state.items() if "position_ids" not in name}
        made = {name.removeprefix(prefix): torch.from_numpy(array) for name, array in weights(named).items()}
        module.load_state_dict(made, strict=False)
        return module.eval()

    def trace(name, module, output, prefix=""):
        module.zero_grad()
        (0.5 * (output - torch.from_numpy(target(tuple(output.shape)))).square().sum()).backward()
        out[name] = output.detach().numpy()
        out[f"{name}_gradient"] = digest(
            {prefix + key: value.grad.numpy() for key, value in module.named_parameters() if value.grad is not None}
        )

    unet = fill(diffusers.UNet2DConditionModel(**settings("unet")))
    trace("unet", unet, unet(given["latents"], given["timesteps"], given["context"]).sample)
    vae = fill(diffusers.AutoencoderKL(**settings("vae")))
    trace("vae_encoder", vae, vae.encode(given["images"]).latent_dist.parameters)
    trace("vae_decoder", vae, vae.decode(given["latents"]).sample)
    clip = transformers.CLIPTextConfig(**{k: v for k, v in settings("text").items() if k not in ("architectures",)})
    text = transformers.CLIPTextModel(clip)
    prefix = "" if any(name.startswith("text_model.") for name in text.state_dict()) else "text_model."
    trace("text", fill(text, prefix), text(given["ids"]).last_hidden_state, prefix)

    # Outputs alone of the other networks.
    with torch.no_grad():
        unet = fill(diffusers.UNet2DConditionModel(**settings("unet", REDUCED)))
        out["reduced_unet"] = unet(given["latents"], given["timesteps"], given["context"][..., :24]).sample.numpy()
        vae = fill(diffusers.AutoencoderKL(**settings("vae", REDUCED)))
        out["reduced_vae_encoder"] = vae.encode(given["images"]).latent_dist.parameters.numpy()
        out["reduced_vae_decoder"] = vae.decode(given["latents"]).sample.numpy()
        described = {k: v for k, v in settings("text", REDUCED).items() if k not in ("architectures",)}
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**described))
        out["reduced_text"] = fill(text, prefix)(given["ids"]).last_hidden_state.numpy()

    # The id that ends a prompt is the highest, as in the real vocabulary; 2 has transformers look for that.
    sizes = vision.CLIPS["tiny"]
    both = transformers.CLIPConfig(
        text_config=clip.to_dict() | {"eos_token_id": 2},
        vision_config={
            "hidden_size": sizes.vision.width,
            "intermediate_size": 4 * sizes.vision.width,
            "num_hidden_layers": sizes.vision.layers,
            "num_attention_heads": sizes.vision.heads,
            "patch_size": sizes.vision.patch,
            "image_size": sizes.vision.size,
        },
        projection_dim=sizes.projection,
    )
    clip = fill(transformers.CLIPModel(both))
    trace("clip_images", clip, clip.visual_projection(clip.vision_model(given["pixels"]).pooler_output))
    trace("clip_texts", clip, clip.text_projection(clip.text_model(given["ids"]).pooler_output))
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": sizes.vision.size}, crop_size={"height": sizes.vision.size, "width": sizes.vision.size}
    )
    photograph = Image.fromarray(inputs()["photograph"])
    out["clip_prepared"] = processor(photograph, return_tensors="np")["pixel_values"][0]

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    offset = {"set_alpha_to_one": False, "steps_offset": 1}
    samplers = {
        "ddim": functools.partial(diffusers.DDIMScheduler, clip_sample=False, **offset),
        "lms": diffusers.LMSDiscreteScheduler,
        "pndm": functools.partial(diffusers.PNDMScheduler, skip_prk_steps=True, **offset),
        "euler": diffusers.EulerDiscreteScheduler,
    }
    for name, make in samplers.items():
        for number, prediction in itertools.product(STEPS, ("epsilon", "v_prediction")):
            scheduler = make(**betas, prediction_type=prediction)
            scheduler.set_timesteps(number)
            latents, path = sampled_from(given["start"]) * scheduler.init_noise_sigma, []
            for timestep in scheduler.timesteps:
                scaled = scheduler.scale_model_input(latents, timestep)
                latents = scheduler.step(toy_noise(scaled, float(timestep)), timestep, latents).prev_sample
                path.append(latents.numpy())
            out[f"{name}_{number}_{prediction}"] = np.stack(path)
            out[f"{name}_{number}_timesteps"] = scheduler.timesteps.numpy()
    linear = diffusers.DDPMScheduler(beta_start=0.0001, beta_end=0.02, prediction_type="v_prediction")
    out["linear_shares"] = linear.alphas_cumprod.numpy()[::37]
    out["velocity"] = linear.get_velocity(given["latents"], given["start"], torch.tensor([0, 999])).numpy()
    steps = torch.tensor([0, 999])
    out["noisy"] = diffusers.DDPMScheduler(**betas).add_noise(given["latents"], given["start"], steps).numpy()
    for seed in SEEDS:
        for shape in ((4, 8, 8), (3, 7), (4, 64, 64)):
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
            out[f"randn_{seed}_{shape[-1]}"] = drawn.reshape(-1)[:: 37 if shape[-1] == 64 else 1]
    np.savez_compressed(RECORDED, **out)
    _check_compvis_names()


def _check_compvis_names() -> None:
    """Our names of CompVis' tensors are the ones that diffusers' converter turns into ours."""
    import torch
    from diffusers.loaders import single_file_utils

    from scissorhands_jax.diffusion import file_layouts, folder_configs, networks

    for part, convert in (
        ("unet", single_file_utils.convert_ldm_unet_checkpoint),
        ("vae", single_file_utils.convert_ldm_vae_checkpoint),
    ):
        config = networks.SD_V1
        names = torch_weights.state_dict_shapes(networks.outline(part, config), {})
        ours = [file_layouts.compvis_name(part, config, name) for name in names]
        theirs = {name: torch.tensor(float(index)) for index, name in enumerate(ours)}
        described = dict(folder_configs.config_document(getattr(config, part)))
        converted = convert(theirs, described | {"class_embed_type": None, "addition_embed_type": None})
        assert {name: int(value) for name, value in converted.items()} == {n: i for i, n in enumerate(names)}, part


if __name__ == "__main__":
    _record()
