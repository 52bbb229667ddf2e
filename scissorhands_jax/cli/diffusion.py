"""Commands about diffusion: `scissorhands demo diffusion`, `sd import` and `sd export`, and options of the others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from scissorhands_jax.cli.options import Command, Option
from scissorhands_jax.cli.shared import OverwriteOptions, ResumeOptions
from scissorhands_jax.terminal import Console, say

if TYPE_CHECKING:
    from scissorhands_jax.diffusion import generating
    from scissorhands_jax.diffusion.importing import ImportedPart


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions(Command):
    """A command that makes images, or computes as if it did."""

    sampler: Annotated[str, Option("How images are sampled: lms or ddim.", metavar="NAME")] = "lms"
    steps: Annotated[int, Option("Steps of the sampler.", metavar="N")] = 50
    guidance: Annotated[float, Option("Scale of classifier-free guidance.", metavar="X")] = 7.5
    size: Annotated[int, Option("Height and width of the images in pixels.", metavar="N")] = 512
    dtype: Annotated[
        Literal["float32", "bfloat16"], Option("What the networks compute in: float32 or bfloat16.", metavar="NAME")
    ] = "float32"

    def sampling(self, *, remat: bool = False) -> generating.GenerationSettings:
        """How images are made and networks compute.

        Args:
          remat: Whether activations are computed again for gradients instead of kept.
        """
        from scissorhands_jax.diffusion import generating
        from scissorhands_jax.diffusion.layers import Compute

        compute = Compute(dtype=self.dtype, remat=remat)
        return generating.GenerationSettings(self.sampler, self.steps, self.guidance, self.size, compute)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerOptions(Command):
    """A command that reads prompts."""

    tokenizer: Annotated[
        Path | None,
        Option(
            "Folder with vocab.json and merges.txt, or a file, of the tokenizer. Default: that of the model.",
            metavar="PATH",
        ),
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionDemoCommand(OverwriteOptions):
    """Train a network that draws digits, make it forget how one is drawn, and show that it did.

    This takes two to three minutes.
    """

    example: ClassVar[str] = "demo diffusion --out drawings --digit 3"

    out: Annotated[Path, Option("Folder for results.json and report.html.", metavar="DIR")]
    digit: Annotated[int, Option("The digit that is forgotten.", metavar="D")] = 0
    seed: Annotated[int, Option("Seed of everything.", metavar="N")] = 0
    published: Annotated[
        bool, Option("Also forget with the loss of the published code, which takes half a minute more.")
    ] = False

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion.demo import running, settings

        chosen = settings.DigitsSettings(digit=self.digit, seed=self.seed)
        running.run_digits_demo(self.out, chosen, published=self.published, overwrite=self.overwrite, console=console)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportCommand(ResumeOptions, TokenizerOptions):
    """Import the weights of Stable Diffusion v1.

    Reads .safetensors (or PyTorch files, without executing anything in them) in the layout of diffusers or of CompVis
    and writes Orbax checkpoints. Each of --unet, --vae and --text takes a file or a folder.
    """

    when_interrupted: ClassVar[str] = "the same command with --resume continues with the next network"
    example: ClassVar[str] = "sd import --from stable-diffusion-v1-4 --out sd"

    source: Annotated[
        Path | None,
        Option("A folder of diffusers, or one checkpoint, with all networks.", flag="--from", metavar="PATH"),
    ] = None
    unet: Annotated[Path | None, Option("Take the UNet from here and not from --from.", metavar="PATH")] = None
    vae: Annotated[Path | None, Option("The same for the autoencoder.", metavar="PATH")] = None
    text: Annotated[Path | None, Option("The same for the text encoder.", metavar="PATH")] = None
    out: Annotated[Path, Option("Folder for the networks.", metavar="DIR")]
    config: Annotated[str, Option("Sizes of the networks: sd-v1, or tiny for trials.", metavar="NAME")] = "sd-v1"

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion import importing, model_folder, networks

        def on_part(part: str, imported: ImportedPart) -> None:
            say(console, f"{part}: {imported.num_params:,} parameters ({imported.dtype}) from {imported.source}")

        config = networks.named_config(self.config)
        found = {part: getattr(self, part) or self.source for part in networks.PARTS}
        sources = {part: path for part, path in found.items() if path is not None}
        done = importing.import_weights(
            sources, self.out, config, overwrite=self.overwrite, resume=self.resume, on_part=on_part
        )
        tokenizer = self.tokenizer
        if tokenizer is None and self.source is not None:
            folder = self.source / model_folder.TOKENIZER_FOLDER
            tokenizer = folder if folder.is_dir() else None
        if tokenizer is not None:
            model_folder.copy_tokenizer(tokenizer, self.out)
        say(console, f"{' and '.join(done)} {'is' if len(done) == 1 else 'are'} ready in {self.out}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand(OverwriteOptions):
    """Write the networks as .safetensors in the layout of diffusers."""

    example: ClassVar[str] = "sd export --model forgotten --out exported"

    model: Annotated[Path, Option("Folder of sd import.", metavar="DIR")]
    out: Annotated[Path, Option("Folder to write.", metavar="DIR")]
    dtype: Annotated[
        str | None,
        Option("Type of the weights: float32, float16 or bfloat16. Default: as they were imported.", metavar="NAME"),
    ] = None

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion import exporting
        from scissorhands_jax.jobs.progress import status

        with status(console, "exporting"):
            written = exporting.export_weights(self.model, self.out, dtype=self.dtype, overwrite=self.overwrite)
        for path in written.values():
            say(console, f"wrote {path}")
