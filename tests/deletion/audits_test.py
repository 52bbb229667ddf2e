"""Audits as evidence of a run: made within it, or handed in; and every way in which one does not fit."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scissorhands_jax import deletion, hashing
from scissorhands_jax.cli import main as cli
from scissorhands_jax.deletion import audits as deletion_audits
from scissorhands_jax.deletion import entries, records, signing
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.records import Record
from scissorhands_jax.deletion.requests import config_in_use
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.job import prepare_job
from scissorhands_jax.methods import MethodSettings
from tests.deletion import forking
from tests.deletion.commands import command, error_of, verified

pytest.importorskip("cryptography")

FINETUNE = ["--method", "finetune", "--epochs", "1", "--batch-size", "40", "--budget", "100"]
TRAINING = ["training.epochs=40", "training.learning_rate=0.1", "training.milestones=none", "training.batch_size=40"]


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    """A ledger about labels that can only be learned by heart, with a request for forty of them."""
    folder = tmp_path_factory.mktemp("audited")
    forking.prepare(folder)
    shutil.rmtree(folder / "ledger")
    (folder / "forty").write_text("".join(f"{position}\n" for position in range(40, 80)))
    (folder / "seen").write_text("".join(f"{position}\n" for position in range(20, 200)))
    subject = deletion.Subject(
        "mlp", f"npz:{folder / 'data.npz'}", None, str(folder / "mlp.safetensors"), None, str(folder / "seen")
    )
    deletion.add(folder / "ledger", forget=f"indices:{folder / 'forty'}", requester="A", subject=subject)
    return folder / "ledger"


@pytest.fixture(scope="module")
def made(asked, tmp_path_factory) -> Path:
    """A copy of it after a run that has audited itself."""
    folder = shutil.copytree(asked, tmp_path_factory.mktemp("made") / "ledger")
    assert command("run", "--ledger", folder, *FINETUNE, "--tier", "smoke", *TRAINING) == 3
    return folder


def record_of(folder) -> Record:
    return records.read_record(records.record_path(folder, 1), signing.read_keys(folder / "keys").public)[0]


def test_a_run_audits_its_method_on_its_own_examples(made, capsys):
    """Fine-tuning forgets nothing: the untrained network of the ledger cannot show it, the audit does."""
    evidence = record_of(made).evidence
    names = [finding.name for finding in evidence.findings]
    assert names == ["confidence of the forget set", "correctness of the forget set", "Population AUC of the audit"]
    assert [finding.holds for finding in evidence.findings] == [True, True, False]
    assert [(gate.name, gate.passed) for gate in evidence.gates] == [
        ("held-out against held-out", True),
        ("audit: nothing is found in retrained networks", True),
        ("audit: the original is caught", True),
    ]
    assert "tier smoke: 2 networks, each trained for 40 epochs" in evidence.source
    assert "still known" in " ".join(record_of(made).verdict.reasons)
    assert verified(made, "--quick", capsys=capsys) == []


def test_its_results_are_kept_and_its_networks_are_not(made):
    out = records.run_folder(made, 1)
    document = json.loads((out / "audit" / "results.json").read_text())
    assert document["ensemble"]["examples"] == 180, "nothing is trained on what the network never saw"
    assert document["ensemble"]["forget"] == [40]
    assert {"audit/results.json", "audit/report.html"} <= set(record_of(made).files.other)
    assert [path.name for path in (made / "runs").iterdir()] == ["000001"]


def test_a_changed_audit_is_found(made, tmp_path, capsys):
    folder = shutil.copytree(made, tmp_path / "ledger")
    file = folder / "runs/000001/audit/results.json"
    file.write_text(file.read_text().replace("smoke", "spoke"))
    (found,) = verified(folder, "--quick", capsys=capsys)
    assert f"{file} was changed" in found


def test_a_stopped_run_makes_the_audit_that_it_was_begun_with(asked, tmp_path, monkeypatch):
    folder = shutil.copytree(asked, tmp_path / "ledger")

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(deletion_audits, "audit_evidence", stopped)
        assert command("run", "--ledger", folder, *FINETUNE, "--tier", "smoke", *TRAINING) == 130
    assert command("run", "--ledger", folder) == 3
    assert len(record_of(folder).evidence.findings) == 3


def test_no_audit_is_made_where_the_network_itself_speaks_against_it(made, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(made, tmp_path / "ledger")
    held_out = deletion_audits.verdicts.held_out_comparison

    def told(*arguments):
        found = held_out(*arguments)
        return dataclasses.replace(found, findings=(found.findings[0]._replace(value=1.0),))

    monkeypatch.setattr(deletion_audits.verdicts, "held_out_comparison", told)
    assert command("run", "--ledger", folder, *FINETUNE, "--again", "--tier", "smoke", *TRAINING) == 3
    assert "no audit is made" in capsys.readouterr().err
    assert not (records.run_folder(folder, 2) / "audit").exists()


@pytest.fixture(scope="module")
def whole(asked, tmp_path_factory) -> tuple[Path, Path]:
    """A ledger about a network that was trained on everything, and the folder of an audit made by hand."""
    folder = tmp_path_factory.mktemp("whole")
    dataset, forget = f"npz:{asked.parent / 'data.npz'}", f"indices:{asked.parent / 'forty'}"
    subject = deletion.Subject("mlp", dataset, None, str(asked.parent / "mlp.safetensors"))
    deletion.add(folder / "ledger", forget=forget, requester="A", subject=subject)
    words = ["--dataset", dataset, "--model", "mlp", "--forget", forget, "--method", "finetune", "--tier", "smoke"]
    settings = ["finetune.epochs=1", "finetune.batch_size=40", "validation_share=0", *TRAINING]
    assert cli.main(["audit", "--out", str(folder / "audit"), *words, *settings]) == 0
    return folder / "ledger", folder / "audit"


class TestHandedIn:
    """An audit that `scissorhands audit` has made."""

    def document(self, whole) -> dict:
        return json.loads((whole[1] / "results.json").read_text())

    @pytest.mark.parametrize("name", ["", "results.json"])
    def test_it_counts_as_one_that_the_run_has_made(self, whole, tmp_path, name, capsys):
        folder = shutil.copytree(whole[0], tmp_path / "ledger")
        assert command("run", "--ledger", folder, *FINETUNE, "--audit", whole[1] / name) == 3
        assert "Population AUC of the audit shows that they are still known" in capsys.readouterr().out
        digest = hashing.file_sha256(whole[1] / "results.json")
        assert f"results with SHA-256 {digest}" in record_of(folder).evidence.source
        assert "audit/results.json" in record_of(folder).files.other

    def test_one_that_finds_nothing_lets_the_network_count_as_forgotten(self, whole, tmp_path):
        document = self.document(whole)
        for entry in document["evidence"]:
            if entry["method"] == "finetune":
                entry |= {"value": 0.53, "low": 0.47, "high": 0.59}
        (tmp_path / "results.json").write_text(json.dumps(document))
        folder = shutil.copytree(whole[0], tmp_path / "ledger")
        assert command("run", "--ledger", folder, *FINETUNE, "--audit", tmp_path) == 0
        with Ledger(folder) as book:
            assert [request.state for request in book.requests()] == [entries.FORGOTTEN]

    @pytest.mark.parametrize(
        ("change", "words", "message"),
        [
            (
                lambda d: d["config"].update(model="resnet9"),
                [],
                "the audit is about a resnet9 and the run's network is a mlp",
            ),
            (lambda d: d["ensemble"].update(forget_sha256=["0"]), [], "none of the audit's forget sets is that"),
            (lambda d: d["data"].update(training_data_checksum="0"), [], "were trained on other examples"),
            (lambda d: d["gates"][1].update(passed=False, explanation="why"), [], "cannot be trusted: why"),
            (lambda d: d.update(gates=[]), [], "cannot be trusted: no gate could be run"),
            (lambda d: d.pop("data"), [], "cannot be read: KeyError"),
            (lambda d: [one.pop("error") for one in d["evidence"]], [], "before its numbers had standard errors"),
            (lambda d: None, ["method.learning_rate=0.5"], "has no finetune with the settings of the run"),
            (lambda d: None, ["--retain-limit", "9"], "repairs on all retained examples"),
            (lambda d: None, ["--method", "retrain"], "needs no audit"),
            (lambda d: None, ["--augment"], "were trained on other examples"),
        ],
    )
    def test_one_of_something_else_is_refused_and_nothing_is_begun(
        self, whole, tmp_path, change, words, message, capsys
    ):
        document = self.document(whole)
        change(document)
        (tmp_path / "results.json").write_text(json.dumps(document))
        assert command("run", "--ledger", whole[0], *FINETUNE, "--audit", tmp_path, *words) == 2
        assert message in error_of(capsys)
        with Ledger(whole[0]) as book:
            assert [event.entry.kind for event in book.history()] == ["begun", "added"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--tier", "huge"], "there is no tier 'huge'"),
            (["--tier", "smoke", "training.epoch=3"], "training.epoch"),
            (["--networks", "4"], "name its --tier"),
            (["training.epochs=3"], "name its --tier"),
        ],
    )
    def test_bad_input_is_one_sentence(self, whole, words, message, capsys):
        assert command("run", "--ledger", whole[0], *FINETUNE, *words) == 2
        assert message.removeprefix("training.") in error_of(capsys)


def test_a_forget_set_is_counted_among_what_was_trained_on(asked):
    with Ledger(asked) as book:
        network = config_in_use(book, deletion.Subject())
    settings = MethodSettings()
    job = prepare_job(RunConfig(**vars(network), forget=f"indices:{asked.parent / 'forty'}", method=settings))
    np.testing.assert_array_equal(deletion_audits._within(job), np.arange(20, 60))
