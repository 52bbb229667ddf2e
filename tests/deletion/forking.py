"""Processes that work on ledgers, run out of disk or may not write.

Run as `python -m tests.deletion.forking FOLDER SCENARIO...`.

Everything is imported once and no backend of JAX is started, so that a fork costs next to nothing and is an independent
process. Prints what each scenario has seen, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib.backends.backend_svg  # noqa: F401  what runs import late
import numpy as np
import pytest
import sklearn.svm  # noqa: F401
from rich.console import Console

from scissorhands_jax import deletion, files, models, torch_weights
from scissorhands_jax.deletion import ledger, signing, verdicts
from scissorhands_jax.deletion.entries import NamedExample
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import METHODS
from scissorhands_jax.metrics import rank_tests
from scissorhands_jax.training import checkpoints
from tests.deletion.samples import ABOUT

EXAMPLES = 200


def forked(work: Callable[[], Any]) -> int:
    """Runs something in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def status(child: int) -> int:
    """Returns 0 if a child did all it should, 1 if it did not, and -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def example(number: int, folder: Path) -> list[NamedExample]:
    return [NamedExample(number, f"{number:064d}")]


def fill(folder: Path, who: str, count: int, size: int = 1) -> None:
    """Adds requests one after another, and opens the ledger again for each."""
    for number in range(count):
        with Ledger(folder) as book:
            rows = [NamedExample(position, f"{number:064d}") for position in range(size)]
            book.add(requester=f"{who} {number}", received="now", due="2026-12-31", network="0" * 64, examples=rows)


def many(folder: Path) -> dict[str, Any]:
    """Four processes begin one ledger and add to it at the same time."""

    def work(who: int) -> None:
        Ledger.begin(folder, ABOUT).close()
        fill(folder, f"process {who}", 15)

    children = [forked(lambda who=who: work(who)) for who in range(4)]
    ended = [status(child) for child in children]
    with Ledger(folder) as book:
        return {"ended": ended, "names": [r.requester for r in book.requests()], "problems": book.problems()}


def limited(folder: Path) -> dict[str, Any]:
    """No file may grow beyond a limit, as on a full disk: the ledger, a network, a text."""
    Ledger.begin(folder, ABOUT).close()
    fill(folder, "early", 2)
    size = (folder / ledger.DATABASE_FILE).stat().st_size
    said: dict[str, str] = {}
    arrays = {"a": np.arange(20_000, dtype=np.float32)}

    def work() -> None:
        checkpoints.save_network(folder / "network", arrays, {}, {"which": "old"})
        files.write_text(folder / "text", "old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, resource.RLIM_INFINITY))
        for name, attempt in {
            "ledger": lambda: fill(folder, "late", 1, size=2000),
            "network": lambda: checkpoints.save_network(folder / "network", {"a": arrays["a"] + 1}, {}, {}),
            "text": lambda: files.write_text(folder / "text", "new" * size),
        }.items():
            try:
                attempt()
            except (InputError, OSError) as error:
                said[name] = f"{type(error).__name__}: {error}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        said["kept"] = str(
            np.array_equal(checkpoints.load_network(folder / "network", arrays, {})[0]["a"], arrays["a"])
            and (folder / "text").read_text() == "old"
        )
        (folder / "said").write_text(json.dumps(said))

    ended = status(forked(work))
    said = json.loads((folder / "said").read_text()) if (folder / "said").exists() else {}
    with Ledger(folder) as book:
        names = [request.requester for request in book.requests()]
        problems = book.problems()
    fill(folder, "again", 1, size=2000)
    with Ledger(folder) as book:
        return {"ended": ended, "said": said, "names": names, "problems": problems + book.problems()}


def forbidden(folder: Path) -> dict[str, Any]:
    """Reads a ledger without the right to write it, as the user `nobody`, because root may write every file."""
    Ledger.begin(folder, ABOUT).close()
    fill(folder, "early", 2)
    nobody = 65534
    for path in [folder, *folder.rglob("*")]:
        if os.geteuid() == 0:
            os.chown(path, nobody, nobody)
        path.chmod(0o500 if path.is_dir() else 0o400)
    (folder.parent / "said").mkdir()
    (folder.parent / "said").chmod(0o777)

    def work() -> None:
        if os.geteuid() == 0:
            os.setgid(nobody)
            os.setuid(nobody)
        said = {}
        for name, attempt in {
            "add": lambda: fill(folder, "late", 1),
            "text": lambda: files.write_text(folder / "text", "new"),
            "begin": lambda: Ledger.begin(folder / "other", ABOUT),
        }.items():
            try:
                attempt()
            except (InputError, OSError) as error:
                said[name] = f"{type(error).__name__}: {error}"
        with Ledger(folder) as book:
            said["read"] = str(len(book.requests()))
        (folder.parent / "said" / "said").write_text(json.dumps(said))

    ended = status(forked(work))
    said = json.loads((folder.parent / "said" / "said").read_text()) if ended == 0 else {}
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        path.chmod(0o700)
    return {"ended": ended, "said": said}


@contextlib.contextmanager
def good_evidence() -> Iterator[None]:
    """Puts evidence that is always good in place of the comparison, for tests of runs that follow one another."""
    findings = (rank_tests.Finding("f", 0.5, 0.4, 0.6),)
    gates = (verdicts.EvidenceGate("g", True, "so that runs follow one another"),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "held_out_comparison", lambda *_: verdicts.Evidence("test", findings, gates))
        yield


def serve(folder: Path) -> None:
    """Does what `scissorhands request run` does."""
    settings = METHODS["finetune"](epochs=2, batch_size=64)
    with open(os.devnull, "w") as sink, good_evidence():
        console = Console(file=sink)
        deletion.run(folder, settings, method="finetune", one_by_one=True, budget=100.0, console=console)


def write_data(folder: Path) -> dict[str, np.ndarray]:
    """Makes a data set of noise with labels that can only be learned by heart, and returns its training split."""
    generator = np.random.default_rng(0)
    label = np.arange(EXAMPLES + 50) % 3
    image = generator.uniform(size=(len(label), 4, 4, 1)).astype(np.float32)
    train = {"image": image[:EXAMPLES], "label": label[:EXAMPLES].astype(np.int32)}
    np.savez(folder / "data.npz", **train, test_image=image[EXAMPLES:], test_label=label[EXAMPLES:])
    return train


def prepare(folder: Path) -> None:
    """Makes data, a network, a ledger with one request, and the digests of all examples."""
    train = write_data(folder)
    model = models.build("mlp", num_classes=3, image_shape=(4, 4, 1))
    torch_weights.write_safetensors(
        folder / "mlp.safetensors", torch_weights.to_state_dict(*model.init(jax.random.key(0)))
    )
    (folder / "first").write_text("0\n1\n")
    subject = deletion.Subject("mlp", f"npz:{folder / 'data.npz'}", None, str(folder / "mlp.safetensors"))
    forget = f"indices:{folder / 'first'}"
    deletion.add(folder / "ledger", forget=forget, requester="request 1", subject=subject)
    with Ledger(folder / "ledger") as book:
        digests = signing.example_digests(book.keys, train)
    (folder / "digests").write_text(json.dumps(digests))


def main() -> None:
    answers = {}
    for name in sys.argv[2:]:
        folder = Path(sys.argv[1]) / name / "folder"
        folder.mkdir(parents=True)
        answers[name] = globals()[name](folder)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
