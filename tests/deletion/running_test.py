"""Runs that serve requests: what they begin with and leave, and kills at any moment."""

import contextlib
import dataclasses
import json
import re
import shutil

import jax
import pytest

from scissorhands_jax import deletion, models, torch_weights
from scissorhands_jax.deletion import judging, recorded_runs, records, running, signing, statements, verdicts
from scissorhands_jax.deletion.entries import AnswersKept, NamedExample, RequestsCovered, RunFailed, RunRecorded
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.job import saved_identity
from scissorhands_jax.methods import METHODS
from scissorhands_jax.metrics.rank_tests import Finding
from scissorhands_jax.terminal import Console
from tests.deletion import forking
from tests.deletion.commands import QUICK, command, error_of, moved_data, states, verified
from tests.deletion.samples import started
from tests.deletion.spoiling import holding, request


def test_the_network_in_use_is_the_one_that_has_forgotten(served):
    with Ledger(served) as book:
        first, second = book.entries(RunRecorded)
        requests = book.requests()
    assert (first.verdict, second.verdict) == ("forgotten", "retrain now")
    assert requests[2].network == first.network != second.network
    record, _ = records.read_record(records.record_path(served, 2), signing.read_keys(served / "keys").public)
    assert record.network.before == first.network, "a later run goes on from the network in use"
    assert record.forgotten_before == 2
    assert not record.evidence.gates[0].passed, "a network without training knows nothing by heart"


def test_a_request_that_a_run_has_covered_needs_none(book_folder, tmp_path, capsys):
    with Ledger(book_folder) as book:
        examples = book.examples(1)
        number = book.add(requester="late", received="now", due="2030-01-01", network="0" * 64, examples=examples)
        book.append(RequestsCovered(run=1, requests=(3,)))
    assert command("run", "--ledger", book_folder, *QUICK) == 0
    assert "no request is open (`--again` takes up those that were answered with `retrain now`)" in (
        capsys.readouterr().out
    )
    with Ledger(book_folder) as book:
        served = book.requests()[number - 1]
        assert (served.state, served.run) == ("forgotten", 1)


def test_a_record_counts_earlier_tries(book_folder):
    """Whoever tries again until the evidence is good by chance leaves a trace."""
    assert command("run", "--ledger", book_folder, *QUICK, "--again", "--seed", "1") == 3
    record, _ = records.read_record(records.record_path(book_folder, 3), signing.read_keys(book_folder / "keys").public)
    assert record.earlier_tries == 1, "the examples of request 2 were tried in run 2"
    first, _ = records.read_record(records.record_path(book_folder, 1), signing.read_keys(book_folder / "keys").public)
    assert first.earlier_tries == 0
    page = records.record_page_path(book_folder, 3).read_text()
    assert "Earlier runs with examples of this one: 1." in page


def test_tries_are_counted_by_example_whatever_request_names_them(book_folder):
    """The same example in a new request, a part of it, or a copy elsewhere in the training set is the same example."""
    with Ledger(book_folder) as book:
        third = book.examples(3)
        (spare,) = [entry for entry in book.examples(2) if entry.position == 7]
        asked = {
            "the same": third,
            "a part, and more": [third[0], spare],
            "a copy": [NamedExample(190, third[1].digest)],
            "another": [spare],
        }
        numbers = {name: request(book, name, examples=examples) for name, examples in asked.items()}
        book.append(started(3, 3))
        book.append(RunFailed(run=3, requests=(3,), why="for the test"))
        tries = {name: judging.earlier_tries(book, started(4, number)) for name, number in numbers.items()}
    assert tries == {"the same": 2, "a part, and more": 2, "a copy": 1, "another": 1}, "run 2 worked on 4 and 7"


def test_a_run_that_diverges_opens_its_requests_again(book_folder, capsys):
    assert command("run", "--ledger", book_folder, *QUICK, "method.learning_rate=1e30") == 2
    assert "at step" in error_of(capsys)
    assert states(book_folder) == ["forgotten", "retrain now", "open"]
    with Ledger(book_folder) as book:
        (failed,) = book.entries(RunFailed)
        assert "at step" in failed.why
    left = [path.relative_to(book_folder).as_posix() for path in book_folder.rglob("*") if "000003" in path.as_posix()]
    assert left == [], "nothing that says what was to be forgotten"
    assert verified(book_folder, "--quick", capsys=capsys) == []


