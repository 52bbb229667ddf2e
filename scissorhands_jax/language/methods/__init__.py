"""Unlearning methods for language models, each a `Method` that `training.run` runs, one file each.

Methods of `scissorhands_jax.methods` that read no classes have no code of their own here: `scissorhands`, `finetune`,
`neggrad_plus`, `gradient_ascent`, `ssd`, `munba` with `forget_loss="ascent"` and others take `token_losses.token_loss`,
`scrub` and `bad_teacher` the model and `task=token_losses.answers_task()`.
"""

from scissorhands_jax.language.methods.ce_u import ce_u
from scissorhands_jax.language.methods.dpo import dpo
from scissorhands_jax.language.methods.gradient_difference import gradient_difference
from scissorhands_jax.language.methods.npo import npo
from scissorhands_jax.language.methods.rmu import rmu
from scissorhands_jax.language.methods.simnpo import simnpo
from scissorhands_jax.language.methods.task_vector import task_vector
from scissorhands_jax.language.methods.undial import undial
from scissorhands_jax.language.methods.wga import wga

LANGUAGE_METHODS = {
    "gradient_difference": gradient_difference,
    "npo": npo,
    "simnpo": simnpo,
    "dpo": dpo,
    "rmu": rmu,
    "undial": undial,
    "ce_u": ce_u,
    "wga": wga,
    "task_vector": task_vector,
}
"""The factories by name. All take a `Model` from tokens to logits, but `rmu` the activations of a layer."""

__all__ = [
    "LANGUAGE_METHODS",
    "ce_u",
    "dpo",
    "gradient_difference",
    "npo",
    "rmu",
    "simnpo",
    "task_vector",
    "undial",
    "wga",
]
