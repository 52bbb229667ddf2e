"""Audits of unlearning methods: ensembles of networks trained with and without forget sets, attacked and compared."""

from scissorhands_jax.audit.networks import TIERS
from scissorhands_jax.audit.run import run_audit

__all__ = ["TIERS", "run_audit"]
