"""Run as a script beside a process of a distributed run: says in one sentence how it ended, if it could not itself.

JAX's runtime ends a process that has lost its peers from within, without a word of Python; so do signals. What the
process's native code prints arrives here and is passed on, but for greetings and the runtime's last words.
"""

from __future__ import annotations

import sys

DONE = b"\0done\n"
GREETING = b"[Gloo] Rank"
LAST_WORDS = b"Terminating process because the JAX distributed service"


def main() -> None:
    """Reads to the end; `sys.argv` has the sentence for a lost peer and the one for a sudden end."""
    lost, killed = sys.argv[1:]
    dying = False
    for line in sys.stdin.buffer:
        if line.endswith(DONE):
            return
        dying = dying or LAST_WORDS in line
        if not dying and not line.startswith(GREETING):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
    sys.stderr.write(f"error: {lost if dying else killed}\n")


if __name__ == "__main__":
    main()
