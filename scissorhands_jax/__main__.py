"""`python -m scissorhands_jax` is the same as `scissorhands`."""

from scissorhands_jax.cli import entry

entry()
