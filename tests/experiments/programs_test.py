"""What all programs with one file of results have in common, shown with programs whose slow computing is replaced."""

import dataclasses
import functools
import importlib
import json
import re
from pathlib import Path

import pytest

from experiments import (
    calibration,
    diffusion_digits,
    diffusion_full,
    facts_rates,
    forgetting_tests,
    plan_check,
    programs,
    scaling,
    timings,
    token_steps,
    unet_step,
)
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import against_checkout
from experiments.benchmark.timing import Result
from scissorhands_jax import files
from scissorhands_jax.errors import InputError
from scissorhands_jax.report import provenance

RESULTS = Path(programs.__file__).parent / "results"


def error_of(capsys):
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def code(monkeypatch):
    """Has results be made by the code of a name."""

    def now(name):
        made = dataclasses.replace(provenance.running_code(), git_commit=name.ljust(12, "0"), git_changed=False)
        monkeypatch.setattr(provenance, "running_code", lambda: made)

    now("old")
    return now


class Program:
    """A program with two cases, `a` and `b`, whose results say how often anything was computed before."""

    def __init__(self, monkeypatch):
        self.patch, self.computed, self.during = monkeypatch.setattr, [], lambda: None

    def compute(self, name):
        self.during()
        self.computed.append(name)
        return {"number": len(self.computed)}


def _cases(made):
    return lambda *arguments, **options: {name: functools.partial(made.compute, name) for name in "ab"}


def _timings(made):
    made.patch(timings, "cases", _cases(made))
    return timings.main, ["--only", "a"], ["--tiny"]


def _unet_step(made):
    made.patch(unet_step, "cases", _cases(made))
    return unet_step.main, ["--only", "a"], ["--batch-size", "3"]


def _benchmark(made):
    def case(name):
        return lambda on_round: Result(name=name, what="", numbers=made.compute(name))

    made.patch(benchmark, "cases", lambda settings: {name: case(name) for name in "ab"})

    def main(arguments):
        return benchmark.main(["--quick", *([] if "--overwrite" in arguments else ["--resume"]), *arguments])

    return main, ["--only", "a"], ["--repeats", "5"]


def _plan_check(made):
    made.patch(plan_check, "CASES", {name: {"model": name} for name in "ab"})
    made.patch(plan_check, "LANGUAGE_CASES", {name: [] for name in "ab"})
    made.patch(plan_check, "check", lambda folder, model: made.compute(model))
    made.patch(plan_check, "check_language", lambda *arguments: made.compute("language"))
    made.patch(plan_check, "table", lambda rows: "")
    return plan_check.main, ["--only", "a"], ["--language"]


def _diffusion_full(made):
    made.patch(diffusion_full, "STAGES", {"a": None, "b": None})
    made.patch(
        diffusion_full, "guarded", lambda command: json.dumps(made.compute(command[command.index("--stage") + 1]))
    )
    return diffusion_full.main, ["--only", "a"], ["--config", "tiny"]


def _facts_rates(made):
    made.patch(facts_rates, "UNLEARNED", ("a",))
    made.patch(facts_rates, "with_rate", lambda settings, name, rate: settings)
    made.patch(facts_rates, "RATES", (1.0, 2.0))
    made.patch(facts_rates, "make_facts_scene", lambda settings: None)
    made.patch(facts_rates, "train_facts", lambda *arguments, **options: ({}, {}))
    made.patch(facts_rates, "_numbers", lambda *arguments: {"distance": 1.0})
    made.patch(facts_rates, "_tried", lambda *arguments: {"score": 1.0, **made.compute("a")})
    return facts_rates.main, [], ["--seed", "7"]


def _calibration(made):
    made.patch(calibration, "SIZES", {name: {"audits": 1, "networks": 2} for name in "ab"})
    made.patch(
        calibration,
        "calibrate",
        lambda audits, **settings: {
            **calibration._described(audits, **settings),
            "cpu_seconds": 0.0,
            **made.compute("a"),
        },
    )
    return calibration.main, [], None


