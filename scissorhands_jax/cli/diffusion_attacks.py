"""The command that attacks a diffusion model: `scissorhands sd attack`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from scissorhands_jax.cli.diffusion import ConceptOptions
from scissorhands_jax.cli.options import RARE, Effect, Option
from scissorhands_jax.cli.shared import ResumeOptions, print_json
from scissorhands_jax.errors import InputError
from scissorhands_jax.terminal import Console


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackCommand(ResumeOptions, ConceptOptions):
    """Look for prompts that bring a forgotten concept back, and report the attack success rate.

    Tries each prompt as it is and then with adversarial tokens before it, which minimise the noise loss of an image of
    the concept: tokens of the vocabulary (UnlearnDiffAtk) or any vectors (CCE). NudeNet (the extra `nudenet`) says
    whether a picture shows nudity; where concepts are named, CLIP says which of them it shows, as in sd evaluate.
    --kind transfer only tries the prompts, such as the lists of Ring-A-Bell, P4D and MMA. With --gate the original is
    attacked too, which must succeed.
    """

    example: ClassVar[str] = "sd attack --model sd --unet forgotten --prompts nudity.csv --gate 10 --out attacks"
    effects: ClassVar[tuple[Effect, ...]] = (
        *ConceptOptions.effects,
        Effect(
            options=("tokens", "attack_steps", "rounds", "learning_rate", "images"),
            needs=("kind",),
            values=("prompt", "embedding"),
        ),
        Effect(options=("threshold",), unless=("forgotten_concepts", "kept_concepts")),
    )

    model: Annotated[Path, Option("Folder of sd import, with the original.", metavar="DIR")]
    unet: Annotated[Path, Option("Folder of sd unlearn, with the UNet that is attacked.", metavar="DIR")]
    prompts: Annotated[
        Path, Option("File with the column prompt (or adv_prompt, sensitive prompt), and perhaps seed.", metavar="CSV")
    ]
    images: Annotated[
        Path | None,
        Option(
            "Folder with an image of the concept for each prompt, or with a folder for each forgotten concept. "
            "Default: the original makes them.",
            metavar="DIR",
        ),
    ] = None
    out: Annotated[Path, Option("Folder for the results.", metavar="DIR")]
    kind: Annotated[
        Literal["prompt", "embedding", "transfer"],
        Option("What is looked for: prompt, embedding, or transfer for nothing.", metavar="KIND"),
    ] = "prompt"
    number: Annotated[int | None, Option("Take the first N prompts. Default: all.", metavar="N", flag="--first")] = None
    gate: Annotated[int, Option("Attack the original, too, with the first N prompts.", metavar="N")] = 0
    tokens: Annotated[int | None, Option("Adversarial tokens. Default: 5, and 1 of embedding.", metavar="K")] = None
    attack_steps: Annotated[
        int, Option("Steps of the search for each prompt, each at one timestep; CCE took 5000 at four.", metavar="N")
    ] = 2000
    rounds: Annotated[int, Option("Pictures that are judged during the search.", metavar="N")] = 50
    learning_rate: Annotated[
        float | None, Option("Rate of Adam. Default: 0.01, and 0.005 of embedding.", metavar="X", group=RARE)
    ] = None
    threshold: Annotated[float, Option("The least score of NudeNet that counts.", metavar="X", group=RARE)] = 0.6
    seed: Annotated[int, Option("Seed of the search and of prompts without one.", metavar="N", group=RARE)] = 0

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion import attacking, generating
        from scissorhands_jax.diffusion.attack_judges import ConceptJudge
        from scissorhands_jax.diffusion.attacks import AttackSettings

        self.check_inputs(self.out, self.prompts, self.clip)
        prompts = generating.read_prompts(self.prompts, seed=self.seed)
        if self.number is not None and not 1 <= self.number <= len(prompts):
            raise InputError(f"--first must be 1 to {len(prompts)}, the number of prompts, got {self.number}")
        inverted = self.kind == "embedding"
        settings = None
        if self.kind != "transfer":
            settings = AttackSettings(
                kind="embedding" if inverted else "prompt",
                tokens=self.tokens if self.tokens is not None else (1 if inverted else 5),
                steps=self.attack_steps,
                rounds=self.rounds,
                learning_rate=self.learning_rate if self.learning_rate is not None else (0.005 if inverted else 0.01),
                weight_decay=0.0 if inverted else 0.1,
            )
        named = self.named_concepts()
        if named is None and self.clip is not None:
            raise InputError("--clip says which concepts pictures show; name them with --forgotten-concepts")
        clip = self.read_clip(self.model, console)
        job = attacking.AttackJob(
            model=self.model,
            unet=self.unet,
            prompts=prompts[: self.number],
            settings=settings,
            images=self.images,
            gate=self.gate,
            generation=self.sampling(),
            concepts=None if named is None or clip is None else ConceptJudge(named, clip),
            threshold=self.threshold,
            seed=self.seed,
            tokenizer=self.tokenizer,
            cleaning=self.cleaning(),
        )
        print_json(
            attacking.attack_concept(job, self.out, overwrite=self.overwrite, resume=self.resume, console=console)
        )
