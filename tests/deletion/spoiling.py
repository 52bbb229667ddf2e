"""Ledgers as tests fill them, and ways to change one behind its back."""

import base64
import json
import sqlite3

from scissorhands_jax.deletion import database, entries, ledger
from scissorhands_jax.deletion.entries import NamedExample
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import LedgerError

EXAMPLES = [NamedExample(3, "a" * 64), NamedExample(5, "b" * 64)]


def request(book, who="somebody", **changes):
    fields = {"requester": who, "received": entries.utc_now(), "due": "2026-12-31", "network": "0" * 64}
    return book.add(**{**fields, "examples": EXAMPLES, **changes})


def problems(folder) -> list[str]:
    """Returns all problems, which are found when the ledger is opened or looked through."""
    try:
        with Ledger(folder, check=False) as book:
            return book.problems()
    except LedgerError as error:
        return [str(error)]


def by_hand(folder, *statements) -> None:
    with sqlite3.connect(folder / ledger.DATABASE_FILE) as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def unguarded(trigger, statement):
    """Returns statements that drop a trigger, run what it forbids, and make it again."""
    made = next(text for text in database.SCHEMA if f"TRIGGER {trigger} " in text)
    return [f"DROP TRIGGER {trigger}", statement, made]


def everything(path):
    """Returns the content and the schema of all tables of a database, or None if SQLite cannot read it."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [
            connection.execute(f"SELECT {columns} ORDER BY 1, 2").fetchall()
            for columns in (
                *("* FROM requests", "* FROM private", "* FROM history", "* FROM head"),
                "type, name, tbl_name, sql FROM sqlite_master",
            )
        ]
    except sqlite3.Error:
        return None
    finally:
        connection.close()


def flipped(content, position, generator):
    """Returns the content with one bit of one byte changed."""
    return content[:position] + bytes([content[position] ^ 1 << generator.randrange(8)]) + content[position + 1 :]


def holding(folder, *texts) -> list[str]:
    """Returns the files that hold one of the texts, in UTF-8 or as JSON escapes it, in envelopes as well."""
    wanted = [form for text in texts for form in (text.encode(), json.dumps(text)[1:-1].encode())]
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".jsonl":
            content += base64.b64decode(json.loads(content)["payload"])
        if any(text in content for text in wanted):
            found.append(path.name)
    return found


def changes_of(path, generator, bits=3):
    """Yields a file with single bits changed, with a byte more, and removed; afterwards it is as it was."""
    whole, mode = path.read_bytes(), path.stat().st_mode
    for position in [generator.randrange(len(whole)) for _ in range(bits)] if whole else []:
        path.write_bytes(flipped(whole, position, generator))
        yield f"{path.name} at {position}"
    path.write_bytes(whole + b"\n")
    yield f"{path.name} with a byte more"
    path.unlink()
    yield f"{path.name} removed"
    path.write_bytes(whole)
    path.chmod(mode)


def remove_journals(folder):
    """Removes what SQLite leaves next to a file whose transaction it could not end."""
    for left in folder.glob("ledger.sqlite3-*"):
        left.unlink()