def _forgetting_tests(made):
    made.patch(forgetting_tests, "scenarios", lambda: {name: {"questions": 20} for name in "ab"})
    made.patch(
        forgetting_tests,
        "simulate",
        lambda repeats, **settings: {
            "settings": settings,
            "repeats": repeats,
            "cpu_seconds": 0.0,
            **made.compute("a"),
        },
    )
    return forgetting_tests.main, [], ["--repeats", "9"]


PROGRAMS = {
    "timings": (_timings, True),
    "unet_step": (_unet_step, True),
    "benchmark": (_benchmark, True),
    "plan_check": (_plan_check, False),
    "diffusion_full": (_diffusion_full, False),
    "facts_rates": (_facts_rates, False),
    "calibration": (_calibration, False),
    "forgetting_tests": (_forgetting_tests, False),
}
"""The programs, and whether their results are times, which are of one code."""


@pytest.fixture(params=PROGRAMS)
def program(request, monkeypatch, code):
    made = Program(monkeypatch)
    make, made.timed = PROGRAMS[request.param]
    made.main, made.one, made.other_settings = make(made)
    return made


def codes(value):
    """The code of every result in a document, wherever it is."""
    if isinstance(value, dict):
        own = [value["code"]] if "number" in value or "number" in (value.get("numbers") or {}) else []
        return own + [code for name, part in value.items() if name != "numbers" for code in codes(part)]
    return [code for part in value for code in codes(part)] if isinstance(value, list) else []


def test_results_are_written_one_by_one_by_one_writer_and_a_file_of_something_else_stays(program, tmp_path, capsys):
    """Stopped in the second case; another writer meanwhile; other settings; a damaged file; a folder."""
    out = tmp_path / "new" / "out.json"

    def run(*arguments):
        return program.main([*arguments, "--out", str(out)])

    def stop():
        if len(program.computed) == 1:
            program.computed.append("another writer")
            assert run() == 2
            raise KeyboardInterrupt

    program.during = stop
    assert run() == 130
    said = error_of(capsys)
    assert "out.json is being written to by process" in said
    assert "stopped; " in said
    assert len(codes(json.loads(out.read_text()))) == 1
    program.during = lambda: None
    assert run() == 0
    assert len(codes(json.loads(out.read_text()))) == 2
    assert [path.name for path in out.parent.iterdir() if files.is_leftover(path)] == []

    kept = out.read_bytes()
    if program.other_settings:
        assert run(*program.other_settings) == 2
        assert "has results of other settings: " in error_of(capsys)
        assert out.read_bytes() == kept
        assert run(*program.other_settings, "--overwrite") == 0
        assert out.read_bytes() != kept
    for damaged in ("{", "[]"):
        out.write_text(damaged)
        assert run() == 2
        assert "holds no results of this program, or is damaged" in error_of(capsys)
        assert out.read_text() == damaged
    out.unlink()
    out.mkdir()
    computed = len(program.computed)
    assert run() == 2
    assert "is a folder; name a file" in error_of(capsys)
    assert len(program.computed) == computed, "nothing is computed in vain"


