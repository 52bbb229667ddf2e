"""Over 2,000 damaged or hostile inputs: each ends in one sentence, in bounded time and memory, and does nothing."""

import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import resource
import shutil
import struct
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from scissorhands_jax import data, files, report, torch_weights
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.deletion import ledger, records, signing, verdicts
from scissorhands_jax.deletion.entries import NamedExample
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config, runs
from scissorhands_jax.methods import METHODS
from scissorhands_jax.training import checkpoints
from scissorhands_jax.training.checkpoints import Checkpointer, Position
from tests.comparison import same_bits
from tests.deletion.samples import ABOUT, record, started
from tests.torch_weights import state_dicts_test as torch_files
from tests.training.checkpoints_test import carry

CASES = {
    "weights": 500,
    "safetensors headers": 200,
    "ledger": 300,
    "records": 150,
    "network": 250,
    "checkpoint": 50,
    "run.json": 150,
    "results.json": 150,
    "audit": 100,
    "settings": 400,
    "positions": 100,
}
SECONDS, MEMORY = 5.0, 2**30  # for one input, beyond what the process has

# Modules and functions that picklescan (github.com/mmaitre314/picklescan, scanner.py) lists as dangerous; where it
# lists a whole module, one function of it. Those that tests/torch_weights/state_dicts_test.py has already are left out.
LISTED = """
    __builtin__: compile getattr apply exec open breakpoint
    builtins: compile apply breakpoint
    aiohttp.client: ClientSession | asyncio: create_subprocess_shell | bdb: Bdb.run | commands: getoutput
    ctypes: WinDLL | httplib: HTTPSConnection | numpy.f2py: getlincoef | numpy.f2py.crackfortran: _eval_length
    numpy.testing._private.utils: runstring | operator: itemgetter methodcaller | os: popen execv remove
    posix: execve | nt: startfile | requests.api: get | runpy: _run_code | shutil: move | socket: socket
    ssl: get_server_certificate | subprocess: run | sys: settrace | code: InteractiveInterpreter.runcode
    cProfile: runctx run | distutils.file_util: write_file | doctest: debug_script | ensurepip: _run_pip
    idlelib.autocomplete: AutoComplete.get_entity AutoComplete.fetch_completions
    idlelib.calltip: Calltip.fetch_tip get_entity | idlelib.debugobj: ObjectTreeItem.SetText
    idlelib.pyshell: ModifiedInterpreter.runcode ModifiedInterpreter.runcommand | idlelib.run: Executive.runcode
    lib2to3.pgen2.grammar: Grammar.loads | lib2to3.pgen2.pgen: ParserGenerator.make_label | pdb: run
    pickle: load | _pickle: loads | pip: main | pty: spawn | profile: Profile.run Profile.runctx
    pydoc: locate pipepager | timeit: timeit | torch._dynamo.guards: GuardBuilder.get
    torch._inductor.codecache: compile_file
    torch.fx.experimental.symbolic_shapes: ShapeEnv.evaluate_guards_expression
    torch.jit.unsupported_tensor_ops: execWrapper | torch.serialization: load
    torch.utils._config_module: ConfigModule.load_config
    torch.utils.bottleneck.__main__: run_cprofile run_autograd_prof | torch.utils.collect_env: run
    torch.utils.data.datapipes.utils.decoder: basichandlers | trace: Trace.run Trace.runctx
    venv: create | webbrowser: open_new
"""
DANGEROUS = [
    (module.strip(), name)
    for entry in LISTED.replace("\n", "|").split("|")
    if entry.strip()
    for module, _, names in [entry.partition(":")]
    for name in names.split()
]


def test_there_are_enough_of_them():
    assert sum(CASES.values()) + 2 * 2 * len(DANGEROUS) > 2500
    assert len(DANGEROUS) > 70


class Watch:
    """What Python is about to do, from its audit events; hooks stay for good, so it looks only while it is told to."""

    # Nobody who reads a file has any business with these.
    forbidden = (
        *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.", "ctypes."),
        *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"),
    )
    changing = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "shutil.")

    def __init__(self) -> None:
        self.folder: str | None = None
        self.done: list[str] = []
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple) -> None:
        if self.folder is None:
            return
        if event.startswith(self.forbidden) or (event == "import" and arguments[0] in _DANGEROUS_MODULES):
            self.done.append(f"{event} {arguments[:1]}")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if isinstance(arguments[0] if arguments else 0, int):  # a file that is open already
            return
        # The suite's cache of compiled programs has a folder of its own.
        allowed = (self.folder, jax.config.jax_compilation_cache_dir or self.folder)
        if (writes or event.startswith(self.changing)) and not os.fsdecode(arguments[0]).startswith(allowed):
            self.done.append(f"{event} {arguments[:1]}")