@pytest.mark.parametrize("spoil", ["positions", "other positions", "audit"])
def test_a_run_that_fails_when_it_is_resumed_leaves_no_position(book_folder, spoil, monkeypatch, capsys):
    """Whatever fails, and also if its message or its folders name positions."""

    with monkeypatch.context() as patched:
        patched.setattr(running.unlearning, "unlearn", interrupted)
        assert command("run", "--ledger", book_folder, *QUICK) == 130
    out = records.run_folder(book_folder, 3)
    assert out.with_suffix(".txt").read_text() == "4\n5\n"
    out.with_suffix(".audit.txt").write_text("0\n1\n")
    out.with_suffix(".audit").mkdir()
    if spoil == "positions":
        out.with_suffix(".txt").write_text("4\n5000\n")
    elif spoil == "other positions":
        out.with_suffix(".txt").write_text("8\n9\n")
    else:
        monkeypatch.setattr(running, "judge_run", failing("the examples 4, 5 and 17 are odd"))
    assert command("run", "--ledger", book_folder) == 2
    with Ledger(book_folder) as book:
        (failed,) = book.entries(RunFailed)
    assert not set(re.findall(r"\d+", failed.why)) & {"4", "5"}
    assert [path for path in (book_folder / "runs").iterdir() if "000003" in path.name] == []


@pytest.mark.parametrize("stopped_in", ["unlearning", "judging"])
def test_a_run_that_was_stopped_is_finished_wherever_its_ledger_and_data_are_then(
    book_folder, tmp_path, stopped_in, monkeypatch
):
    (tmp_path / "old").mkdir()
    forking.prepare(tmp_path / "old")
    (tmp_path / "new").mkdir()
    new = {name: tmp_path / "new" / name for name in ("ledger", "data.npz", "mlp.safetensors")}
    place, step = {"unlearning": (running.unlearning, "_save_result"), "judging": (running, "judge_run")}[stopped_in]
    with monkeypatch.context() as patched:
        patched.setattr(place, step, interrupted)
        for folder in (tmp_path / "old" / "ledger", book_folder):
            assert command("run", "--ledger", folder, *QUICK) == 130
    for name, path in new.items():
        (tmp_path / "old" / name).rename(path)
    moved = ["--dataset", f"npz:{new['data.npz']}", "--weights", new["mlp.safetensors"]]
    assert command("run", "--ledger", new["ledger"], *moved) == 3
    assert states(new["ledger"]) == ["retrain now"]
    with Ledger(new["ledger"]) as book:
        assert book.entries(RunFailed) == []
    book_folder = book_folder.rename(tmp_path / "renamed")
    assert command("run", "--ledger", book_folder) == 3
    assert states(book_folder) == ["forgotten", "retrain now", "retrain now"]


@pytest.mark.parametrize("gone", ["data", "other data", "network", "original"])
def test_a_run_that_was_stopped_waits_until_what_it_needs_is_there_again(
    served, book_folder, tmp_path, gone, monkeypatch, capsys
):
    if gone == "original":
        (tmp_path / "own").mkdir()
        forking.prepare(tmp_path / "own")
        book_folder = tmp_path / "own" / "ledger"
    with monkeypatch.context() as patched:
        patched.setattr(running, "judge_run", interrupted)
        assert command("run", "--ledger", book_folder, *QUICK) == 130
    network, words = book_folder / "runs" / "000001" / "network", []
    if gone == "network":
        network.rename(tmp_path / "network")
    elif gone == "original":
        words = ["--weights", "nowhere.safetensors"]
    elif gone == "other data":
        words = ["--dataset", moved_data(served, tmp_path, lambda arrays: arrays["image"].sort(axis=0))]
    else:
        words = ["--dataset", "npz:nowhere.npz"]
    capsys.readouterr()
    assert command("run", "--ledger", book_folder, *words) == 2
    assert "stays stopped; `scissorhands request discard --number" in " ".join(capsys.readouterr().err.split())
    assert states(book_folder)[-1] == "running"
    given_up = shutil.copytree(book_folder, tmp_path / "given up")
    if gone == "network":
        (tmp_path / "network").rename(network)
    assert command("run", "--ledger", book_folder) == 3
    assert states(book_folder)[-1] == "retrain now"
    number = 1 if gone == "original" else 3
    assert command("discard", "--ledger", given_up, "--number", number) == 0
    assert states(given_up)[-1] == "open"
    assert [path for path in (given_up / "runs").iterdir() if f"00000{number}" in path.name] == []