def test_results_of_another_code_keep_its_name_and_times_of_one_are_refused(program, code, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert program.main(["--out", str(out)]) == 0
    before = json.loads(out.read_text())
    assert set(codes(before)) == {"old000000000"}
    code("new")
    if program.timed:
        assert program.main(["--out", str(out)]) == 2
        assert "code was 'old000000000' and is now 'new000000000'" in error_of(capsys)
        assert json.loads(out.read_text()) == before
        return
    if not program.one:  # There is no option for one of them, so that one is removed.
        for part in ("audits", "simulations"):
            if part in before:
                before[part].pop("a")
        before.get("trials", [0]).pop()
        out.write_text(json.dumps(before))
    assert program.main(["--out", str(out), *program.one]) == 0
    after = json.loads(out.read_text())
    assert sorted(codes(after)) == ["new000000000", "old000000000"]
    assert "made by 2 states of the code" in after["code"]


def test_results_of_another_environment_say_so(tmp_path, code):
    out = tmp_path / "out.json"
    with programs.open_results(out, {}) as results:
        results.add("a", {"number": 1})
    document = json.loads(out.read_text())
    earlier = {"versions": {**document["versions"], "jax": "0.1"}, "machine": document["machine"]}
    out.write_text(json.dumps({**document, **earlier}))
    with programs.open_results(out, {}) as results:
        results.add("b", {"number": 2})
    found = json.loads(out.read_text())
    assert found["results"]["a"]["environment"] == earlier
    assert "environment" not in found["results"]["b"]
    assert found["versions"] == document["versions"]
    with (
        pytest.raises(InputError, match=r"versions.jax was '0.1' and is now"),
        programs.open_results(out, {}, timed=True),
    ):
        pass


@pytest.mark.parametrize("module", [scaling, token_steps])
def test_where_nothing_can_be_written_nothing_is_measured(module, tmp_path, monkeypatch, capsys):
    for name in ("_measured", "measure"):
        monkeypatch.setattr(module, name, lambda *arguments: pytest.fail("it measures"), raising=False)
    assert module.main(["--out", str(tmp_path)]) == 2
    assert "is a folder; name a file" in error_of(capsys)


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("calibration", {}, {"results_of": lambda document: document["audits"]}),
        ("plan_cpu", {"language": False, "tiny": False}, {"results_of": plan_check._rows}),
        ("plan_language_cpu", {"language": True, "tiny": False}, {"results_of": plan_check._rows}),
        ("diffusion_full_cpu", {"config": "sd-v1"}, {"results_of": diffusion_full._stages_of}),
        (
            "facts_rates",
            {"settings": facts_rates._common(facts_rates.FactsSettings(seed=facts_rates.SEED))},
            {"results_of": facts_rates._trials_of},
        ),
    ],
)
def test_committed_results_can_be_continued(name, settings, options, tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes((RESULTS / f"{name}.json").read_bytes())
    with programs.open_results(path, settings, **options) as results:
        assert results.results


def test_a_comparison_with_one_checkout_is_not_taken_for_one_with_another(tmp_path, monkeypatch, code, capsys):
    """By the code in it, and not by its place; and what there is stays unless it is to be replaced."""
    out, computed = tmp_path / "out.json", []

    def described(folder):
        return {"folder": folder.name, "code": f"code of {folder.name}"}

    def cases(kind):
        def measure(on_round):
            computed.append(kind)
            return Result(name=kind, what="", numbers={})

        return {kind: measure}

    monkeypatch.setattr(benchmark, "cases", lambda settings: cases("here"))
    monkeypatch.setattr(against_checkout, "described", described)
    monkeypatch.setattr(against_checkout, "comparisons", lambda folder, settings: cases("both"))
    command = ["--quick", "--out", str(out), "--against"]
    assert benchmark.main([*command, "before"]) == 0
    assert benchmark.main([*command, "before", "--resume"]) == 0
    assert computed == ["both"]
    kept = out.read_bytes()
    for arguments, message in (
        ([*command, "other", "--resume"], "against.folder was 'before' and is now 'other'"),
        ([*command[:-1], "--resume"], "'code of before'} and is now None"),
        ([*command, "before"], "continue it with --resume, or replace it with --overwrite"),
    ):
        capsys.readouterr()
        assert benchmark.main(arguments) == 2
        assert message in error_of(capsys)
        assert out.read_bytes() == kept
    assert benchmark.main([*command[:-1], "--overwrite"]) == 0
    assert [row["name"] for row in json.loads(out.read_text())["results"]] == ["here"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "NPO"], "NPO is a case with --language"),
        (["--language", "--only", "mlp"], "mlp is a case without --language"),
        (["--tiny"], "--tiny is for the cases of language models"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, message, capsys):
    assert plan_check.main(arguments) == 2
    assert message in error_of(capsys)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (unet_step.main, ["--batch-size", "0", "--out", "x"], "--batch-size must be at least 1, got 0"),
        (forgetting_tests.main, ["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (diffusion_full.main, ["--only", "plan", "--only", "torch"], "--only torch needs --torch"),
        (diffusion_digits.main, ["--out", "x", "--seeds", "-1"], "the seed must be a whole number"),
    ],
)
def test_numbers_and_stages_that_cannot_be_are_refused_before_anything_is_computed(main, arguments, message, capsys):
    assert main(arguments) == 2
    assert message in error_of(capsys)