_DANGEROUS_MODULES = {"webbrowser", "pty", "pdb", "pydoc", "runpy", "timeit", "profile", "cProfile", "doctest", "pip"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@pytest.fixture(scope="module")
def watch():
    return Watch()


@pytest.fixture
def survives(watch, tmp_path, monkeypatch):
    """Calls a reader; says whether it refused, in one sentence, in time, without doing anything."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_AS)

    def survives(read) -> bool:
        if Path("/proc/self/statm").exists():
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
        started = time.process_time()
        watch.done, watch.folder, said = [], str(tmp_path), None
        try:
            read()
        except InputError as error:
            said = str(error)
        finally:
            watch.folder = None
            resource.setrlimit(resource.RLIMIT_AS, before)
        assert watch.done == []
        assert time.process_time() - started < SECONDS
        assert said is None or (0 < len(said) < 3000 and "Traceback" not in said)
        return said is not None

    return survives


def damaged(raw: bytes, generator: random.Random) -> bytes:
    """A file with flipped bits, cut off, with a hole, something put in or twice, or with huge numbers in it."""
    content, kind = bytearray(raw), generator.randrange(8)
    start = generator.randrange(len(raw))
    stop = min(len(raw), start + generator.choice([1, 4, 8, 64, 4096]))
    if kind <= 1:
        for _ in range(generator.choice([1, 1, 5, 50])):
            content[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
    elif kind == 2:
        del content[start:]
    elif kind == 3:
        del content[start:stop]
    elif kind == 4:
        content[start:start] = generator.choice([generator.randbytes(16), raw[start:stop], b"\0" * 64, b'{"a":' * 20])
    elif kind == 5:
        content[start:stop] = bytes(stop - start)
    elif kind == 6:
        content[start : start + 8] = struct.pack("<Q", generator.choice([2**64 - 1, 2**63, 2**40, 2**31, 0]))
    else:
        other = generator.randrange(len(raw))
        content[start:stop], content[other : other + 8] = content[other : other + 8], content[start:stop]
    return bytes(content)


def nonsense(generator: random.Random, depth: int = 3):
    """A JSON value of any kind."""
    kinds = [None, True, 0, -1, 2**70, 1e308, "", "x" * 50, "\0", "../../etc/passwd", "F32", [], {}]
    if depth and generator.random() < 0.5:
        many = generator.randrange(4)
        if generator.random() < 0.5:
            return [nonsense(generator, depth - 1) for _ in range(many)]
        keys = ["dtype", "shape", "data_offsets", "a", "version", "rows", "config", "network", "x" * 30]
        return {generator.choice(keys): nonsense(generator, depth - 1) for _ in range(many)}
    return generator.choice(kinds)


def spoiled(value, generator: random.Random):
    """A JSON document with something else in one place."""
    if isinstance(value, dict) and value and generator.random() < 0.8:
        key = generator.choice(list(value))
        return {**value, key: spoiled(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.8:
        position = generator.randrange(len(value))
        return [*value[:position], spoiled(value[position], generator), *value[position + 1 :]]
    return nonsense(generator)


def json_cases(document, count: int, seed: int):
    """Damaged spellings of a document, and whole spellings of damaged ones."""
    generator = random.Random(seed)
    raw = json.dumps(document).encode()
    yield from (b"", b"[" * 200_000, b'{"a":' * 50_000, b"9" * 100_000, b"\xff\xfe", b"null")
    for number in range(count - 6):
        yield damaged(raw, generator) if number % 2 else json.dumps(spoiled(document, generator)).encode()


@pytest.mark.parametrize("save", [torch_files.save_zip, torch_files.save_legacy])
def test_every_listed_global_is_named_and_not_run(survives, tmp_path, save):
    for module, name in DANGEROUS:
        short = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
        for found in (b"\x80\x02c" + f"{module}\n{name}\n".encode(), b"\x80\x04" + short + b"\x93"):
            save(tmp_path / "file", found + torch_files.text("touch sentinel") + b"\x85R.")
            with pytest.raises(InputError, match=re.escape(f"'{module}.{name}'")):
                torch_weights.read_state_dict(tmp_path / "file")
            assert survives(lambda: torch_weights.read_state_dict(tmp_path / "file"))
    assert os.listdir(tmp_path) == ["file"]


def test_damaged_weights(survives, tmp_path):
    generator = random.Random(1)
    torch_weights.write_safetensors(tmp_path / "whole", torch_files.network())
    names = ("plain_zip", "plain_legacy", "checkpoint_zip", "checkpoint_legacy", "tensors_zip", "late_types")
    whole = [(torch_files.FILES / f"{name}.pt").read_bytes() for name in names] + [(tmp_path / "whole").read_bytes()]
    refused = 0
    for number in range(CASES["weights"]):
        (tmp_path / "file").write_bytes(damaged(whole[number % len(whole)], generator))
        refused += survives(lambda: torch_weights.read_state_dict(tmp_path / "file"))
    assert refused > CASES["weights"] / 2


def test_safetensors_with_any_header(survives, tmp_path):
    document = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    }
    refused = 0
    for header in json_cases(document, CASES["safetensors headers"], 2):
        (tmp_path / "file").write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))
        refused += survives(lambda: torch_weights.read_state_dict(tmp_path / "file"))
    assert refused > CASES["safetensors headers"] / 2


@pytest.fixture(scope="module")
def book_folder(tmp_path_factory):
    pytest.importorskip("cryptography")
    folder = tmp_path_factory.mktemp("fuzz") / "ledger"
    with Ledger.begin(folder, ABOUT) as book:
        rows = [NamedExample(position, f"{position:064d}") for position in range(40)]
        for who in ("first", "second"):
            book.add(requester=who, received="now", due="2026-12-31", network="0" * 64, examples=rows)
        book.append(started(1, 1))
    return folder


def look_through(folder, found: list, read: list) -> None:
    with Ledger(folder, check=False) as book:
        found += book.problems()
    with Ledger(folder) as book:
        read += [book.requests(), book.history(), book.examples(1), book.examples(2), book.head]
        if not found:
            book.add(requester="x", received="now", due="2026-12-31", network="0", examples=[NamedExample(1, "2")])


def test_damaged_ledgers(survives, book_folder, tmp_path):
    """A damaged ledger is refused, or what is read from it is what was written."""
    generator = random.Random(3)
    folder = shutil.copytree(book_folder, tmp_path / "ledger")
    names = [ledger.DATABASE_FILE] * 7 + ["keys/secret", "keys/signing"]
    whole = {name: (folder / name).read_bytes() for name in names}
    expected: list = []
    look_through(shutil.copytree(book_folder, tmp_path / "whole"), [], expected)
    silent = 0
    for number in range(CASES["ledger"]):
        name = names[number % len(names)]
        content = damaged(whole[name], generator)
        (folder / name).write_bytes(content)
        found: list[str] = []
        read: list = []
        refused = survives(functools.partial(look_through, folder, found, read))
        if not refused:
            assert found or read == expected, (number, name)
            assert name == ledger.DATABASE_FILE or content == whole[name]
            silent += not found
        for path in folder.glob("*-*"):  # journals of a transaction that a damaged file could not end
            path.unlink()
        for spoilt, content in whole.items():
            (folder / spoilt).write_bytes(content)
    assert silent < CASES["ledger"] / 3


def test_damaged_records(survives, book_folder, tmp_path):
    keys = signing.read_keys(book_folder / "keys")
    (tmp_path / "records").mkdir()
    path = records.record_path(tmp_path, 1)
    path.with_suffix(".html").write_text("page")
    digest = records.write_record(tmp_path, record(), keys)
    envelope = json.loads(path.read_bytes())
    assert records.read_record(path, keys.public)[1] == digest == envelope["hash"]
    for content in json_cases(envelope, CASES["records"], 4):
        path.write_bytes(content)
        assert survives(lambda: records.read_record(path, keys.public))


def damaged_folders(folder, count: int, seed: int):
    """Damages one file after another of a folder, and puts each back."""
    generator = random.Random(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in range(count):
        path = paths[number % len(paths)]
        whole = path.read_bytes()
        if number % 7 == 6 or not whole:
            path.unlink()
        else:
            path.write_bytes(damaged(whole, generator))
        yield path
        path.write_bytes(whole)


def test_damaged_networks(survives, tmp_path):
    arrays = {"a": np.arange(20, dtype=np.float32), "b": {"c": np.ones((3, 3), np.float32)}}
    checkpoints.save_network(tmp_path / "network", arrays, {}, {"model": "x"})
    listed = sorted(tmp_path.rglob("*"))
    refused = 0

    def read() -> None:
        params, _ = checkpoints.load_network(tmp_path / "network", arrays, {})
        assert same_bits(params, arrays), "what is read is what was written"
        checkpoints.read_description(tmp_path / "network")

    for _ in damaged_folders(tmp_path / "network", CASES["network"], 5):
        refused += survives(read)
    assert refused > CASES["network"] / 4
    assert sorted(tmp_path.rglob("*")) == listed


def test_damaged_checkpoints(survives, tmp_path):
    keeper = Checkpointer(tmp_path / "run")
    keeper.save(carry(), Position(0, 3), {})
    keeper.close()
    refused = 0

    def read() -> None:
        reader = Checkpointer(tmp_path / "run")
        with contextlib.closing(reader):
            found, _ = reader.restore(carry(), {})
        assert same_bits(found, carry())

    for _ in damaged_folders(tmp_path / "run", CASES["checkpoint"], 6):
        refused += survives(read)
    assert refused > CASES["checkpoint"] / 4


def test_damaged_descriptions_of_runs(survives, tmp_path):
    document = {"model": "mlp", "weights": None, "seed": 3, "method": {"epochs": 2, "learning_rate": 0.1}}
    refused = 0

    def resume() -> None:
        with runs.open_folder(tmp_path / "run", document, resume=True):
            pass

    for content in json_cases(document, CASES["run.json"], 7):
        files.write_bytes(tmp_path / "run" / runs.RUN_FILE, content)
        refused += survives(resume)
    assert refused > CASES["run.json"] * 0.8


def test_damaged_results(survives, tmp_path):
    row = dict.fromkeys(report.ROW_FIELDS, 1.0) | {"scenario": "s", "method": "m"}
    document = {"rows": [row], "config": {}, "versions": {}, "machine": {}}
    refused = 0
    for content in json_cases(document, CASES["results.json"], 8):
        (tmp_path / "results.json").write_bytes(content)
        refused += survives(lambda: report.read_results(tmp_path / "results.json"))
    assert refused > CASES["results.json"] / 3


def test_audits_of_any_form(survives, tmp_path):
    finding = {"name": "AUC", "value": 0.5, "low": 0.4, "high": 0.6}
    gates = [{"name": "g", "passed": True, "why": "w"}]
    document = {"network": "ab", "source": "s", "findings": [finding], "gates": gates}
    refused = 0
    for content in json_cases(document, CASES["audit"], 9):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(content)
            refused += survives(lambda found=found: verdicts.from_audit(found, "ab"))
    assert refused > 20


def test_settings_of_any_form(survives):
    generator = random.Random(10)
    settings = [config.RunConfig(model="m", dataset="d", forget="f", method=make()) for make in METHODS.values()]
    words = ["", ".", "=", "none", "-1", "1e999", "nan", "\0", "é", "true", "1,2", "__class__"]
    words += ["9" * 5000, "[" * 5000, '{"a":' * 5000]
    refused = 0
    for number in range(CASES["settings"]):
        base = settings[number % len(settings)]
        name = generator.choice([*config.setting_names(base), "method.departures.x", "method", "x" * 50, "a." * 20])
        if generator.random() < 0.3:
            name = damaged(name.encode(), generator).decode(errors="replace")
        value = generator.choice([*words, damaged(b"0.05", generator).decode(errors="replace")])

        def read(base=base, change=f"{name}={value}") -> None:
            changed = config.override(base, [change])
            assert type(changed) is type(base)
            assert type(changed.method) is type(base.method)
            hash(str(dataclasses.asdict(changed)))

        refused += survives(read)
    assert refused > CASES["settings"] / 3


def test_positions_of_any_form(survives, tmp_path):
    generator = random.Random(11)
    raw = "".join(f"{number} # {number}\n" for number in range(0, 900, 9)).encode()
    refused = 0
    for _ in range(CASES["positions"]):
        (tmp_path / "positions").write_bytes(damaged(raw, generator))
        refused += survives(lambda: data.check_positions(forget_sets.read_positions(tmp_path / "positions"), 900))
        survives(lambda: forget_sets.read_mislabelled(tmp_path / "positions"))
    assert refused > CASES["positions"] / 10
