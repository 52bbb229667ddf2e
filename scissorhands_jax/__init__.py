"""Machine unlearning in JAX: Scissorhands and its baselines as pure functions over parameter pytrees.

The common names are here; the modules hold the rest (`scissorhands_jax.masks`, `.models`, `.torch_weights`, ...).
"""

from scissorhands_jax.base import Batch, Carry, Data, Method, Model, freeze, lift
from scissorhands_jax.checkpoints import Checkpointer
from scissorhands_jax.data import split
from scissorhands_jax.errors import CheckpointError, InputError, NonFiniteError, PeerError, WeightsError
from scissorhands_jax.losses import classification_loss, microbatched
from scissorhands_jax.masks import mask_updates, top_fraction
from scissorhands_jax.methods import finetune, retrain, scissorhands
from scissorhands_jax.models import from_equinox, from_linen, from_nnx
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.projection import project_gradient, solve_dual
from scissorhands_jax.reinit import reinitialize
from scissorhands_jax.saliency import connection_sensitivity
from scissorhands_jax.sharding import Layout, make_layout
from scissorhands_jax.sweeps import Member, run_many
from scissorhands_jax.training import Result, run
from scissorhands_jax.trees import select

__all__ = [
    "Batch",
    "Carry",
    "CheckpointError",
    "Checkpointer",
    "Data",
    "InputError",
    "Layout",
    "Member",
    "Method",
    "Model",
    "NonFiniteError",
    "PeerError",
    "Result",
    "WeightsError",
    "classification_loss",
    "connection_sensitivity",
    "finetune",
    "freeze",
    "from_equinox",
    "from_linen",
    "from_nnx",
    "lift",
    "make_layout",
    "mask_updates",
    "microbatched",
    "project_gradient",
    "reinitialize",
    "retrain",
    "run",
    "run_many",
    "scissorhands",
    "select",
    "sgd",
    "solve_dual",
    "split",
    "top_fraction",
]
