"""The command `scissorhands`, also as `python -m scissorhands_jax`."""

import os

from scissorhands_jax.cli import huge_pages


def entry() -> None:
    """Console entry point."""
    huge_pages.restart()
    # Quieter logs of libraries, unless the user asked for them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from scissorhands_jax.cli import main as cli

    raise SystemExit(cli.main())


if __name__ == "__main__":
    entry()
