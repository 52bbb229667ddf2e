"""Consoles, tables and progress in the terminal: rich's, or plain lines on a machine that lacks rich.

Tables of results (`jobs.grid`) and the experiments for a borrowed accelerator print by these names only, so that they
run where there is JAX and little else.
"""

from __future__ import annotations

try:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
except ModuleNotFoundError:
    from scissorhands_jax.plain_terminal import PlainConsole as Console  # type: ignore[assignment]
    from scissorhands_jax.plain_terminal import PlainProgress as Progress  # type: ignore[assignment]
    from scissorhands_jax.plain_terminal import PlainTable as Table  # type: ignore[assignment]

__all__ = ["Console", "Progress", "Table", "complain"]


def complain(console: Console, message: str) -> None:
    """Prints an error on one line, without markup."""
    console.print("[bold red]error:[/] ", end="", highlight=False)
    console.print(" ".join(message.split()), style=None, markup=False, highlight=False, soft_wrap=True)
