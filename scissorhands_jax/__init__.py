"""Machine unlearning in JAX: Scissorhands and its baselines as pure functions over parameter pytrees.

The common names are here; the packages and modules hold the rest (`.masks`, `.models`, `.training`, ...).
"""

from etils import epy as _epy

# Loaded when they are first used, so that the command line can see to its memory before JAX is there.
with _epy.lazy_api_imports(globals()):
    from scissorhands_jax import audit as audit
    from scissorhands_jax import augmentation as augmentation
    from scissorhands_jax import base as base
    from scissorhands_jax import data as data
    from scissorhands_jax import datasets as datasets
    from scissorhands_jax import deletion as deletion
    from scissorhands_jax import diffusion as diffusion
    from scissorhands_jax import errors as errors
    from scissorhands_jax import files as files
    from scissorhands_jax import hashing as hashing
    from scissorhands_jax import jobs as jobs
    from scissorhands_jax import language as language
    from scissorhands_jax import losses as losses
    from scissorhands_jax import masks as masks
    from scissorhands_jax import methods as methods
    from scissorhands_jax import metrics as metrics
    from scissorhands_jax import microbatches as microbatches
    from scissorhands_jax import models as models
    from scissorhands_jax import optimizers as optimizers
    from scissorhands_jax import projection as projection
    from scissorhands_jax import reinit as reinit
    from scissorhands_jax import report as report
    from scissorhands_jax import saliency as saliency
    from scissorhands_jax import tasks as tasks
    from scissorhands_jax import torch_weights as torch_weights
    from scissorhands_jax import training as training
    from scissorhands_jax import trees as trees
    from scissorhands_jax.base import Batch, Carry, Data, Method, Model, freeze, lift
    from scissorhands_jax.data import split
    from scissorhands_jax.errors import BusyError, CheckpointError, InputError, NonFiniteError, PeerError, WeightsError
    from scissorhands_jax.jobs.comparing import evaluate
    from scissorhands_jax.jobs.experiment import OwnNetwork
    from scissorhands_jax.losses import classification_loss, microbatched
    from scissorhands_jax.masks import mask_updates, top_fraction
    from scissorhands_jax.methods import finetune, retrain, scissorhands, scissorhands_gradient, trim_network
    from scissorhands_jax.models import TrainedModel, from_equinox, from_linen, from_nnx
    from scissorhands_jax.optimizers import sgd
    from scissorhands_jax.projection import project_gradient, solve_dual
    from scissorhands_jax.reinit import reinitialize
    from scissorhands_jax.saliency import connection_sensitivity
    from scissorhands_jax.tasks import Metric, Task, task_loss
    from scissorhands_jax.training import Checkpointer, Layout, Member, Result, make_layout, run, run_many, train
    from scissorhands_jax.training.descriptions import named
    from scissorhands_jax.trees import select
    from scissorhands_jax.version import __version__ as __version__

__all__ = [
    "Batch",
    "BusyError",
    "Carry",
    "CheckpointError",
    "Checkpointer",
    "Data",
    "InputError",
    "Layout",
    "Member",
    "Method",
    "Metric",
    "Model",
    "NonFiniteError",
    "OwnNetwork",
    "PeerError",
    "Result",
    "Task",
    "TrainedModel",
    "WeightsError",
    "classification_loss",
    "connection_sensitivity",
    "evaluate",
    "finetune",
    "freeze",
    "from_equinox",
    "from_linen",
    "from_nnx",
    "lift",
    "make_layout",
    "mask_updates",
    "microbatched",
    "named",
    "project_gradient",
    "reinitialize",
    "retrain",
    "run",
    "run_many",
    "scissorhands",
    "scissorhands_gradient",
    "select",
    "sgd",
    "solve_dual",
    "split",
    "task_loss",
    "top_fraction",
    "train",
    "trim_network",
]
