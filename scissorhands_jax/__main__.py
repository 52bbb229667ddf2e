"""The command `scissorhands`, also as `python -m scissorhands_jax`."""

import os

from scissorhands_jax import _huge_pages


def entry() -> None:
    """Console entry point."""
    _huge_pages.restart()
    # Quieter logs of libraries, unless the user asked for them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from scissorhands_jax import cli  # takes seconds, which a restart need not pay twice

    raise SystemExit(cli.main())


if __name__ == "__main__":
    entry()
