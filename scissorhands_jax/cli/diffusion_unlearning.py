"""The commands that make a diffusion model forget a concept: `scissorhands sd unlearn` and `sd plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from scissorhands_jax.cli import choices
from scissorhands_jax.cli.diffusion import ComputeOptions, PromptOptions, SamplingOptions
from scissorhands_jax.cli.options import RARE, Effect, Option, SettingsCommand
from scissorhands_jax.cli.shared import LongCommand, MeshOptions, ResumeOptions, given_settings, print_json
from scissorhands_jax.errors import InputError, check_choice
from scissorhands_jax.jobs import config as config_lib
from scissorhands_jax.terminal import Console

if TYPE_CHECKING:
    from scissorhands_jax.diffusion.concept_methods import ConceptTraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionMethodOptions(MeshOptions, ComputeOptions, SettingsCommand):
    """A command about making the UNet forget a concept."""

    method: Annotated[
        str,
        Option(
            "The method: scissorhands, esd, uce, salun, munba, erase_diff, selective_amnesia, finetune, "
            "gradient_ascent, neggrad_plus, l1_sparse or ssd.",
            metavar="NAME",
        ),
    ] = "scissorhands"
    preset: Annotated[
        str,
        Option(
            "Settings of Scissorhands to begin with: paper is Algorithm 1, released and released-objects are what the "
            "published code does.",
            metavar="NAME",
        ),
    ] = "paper"
    train: Annotated[
        str | None,
        Option(
            "The weights that may move: all, attention, cross-attention, all-but-cross-attention, or a pattern; the "
            "same as train=PART.",
            metavar="PART",
            setting="train",
        ),
    ] = None
    trim: Annotated[
        str | None,
        Option(
            "The weights of which Scissorhands re-initialises the salient ones, named like --train; the same as "
            "trim=PART.",
            metavar="PART",
            setting="trim",
        ),
    ] = None
    epochs: Annotated[int | None, Option("The same as epochs=N.", metavar="N", setting="epochs")] = None
    batch_size: Annotated[
        int | None, Option("Images of each set in a step, the same as batch_size=N.", metavar="N", setting="batch_size")
    ] = None
    microbatches: Annotated[
        int | None, Option("The same as microbatches=N.", metavar="N", setting="microbatches", group=RARE)
    ] = None
    remat: Annotated[
        bool, Option("Compute activations again instead of keeping them: less memory, more time.", group=RARE)
    ] = False

    effects: ClassVar[tuple[Effect, ...]] = (
        Effect(options=("size",), needs=("method",), not_values=("uce",)),  # esd draws latents of this size
    )
    settings_of: ClassVar[str] = "PRESET"
    choices: ClassVar[Mapping[str, str]] = choices.PRESET_LINES

    @classmethod
    def has_settings(cls, method: str) -> bool:
        """Whether it is another method than Scissorhands, which has presets."""
        return method != "scissorhands"

    @classmethod
    def listed_settings(cls, method: str | None) -> Mapping[str, Any]:
        """The settings of a preset of Scissorhands, or of another method."""
        from scissorhands_jax.diffusion.concept_methods import CONCEPT_METHODS, concept_scissorhands

        chosen = method or "paper"
        check_choice("--help-settings", chosen, (*concept_scissorhands.PRESETS, *CONCEPT_METHODS))
        return {"": CONCEPT_METHODS.get(chosen) or concept_scissorhands.concept_preset(chosen)}

    def method_settings(self) -> ConceptTraining:
        """The settings of the method with the changes that were given."""
        from scissorhands_jax.diffusion.concept_methods import CONCEPT_METHODS, concept_scissorhands

        check_choice("--method", self.method, ("scissorhands", *CONCEPT_METHODS))
        if self.method == "scissorhands":
            chosen: ConceptTraining = concept_scissorhands.concept_preset(self.preset)
        elif self.preset != "paper":
            raise InputError(f"--preset {self.preset} is one of scissorhands; leave it out with --method {self.method}")
        else:
            chosen = CONCEPT_METHODS[self.method]
        return config_lib.override(chosen, [*self.settings, *given_settings(self, "")])


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
class ConceptCommand(ResumeOptions, DiffusionMethodOptions, SamplingOptions, PromptOptions):
    """Make the UNet forget a concept.

    Makes training images of both lists of prompts, or reads them, and runs Scissorhands or another method on the UNet;
    esd and uce need no images. The result goes into DIR/unet: use it with `sd generate --unet DIR` and `sd export
    --model DIR`.

    Settings of the method come before the prompts, as NAME=VALUE, e.g. fraction=0.01 forget_weight=0.2;
    `--help-settings NAME` lists those of a preset or a method with their defaults and meaning.
    """

    example: ClassVar[str] = (
        "sd unlearn --model sd --forget-prompts nudity --retain-prompts 'a person wearing clothes' --images 100 "
        "--out forgotten"
    )

    effects: ClassVar[tuple[Effect, ...]] = (
        *DiffusionMethodOptions.effects,
        Effect(options=("sampler", "steps", "guidance"), needs=("method",), not_values=choices.WITHOUT_IMAGES),
        Effect(
            options=("forget_images", "retain_images", "images", "generate_batch_size"),
            needs=("method",),
            not_values=choices.WITHOUT_IMAGES,
        ),
        Effect(
            options=("sampler", "steps", "guidance", "generate_batch_size"),
            unless_all=("forget_images", "retain_images"),
        ),
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
    generate_batch_size: Annotated[int, Option("Training images made at a time.", metavar="N", group=RARE)] = 1
    seed: Annotated[int, Option("Seed of the run and of prompts without one.", metavar="N", group=RARE)] = 0
    cache: Annotated[
        Path | None,
        Option(
            "Folder for the training images and what is computed from them. Default: a folder in --out.",
            metavar="DIR",
            group=RARE,
        ),
    ] = None
    checkpoint_every: Annotated[
        int | None, Option("Steps between checkpoints. Default: one after every epoch.", metavar="STEPS", group=RARE)
    ] = None

    def method_settings(self) -> ConceptTraining:
        """The settings of the method with the changes that were given."""
        if self.method == "selective_amnesia" and self.forget_images is None:
            raise InputError(
                "selective_amnesia needs --forget-images, a folder of images that take the concept's place; images of "
                "the forget prompts would teach the concept"
            )
        return super().method_settings()

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion import concept_sets, unlearning

        layout = self.layout()
        settings = self.method_settings()
        words = (*self.forget_prompts, *self.retain_prompts)
        self.check_inputs(self.out, *(Path(word) for word in words if word.lower().endswith(".csv")))
        forget = concept_sets.read_concept_set(
            list(self.forget_prompts), self.forget_images, self.images, name="forget", seed=self.seed
        )
        retain = concept_sets.read_concept_set(
            list(self.retain_prompts), self.retain_images, self.images, name="retain", seed=self.seed
        )
        job = unlearning.ConceptJob(
            model=self.model,
            forget=forget,
            retain=retain,
            settings=settings,
            method=self.method,
            generation=self.sampling(remat=self.remat),
            generation_batch_size=self.generate_batch_size,
            seed=self.seed,
            cache=self.cache,
            tokenizer=self.tokenizer,
            cleaning=self.cleaning(),
        )
        answer = unlearning.unlearn_concept(
            job,
            self.out,
            checkpoint_every=self.checkpoint_every,
            layout=layout,
            overwrite=self.overwrite,
            resume=self.resume,
            console=console,
        )
        print_json(answer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptPlanCommand(LongCommand, DiffusionMethodOptions):
    """Predict how much memory sd unlearn will need, by any of its methods.

    Compiles the programs of sd unlearn for the sizes of the networks and the device that is here, which takes minutes
    at full size on a CPU. With --traced it only looks at what they compute, for an accelerator that is not here.
    Weights are neither needed nor read. Settings of the method follow as NAME=VALUE, as for sd unlearn;
    `--help-settings NAME` lists those of a preset or a method.
    """

    example: ClassVar[str] = "sd plan --traced --batch-size 4 --dtype bfloat16 --remat --memory 24"

    model: Annotated[Path | None, Option("Folder of sd import.", metavar="DIR", exclusive="sizes")] = None
    config: Annotated[
        str, Option("Sizes of the networks, without --model: sd-v1 or tiny.", metavar="NAME", exclusive="sizes")
    ] = "sd-v1"
    devices: Annotated[
        int,
        Option(
            "Number of devices that the steps are divided over, and large arrays if they do not fit otherwise. --mesh "
            "says how instead.",
            metavar="N",
        ),
    ] = 1
    traced: Annotated[
        bool,
        Option(
            "Trace the programs instead of compiling them: in minutes at most, for an accelerator, and less exactly.",
        ),
    ] = False
    memory: Annotated[
        float | None, Option("Memory of a device in GiB. Default: what this device has.", metavar="G")
    ] = None
    json: Annotated[bool, Option("Print JSON instead of the table.")] = False

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion import model_folder, networks, planning
        from scissorhands_jax.jobs.plan_report import print_plan
        from scissorhands_jax.jobs.progress import status
        from scissorhands_jax.training import sharding

        config = (
            networks.named_config(self.config) if self.model is None else model_folder.read_model_config(self.model)
        )
        layout = None
        if self.mesh or self.fsdp:
            if self.devices != 1 or not self.mesh:
                raise InputError("--mesh says how many devices there are; give it, and leave --devices out")
            layout = sharding.planned_layout(*sharding.parse_mesh(self.mesh), fsdp=self.fsdp)
        what = "tracing" if self.traced else "compiling"
        with status(console, f"{what} for the sizes of the network"):
            plan = planning.plan_concept(
                config,
                self.method_settings(),
                method=self.method,
                generation=self.sampling(remat=self.remat),
                devices=self.devices,
                layout=layout,
                memory_gib=self.memory,
                traced=self.traced,
            )
        if self.json:
            print_json(plan.document())
        else:
            print_plan(plan, Console())
