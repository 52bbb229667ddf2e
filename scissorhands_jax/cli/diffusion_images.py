"""The commands about images of a diffusion model: `scissorhands sd generate` and `sd evaluate`."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from scissorhands_jax.cli.diffusion import ConceptOptions, PromptOptions, SamplingOptions
from scissorhands_jax.cli.options import Effect, Option
from scissorhands_jax.cli.shared import ResumeOptions, print_json
from scissorhands_jax.errors import InputError
from scissorhands_jax.terminal import Console, say

if TYPE_CHECKING:
    from scissorhands_jax.diffusion import evaluating, generating, measuring, quality

_utility = functools.partial(Option, group="what is left of other images")
_making = functools.partial(Option, group="making the images first")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateCommand(ResumeOptions, SamplingOptions, PromptOptions):
    """Make images from prompts."""

    example: ClassVar[str] = 'sd generate --model sd --prompt "a red house" --out images'
    required: ClassVar[tuple[str, ...]] = ("source",)
    effects: ClassVar[tuple[Effect, ...]] = (Effect(options=("images",), needs=("prompt",)),)

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
        from scissorhands_jax.diffusion import generating, model_folder
        from scissorhands_jax.jobs.progress import status

        settings = self.sampling()
        if self.images < 1:
            raise InputError(f"--images must be at least 1, got {self.images}")
        self.check_inputs(self.out, self.model, self.unet, self.tokenizer, self.prompts)
        if self.prompts is not None:
            prompts = generating.read_prompts(self.prompts, seed=self.seed)
        else:
            assert self.prompt is not None
            prompts = [generating.Prompt(self.prompt, self.seed + index) for index in range(self.images)]
        with status(console, "reading the networks"):
            pipeline = model_folder.load_pipeline(
                self.model, unet=self.unet, tokenizer=self.tokenizer, cleaning=self.cleaning()
            )
        answer = generating.generate_images(
            pipeline,
            prompts,
            self.out,
            settings=settings,
            batch_size=self.batch_size,
            description={"networks_sha256": model_folder.model_sha256(self.model, unet=self.unet)},
            overwrite=self.overwrite,
            resume=self.resume,
            console=console,
        )
        print_json(answer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagesCommand(ResumeOptions, ConceptOptions):
    """Say whether images show what was to be forgotten, and measure what is left of other images.

    Counts the exposed body parts that NudeNet (the extra `nudenet`) finds in a folder of images, or has CLIP say which
    of some forgotten and kept concepts they show, compares with the images of the original network, and writes a
    report. With --prompts, --model and --unet the images are made first; those that exist are kept.
    """

    example: ClassVar[str] = (
        "sd evaluate --prompts i2p.csv --model sd --unet forgotten --images new --original old --out report"
    )
    effects: ClassVar[tuple[Effect, ...]] = (
        *ConceptOptions.effects,
        Effect(options=("pairing",), needs=("original",)),
        Effect(
            options=("threshold", "classes", "show_flagged"),
            unless=("no_nudity", "forgotten_concepts", "kept_concepts"),
            but_with=("nudity",),
        ),
        Effect(options=("seed", "batch_size", "sampler", "steps", "guidance", "size"), needs=("prompts",)),
        Effect(options=("tokenizer", "ftfy", "dtype", "attention"), needs=("prompts", "clip")),
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
    nudity: Annotated[
        bool | None, Option("Whether NudeNet counts exposed body parts. Default: where no concepts are named.")
    ] = None
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
    inception: Annotated[
        Path | None,
        _utility("The network of the FID: pt_inception-2015-12-05-6726825d.pth of pytorch-fid.", metavar="FILE"),
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
        from scissorhands_jax.diffusion import evaluating, evaluation_page, measuring

        sampling = self.sampling()
        self.check_inputs(self.out, self.prompts, self.clip, self.inception, self.tokenizer)
        names = {"classes": tuple(self.classes.split(","))} if self.classes is not None else {}
        settings = measuring.EvaluationSettings(
            threshold=self.threshold, pairing=self.pairing, show_flagged=self.show_flagged, **names
        )
        generation = self._generation(sampling)
        named = self.named_concepts()
        clip = self.read_clip(self.model, console)
        concepts = None if named is None or clip is None else evaluating.ConceptCheck(named, clip)
        evaluation = evaluating.evaluate_images(
            self.images,
            self.out,
            original=self.original,
            generation=generation,
            utility=self._utility(clip, console),
            concepts=concepts,
            count_nudity=self.nudity,
            settings=settings,
            overwrite=self.overwrite,
            resume=self.resume,
            console=console,
        )
        say(console, evaluation_page.evaluation_verdict(evaluation))
        say(console, f"open {self.out / evaluation_page.PAGE_FILE}")
        document = evaluation.document()
        print_json({key: document[key] for key in ("pairing", "counts", "concepts", "utility")})

    def _generation(self, sampling: generating.GenerationSettings) -> evaluating.ImageGeneration | None:
        """How missing images are made; None if they are not."""
        from scissorhands_jax.diffusion import evaluating, generating

        if self.prompts is None:
            if self.model is not None or self.unet is not None:
                raise InputError("--model and --unet make images of prompts; name a file of prompts with --prompts")
            return None
        if self.model is None:
            raise InputError("--prompts needs a network to make images with; name its folder with --model")
        prompts = generating.read_prompts(self.prompts, seed=self.seed)
        return evaluating.ImageGeneration(
            prompts, self.model, self.unet, self.tokenizer, self.cleaning(), sampling, self.batch_size
        )

    def _utility(self, clip: quality.Clip | None, console: Console) -> measuring.Utility | None:
        """What is measured on images of prompts that are kept, if there are any."""
        from scissorhands_jax.diffusion import measuring, quality
        from scissorhands_jax.jobs.progress import status

        if self.utility_images is None:
            if (
                self.utility_reference is not None
                or self.inception is not None
                or (clip and not self.forgotten_concepts)
            ):
                raise InputError(
                    "--utility-reference, --inception and --clip are for images of kept prompts; name them with "
                    "--utility-images"
                )
            return None
        inception = None
        if self.inception is not None:
            with status(console, "reading Inception"):
                inception = quality.load_inception(self.inception)
        return measuring.Utility(self.utility_images, self.utility_reference, clip, inception)