def test_a_run_that_fails_after_its_record_was_signed_leaves_no_record(book_folder, monkeypatch, capsys):
    """It was killed before the history knew of the record, which says what nobody may rely on."""
    write_envelope = statements.write_envelope
    with monkeypatch.context() as patched:
        patched.setattr(statements, "write_envelope", lambda *words: interrupted(write_envelope(*words)))
        assert command("run", "--ledger", book_folder, *QUICK) == 130
    signed = [path for path in (book_folder / "records").iterdir() if "000003" in path.name]
    assert len(signed) == 3
    capsys.readouterr()
    (records.run_folder(book_folder, 3) / "results.json").write_text("{}")
    assert command("run", "--ledger", book_folder) == 2
    assert "is not as run 3 has left it" in error_of(capsys)
    assert not any(path.exists() for path in signed)
    assert verified(book_folder, "--quick", capsys=capsys) == []


def test_an_error_that_nobody_has_foreseen_keeps_no_later_run_from_beginning(book_folder, monkeypatch):
    """It may be one that comes again whenever the run is finished. A full disk is none of these."""

    def fails(error):
        def fail(*arguments):
            raise error

        monkeypatch.setattr(running, "judge_run", fail)
        with contextlib.suppress(ZeroDivisionError, RuntimeError):
            assert command("run", "--ledger", book_folder, *QUICK) == 2

    for error, state in (
        (ZeroDivisionError("5 of 0"), "running"),
        (OSError("no space"), "running"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes"), "running"),
        (ZeroDivisionError("5 of 0"), "open"),
    ):
        fails(error)
        assert states(book_folder) == ["forgotten", "retrain now", state]
    with Ledger(book_folder) as book:
        assert book.entries(RunFailed)[-1].why == "… of 0"


def other_network(book, out):
    for name in ("network", "network.safetensors"):
        replace_with(out.parent / "000002" / name, out / name)


def other_run(book, out):
    replace_with(out.parent / "000002", out)


def other_seed(book, out):
    saved = saved_identity(out)
    other = dataclasses.replace(saved, chosen={**saved.chosen, "seed": 7})
    (out / "run.json").write_text(json.dumps(other.document()))


def add_audit(out):
    (out / "audit").mkdir()
    (out / "audit" / "results.json").write_text('{"planted": true}')


def replace_with(source, place):
    if source.is_dir():
        shutil.rmtree(place)
        shutil.copytree(source, place)
    else:
        shutil.copy(source, place)


CHANGES = {
    "another network": other_network,
    "another run": other_run,
    "another seed": other_seed,
    "better numbers": lambda book, out: (out / "results.json").write_text((out / "results.json").read_text() + " "),
    "one file more": lambda book, out: (out / "network" / "more").touch(),
    "one file less": lambda book, out: (out / "report.html").unlink(),
    "an audit": lambda book, out: add_audit(out),
    "no folder": lambda book, out: shutil.rmtree(out),
}


def test_a_run_that_was_stopped_is_judged_only_as_what_it_has_left(book_folder, monkeypatch, capsys):
    """Its folder may have been changed, or hold another run by then, whose network and results are whole."""
    with monkeypatch.context() as patched:
        patched.setattr(running, "judge_run", interrupted)
        assert command("run", "--ledger", book_folder, *QUICK) == 130
    for name, change in CHANGES.items():
        folder = shutil.copytree(book_folder, book_folder.parent / name)
        change(folder, records.run_folder(folder, 3))
        capsys.readouterr()
        assert command("run", "--ledger", folder) == 2, name
        assert "is not as run 3 has left it: a file was changed, added or removed" in error_of(capsys), name
        assert states(folder) == ["forgotten", "retrain now", "open"]
        assert not records.run_folder(folder, 3).exists()
    other = shutil.copytree(book_folder, book_folder.parent / "in another way")
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        assert command("run", "--ledger", other) == 2
    assert "jax_threefry_partitionable was" in error_of(capsys)


def test_a_folder_that_is_replaced_while_its_network_is_judged_is_noticed(book_folder):
    """Such as during an audit, which takes long."""

    def replaces(out, network):
        other_network(book_folder, out)
        return verdicts.Evidence("mine", (Finding("f", 0.5, 0.4, 0.6),), ())

    settings = METHODS["finetune"](epochs=1, batch_size=64)
    with pytest.raises(InputError, match="is not as run 3 has left it"):
        deletion.run(book_folder, settings, method="finetune", auditor=replaces, console=Console(quiet=True))
    assert states(book_folder) == ["forgotten", "retrain now", "open"]


def test_results_that_the_history_does_not_know_are_made_again(book_folder, monkeypatch):
    """A process that is killed as soon as the network is there has not said in the history which one it is."""
    folders = [book_folder, shutil.copytree(book_folder, book_folder.parent / "undisturbed")]
    with monkeypatch.context() as patched:
        patched.setattr(running, "salt_of", interrupted)
        assert command("run", "--ledger", book_folder, *QUICK) == 130
    out = records.run_folder(book_folder, 3)
    assert (out / "results.json").exists()
    other_network(book_folder, out)
    made = []
    for folder in folders:
        assert command("run", "--ledger", folder, *QUICK) == 3
        with Ledger(folder) as book:
            made.append(book.entries(RunRecorded)[-1].network)
    assert made[0] == made[1]


def test_an_audit_that_is_put_there_while_the_network_is_judged_is_not_signed(book_folder):
    def puts(out, network):
        add_audit(out)
        return verdicts.Evidence("mine", (Finding("f", 0.5, 0.4, 0.6),), ())

    settings = METHODS["finetune"](epochs=1, batch_size=64)
    with pytest.raises(InputError, match="is not as run 3 has left it"):
        deletion.run(book_folder, settings, method="finetune", auditor=puts, console=Console(quiet=True))
    assert states(book_folder) == ["forgotten", "retrain now", "open"]


@pytest.mark.parametrize(
    "name", ["trained_on.txt", "forget_indices.txt", "forgotten_before.txt", "run.json", "network"]
)
def test_no_run_goes_on_from_what_was_changed_in_the_one_before(book_folder, name, capsys):
    """Whoever takes a line out of a list would have the next run train on what was forgotten."""
    place = records.run_folder(book_folder, 1) / name
    if name == "network":
        shutil.rmtree(place)
        shutil.copytree(records.run_folder(book_folder, 2) / name, place)
    else:
        place.write_text(place.read_text() + "\n")
    assert command("run", "--ledger", book_folder, *QUICK) == 2
    assert re.search(f"{re.escape(str(place))}(/.*)? was changed", error_of(capsys))
    assert states(book_folder) == ["forgotten", "retrain now", "open"]
    assert [path.name for path in (book_folder / "runs").iterdir() if "000003" in path.name] == []


def test_no_run_trains_on_what_the_history_says_was_forgotten(book_folder, monkeypatch, capsys):
    """A description without what its run forgot would say that the network knows everything."""
    metadata = records.run_folder(book_folder, 1) / "network" / "meta" / "metadata"
    saved = json.loads(metadata.read_text())
    del saved["description"]["forget"]
    metadata.write_text(json.dumps(saved))
    assert command("run", "--ledger", book_folder, *QUICK) == 2
    assert f"{metadata} was changed" in error_of(capsys)
    monkeypatch.setattr(running, "check_content", lambda *_: None)  # as if it were changed only after that
    assert command("run", "--ledger", book_folder, *QUICK) == 2
    assert "trained on 2 of the examples that requests have made it forget" in error_of(capsys)
    assert states(book_folder) == ["forgotten", "retrain now", "open"]


@pytest.mark.parametrize("name", ["network.safetensors", "results.json"])
def test_what_is_swapped_as_soon_as_it_is_made_is_not_signed(book_folder, name, monkeypatch, capsys):
    """The history does not know yet what the run has left, so a changed file would be taken for one that it made."""
    whole = running.load_run

    def swaps(model, place):
        shutil.copy(records.run_folder(book_folder, 2) / name, records.run_folder(book_folder, 3) / name)
        return whole(model, place)

    monkeypatch.setattr(running, "load_run", swaps)
    assert command("run", "--ledger", book_folder, *QUICK) == 2
    assert f"{name} is not what run 3 has made" in error_of(capsys)
    assert states(book_folder) == ["forgotten", "retrain now", "open"]


def test_what_was_planted_in_the_folder_of_a_run_is_not_gone_on_with(book_folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    linked = shutil.copytree(book_folder, tmp_path / "linked")
    records.run_folder(linked, 3).symlink_to(tmp_path / "elsewhere")
    out = shutil.copytree(records.run_folder(book_folder, 2), records.run_folder(book_folder, 3))
    (out / "results.json").unlink()
    for folder in (linked, book_folder):
        assert command("run", "--ledger", folder, *QUICK) == 3
        assert states(folder) == ["forgotten", "retrain now", "retrain now"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_run_that_was_not_started_leaves_nothing_of_what_was_to_be_forgotten(book_folder, error, monkeypatch):
    kept = []

    def keep(plan, folder):
        folder.mkdir()
        kept.append(folder)
        (folder / "signed.json").write_text("4\n5\n")
        raise error

    monkeypatch.setattr(running.audits, "checked_plan", lambda plan, *_: plan)
    monkeypatch.setattr(running.audits, "keep_signed", keep)
    before = sorted((book_folder / "runs").iterdir())
    assert command("run", "--ledger", book_folder, *QUICK, "--tier", "smoke") == (
        130 if error is KeyboardInterrupt else 2
    )
    assert [path.name for path in kept] == ["000003.audit"]
    assert sorted((book_folder / "runs").iterdir()) == before


def test_a_run_that_was_begun_with_an_auditor_is_finished_with_one(book_folder, monkeypatch, capsys):
    settings, console = METHODS["finetune"](epochs=1, batch_size=64), Console(quiet=True)
    evidence = verdicts.Evidence("mine", (Finding("f", 0.5, 0.4, 0.6),), ())
    options = {"method": "finetune", "auditor": lambda *_: evidence, "console": console}
    with monkeypatch.context() as patched:
        patched.setattr(running, "judge_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            deletion.run(book_folder, settings, **options)
    assert command("run", "--ledger", book_folder) == 2
    assert "run 3 was begun with an auditor, whose evidence counts; finish it in Python" in error_of(capsys)
    assert states(book_folder)[2] == "running"
    (outcome,) = deletion.run(book_folder, settings, **options)
    record, _ = records.read_record(outcome.record, signing.read_keys(book_folder / "keys").public)
    assert record.evidence.source.endswith(", and mine")


def test_a_run_that_fails_takes_no_answer_back_and_no_outcome_along(book_folder, monkeypatch, capsys):
    """Neither the answer that it was to replace, nor the outcomes of the runs before it."""
    again = ["run", "--ledger", book_folder, *QUICK, "--again", "--one-by-one"]
    with monkeypatch.context() as patched:
        patched.setattr(running, "judge_run", failing("it cannot be judged"))
        assert command(*again) == 2
    assert states(book_folder) == ["forgotten", "retrain now", "open"]
    with Ledger(book_folder) as book:
        assert book.entries(AnswersKept) == [AnswersKept(run=2, requests=(2,))]
    assert verified(book_folder, "--quick", capsys=capsys) == []
    whole, done = running.judge_run, []

    def fails_later(*arguments):
        if done:
            raise InputError("it cannot be judged")
        done.append(whole(*arguments))
        return done[0]

    monkeypatch.setattr(running, "judge_run", fails_later)
    assert command(*again) == 2
    assert f"request 2: retrain now; record {done[0].record}" in capsys.readouterr().out
    assert states(book_folder) == ["forgotten", "retrain now", "open"]


def test_a_ledger_about_one_network_serves_no_other(tmp_path, capsys):
    forking.prepare(tmp_path)
    other = models.build("mlp", num_classes=3, image_shape=(4, 4, 1)).init(jax.random.key(1))
    torch_weights.write_safetensors(tmp_path / "other.safetensors", torch_weights.to_state_dict(*other))
    words = ["--weights", tmp_path / "other.safetensors"]
    assert command("run", "--ledger", tmp_path / "ledger", *QUICK, *words) == 2
    assert "other.safetensors is not the one in use" in error_of(capsys)
    assert states(tmp_path / "ledger") == ["open"]


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


def test_a_record_holds_the_identity_of_its_run_and_no_guess_can_be_checked_by_it(served, tmp_path):
    record, _ = records.read_record(records.record_path(served, 1), signing.read_keys(served / "keys").public)
    saved = json.loads((records.run_folder(served, 1) / "run.json").read_text())
    with Ledger(served) as book:
        assert record.evidence.level == "0.95"
        assert record.identity == signing.salted_digest(book.run_salt(1), "identity", saved["identity"].encode())
        assert recorded_runs.identity_problems(book, record) == []
        network = dataclasses.replace(record.network, before="0" * 64)
        for other in ({"identity": saved["identity"]}, {"network": network}):
            (problem,) = recorded_runs.identity_problems(book, dataclasses.replace(record, **other))
            assert "is not the one that its record is about" in problem
    assert deletion.export(served, tmp_path / "copy")
    assert saved["forget_sha256"] in json.dumps(saved), "whoever guesses the positions could compute the digest"
    assert holding(served / "records", saved["identity"]) == holding(tmp_path / "copy", saved["identity"]) == []


def test_evidence_of_a_caller_only_adds(book_folder):
    """Good evidence from elsewhere helps no network that the comparison does not clear, and bad evidence counts."""
    good = verdicts.Evidence("mine", (Finding("f", 0.5, 0.4, 0.6),), (verdicts.EvidenceGate("g", True, "why"),))
    bad = dataclasses.replace(good, findings=(Finding("f", 0.7, 0.4, 0.6),))
    settings, answers = METHODS["finetune"](epochs=1, batch_size=64), []
    for number, (context, evidence) in enumerate([(contextlib.nullcontext, good), (forking.good_evidence, bad)]):
        folder = shutil.copytree(book_folder, book_folder.parent / f"copy {number}")
        with context():
            options = {"method": "finetune", "budget": 100.0, "auditor": lambda *_, evidence=evidence: evidence}
            (outcome,) = deletion.run(folder, settings, **options, console=Console(quiet=True))
        found = records.read_record(outcome.record, signing.read_keys(folder / "keys").public)[0].evidence
        answers.append(outcome.verdict.answer)
        assert found.source.endswith(", and mine")
        assert len(found.findings) > 1 < len(found.gates), "those of the comparison as well"
        assert (found.findings[-1].name, found.gates[-1].name) == ("f", "g")
    assert answers == ["retrain now"] * 2


def failing(message):
    def fails(*arguments, **options):
        raise InputError(message)

    return fails


def test_retraining_serves_what_was_refused_and_begins_a_new_budget(book_folder, capsys):
    quick = ["--method", "retrain", "--epochs", "2", "--batch-size", "64", "--budget", "100"]
    assert command("run", "--ledger", book_folder, *quick, "method.milestones=none") == 0
    assert "trained from scratch without the examples" in capsys.readouterr().out
    assert states(book_folder) == ["forgotten"] * 3
    with Ledger(book_folder) as book:
        first, _, last = book.entries(RunRecorded)
    assert set(first.lost.values()) != {"0.0"}
    assert last.lost == {"retain": "0.0", "test": "0.0"}, "later losses are measured from the retrained network"
    assert verified(book_folder, capsys=capsys) == []
    assert command("add", "--ledger", book_folder, "--forget", "class:1", "--requester", "B") == 2
    assert "there is no class '1'" in error_of(capsys)
