"""Ledgers that several test files share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scissorhands_jax.deletion.ledger import Ledger
from tests.deletion import forking
from tests.deletion.commands import QUICK, command
from tests.deletion.samples import ABOUT, recorded, started
from tests.deletion.spoiling import request
from tests.figures import nothing_drawn


@pytest.fixture(scope="package", autouse=True)
def without_figures() -> Iterator[None]:
    """Nothing in the tests of deletion looks at a figure; those of other packages in the same process do."""
    with nothing_drawn():
        yield


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Path:
    """A ledger with a request that was served, one that the evidence was not good enough for, and one that is open."""
    folder = tmp_path_factory.mktemp("requests")
    with nothing_drawn():  # What a session shares is made before what a package shares.
        forking.prepare(folder)
        forking.serve(folder / "ledger")
        (folder / "third").write_text("4\n5\n")
        assert command("add", "--ledger", folder / "ledger", "--forget", "class:1", "--requester", "B. Person") == 0
        assert command("run", "--ledger", folder / "ledger", *QUICK) == 3
        third = ["--forget", f"indices:{folder / 'third'}", "--requester", "C", "--due", "2020-02-02"]
        assert command("add", "--ledger", folder / "ledger", *third) == 0
    return folder / "ledger"


@pytest.fixture
def book_folder(served, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(served, tmp_path / "ledger")


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    """A ledger with three requests, one served, one in a run, one open."""
    folder = tmp_path_factory.mktemp("ledger") / "book"
    with Ledger.begin(folder, ABOUT) as book:
        for who in ("first", "second", "third"):
            request(book, who)
        book.append(started(1, 1))
        book.append(recorded(1, 1))
        book.append(started(2, 2))
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(written, tmp_path / "copy")
