"""Audits as evidence of a run: made within it, or handed in; and every way in which one does not fit."""

import base64
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from scissorhands_jax import deletion, hashing, reading
from scissorhands_jax.audit import run as audit_run
from scissorhands_jax.audit.scores import AuditScores, numbers_document
from scissorhands_jax.cli import main as cli
from scissorhands_jax.deletion import audits as deletion_audits
from scissorhands_jax.deletion import entries, records, signed_audits, signing
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.records import Record
from scissorhands_jax.deletion.requests import config_in_use
from scissorhands_jax.deletion.verdicts import Evidence
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.earlier_runs import read_run_config
from scissorhands_jax.jobs.job import prepare_job
from scissorhands_jax.methods import METHODS
from scissorhands_jax.metrics import intervals
from scissorhands_jax.metrics.intervals import Estimate
from tests.deletion import forking, trained
from tests.deletion.commands import command, error_of, verified

FORGET = ["--method", "scissorhands", "--epochs", "2", "--batch-size", "40", "--budget", "100"]
FORGET += ["method.fraction=0.7", "method.learning_rate=0.2"]
KEEP = ["--method", "finetune", "--epochs", "1", "--batch-size", "40", "--budget", "100"]
TRAINING = ["training.epochs=40", "training.learning_rate=0.1", "training.milestones=none", "training.batch_size=40"]


