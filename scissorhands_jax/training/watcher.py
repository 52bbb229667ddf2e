"""A script that runs alongside a process of a distributed run and says how it ended, if the process could not.

JAX's runtime ends a process that has lost its peers from within, and a signal does the same: Python cannot print
anything any more. What the native code of the process prints arrives here and is passed on, except for greetings and
the last words of the runtime.
"""

from __future__ import annotations

import sys

DONE = b"\0done\n"
GREETING = b"[Gloo] Rank"
LAST_WORDS = b"Terminating process because the JAX distributed service"


def watch() -> None:
    """Passes on what the process prints until it ends.

    `sys.argv` has two sentences: the one for a process that lost its peers and the one for any other sudden end.
    """
    lost, killed = sys.argv[1:]
    dying = False
    for line in sys.stdin.buffer:
        if line.endswith(DONE):
            return
        dying = dying or LAST_WORDS in line
        if not dying and not line.startswith(GREETING):
            sys.stderr.buffer.write(line if line.endswith(b"\n") else line + b"\n")
            sys.stderr.buffer.flush()
    sys.stderr.write(f"error: {lost if dying else killed}\n")


if __name__ == "__main__":
    watch()
