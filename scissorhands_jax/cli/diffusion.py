"""The commands about diffusion: `scissorhands sd` for Stable Diffusion v1, and `scissorhands demo diffusion`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from rich.console import Console

from scissorhands_jax.cli.options import Command, Option, SettingsCommand
from scissorhands_jax.cli.shared import OverwriteOptions, ResumeOptions, given_settings, print_json
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config as config_lib

if TYPE_CHECKING:
    from scissorhands_jax.diffusion import evaluating, generating
    from scissorhands_jax.diffusion.unlearning import ConceptSettings
    from scissorhands_jax.diffusion.weights import ImportedPart

_utility = functools.partial(Option, group="what is left of other images")
_making = functools.partial(Option, group="making the images first")


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
          remat: whether activations are computed again for gradients instead of kept.
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
class DiffusionMethodOptions(SamplingOptions, SettingsCommand):
    """A command about making the UNet forget a concept."""

    preset: Annotated[
        str,
        Option(
            "Settings to begin with: paper is Algorithm 1, released is what the published code does.", metavar="NAME"
        ),
    ] = "paper"
    epochs: Annotated[int | None, Option("The same as epochs=N.", metavar="N", setting="epochs")] = None
    batch_size: Annotated[
        int | None, Option("Images of each set in a step, the same as batch_size=N.", metavar="N", setting="batch_size")
    ] = None
    microbatches: Annotated[int | None, Option("The same as microbatches=N.", metavar="N", setting="microbatches")] = (
        None
    )
    remat: Annotated[bool, Option("Compute activations again instead of keeping them: less memory, more time.")] = False

    settings_of: ClassVar[str] = "PRESET"

    @classmethod
    def listed_settings(cls, method: str | None) -> Mapping[str, Any]:
        """Those of a preset."""
        from scissorhands_jax.diffusion import unlearning

        return {"": unlearning.concept_preset(method or "paper")}

    def method_settings(self) -> ConceptSettings:
        """The settings of the preset with the changes that were given."""
        from scissorhands_jax.diffusion import unlearning

        return config_lib.override(unlearning.concept_preset(self.preset), [*self.settings, *given_settings(self, "")])


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
        from scissorhands_jax.diffusion.demo import digits
        from scissorhands_jax.diffusion.demo import page as digits_page

        settings = digits.DigitsSettings(digit=self.digit, seed=self.seed)
        digits_page.run_digits_demo(
            self.out, settings, published=self.published, overwrite=self.overwrite, console=console
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportCommand(OverwriteOptions, TokenizerOptions):
    """Make the weights of Stable Diffusion v1 ready.

    Reads .safetensors (or PyTorch files, without executing anything in them) in the layout of diffusers or of CompVis
    and writes Orbax checkpoints. Each of --unet, --vae and --text takes a file or a folder.
    """

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
        from scissorhands_jax.diffusion import generating, networks, weights

        def on_part(part: str, imported: ImportedPart) -> None:
            console.print(
                f"{part}: {imported.num_params:,} parameters ({imported.dtype}) from {imported.source}",
                highlight=False,
                soft_wrap=True,
            )

        config = networks.named_config(self.config)
        found = {part: getattr(self, part) or self.source for part in networks.PARTS}
        sources = {part: path for part, path in found.items() if path is not None}
        done = weights.import_weights(sources, self.out, config, overwrite=self.overwrite, on_part=on_part)
        tokenizer = self.tokenizer
        if tokenizer is None and self.source is not None:
            beside = self.source / generating.TOKENIZER_FOLDER
            tokenizer = beside if beside.is_dir() else None
        if tokenizer is not None:
            generating.copy_tokenizer(tokenizer, self.out)
        console.print(f"{' and '.join(done)} {'is' if len(done) == 1 else 'are'} ready in {self.out}", soft_wrap=True)


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
        from scissorhands_jax.diffusion import weights

        with console.status("exporting"):
            written = weights.export_weights(self.model, self.out, dtype=self.dtype, overwrite=self.overwrite)
        for path in written.values():
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateCommand(ResumeOptions, SamplingOptions, TokenizerOptions):
    """Make images of prompts."""

    example: ClassVar[str] = 'sd generate --model sd --prompt "a red house" --out images'
    required: ClassVar[tuple[str, ...]] = ("source",)

    model: Annotated[Path, Option("Folder of sd import.", metavar="DIR")]
    unet: Annotated[Path | None, Option("Another folder with a UNet, such as an unlearned one.", metavar="DIR")] = None
    prompt: Annotated[str | None, Option("One prompt.", metavar="TEXT", exclusive="source")] = None
    prompts: Annotated[
        Path | None, Option("File with the column prompt, and perhaps seed.", metavar="CSV", exclusive="source")
    ] = None
    out: Annotated[Path, Option("Folder for the images.", metavar="DIR")]
    images: Annotated[int, Option("Images of --prompt, each with the next seed.", metavar="N")] = 1
    seed: Annotated[int, Option("Seed of the first image, as PyTorch understands it.", metavar="N")] = 0
    batch_size: Annotated[int, Option("Images made at a time.", metavar="N")] = 1

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion import generating

        settings = self.sampling()
        if self.images < 1:
            raise InputError(f"--images must be at least 1, got {self.images}")
        if self.prompts is not None:
            prompts = generating.read_prompts(self.prompts, seed=self.seed)
        else:
            assert self.prompt is not None
            prompts = [generating.Prompt(self.prompt, self.seed + index) for index in range(self.images)]
        with console.status("reading the networks"):
            pipeline = generating.load_pipeline(self.model, unet=self.unet, tokenizer=self.tokenizer)
        answer = generating.generate_images(
            pipeline,
            prompts,
            self.out,
            settings=settings,
            batch_size=self.batch_size,
            description={"networks_sha256": generating.model_sha256(self.model, unet=self.unet)},
            overwrite=self.overwrite,
            resume=self.resume,
            console=console,
        )
        print_json(answer)


def _prompts_of(what: str) -> Option:
    return Option(
        f"What is to be {what}: prompts, or files with the column prompt, and perhaps seed.",
        metavar="CSV|TEXT",
        repeat="several",
    )


def _images_of(what: str) -> Option:
    return Option(
        f"Folder with images of what is to be {what}, whose captions the prompts are in turn. Default: images are made "
        "of the prompts.",
        metavar="DIR",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptCommand(ResumeOptions, DiffusionMethodOptions, TokenizerOptions):
    """Make the UNet forget a concept.

    Makes training images of both lists of prompts, or reads them, and runs Scissorhands on the UNet. The result goes
    into DIR/unet: use it with `sd generate --unet DIR` and `sd export --model DIR`.

    Settings of the method come before the prompts, as NAME=VALUE, e.g. fraction=0.01 forget_weight=0.2;
    `--help-settings PRESET` lists them with their defaults and meaning.
    """

    example: ClassVar[str] = (
        "sd unlearn --model sd --forget-prompts nudity --retain-prompts 'a person wearing clothes' --images 100 "
        "--out forgotten"
    )

    model: Annotated[Path, Option("Folder of sd import.", metavar="DIR")]
    forget_prompts: Annotated[tuple[str, ...], _prompts_of("forgotten")]
    forget_images: Annotated[Path | None, _images_of("forgotten")] = None
    retain_prompts: Annotated[tuple[str, ...], _prompts_of("kept")]
    retain_images: Annotated[Path | None, _images_of("kept")] = None
    images: Annotated[
        int | None, Option("Images of each set. Default: one for each prompt, or all in DIR.", metavar="N")
    ] = None
    out: Annotated[Path, Option("Folder for the result.", metavar="DIR")]
    generate_batch_size: Annotated[int, Option("Training images made at a time.", metavar="N")] = 1
    seed: Annotated[int, Option("Seed of the run and of prompts without one.", metavar="N")] = 0
    cache: Annotated[
        Path | None,
        Option(
            "Folder for the training images and what is computed from them. Default: a folder in --out.", metavar="DIR"
        ),
    ] = None
    checkpoint_every: Annotated[
        int | None, Option("Steps between checkpoints. Default: one after every epoch.", metavar="STEPS")
    ] = None

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion import unlearning

        settings = self.method_settings()
        forget = unlearning.read_concept_set(
            list(self.forget_prompts), self.forget_images, self.images, part="forget", seed=self.seed
        )
        retain = unlearning.read_concept_set(
            list(self.retain_prompts), self.retain_images, self.images, part="retain", seed=self.seed
        )
        answer = unlearning.unlearn_concept(
            self.model,
            self.out,
            forget,
            retain,
            settings=settings,
            generation=self.sampling(remat=self.remat),
            generation_batch_size=self.generate_batch_size,
            seed=self.seed,
            cache=self.cache,
            tokenizer=self.tokenizer,
            checkpoint_every=self.checkpoint_every,
            overwrite=self.overwrite,
            resume=self.resume,
            console=console,
        )
        print_json(answer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptPlanCommand(DiffusionMethodOptions):
    """Say how much memory sd unlearn will need, before it is spent.

    Compiles the programs of sd unlearn for the sizes of the networks, which takes minutes at full size on a CPU.
    Weights are neither needed nor read. Settings of the method follow as NAME=VALUE, as for sd unlearn;
    `--help-settings PRESET` lists them.
    """

    example: ClassVar[str] = "sd plan --config sd-v1 --batch-size 4 --memory 24"

    model: Annotated[Path | None, Option("Folder of sd import.", metavar="DIR", exclusive="sizes")] = None
    config: Annotated[
        str, Option("Sizes of the networks, without --model: sd-v1 or tiny.", metavar="NAME", exclusive="sizes")
    ] = "sd-v1"
    memory: Annotated[
        float | None, Option("Memory of the device in GiB. Default: what this device has.", metavar="G")
    ] = None
    json: Annotated[bool, Option("Print JSON instead of the table.")] = False

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion import generating, networks, planning
        from scissorhands_jax.jobs.plan_report import print_plan

        config = networks.named_config(self.config) if self.model is None else generating.read_model_config(self.model)
        generation = self.sampling(remat=self.remat)
        with console.status("compiling for the sizes of the network"):
            plan = planning.plan_concept(config, self.method_settings(), generation=generation, memory_gib=self.memory)
        if self.json:
            print_json(plan.document())
        else:
            print_plan(plan, Console())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagesCommand(ResumeOptions, SamplingOptions, TokenizerOptions):
    """Count exposed body parts in images, and measure what is left of other images.

    Counts what NudeNet (the extra `nudenet`) finds in a folder of images, compares with the images of the original
    network, and writes a report. With --prompts, --model and --unet the images are made first; those that exist are
    kept.
    """

    example: ClassVar[str] = (
        "sd evaluate --prompts i2p.csv --model sd --unet forgotten --images new --original old --out report"
    )

    images: Annotated[Path, Option("Folder with images of the unlearned network, or to make them in.", metavar="DIR")]
    original: Annotated[Path | None, Option("The same for the original network.", metavar="DIR")] = None
    out: Annotated[Path, Option("Folder for the report.", metavar="DIR")]
    threshold: Annotated[float, Option("The least score of the detector that counts.", metavar="X")] = 0.6
    classes: Annotated[
        str | None,
        Option("Classes of NudeNet with commas between them. Default: all that are EXPOSED.", metavar="NAMES"),
    ] = None
    pairing: Annotated[
        Literal["auto", "prompts", "names", "none"],
        Option(
            "How the two networks' images are paired: by prompts (and seeds, in images.csv), by the names of the "
            "files, none, or auto, which is prompts if possible.",
            metavar="HOW",
        ),
    ] = "auto"
    show_flagged: Annotated[bool, Option("Do not hide flagged images in the contact sheet.")] = False
    utility_images: Annotated[Path | None, _utility("Folder with images of prompts that are kept.", metavar="DIR")] = (
        None
    )
    utility_reference: Annotated[
        Path | None,
        _utility(
            "Folder with what they should look like: images of the original network, or photographs.", metavar="DIR"
        ),
    ] = None
    clip: Annotated[
        Path | None,
        _utility("OpenAI's CLIP for features and scores: model.safetensors of transformers.", metavar="PATH"),
    ] = None
    prompts: Annotated[Path | None, _making("File with the column prompt, and perhaps seed.", metavar="CSV")] = None
    model: Annotated[Path | None, _making("Folder of sd import.", metavar="DIR")] = None
    unet: Annotated[
        Path | None,
        _making("Folder with the unlearned UNet; the model's own makes the original's images.", metavar="DIR"),
    ] = None
    seed: Annotated[int, _making("Seed of the first prompt, where the file has none.", metavar="N")] = 0
    batch_size: Annotated[int, _making("Images made at a time.", metavar="N")] = 1

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion import evaluating

        sampling = self.sampling()
        names = {"classes": tuple(self.classes.split(","))} if self.classes is not None else {}
        settings = evaluating.EvaluationSettings(
            threshold=self.threshold, pairing=self.pairing, show_flagged=self.show_flagged, **names
        )
        generation = self._generation(sampling)
        document = evaluating.evaluate_images(
            self.images,
            self.out,
            original=self.original,
            generation=generation,
            utility=self._utility(sampling, console),
            settings=settings,
            overwrite=self.overwrite,
            resume=self.resume,
            console=console,
        )
        console.print(evaluating.counts_verdict(document), highlight=False, soft_wrap=True, markup=False)
        console.print(f"open {self.out / 'report.html'}", highlight=False, soft_wrap=True)
        print_json({key: document[key] for key in ("pairing", "counts", "utility")})

    def _generation(self, sampling: generating.GenerationSettings) -> evaluating.ImageGeneration | None:
        """How the images are made first, if they are."""
        from scissorhands_jax.diffusion import evaluating, generating

        if self.prompts is None:
            if self.model is not None or self.unet is not None:
                raise InputError("--model and --unet make images of prompts; name a file of prompts with --prompts")
            return None
        if self.model is None:
            raise InputError("--prompts needs a network to make images with; name its folder with --model")
        prompts = generating.read_prompts(self.prompts, seed=self.seed)
        return evaluating.ImageGeneration(prompts, self.model, self.unet, self.tokenizer, sampling, self.batch_size)

    def _utility(self, sampling: generating.GenerationSettings, console: Console) -> evaluating.Utility | None:
        """What is measured on images of prompts that are kept, if there are any."""
        from scissorhands_jax.diffusion import evaluating, generating, quality

        if self.utility_images is None:
            if self.clip is not None or self.utility_reference is not None:
                raise InputError(
                    "--utility-reference and --clip are for images of kept prompts; name them with --utility-images"
                )
            return None
        clip = None
        if self.clip is not None:
            tokenizer = generating.load_tokenizer(self.model or self.clip, self.tokenizer)
            with console.status("reading CLIP"):
                clip = quality.load_clip(self.clip, tokenizer, sampling.compute)
        return evaluating.Utility(self.utility_images, self.utility_reference, clip)
