"""Plans of unlearning at the size of Stable Diffusion, the stages of `experiments.diffusion_full` without networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Side of the latents, pixels to a latent, width of the prompts, tokens, length of a prompt. The stage in PyTorch does
# not import the library.
SIZES = {"sd-v1": (64, 8, 768, 49408, 77), "tiny": (8, 2, 32, 514, 77)}


def unlearning_settings(name: str) -> tuple[Any, Any, Any]:
    """Returns the sizes, the settings of the method, and how to compute, for the stages below.

    Algorithm 1 with plain gradient steps: Adam's moments would take 6.4 GiB more. Activations are computed again.
    """
    from scissorhands_jax.diffusion import generating, networks
    from scissorhands_jax.diffusion.concept_methods import concept_scissorhands
    from scissorhands_jax.diffusion.layers import Compute
    from scissorhands_jax.jobs import config

    side, factor, *_ = SIZES[name]
    settings = config.override(
        concept_scissorhands.concept_preset("paper"), ["batch_size=1", "epochs=1", "optimizer=sgd"]
    )
    return (
        networks.CONFIGS[name],
        settings,
        generating.GenerationSettings(size=side * factor, compute=Compute(remat=True)),
    )


def plan(work: Path, name: str) -> dict[str, Any]:
    """Predicts what the step of `unlearn` needs."""
    del work
    return planned(*unlearning_settings(name))


def plan_batch_16(work: Path, name: str) -> dict[str, Any]:
    """Predicts what a step of the paper's settings needs: batch 16, Adam, bfloat16, activations computed again.

    The compiler is that of the CPU, which computes some products of bfloat16 in float32, so temporaries are rather too
    large for a GPU. What it has compiled is kept in the folder of the files, so that a stage that was ended and is
    begun again there continues with the next program.
    """
    import jax

    jax.config.update("jax_compilation_cache_dir", str(work / "compiled"))
    return _batch_16(name, "paper", traced=False)


def plan_traced(work: Path, name: str) -> dict[str, Any]:
    """Estimates the same for every method from its traced programs, and for the step at batch 1 of `unlearn`."""
    del work
    from scissorhands_jax.diffusion.concept_methods import CONCEPT_METHODS

    found = {"batch 1": planned(*unlearning_settings(name), traced=True)}
    return found | {method: _batch_16(name, method, traced=True) for method in ("paper", *CONCEPT_METHODS)}


def _batch_16(name: str, method: str, *, traced: bool) -> dict[str, Any]:
    from scissorhands_jax.diffusion import generating, networks
    from scissorhands_jax.diffusion.concept_methods import CONCEPT_METHODS, concept_scissorhands
    from scissorhands_jax.diffusion.layers import Compute
    from scissorhands_jax.jobs import config

    side, factor, *_ = SIZES[name]
    compute = Compute(dtype="bfloat16", remat=True, attention=f"{side}=chunked")
    generation = generating.GenerationSettings(size=side * factor, compute=compute)
    settings = {**concept_scissorhands.PRESETS, **CONCEPT_METHODS}[method]
    wanted = {"batch_size": "16", "pseudo": "a photo of a dog"} if method != "paper" else {"batch_size": "16"}
    settings = config.override(
        settings, [f"{setting}={value}" for setting, value in wanted.items() if setting not in settings.unused]
    )
    described = {"attention": compute.attention, "batch_size": 16, "dtype": compute.dtype, "limit_gib": 140}
    return described | planned(networks.CONFIGS[name], settings, generation, memory_gib=140, traced=traced)


def planned(
    sizes: Any, settings: Any, generation: Any, memory_gib: float | None = None, *, traced: bool = False
) -> dict[str, Any]:
    """Returns a plan in GiB."""
    from scissorhands_jax.diffusion import planning

    plan = planning.plan_concept(sizes, settings, generation=generation, memory_gib=memory_gib, traced=traced)
    document = plan.document()
    gib = {
        phase: {part: round(size / 2**30, 2) for part, size in parts.items()}
        for phase, parts in document["phases_bytes"].items()
    }
    return {
        "phases_gib": {phase: parts | {"together": round(sum(parts.values()), 2)} for phase, parts in gib.items()},
        "total_gib": round(document["total_bytes"] / 2**30, 2),
        "fits": document["fits"],
        "seconds_trace" if traced else "seconds_compile": round(document["program_seconds"], 1),
    }
