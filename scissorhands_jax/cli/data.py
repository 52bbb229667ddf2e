"""The command `scissorhands data prepare`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

from scissorhands_jax.cli.options import RARE, Effect, Option
from scissorhands_jax.cli.shared import OverwriteOptions
from scissorhands_jax.terminal import Console, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareCommand(OverwriteOptions):
    """Prepare a data set from archives on this machine.

    Writes the data set where --data-dir of the other commands finds it, in the format of tensorflow_datasets. Needs
    neither a network connection nor TensorFlow.
    """

    example: ClassVar[str] = "data prepare cifar10 --from cifar-10-binary.tar.gz --data-dir data"

    effects: ClassVar[tuple[Effect, ...]] = (
        Effect(options=("unverified",), needs=("name",), values=("cifar10", "cifar100", "svhn")),
    )

    name: Annotated[str, Option("Name of the data set: cifar10, cifar100, svhn or faces.", flag="name", metavar="NAME")]
    sources: Annotated[
        tuple[Path, ...],
        Option(
            "cifar-10-binary.tar.gz; cifar-100-binary.tar.gz; train_32x32.mat and test_32x32.mat; for faces a folder "
            "with IDENTITY/*.jpg, with train/IDENTITY/*.jpg and test/IDENTITY/*.jpg, or with train.txt and test.txt "
            "of lines `path label`. Default: archives in DIR, else a download, which needs the extra `tensorflow`.",
            flag="--from",
            metavar="FILE",
            repeat="several",
        ),
    ] = ()
    data_dir: Annotated[Path, Option("Folder for the data set.", metavar="DIR")]
    image_size: Annotated[int | None, Option("Rescale faces to NxN pixels.", metavar="N", group=RARE)] = None
    unverified: Annotated[bool, Option("Take archives that are not the official ones.", group=RARE)] = False

    def run(self, console: Console) -> None:
        from scissorhands_jax import datasets
        from scissorhands_jax.jobs.progress import status

        with status(console, f"preparing {self.name}"):
            folder = datasets.prepare(
                self.name,
                list(self.sources),
                self.data_dir,
                image_size=self.image_size,
                unverified=self.unverified,
                overwrite=self.overwrite,
            )
        splits = datasets.load(self.name, self.data_dir)
        say(
            console,
            f"{len(splits.train['label']):,} images to train and {len(splits.test['label']):,} to test with, of "
            f"{len(splits.class_names)} classes and shape {splits.image_shape}, are ready in {folder}",
        )
