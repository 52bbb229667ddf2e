"""`scissorhands sd import` and `sd export`, and the options that the other commands about diffusion share."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from scissorhands_jax.cli.options import RARE, Command, Effect, Option
from scissorhands_jax.cli.shared import OverwriteOptions, ResumeOptions
from scissorhands_jax.errors import InputError
from scissorhands_jax.terminal import Console, say

if TYPE_CHECKING:
    from scissorhands_jax.diffusion import generating, quality
    from scissorhands_jax.diffusion.concept_accuracy import Concepts
    from scissorhands_jax.diffusion.importing import ImportedPart
    from scissorhands_jax.diffusion.tokenizer import Cleaning

_concepts = functools.partial(Option, group="which concepts are shown")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeOptions(Command):
    """A command that computes with networks of images."""

    size: Annotated[int, Option("Height and width of the images in pixels.", metavar="N")] = 512
    dtype: Annotated[
        Literal["float32", "bfloat16"], Option("What the networks compute in: float32 or bfloat16.", metavar="NAME")
    ] = "float32"

    attention: Annotated[
        str | None,
        Option(
            "How attention is computed: xla, cudnn (on a GPU, in bfloat16) or chunked, which needs less memory; or by "
            "the sides of the latents, as 64=chunked,16=cudnn. Default: as JAX chooses.",
            metavar="NAME",
            group=RARE,
        ),
    ] = None

    def sampling(self, *, remat: bool = False) -> generating.GenerationSettings:
        """How images are made and networks compute.

        Args:
          remat: Whether activations are computed again for gradients instead of kept.
        """
        from scissorhands_jax.diffusion import generating
        from scissorhands_jax.diffusion.layers import Compute

        compute = Compute(dtype=self.dtype, remat=remat, attention=self.attention)
        return generating.GenerationSettings(size=self.size, compute=compute)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions(ComputeOptions):
    """A command that makes images."""

    sampler: Annotated[str, Option("How images are sampled: lms, ddim, pndm or euler.", metavar="NAME")] = "lms"
    steps: Annotated[int, Option("Steps of the sampler.", metavar="N")] = 50
    guidance: Annotated[float, Option("Scale of classifier-free guidance.", metavar="X")] = 7.5

    def sampling(self, *, remat: bool = False) -> generating.GenerationSettings:
        """How images are made and networks compute; see `ComputeOptions.sampling`."""
        chosen = super().sampling(remat=remat)
        return dataclasses.replace(chosen, sampler=self.sampler, steps=self.steps, guidance=self.guidance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerOptions(Command):
    """A command that reads prompts."""

    tokenizer: Annotated[
        Path | None,
        Option(
            "Folder with vocab.json and merges.txt or tokenizer.json, or a file. Default: that of the model.",
            metavar="PATH",
        ),
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptOptions(TokenizerOptions):
    """A command that turns prompts into ids."""

    ftfy: Annotated[
        bool,
        Option(
            "Repair prompts first as CLIP's authors do, which gives some of them other ids than transformers 5.",
            group=RARE,
        ),
    ] = False

    def cleaning(self) -> Cleaning:
        """What happens to prompts before they are split into words."""
        return "ftfy" if self.ftfy else "nfc"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptOptions(SamplingOptions, PromptOptions):
    """A command that may have CLIP say which concepts images show."""

    effects: ClassVar[tuple[Effect, ...]] = (
        Effect(options=("concept_text",), needs=("forgotten_concepts", "kept_concepts")),
    )

    forgotten_concepts: Annotated[
        tuple[str, ...],
        _concepts(
            "Concepts that were to be forgotten, as they stand in the prompts.", metavar="TEXT", repeat="several"
        ),
    ] = ()
    kept_concepts: Annotated[
        tuple[str, ...], _concepts("The same for concepts that were to be kept.", metavar="TEXT", repeat="several")
    ] = ()
    concept_text: Annotated[
        str, _concepts("What CLIP compares images with; {} stands for the concept.", metavar="TEXT")
    ] = "a photo of {}"
    clip: Annotated[
        Path | None,
        _concepts("OpenAI's CLIP for concepts and scores: model.safetensors of transformers.", metavar="PATH"),
    ] = None

    def named_concepts(self) -> Concepts | None:
        """The concepts, if any are named.

        Raises:
          InputError: They cannot be told apart, or there is no CLIP to do it.
        """
        from scissorhands_jax.diffusion.concept_accuracy import Concepts

        if not self.forgotten_concepts and not self.kept_concepts:
            return None
        named = Concepts(self.forgotten_concepts, self.kept_concepts, self.concept_text)
        if self.clip is None:
            raise InputError("CLIP says which concepts images show; name its weights with --clip")
        return named

    def read_clip(self, model: Path | None, console: Console) -> quality.Clip | None:
        """CLIP with its tokenizer, if its weights are given.

        Args:
          model: The folder whose tokenizer is taken where none is named and none lies beside the weights.
          console: Shows that they are read.
        """
        from scissorhands_jax.diffusion import model_folder, quality
        from scissorhands_jax.jobs.progress import status

        if self.clip is None:
            return None
        tokenizer = model_folder.load_clip_tokenizer(self.clip, model, self.tokenizer, self.cleaning())
        with status(console, "reading CLIP"):
            return quality.load_clip(self.clip, tokenizer, self.sampling().compute)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportCommand(ResumeOptions, TokenizerOptions):
    """Import a model of Stable Diffusion v1's kind.

    Reads a folder of diffusers, also in the cache of the hub, with its configurations and its tokenizer; or single
    files in the layout of diffusers or of CompVis: .safetensors, or PyTorch files, in which nothing is executed. Each
    of --unet, --vae and --text takes a file or a folder. Everything is checked before anything is written.
    """

    when_interrupted: ClassVar[str] = (
        "the same command with --resume continues with the next network; with --random, --overwrite makes them again"
    )
    example: ClassVar[str] = "sd import --from stable-diffusion-v1-4 --out sd"
    effects: ClassVar[tuple[Effect, ...]] = (
        Effect(options=("unet", "vae", "text", "ema", "resume"), unless=("random",)),
    )

    source: Annotated[
        Path | None,
        Option(
            "A folder of diffusers, or one checkpoint, with all networks.",
            flag="--from",
            metavar="PATH",
            exclusive="source",
        ),
    ] = None
    random: Annotated[bool, Option("Make networks of random weights, for trials.", exclusive="source")] = False
    unet: Annotated[Path | None, Option("Take the UNet from here and not from --from.", metavar="PATH")] = None
    vae: Annotated[Path | None, Option("The same for the autoencoder.", metavar="PATH")] = None
    text: Annotated[Path | None, Option("The same for the text encoder.", metavar="PATH")] = None
    out: Annotated[Path, Option("Folder for the networks.", metavar="DIR")]
    config: Annotated[
        str | None,
        Option(
            "Sizes of networks that have no config.json beside them: sd-v1, which is the default, or tiny for trials.",
            metavar="NAME",
        ),
    ] = None
    ema: Annotated[
        bool | None,
        Option(
            "Whether to take averaged weights (EMA) of the UNet. Default: the others of a file with both; the averaged "
            "ones of a folder with both, as diffusers does."
        ),
    ] = None

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion import importing, model_folder, networks

        def on_part(part: str, imported: ImportedPart) -> None:
            kept = "" if imported.types == imported.dtype else f", kept as {imported.dtype}"
            say(console, f"{part}: {imported.num_params:,} parameters ({imported.types}{kept}) from {imported.source}")

        config = None if self.config is None else networks.named_config(self.config)
        found = {part: getattr(self, part) or self.source for part in networks.PARTS}
        sources = {part: path for part, path in found.items() if path is not None}
        if self.random:
            importing.make_random(
                self.out, config or networks.SD_V1, tokenizer=self.tokenizer, overwrite=self.overwrite
            )
            say(console, f"networks of random weights are ready in {self.out}")
            return
        done = importing.import_weights(
            sources,
            self.out,
            config,
            tokenizer=self.tokenizer,
            ema=self.ema,
            overwrite=self.overwrite,
            resume=self.resume,
            on_part=on_part,
        )
        say(console, f"{' and '.join(done)} {'is' if len(done) == 1 else 'are'} ready in {self.out}")
        if "text" in done and not (self.out / model_folder.TOKENIZER_FOLDER).is_dir():
            say(console, "no tokenizer came with it; import it with --tokenizer, or name it whenever prompts are read")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand(OverwriteOptions):
    """Write a model as a folder of diffusers, or its UNet as one file.

    A folder with all three networks and a tokenizer is a pipeline, which StableDiffusionPipeline.from_pretrained loads;
    --unet puts an unlearned UNet into it. An --out that ends in .safetensors is the UNet alone.
    """

    example: ClassVar[str] = "sd export --model sd --unet forgotten --out exported"

    model: Annotated[Path, Option("Folder of sd import.", metavar="DIR")]
    unet: Annotated[Path | None, Option("Another folder with a UNet, such as an unlearned one.", metavar="DIR")] = None
    out: Annotated[Path, Option("Folder to write, or the file of the UNet alone.", metavar="DIR|FILE")]
    dtype: Annotated[
        str | None,
        Option("Type of the weights: float32, float16 or bfloat16. Default: as they were imported.", metavar="NAME"),
    ] = None

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion import exporting
        from scissorhands_jax.jobs.progress import status

        if self.out.suffix in (".pt", ".pth", ".ckpt", ".bin"):
            raise InputError(
                f"--out is {self.out}, and the UNet alone is written as .safetensors, which `load_state_dict` takes "
                "after safetensors.torch.load_file; name such a file, or a folder"
            )
        with status(console, "exporting"):
            if self.out.suffix == ".safetensors":
                home = self.unet or self.model
                paths = [exporting.export_unet(home, self.out, dtype=self.dtype, overwrite=self.overwrite)]
            else:
                written = exporting.export_weights(
                    self.model, self.out, unet=self.unet, dtype=self.dtype, overwrite=self.overwrite
                )
                paths = list(written.values())
        for path in paths:
            say(console, f"wrote {path}")
