"""Figures of a machine, each as a ratio to something timed in turn with it: `python -m experiments.benchmark`."""
