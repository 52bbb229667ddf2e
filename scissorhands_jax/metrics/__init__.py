"""What a network knows: accuracies, attacks on one network and on ensembles, and how sure each number is."""

from scissorhands_jax.metrics.accuracies import accuracy, average_gap, predict
from scissorhands_jax.metrics.attacks import membership_inference

__all__ = ["accuracy", "average_gap", "membership_inference", "predict"]