def test_a_complete_table_of_digits_needs_neither_data_nor_drawings(tmp_path, monkeypatch, capsys):
    """As in any clone; and a seed that is named twice is one."""
    monkeypatch.setattr(diffusion_digits, "make_scene", lambda settings: pytest.fail("it makes data and judge"))
    out = tmp_path / "digits.json"
    out.write_bytes((RESULTS / "diffusion_digits.json").read_bytes())
    networks = ["original", "retrain", "retrain again", "scissorhands", "Algorithm 1"]
    command = ["--out", str(out), "--work", str(tmp_path / "work"), "--networks", *networks, "--seeds", "0", "1", "0"]
    assert diffusion_digits.main(command) == 0
    assert "no picture is drawn, because" in error_of(capsys)
    assert out.read_bytes() == (RESULTS / "diffusion_digits.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["digits.json"]


def test_drawings_of_other_settings_and_code_lie_elsewhere():
    row = {"seed": 0, "digit": 1, "network": "original", "code": "a"}
    places = [
        diffusion_digits._drawings(Path(), settings, {**row, "code": code})
        for settings in ({"epochs": 1.5}, {"epochs": 2.5})
        for code in ("a", "b")
    ]
    assert len(set(places)) == len(places)


FOLLOWED = ("audit", "real_network", "run", "tuning", "variants")
"""The programs that keep a log."""
NEEDED = {
    "attacks": ("{out}",),
    "audit": ("--config", "cifar10_audit_small", "--out", "{out}"),
    "pack_cifar10": ("--data-dir", "data", "--out", "{out}"),
    "real_network": ("--run", "a=b", "--retrained", "c", "--out", "{out}"),
    "run": ("--config", "cifar10_small", "--out", "{out}"),
    "tables": ("{out}",),
    "tuning": ("--config", "cifar10_small", "--only", "salun", "--out", "{out}", "--networks", "networks"),
    "variants": ("--config", "cifar10_small", "--out", "{out}", "--networks", "networks"),
}
"""What the programs without one file of results are told, and must not reach."""
REACHED = {
    "attacks": "scissorhands_jax.reading.read_json",
    "audit": "experiments.audit.run_audit",
    "pack_cifar10": "scissorhands_jax.datasets.cifar10",
    "real_network": "experiments.real_network.compare",
    "run": "scissorhands_jax.jobs.grid.run_grid",
    "tables": "scissorhands_jax.report.read_results",
    "tuning": "experiments.tuning.TableNetworks",
    "variants": "experiments.variants.TableNetworks",
}


def test_every_program_ends_with_a_sentence():
    """Each `main` of the folder is decorated; `diffusion_full` decorates what it runs, since it must parse first."""
    folder = Path(programs.__file__).parent
    mains = [path for path in sorted(folder.rglob("*.py")) if "\ndef main(" in path.read_text()]
    assert len(mains) > 20
    assert [path.name for path in mains if "programs.ending(" not in path.read_text()] == []
    bare = [
        path.name for path in mains if not re.search(r"\n@programs\.ending\([^\n]*\)\ndef main\(", path.read_text())
    ]
    assert bare == ["diffusion_full.py"]


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (InputError("no such thing; name another"), 2, "error: no such thing; name another"),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "error: Permission denied: /x/y"),
        (KeyboardInterrupt(), 130, "error: stopped; "),
    ],
)
def test_a_stopped_program_says_so_on_one_line_and_in_its_log(
    name, error, status, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    program = importlib.import_module(f"experiments.{name}")

    def stop(*_, **__):
        raise error

    monkeypatch.setattr(REACHED[name], stop)
    given = [word.format(out=tmp_path / "out") for word in NEEDED[name]]
    log = ["--log", str(tmp_path / "log")] if name in FOLLOWED else []
    assert program.main([*given, *log]) == status
    assert sentence in error_of(capsys)
    if log:
        assert sentence in " ".join((tmp_path / "log").read_text().split())
