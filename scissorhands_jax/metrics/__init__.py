"""What a network knows and how far it is from another: accuracies, attacks, distances, and how sure each number is."""

from scissorhands_jax.metrics.accuracies import accuracy, predict
from scissorhands_jax.metrics.attacks import membership_inference
from scissorhands_jax.metrics.distances import average_gap

__all__ = ["accuracy", "average_gap", "membership_inference", "predict"]
