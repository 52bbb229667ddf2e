"""The one loop that runs every method, and what it stands on: feeding, checkpoints, many devices, many processes."""

from scissorhands_jax.training.checkpoints import Checkpointer
from scissorhands_jax.training.loop import Progress, Result, run, train
from scissorhands_jax.training.sharding import Layout, make_layout
from scissorhands_jax.training.sweeps import Member, run_many

__all__ = ["Checkpointer", "Layout", "Member", "Progress", "Result", "make_layout", "run", "run_many", "train"]