@pytest.fixture(scope="module", autouse=True)
def unannounced():
    """What an audit will cost is not tried out before each of them, which takes as long as a small audit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_run, "_announce", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    """A ledger about labels that were learned by heart, with a request for forty of them."""
    folder = tmp_path_factory.mktemp("audited")
    (folder / "seen").write_text("".join(f"{position}\n" for position in range(20, 200)))
    return trained.ledger_of_trained_network(folder, str(folder / "seen"))


def begun(ledger: Path, folder: Path, *words) -> Path:
    """Makes a copy of a ledger with a run that was stopped when its network was made and its audit was to come."""

    def stopped(*arguments):
        raise KeyboardInterrupt

    folder = shutil.copytree(ledger, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deletion_audits, "audit_evidence", stopped)
        assert command("run", "--ledger", folder, *FORGET, *words) == 130
    return folder


@pytest.fixture(scope="module")
def made(asked, tmp_path_factory) -> Path:
    """A copy of it after a run that has audited itself, and that was stopped in between.

    It is too short to forget, so the comparison, which would speak against it, is one that is always good.
    """
    folder = begun(asked, tmp_path_factory.mktemp("made") / "ledger", "--tier", "smoke", *TRAINING)
    with forking.good_evidence():
        assert command("run", "--ledger", folder) in (0, 3)
    return folder


def record_of(folder) -> Record:
    return records.read_record(records.record_path(folder, 1), signing.read_keys(folder / "keys").public)[0]


def test_a_run_audits_its_method_on_its_own_examples(made, capsys):
    """The audit adds findings and gates to those of the comparison, and replaces none, also after a stop."""
    evidence = record_of(made).evidence
    assert [finding.name for finding in evidence.findings] == ["f", "Population AUC of the audit"]
    assert [(gate.name, gate.passed) for gate in evidence.gates] == [
        ("g", True),
        ("audit: nothing is found in retrained networks", True),
        ("audit: the original is caught", True),
    ]
    assert "tier smoke: 2 networks, each trained for 40 epochs" in evidence.source
    assert verified(made, "--quick", capsys=capsys) == []


def test_its_results_are_kept_and_its_networks_are_not(made):
    out = records.run_folder(made, 1)
    document = json.loads((out / "audit" / "results.json").read_text())
    assert document["ensemble"]["examples"] == 180, "nothing is trained on what the network never saw"
    assert document["ensemble"]["forget"] == [40]
    assert {"audit/results.json", "audit/scores.json", "audit/report.html"} <= set(record_of(made).files.other)
    assert [path.name for path in (made / "runs").iterdir()] == ["000001"]


def test_a_changed_audit_is_found(made, tmp_path, capsys):
    folder = shutil.copytree(made, tmp_path / "ledger")
    file = folder / "runs/000001/audit/results.json"
    file.write_text(file.read_text().replace("smoke", "spoke"))
    (found,) = verified(folder, "--quick", capsys=capsys)
    assert f"{file} was changed" in found


@pytest.mark.parametrize("what", ["finding", "gate"])
def test_no_audit_is_made_where_the_network_itself_speaks_against_it(asked, tmp_path, what, monkeypatch, capsys):
    folder = shutil.copytree(asked, tmp_path / "ledger")
    held_out = deletion_audits.verdicts.held_out_comparison

    def told(*arguments):
        found = held_out(*arguments)
        if what == "finding":
            return dataclasses.replace(found, findings=(found.findings[0]._replace(value=1.0),))
        return dataclasses.replace(found, gates=(dataclasses.replace(found.gates[0], passed=False),))

    monkeypatch.setattr(deletion_audits.verdicts, "held_out_comparison", told)
    assert command("run", "--ledger", folder, *KEEP, "--tier", "smoke", *TRAINING) == 3
    assert "no audit is made" in capsys.readouterr().err
    assert not (records.run_folder(folder, 1) / "audit").exists()


@dataclasses.dataclass(frozen=True)
class Made:
    """A ledger about a network that was trained on everything, and an audit of a run that was made by hand."""

    ledger: Path
    audit: Path
    run: Path
    key: Path
    public: Path

    @property
    def signed(self) -> Path:
        return self.audit / "signed.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("whole")
    ledger = trained.ledger_of_trained_network(folder)
    dataset, forget = f"npz:{folder / 'data.npz'}", f"indices:{folder / 'forty'}"
    network = ["--dataset", dataset, "--model", "mlp", "--forget", forget]
    run = ["--weights", str(folder / "trained.safetensors"), "--out", str(folder / "run"), *FORGET[:-4], *FORGET[-2:]]
    assert cli.main(["unlearn", "--max-loss", "100", *network, *run]) == 0
    settings = [f"scissorhands.{word.removeprefix('method.')}" for word in FORGET[-2:]]
    settings += ["scissorhands.epochs=2", "scissorhands.batch_size=40", "validation_share=0", *TRAINING]
    made = Made(ledger, folder / "audit", folder / "run", folder / "auditor.pem", folder / "auditor_public.pem")
    assert cli.main(["audit", "--out", str(made.audit), *network, "--tier", "smoke", *settings]) == 0
    assert cli.main(["audit", "key", "--out", str(made.key), "--public", str(made.public)]) == 0
    assert cli.main(["audit", "sign", "--audit", str(made.audit), "--run", str(made.run), "--key", str(made.key)]) == 0
    assert command("trust", "--ledger", ledger, made.public) == 0
    return made


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory) -> Path:
    """A run that was begun with the audit, whose original is gone, and stopped when its network was made."""
    folder = tmp_path_factory.mktemp("stopped")
    audit = folder / "audit"
    audit.mkdir()
    shutil.copy(whole.signed, audit)
    ledger = begun(whole.ledger, folder / "ledger", "--audit", audit)
    shutil.rmtree(audit)
    return ledger


def resigned(made: Made, folder: Path, change, *, key: Path | None = None) -> Path:
    """Changes a signed document, signs it again, and returns its file."""
    document = json.loads(made.signed.read_text())["audit"]
    change(document)
    private = signing.read_private(key or made.key)
    digest = hashing.sha256(hashing.canonical(document))
    signature = signing.sign_digest(private, "audit", digest)
    envelope = {"audit": document, "hash": digest, "key": signing.public_of(private), "signature": signature}
    path = folder / "changed.json"
    path.write_bytes(hashing.canonical(envelope))
    return path


def number(document: dict, method: str, metric: str) -> dict:
    """Returns the stated number of the only scenario."""
    (found,) = (
        entry
        for entry in document["numbers"]["evidence"]
        if entry["scenario"] is not None and (entry["method"], entry["metric"]) == (method, metric)
    )
    return found


def with_margins(document: dict, label: str, change) -> None:
    """Changes the scores of all networks with a label."""
    for one in document["scores"]["measurements"]:
        if one["label"] == label:
            margins = change(np.frombuffer(base64.b64decode(one["margins"]), "<f8"))
            one["margins"] = base64.b64encode(margins.astype("<f8").tobytes()).decode()


def leave_out(document: dict) -> None:
    """Leaves out the scores of the method, and states the numbers that follow from the others."""
    document["scores"]["measurements"] = [
        one for one in document["scores"]["measurements"] if one["label"] != "scissorhands"
    ]
    scores = AuditScores.from_document(document["scores"])
    document["numbers"] = hashing.without_floats(numbers_document(*scores.numbers()))


def swap_labels(document: dict) -> None:
    names = {"original": "retrain", "retrain": "original"}
    for one in document["scores"]["measurements"]:
        one["label"] = names.get(one["label"], one["label"])


class TestSigned:
    """An audit that was made and signed elsewhere."""

    def test_it_adds_to_the_comparison_of_the_run(self, whole, stopped, tmp_path, capsys):
        """Also if the run was stopped, the document that it was begun with is gone, and another audit was put there."""
        folder = shutil.copytree(stopped, tmp_path / "ledger")
        planted = records.run_folder(folder, 1) / "audit" / "results.json"
        planted.parent.mkdir()
        planted.write_text("{}")
        status = command("run", "--ledger", folder)
        record = record_of(folder)
        assert [name for name in record.files.other if name.startswith("audit/")] == ["audit/signed.json"]
        assert not planted.exists()
        *compared, audited = record.evidence.findings
        assert [one.name for one in compared] == ["confidence of the forget set", "correctness of the forget set"]
        assert audited.name == "Population AUC of the audit"
        stated = number(json.loads(whole.signed.read_text())["audit"], "scissorhands", "population_auc")
        assert float(audited.value) == pytest.approx(float(stated["value"]), abs=1e-6)
        assert [gate.name for gate in record.evidence.gates] == [
            "the network before is caught",
            "held-out against held-out",
            "audit: nothing is found in retrained networks",
            "audit: the original is caught",
        ]
        assert status == (0 if record.verdict.answer == entries.FORGOTTEN else 3)
        assert any(audited.name in reason for reason in record.verdict.reasons) == (not audited.holds)
        assert hashing.file_sha256(whole.signed) in record.evidence.source
        assert signing.read_public(whole.public) in record.evidence.source
        kept = records.run_folder(folder, 1) / "audit" / "signed.json"
        assert kept.read_bytes() == whole.signed.read_bytes()
        assert verified(folder, capsys=capsys) == []

    def test_findings_of_the_run_count_whatever_the_audit_says(self, stopped, tmp_path, monkeypatch, capsys):
        """As does a gate of the comparison that fails."""
        held_out = deletion_audits.verdicts.held_out_comparison
        for number_of_run, field in enumerate(("findings", "gates")):
            folder = shutil.copytree(stopped, tmp_path / f"ledger {field}")

            def told(*arguments, field=field):
                found = held_out(*arguments)
                if field == "findings":
                    return dataclasses.replace(found, findings=(found.findings[0]._replace(value=1.0),))
                return dataclasses.replace(found, gates=(dataclasses.replace(found.gates[0], passed=False),))

            with monkeypatch.context() as patched:
                patched.setattr(deletion_audits.verdicts, "held_out_comparison", told)
                assert command("run", "--ledger", folder) == 3
            assert ["still known", "cannot be trusted"][number_of_run] in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d["subject"].update(before="0" * 64), "its network before is 000"),
            (lambda d: d["subject"].update(forget="0" * 64), "its forget is 000"),
            (lambda d: d["subject"].update(training_set="0" * 64), "its training set is 000"),
            (lambda d: d["subject"].update(test_set="0" * 64), "its test set is 000"),
            (lambda d: d["subject"].update(trained_on="0" * 64), "its trained on is 000"),
            (lambda d: d["subject"].update(method="finetune"), "its method is finetune, and the run's scissorhands"),
            (lambda d: d["subject"].update(settings="{}"), "its settings is {}"),
            (lambda d: d["subject"].update(model="resnet9"), "its model is resnet9"),
            (lambda d: d["subject"].update(augment="true"), "its augment is true"),
            (lambda d: d["subject"].pop("after"), "cannot be read"),
            (lambda d: d["results"]["config"].update(model="resnet9"), "the audit is about a resnet9"),
            (lambda d: d["results"]["ensemble"].update(forget_sha256=["0"]), "none of the audit's forget sets"),
            (lambda d: d["results"]["data"].update(training_data_sha256="0"), "were trained on other examples"),
            (lambda d: d["results"]["ensemble"].update(networks=16), "another number of networks"),
            (lambda d: d["results"]["config"]["scenarios"].clear(), "other forget sets or methods"),
            (lambda d: d["results"]["ensemble"].update(forget_sha256="0"), "other forget sets or methods"),
            (lambda d: d["results"]["config"].update(tier="huge"), "its tier is 'huge' and none of"),
            (lambda d: d["results"]["config"].update(tier=["smoke"]), "cannot be read"),
            (lambda d: d["results"]["config"].pop("tier"), "cannot be read"),
            (lambda d: d["results"]["config"].pop("training"), "cannot be read"),
            (lambda d: d["results"]["config"]["training"].update(epochs="many"), "'many' epochs"),
            (lambda d: d.pop("numbers"), "cannot be read"),
            (lambda d: d.update(format=1), "another version"),
            (lambda d: d["numbers"].update(gates=[]), "the gates of the audit"),
            (lambda d: d["numbers"].update(evidence=[]), "the evidence of the audit"),
            (lambda d: d["numbers"]["gates"][0].update(passed=False), "by the statistics of this version: "),
            (lambda d: number(d, "scissorhands", "population_auc").update(value="0.5"), "population_auc, value"),
            (lambda d: number(d, "scissorhands", "population_auc").update(high="0.9999"), "population_auc, high"),
            (lambda d: number(d, "scissorhands", "population_auc").update(value="nan"), "does not follow"),
            (lambda d: number(d, "scissorhands", "population_auc").update(more="1"), "does not follow"),
            (lambda d: with_margins(d, "scissorhands", np.zeros_like), "does not follow from its scores"),
            (lambda d: with_margins(d, "original", lambda m: m[:-1]), "one number below 1e\\+100 for each example"),
            (lambda d: with_margins(d, "original", lambda m: m * np.nan), "one number below 1e\\+100 for each example"),
            (lambda d: with_margins(d, "original", lambda m: m + np.inf), "one number below 1e\\+100 for each example"),
            (swap_labels, "cannot be '(retrain|original)'"),
            (lambda d: d["scores"]["measurements"].pop(0), "measured"),
            (leave_out, "scissorhands has no scores on 1 of 1 networks: it diverged there, or they were left out, and"),
            (lambda d: d["scores"]["labels"].reverse(), "does not follow|about something else"),
            (lambda d: d["scores"]["forget_sets"][0]["columns"].pop(), "exactly one part"),
        ],
    )  # fmt: skip
    def test_one_that_is_signed_but_of_something_else_is_refused_and_nothing_is_begun(
        self, whole, tmp_path, change, message, capsys
    ):
        path = resigned(whole, tmp_path, change)
        files = sorted(whole.ledger.rglob("*"))
        assert command("run", "--ledger", whole.ledger, *FORGET, "--audit", path) == 2
        assert re.search(message, error_of(capsys))
        with Ledger(whole.ledger) as book:
            assert [event.entry.kind for event in book.history()] == ["begun", "added", "trusted"]
        assert sorted(whole.ledger.rglob("*")) == files

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"network": "0", "source": "x", "findings": [{"name": "f"}], "gates": []}, "no signed audit"),
            ({"evidence": [], "ensemble": {}, "gates": []}, "no signed audit"),
            ({"audit": {}, "hash": "0" * 64, "key": "0" * 64, "signature": "0" * 128}, "does not trust"),
            ([], "no signed audit"),
            ("[" * 100_000, "no signed audit"),
            ("", "no signed audit"),
        ],
    )  # fmt: skip
    def test_a_file_that_is_not_signed_is_refused(self, whole, tmp_path, content, message, capsys):
        path = tmp_path / "audit.json"
        path.write_bytes(content.encode() if isinstance(content, str) else hashing.canonical(content))
        assert command("run", "--ledger", whole.ledger, *FORGET, "--audit", path) == 2
        assert message in error_of(capsys)
        assert command("run", "--ledger", whole.ledger, *FORGET, "--audit", whole.audit / "results.json") == 2
        assert "no signed audit" in error_of(capsys)

    def test_any_changed_byte_is_refused(self, whole, tmp_path, capsys):
        content, path = whole.signed.read_bytes(), tmp_path / "signed.json"
        generator = np.random.default_rng(3)
        for position in generator.integers(len(content), size=40):
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(generator.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=re.escape(str(path))):
                signed_audits.read_signed(path.read_bytes(), [signing.read_public(whole.public)], path)
        audit = signed_audits.read_signed(content, [signing.read_public(whole.public)], path)
        assert audit.sha256 == hashing.sha256(content)

    def test_the_signature_must_be_that_of_the_trusted_key_for_an_audit(self, whole, tmp_path):
        """Whoever changes a document can compute its hash, and write down any key."""
        envelope = json.loads(whole.signed.read_text())
        trusted, path = [envelope["key"]], tmp_path / "signed.json"
        other = bytes(range(32))
        changed = envelope["audit"] | {"subject": envelope["audit"]["subject"] | {"after": "0" * 64}}
        digest = hashing.sha256(hashing.canonical(changed))
        private = signing.read_private(whole.key)
        for forged in (
            {"audit": changed, "hash": digest},
            {"audit": changed, "hash": digest, "signature": signing.sign_digest(other, "audit", digest)},
            {"audit": changed, "hash": digest, "signature": signing.sign_digest(private, "record", digest)},
            {"audit": changed, "hash": digest, "signature": signing.sign_digest(private, "audit", envelope["hash"])},
            {"signature": envelope["signature"].upper()},
            {"signature": None},
        ):
            with pytest.raises(InputError, match="was changed after it was signed"):
                signed_audits.read_signed(hashing.canonical(envelope | forged), trusted, path)

    def test_one_by_another_key_is_refused_and_so_is_one_that_is_no_longer_trusted(self, whole, tmp_path, capsys):
        folder = shutil.copytree(whole.ledger, tmp_path / "ledger")
        other, public = tmp_path / "other.pem", tmp_path / "other_public.pem"
        assert cli.main(["audit", "key", "--out", str(other), "--public", str(public)]) == 0
        path = resigned(whole, tmp_path, lambda document: None, key=other)
        assert command("run", "--ledger", folder, *FORGET, "--audit", path) == 2
        assert "which the ledger does not trust" in error_of(capsys)
        assert command("trust", "--ledger", folder, whole.public) == 2
        assert "is trusted already" in error_of(capsys)
        assert command("untrust", "--ledger", folder, public) == 2
        assert "is not trusted" in error_of(capsys)
        assert command("list", "--ledger", folder) == 0
        assert signing.read_public(whole.public) in capsys.readouterr().out
        assert command("untrust", "--ledger", folder, whole.public) == 0
        assert command("run", "--ledger", folder, *FORGET, "--audit", whole.audit) == 2
        assert "which the ledger does not trust" in error_of(capsys)
        assert command("list", "--ledger", folder) == 0
        assert signing.read_public(whole.public) not in capsys.readouterr().out
        assert verified(folder, "--quick", capsys=capsys) == []

    def test_one_about_another_network_after_the_run_fails_the_run(self, whole, tmp_path, capsys):
        """Only then is it known which network the run makes."""
        folder = shutil.copytree(whole.ledger, tmp_path / "ledger")
        path = resigned(whole, tmp_path, lambda document: document["subject"].update(after="0" * 64))
        assert command("run", "--ledger", folder, *FORGET, "--audit", path) == 2
        assert "its network after is 000" in error_of(capsys)
        with Ledger(folder) as book:
            assert [event.entry.kind for event in book.history()][-3:] == ["started", "unlearned", "failed"]
            assert [request.state for request in book.requests()] == [entries.OPEN]
        assert verified(folder, "--quick", capsys=capsys) == []

    def test_a_run_that_was_stopped_takes_no_other_document_than_it_was_begun_with(self, whole, stopped, tmp_path):
        with Ledger(stopped) as book:
            plan = deletion_audits.AuditPlan.from_text(book.entries(entries.RunStarted)[0].audit)
        (tmp_path / "signed.json").write_text("{}")
        with pytest.raises(InputError, match="has changed since the run was begun"):
            deletion_audits._signed(plan, tmp_path, [signing.read_public(whole.public)])

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["method.learning_rate=0.5"], "its settings is"),
            (["--retain-limit", "9"], "repairs on all retained examples"),
            (["--method", "retrain"], "needs no audit"),
            (["--augment"], "its augment is"),
        ],
    )
    def test_it_is_refused_for_a_run_with_other_settings(self, whole, words, message, capsys):
        settings = [] if "retrain" in words else FORGET
        settings = [word for word in settings if not word.startswith(words[0].partition("=")[0])]
        assert command("run", "--ledger", whole.ledger, *settings, "--audit", whole.audit, *words) == 2
        assert message in error_of(capsys)

    def test_a_run_is_signed_whose_list_of_positions_is_gone(self, whole, tmp_path):
        """A ledger removes that list when a run has ended; the folder of the run has a copy."""
        spec = json.loads((whole.run / "results.json").read_text())["config"]["forget"]
        listed = Path(spec.removeprefix("indices:"))
        audit, kept = shutil.copytree(whole.audit, tmp_path / "audit"), listed.rename(tmp_path / "kept")
        (audit / "signed.json").unlink()
        try:
            words = ["audit", "sign", "--audit", audit, "--run", whole.run, "--key", whole.key]
            assert cli.main(list(map(str, words))) == 0
        finally:
            kept.rename(listed)
        assert (audit / "signed.json").read_bytes() == whole.signed.read_bytes()

    def test_a_document_that_nobody_could_read_is_not_written(self, whole, tmp_path, monkeypatch, capsys):
        audit = shutil.copytree(whole.audit, tmp_path / "audit")
        size = (audit / "signed.json").stat().st_size
        (audit / "signed.json").unlink()
        monkeypatch.setattr(reading, "MAX_JSON", size - 1)
        words = ["audit", "sign", "--audit", audit, "--run", whole.run, "--key", whole.key]
        assert cli.main(list(map(str, words))) == 2
        assert f"nobody could read the document: it is larger than {size - 1} bytes; make one" in error_of(capsys)
        assert not (audit / "signed.json").exists()
        monkeypatch.setattr(reading, "MAX_JSON", size)
        assert cli.main(list(map(str, words))) == 0

    def test_only_an_audit_of_the_run_is_signed(self, whole, tmp_path, capsys):
        sign = ["audit", "sign", "--audit", str(whole.audit), "--key", str(whole.key)]
        key = ["audit", "sign", "--audit", str(whole.audit), "--run", str(whole.run), "--key"]
        document = json.loads((whole.run / "results.json").read_text())
        document["config"]["method"]["learning_rate"] = 0.5
        other = shutil.copytree(whole.run, tmp_path / "run")
        (other / "results.json").write_text(json.dumps(document))
        seeded = shutil.copytree(whole.run, tmp_path / "seeded")
        description = json.loads((whole.run / "run.json").read_text()) | {"seed": 1}
        (seeded / "run.json").write_text(json.dumps(description))
        for words, message in [
            ([*sign, "--run", str(other)], "belongs to another run: method.learning_rate was 0.2 and is now 0.5"),
            ([*sign, "--run", str(seeded)], "does not have the digest that it names"),
            ([*sign, "--run", str(tmp_path / "nowhere")], "nowhere"),
            ([*key, str(whole.public)], "holds no private key in PEM form"),
            ([*key, str(whole.signed)], "is read and is where the result goes"),
            ([*key, str(tmp_path / "nothing")], "cannot be read"),
            (
                ["audit", "sign", "--audit", str(whole.run), "--run", str(whole.run), "--key", str(whole.key)],
                "no finished",
            ),
            (["audit", "key", "--out", str(whole.key), "--public", str(tmp_path / "new")], "exists already"),
            (["audit", "key", "--out", str(tmp_path / "new"), "--public", str(whole.public)], "exists already"),
        ]:
            assert cli.main(words) == 2
            assert message in error_of(capsys)
        assert not (tmp_path / "new").exists()
        loose = shutil.copy(whole.key, tmp_path / "loose.pem")
        Path(loose).chmod(0o644)
        assert cli.main([*key, str(loose)]) == 2
        assert "can be read by others" in error_of(capsys)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--tier", "huge"], "there is no tier 'huge'"),
            (["--tier", "smoke", "training.epoch=3"], "training.epoch"),
            (["--tier", "smoke", "--networks", "3"], "an even number of networks from 2 to 256, got 3"),
            (["--networks", "4"], "name its --tier"),
            (["training.epochs=3"], "name its --tier"),
        ],
    )
    def test_bad_input_is_one_sentence(self, whole, words, message, capsys):
        assert command("run", "--ledger", whole.ledger, *FORGET, *words) == 2
        assert message.removeprefix("training.") in error_of(capsys)


class TestFindings:
    """What is read from the numbers of an audit."""

    @pytest.fixture
    def job(self, whole):
        return prepare_job(read_run_config(whole.run / "results.json"))

    @pytest.fixture
    def document(self, whole) -> dict:
        return json.loads((whole.audit / "results.json").read_text())

    def test_all_findings_together_have_the_level(self, document, job):
        (entry,) = [
            one
            for one in document["evidence"]
            if one["scenario"] is not None and (one["method"], one["metric"]) == ("scissorhands", "population_auc")
        ]
        estimate = Estimate(**{name: entry[name] for name in Estimate._fields})
        for count in (1, 2, 4):
            metrics = ["population_auc", "u_lira_auc", "lira_auc", "rmia_auc"][:count]
            more = [entry | {"metric": metric} for metric in metrics[1:]]
            changed = document | {"evidence": document["evidence"] + more}
            findings, gates = deletion_audits.findings_about(changed, job, 0.9, must_be_trusted=True)
            assert len(findings) == count
            expected = intervals.at_level(estimate, 1 - 0.1 / count)
            for finding in findings:
                assert finding.value == expected.value
                assert finding.low == pytest.approx(0.5 - (expected.high - expected.value))
                assert finding.high == pytest.approx(0.5 + (expected.value - expected.low))
            assert all(gate.passed for gate in gates)

    def test_an_audit_without_gates_or_numbers_is_no_evidence(self, document, job):
        bare = [
            document | {"gates": []},
            document | {"gates": [gate | {"passed": None, "reported": False} for gate in document["gates"]]},
            document | {"gates": [gate | {"decides": False} for gate in document["gates"]]},
            document | {"evidence": [one for one in document["evidence"] if one["method"] != "scissorhands"]},
        ]
        for changed in bare:
            found = deletion_audits.findings_about(changed, job, 0.9, must_be_trusted=False)
            assert next(gate for gate in found[1] if not gate.passed).name == "audit"
            verdict = deletion_audits.verdicts.judge(Evidence("test", *found), {"test": 0.0}, 1.0, exact=False)
            assert verdict.answer == "retrain now"
        for changed in bare[:3]:
            with pytest.raises(InputError, match="cannot be trusted: no gate could be run"):
                deletion_audits.findings_about(changed, job, 0.9, must_be_trusted=True)

    @pytest.mark.parametrize("change", [{"passed": False}, {"passed": None, "reported": True}, {"passed": "yes"}])
    def test_one_gate_that_does_not_hold_is_enough(self, document, job, change):
        document["gates"][1] |= {"explanation": "why", **change}
        _, gates = deletion_audits.findings_about(document, job, 0.9, must_be_trusted=False)
        assert [gate.why for gate in gates if not gate.passed] == ["why"]
        with pytest.raises(InputError, match="cannot be trusted: why"):
            deletion_audits.findings_about(document, job, 0.9, must_be_trusted=True)

    def test_networks_on_which_the_method_diverged_are_held_against_it(self, document, job):
        name = next(one["scenario"] for one in document["evidence"] if one["method"] == "scissorhands")
        failure = {"scenario": name, "method": "scissorhands", "seed": 0, "failure": "the loss is not finite"}
        document["failures"] = [failure | {"method": "finetune"}, failure | {"scenario": "another"}]
        assert all(gate.passed for gate in deletion_audits.findings_about(document, job, 0.9, must_be_trusted=True)[1])
        document["failures"] += [failure, failure | {"seed": 1}]
        findings, gates = deletion_audits.findings_about(document, job, 0.9, must_be_trusted=False)
        (failed,) = [gate for gate in gates if not gate.passed]
        of = document["ensemble"]["networks_per_side"]
        assert failed.why == f"scissorhands diverged on 2 of {of} networks, and the others say nothing of these"
        verdict = deletion_audits.verdicts.judge(Evidence("test", findings, gates), {"test": 0.0}, 1.0, exact=False)
        assert verdict.answer == "retrain now"
        with pytest.raises(InputError, match="cannot be trusted: scissorhands diverged on 2 of"):
            deletion_audits.findings_about(document, job, 0.9, must_be_trusted=True)

    @pytest.mark.parametrize("field", ["value", "low", "high"])
    def test_numbers_that_are_not_finite_are_refused(self, document, job, field):
        for entry in document["evidence"]:
            entry[field] = float("nan")
        with pytest.raises(InputError, match="not finite"):
            deletion_audits.findings_about(document, job, 0.9, must_be_trusted=False)

    def test_numbers_without_standard_errors_are_refused(self, document, job):
        for entry in document["evidence"]:
            del entry["error"]
        with pytest.raises(InputError, match="before its numbers had standard errors"):
            deletion_audits.findings_about(document, job, 0.9, must_be_trusted=False)

    def test_the_audit_and_the_comparison_share_the_chance_of_an_error(self, asked, tmp_path, monkeypatch):
        """A comparison alone has all of it."""
        levels = {}
        held_out = deletion_audits.verdicts.held_out_comparison

        def compared(*arguments):
            levels["comparison"] = arguments[-1]
            return held_out(*arguments)

        def audited(plan, own, job, out, network, level, *others):
            levels["audit"] = level
            return own, ()

        monkeypatch.setattr(deletion_audits.verdicts, "held_out_comparison", compared)
        monkeypatch.setattr(deletion_audits, "audit_evidence", audited)
        for words, expected in ((["--tier", "smoke"], {"comparison": 0.9, "audit": 0.9}), ([], {"comparison": 0.8})):
            levels.clear()
            folder = shutil.copytree(asked, tmp_path / f"ledger {len(words)}")
            command("run", "--ledger", folder, *KEEP, "--level", "0.8", *words)
            assert levels == pytest.approx(expected)


def test_a_forget_set_is_counted_among_what_was_trained_on(asked):
    with Ledger(asked) as book:
        network = config_in_use(book, deletion.Subject())
    config = RunConfig(**vars(network), forget=f"indices:{asked.parent / 'forty'}", method=METHODS["scissorhands"]())
    job = prepare_job(config)
    np.testing.assert_array_equal(deletion_audits._within(job), np.arange(20, 60))
