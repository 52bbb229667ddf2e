"""Measures of what a network knows and of how far it is from another, each with an interval where one is needed."""

from scissorhands_jax.metrics.accuracies import accuracy, predict
from scissorhands_jax.metrics.attacks import membership_inference
from scissorhands_jax.metrics.distances import average_gap

__all__ = ["accuracy", "average_gap", "membership_inference", "predict"]
