"""Deletion requests: a signed ledger of who asked for what, what was done about it, and what shows it.

`add` takes a request in, `run` makes the network forget what was asked for, and `verify` finds every later change.
`export` makes a copy for auditors that names nobody, and `erase` removes a requester's personal data.
`derive` and `retire` register networks that were made from the ledger's and that know what these knew.
`discard` removes a network that is no longer in use.
"""

from etils import epy as _epy

# They are loaded when they are first used, so that listing requests does not load JAX's training code.
with _epy.lazy_api_imports(globals()):
    from scissorhands_jax.deletion.erasing import erase_request as erase
    from scissorhands_jax.deletion.exporting import export_ledger as export
    from scissorhands_jax.deletion.lineage import derive, retire
    from scissorhands_jax.deletion.requests import Subject
    from scissorhands_jax.deletion.requests import add_request as add
    from scissorhands_jax.deletion.running import run_requests as run
    from scissorhands_jax.deletion.tidying import discard_run as discard
    from scissorhands_jax.deletion.verifying import verify_ledger as verify

__all__ = ["Subject", "add", "derive", "discard", "erase", "export", "retire", "run", "verify"]
