"""6,000 damaged or hostile inputs: each ends in one sentence, in bounded time and memory, and does nothing."""

import os
import re

import pytest

from scissorhands_jax import torch_weights
from scissorhands_jax.errors import InputError
from tests.fuzz.__main__ import EVERY, every_target, try_target
from tests.fuzz.watch import Watch
from tests.torch_weights import state_dicts_test as torch_files

TARGETS = every_target()

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
    assert sum(target.share for target in TARGETS.values()) >= EVERY
    assert len(DANGEROUS) > 70


@pytest.fixture(scope="module")
def watch():
    return Watch()


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_are_read_as_written_or_refused_in_one_sentence(name, watch, tmp_path, monkeypatch):
    """`python -m tests.fuzz` reads as many more as one likes."""
    monkeypatch.chdir(tmp_path)
    target = TARGETS[name]
    tried = try_target(target, target.share, 0, tmp_path / "input", watch)
    assert tried.failure is None, tried.failure
    assert tried.refused >= target.refused * tried.inputs


@pytest.mark.parametrize("save", [torch_files.save_zip, torch_files.save_legacy])
def test_every_listed_global_is_named_and_not_run(watch, tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    for module, name in DANGEROUS:
        short = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
        for found in (b"\x80\x02c" + f"{module}\n{name}\n".encode(), b"\x80\x04" + short + b"\x93"):
            save(tmp_path / "file", found + torch_files.text("touch sentinel") + b"\x85R.")
            with pytest.raises(InputError, match=re.escape(f"'{module}.{name}'")):
                torch_weights.read_state_dict(tmp_path / "file")
            assert watch.survives(lambda: torch_weights.read_state_dict(tmp_path / "file"), tmp_path)
    assert os.listdir(tmp_path) == ["file"]
