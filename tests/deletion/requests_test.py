"""Requests are taken in whole or refused whole, and are about examples, not about positions."""

import dataclasses
import datetime
import json
import shutil
import threading
import types

import jax
import numpy as np
import pytest

from scissorhands_jax import deletion, files, models, reading, torch_weights
from scissorhands_jax.cli import main as cli
from scissorhands_jax.deletion import database, entries, ledger, records, requests
from scissorhands_jax.deletion.entries import Request
from scissorhands_jax.deletion.ledger import Ledger, check_request
from scissorhands_jax.deletion.requests import config_in_use
from scissorhands_jax.errors import InputError
from scissorhands_jax.training import checkpoints
from tests.deletion import forking
from tests.deletion.commands import QUICK, command, error_of, moved_data, states, verified
from tests.deletion.spoiling import request

DAMAGES = {
    "the file for others": lambda run: (run / "network.safetensors").unlink(),
    "the arrays": lambda run: [
        path.write_bytes(b"") for path in (run / "network/network").rglob("*") if path.is_file()
    ],
    "the arrays, lost": lambda run: shutil.rmtree(run / "network/network"),
    "everything of the network": lambda run: shutil.rmtree(run / "network"),
    "a list": lambda run: (run / "trained_on.txt").write_text("1\n2\n"),
    "the description": lambda run: (run / "network/meta/metadata").write_text("{}"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_request_can_be_entered_while_the_network_in_use_is_damaged(book_folder, tmp_path, what, capsys):
    """It has a date, and needs what the network knows and has forgotten, not the network."""
    DAMAGES[what](records.run_folder(book_folder, 1))
    (tmp_path / "nine").write_text("9\n")
    asked = ["--ledger", book_folder, "--forget", f"indices:{tmp_path / 'nine'}", "--requester", "D"]
    needed = what in ("everything of the network", "a list", "the description")
    assert command("add", *asked) == (2 if needed else 0)
    assert len(states(book_folder)) == (3 if needed else 4)
    before = states(book_folder)
    capsys.readouterr()
    assert command("run", "--ledger", book_folder, *QUICK) == 2
    message = error_of(capsys)
    assert what == "the description" or "back from your backup" in message
    assert states(book_folder) == before


def test_requests_and_their_states_are_listed(served, capsys):
    assert command("list", "--ledger", served, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(r["requester"], r["state"], r["run"], r["examples"]) for r in found] == [
        ("request 1", "forgotten", 1, 2),
        ("B. Person", "retrain now", 2, len(range(1, forking.EXAMPLES, 3)) - 1),  # example 1 was forgotten before
        ("C", "open", None, 2),
    ]
    assert command("list", "--ledger", served) == 0
    assert "OVERDUE" in capsys.readouterr().out


def test_a_list_is_of_one_moment(folder, monkeypatch, capsys):
    """Another process adds a request while the list is made."""
    adding = threading.Thread(target=lambda: forking.fill(folder, "meanwhile", 1))
    whole = Ledger.requests

    def overtaken(book: Ledger) -> list[Request]:
        if adding.ident is None:
            adding.start()
            adding.join(1)
        return whole(book)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "requests", overtaken)
        assert command("list", "--ledger", folder, "--json") == 0
    assert [one["requester"] for one in json.loads(capsys.readouterr().out)] == ["first", "second", "third"]
    adding.join()
    assert len(states(folder)) == 4


def test_examples_that_have_changed_or_moved_are_not_forgotten_by_position(served, book_folder, tmp_path, capsys):
    def change(arrays):
        arrays["image"][[4, 5]] = arrays["image"][[5, 4]]
        arrays["label"][[4, 5]] = arrays["label"][[5, 4]]

    dataset = moved_data(served, tmp_path, change)
    assert command("run", "--ledger", book_folder, *QUICK, "--dataset", dataset) == 2
    message = error_of(capsys)
    assert "2 of the 2 examples of request 3 are not what they were" in message
    assert "the first is at position 4; its content is now at 5" in message
    assert states(book_folder)[2] == "open"


@pytest.mark.parametrize(("part", "what"), [("", "the training set"), ("test_", "the test set")])
def test_a_changed_training_or_test_set_is_refused(served, book_folder, tmp_path, part, what, capsys):
    """What a network has forgotten shows in comparison with test examples, so they may not be chosen for a run."""

    def change(arrays):
        arrays[f"{part}image"][30] += 0.001

    dataset = moved_data(served, tmp_path, change)
    assert command("run", "--ledger", book_folder, *QUICK, "--dataset", dataset) == 2
    assert f"{what} of npz:" in error_of(capsys)
    assert states(book_folder)[2] == "open"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "--forget", "indices:{first}", "--requester", "A"], "has not forgotten yet"),
        (
            ["add", "--forget", "indices:{first}", "--requester", "A", "--model", "vgg16_bn"],
            "knows its model already, as another one",
        ),
        (["add", "--forget", "class:2", "--requester", "A", "--due", "soon"], "due date"),
        (["add", "--forget", "class:2", "--requester", "A", "--due", ""], "due date"),
        (["add", "--forget", "class:2", "--requester", ""], "give a name of 1 to 500 printable characters"),
        (["add", "--forget", "class:2", "--requester", "A", "method.epochs=3"], "takes settings of the network only"),
        (["run", "seed=3"], "settings of the method only"),
        (["run", "method.fractoin=1"], "fraction"),
        (["run", "--budget", "-1"], "a finite number that is not negative, got -1.0"),
        (["run", "--budget", "nan"], "a finite number that is not negative, got nan"),
        (["run", "--budget", "inf"], "a finite number that is not negative, got inf"),
        (["run", "--level", "nan"], "between 0 and 1, got nan"),
        (["run", "--level", "1"], "between 0 and 1, got 1.0"),
        (["run", "--audit", "nowhere.json"], "cannot be read"),
        (["run", "--weights", "nowhere", "--method", "magic"], "there is no method 'magic'"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(served, tmp_path, words, message, capsys):
    (tmp_path / "first").write_text("0\n")
    with Ledger(served) as book:
        head = book.head
    files = sorted(served.rglob("*"))
    words = [word.format(first=tmp_path / "first") for word in words]
    assert command(words[0], "--ledger", served, *words[1:]) == 2
    assert message in error_of(capsys)
    with Ledger(served) as book:
        assert book.head == head
    assert sorted(served.rglob("*")) == files


@pytest.mark.parametrize(
    "due",
    [
        "20261101",
        "2026-W45-1",
        "2026W451",
        "2026-02-30",
        "2026-1-1",
        " 2026-11-01",
        "2026-11-01T00:00",
        "",
        "٢٠٢٦-١١-٠١",
    ],
)
def test_due_dates_are_days_written_in_one_way(due):
    with pytest.raises(InputError, match="written 2026-12-31"):
        check_request("A", due)
    check_request("A", "2026-12-31")


def test_what_others_have_next_to_keys_that_lie_elsewhere_stays(book_folder, tmp_path):
    keys = shutil.move(book_folder / "keys", tmp_path / "keys")
    theirs, ours = keys / ".movie.mp4.0a1b2c3d.partial", keys / ".secret.0a1b2c3d.partial"
    for path in (theirs, ours):
        path.touch()
    (tmp_path / "nine").write_text("9\n")
    deletion.add(book_folder, forget=f"indices:{tmp_path / 'nine'}", requester="A", keys=keys)
    assert (theirs.exists(), ours.exists()) == (True, False)


def test_names_are_kept_and_shown_as_they_were_typed(book_folder, monkeypatch, capsys):
    """They are no markup, no SQL, no format and no HTML; what could command a terminal is refused."""
    monkeypatch.setenv("COLUMNS", "300")
    names = ["A [/x] [bold]b[/]", "'; DROP TABLE requests; --", "<script>x</script> &amp;", "{0} %s :smile: $x$", "[/]"]
    with Ledger(book_folder) as book:
        numbers = [request(book, name) for name in names]
    assert command("list", "--ledger", book_folder) == 0
    shown = capsys.readouterr().out
    assert [name for name in names if name not in shown] == []
    assert command("list", "--ledger", book_folder, "--json") == 0
    found = {entry["id"]: entry["requester"] for entry in json.loads(capsys.readouterr().out)}
    assert [found[number] for number in numbers] == names
    assert verified(book_folder, "--quick", capsys=capsys) == []
    for name in ("\x1b[31mA", "A\nB", "\u202eA", "A\x9b2J", "\x00"):
        with pytest.raises(InputError, match="printable characters"):
            check_request(name, "2026-12-31")


def test_a_request_is_overdue_the_day_after_its_date(monkeypatch):
    now = datetime.datetime(2026, 3, 1, 23, 59, tzinfo=datetime.UTC)
    clock = types.SimpleNamespace(now=lambda zone: now.astimezone(zone))
    stopped = types.SimpleNamespace(datetime=clock, date=datetime.date, UTC=datetime.UTC)
    monkeypatch.setattr(entries, "datetime", stopped)
    today = now.date()
    asked = Request(1, "now", today.isoformat(), "0", "open", None, "A")
    assert not asked.overdue
    yesterday = today - datetime.timedelta(days=1)
    for due in (yesterday.isoformat(), yesterday.strftime("%Y%m%d"), yesterday.strftime("%G-W%V-%u")):
        assert dataclasses.replace(asked, due=due).overdue, "of ledgers that took other spellings as well"
        assert not dataclasses.replace(asked, due=due, state="forgotten").overdue


def test_a_ledger_that_cannot_be_begun_leaves_nothing(tmp_path, capsys):
    assert command("add", "--ledger", tmp_path / "new", "--forget", "class:1", "--requester", "A") == 2
    assert "say which network it is about" in error_of(capsys)
    subject = ["--model", "mlp", "--dataset", "digits", "--weights", tmp_path / "nowhere"]
    assert command("add", "--ledger", tmp_path / "new", "--forget", "class:1", "--requester", "A", *subject) == 2
    assert "nowhere" in error_of(capsys)
    assert command("list", "--ledger", tmp_path / "new") == 2
    assert "holds no ledger" in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


def test_twins_of_named_examples_are_counted(served, tmp_path):
    def change(arrays):
        arrays["image"][50], arrays["label"][50] = arrays["image"][9], arrays["label"][9]

    (tmp_path / "nine").write_text("9\n")
    weights = str(served.parent / "mlp.safetensors")
    subject = deletion.Subject("mlp", moved_data(served, tmp_path, change), None, weights)
    added = deletion.add(tmp_path / "new", forget=f"indices:{tmp_path / 'nine'}", requester="A", subject=subject)
    assert (added.examples, added.twins) == (1, 1)


def test_data_that_have_moved_are_looked_for_where_they_are(served):
    with Ledger(served) as book:
        moved = config_in_use(book, deletion.Subject(dataset="npz:elsewhere.npz", data_dir="elsewhere"))
        stayed = config_in_use(book, deletion.Subject())
        assert (moved.dataset, moved.data_dir) == ("npz:elsewhere.npz", "elsewhere")
        assert (stayed.dataset, stayed.data_dir) == (book.about.dataset, book.about.data_dir)


def test_a_network_and_its_file_are_described_once(tmp_path, capsys):
    forking.write_data(tmp_path)
    model = models.build("mlp", num_classes=3, image_shape=(4, 4, 1), hidden=(5,))
    arrays = torch_weights.to_state_dict(*model.init(jax.random.key(0)))
    twice = {f"{prefix}.{name}": array for prefix in ("student", "teacher") for name, array in arrays.items()}
    torch_weights.write_safetensors(tmp_path / "twice.safetensors", twice)
    (tmp_path / "first").write_text("0\n1\n")
    words = ["--ledger", tmp_path / "ledger", "--requester", "A", "--forget", f"indices:{tmp_path / 'first'}"]
    network = [
        "--weights",
        tmp_path / "twice.safetensors",
        "--model",
        "mlp",
        "--dataset",
        f"npz:{tmp_path / 'data.npz'}",
    ]
    described = ["--prefix", "teacher.", "model_options.hidden=[5]"]
    assert command("add", *words, *network, *described[:2]) == 2
    assert command("add", *words, *network, *described) == 0
    with Ledger(tmp_path / "ledger") as book:
        config = config_in_use(book, deletion.Subject())
    assert (config.model_options, config.prefix) == ({"hidden": [5]}, "teacher.")
    assert command("verify", "--ledger", tmp_path / "ledger", "--quick") == 0
    assert command("add", *words, *network, *described) == 0, "the same command again is another request"
    capsys.readouterr()
    for changed, option in (("model_options.hidden=[6]", "model_options"), ("--prefix=student.", "--prefix")):
        assert command("add", *words, changed) == 2
        name = option.removeprefix("--")
        assert f"knows its {name} already, as another one; leave {option} out" in error_of(capsys)
    assert command("add", *words, "fraction=0.1") == 2
    assert "takes settings of the network only, as model_options.NAME=VALUE" in error_of(capsys)


@pytest.fixture
def beginning(tmp_path):
    """The words of a first request about a network that was trained on all examples but the last."""
    forking.write_data(tmp_path)
    model = models.build("mlp", num_classes=3, image_shape=(4, 4, 1), hidden=(5,))
    arrays = torch_weights.to_state_dict(*model.init(jax.random.key(0)))
    torch_weights.write_safetensors(tmp_path / "mlp.safetensors", arrays)
    total = len(np.load(tmp_path / "data.npz")["image"])
    (tmp_path / "known.txt").write_text("".join(f"{position}\n" for position in range(total - 1)))
    (tmp_path / "fewer.txt").write_text("".join(f"{position}\n" for position in range(total - 2)))
    (tmp_path / "first").write_text("0\n1\n")
    words = ["--ledger", tmp_path / "ledger", "--requester", "A", "--forget", f"indices:{tmp_path / 'first'}"]
    words += ["--weights", tmp_path / "mlp.safetensors", "--model", "mlp", "model_options.hidden=[5]"]
    return [*words, "--dataset", f"npz:{tmp_path / 'data.npz'}", "--trained-on"]


@pytest.mark.parametrize(
    ("place", "name", "message"),
    [
        (ledger, "MAX_EXAMPLES", "the request names 2 examples, and one request can name at most 1"),
        (reading, "MAX_LINES", "the network was trained on 199 examples, and a ledger can list at most 198"),
    ],
)
def test_no_ledger_is_begun_that_could_not_be_read_again(
    beginning, tmp_path, place, name, message, monkeypatch, capsys
):
    largest = {"MAX_EXAMPLES": 1, "MAX_LINES": 198}[name]
    np.save(tmp_path / "known.npy", np.arange(199))
    monkeypatch.setattr(place, name, largest)
    assert command("add", *beginning, tmp_path / "known.npy") == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "ledger").exists()


def killed(*arguments, **options):
    raise KeyboardInterrupt


def test_a_first_request_can_be_repeated_as_it_was_typed(beginning, tmp_path, monkeypatch, capsys):
    """Its process may have been killed between the beginning of the ledger and the request."""

    with monkeypatch.context() as patch:
        patch.setattr(requests, "config_in_use", killed)
        assert command("add", *beginning, tmp_path / "known.txt") == 130
    capsys.readouterr()
    assert command("add", *beginning, tmp_path / "fewer.txt") == 2
    assert "fewer.txt says something else; leave --trained-on out" in error_of(capsys)
    assert command("add", *beginning, tmp_path / "known.txt") == 0
    assert command("add", *beginning, tmp_path / "known.txt") == 0, "and is then one more request"
    assert states(tmp_path / "ledger") == ["open", "open"]
    assert command("verify", "--ledger", tmp_path / "ledger", "--quick") == 0


OTHERS = {
    "a list": "trained_on.txt",
    "a folder named as one of runs": "runs/000001/thesis.txt",
    "a file named as a record": "records/000001.json",
    "a lock of another program": ".gitconfig.lock",
    "other keys": "keys/id_ed25519",
}


@pytest.mark.parametrize("name", OTHERS.values(), ids=OTHERS)
def test_a_ledger_is_not_begun_in_a_folder_that_holds_something_else(beginning, tmp_path, name, capsys):
    """Its commands remove and write what has the names of their own files."""
    (tmp_path / "ledger" / name).parent.mkdir(parents=True)
    (tmp_path / "ledger" / name).write_text("0\n1\n2\n" if name.endswith("n.txt") else "")
    before = {path: path.is_file() and path.read_bytes() for path in (tmp_path / "ledger").rglob("*")}
    listed = tmp_path / "ledger" / name if name.endswith("n.txt") else tmp_path / "known.txt"
    for words in ([*beginning, listed], ["--ledger", tmp_path / "ledger", "--requester", "A", "--forget", "class:1"]):
        assert command("add", *words) == 2
        first = name if name.startswith("keys") else name.split("/")[0]
        assert f"holds no ledger and is not empty: {first} is there" in error_of(capsys)
    assert {path: path.is_file() and path.read_bytes() for path in (tmp_path / "ledger").rglob("*")} == before


def test_a_ledger_whose_database_was_lost_is_not_begun_anew(book_folder, capsys):
    """The next run would take the place of the first one and its record."""
    (book_folder / "ledger.sqlite3").unlink()
    before = sorted(book_folder.rglob("*"))
    network = ["--model", "mlp", "--dataset", "digits", "--weights", "mlp.safetensors"]
    assert command("add", "--ledger", book_folder, "--forget", "class:1", "--requester", "A", *network) == 2
    assert "put ledger.sqlite3 back from your backup if it was lost" in error_of(capsys)
    assert command("run", "--ledger", book_folder, *QUICK) == 2
    assert "put it back from your backup if it was lost" in error_of(capsys)
    assert sorted(book_folder.rglob("*")) == before


@pytest.mark.parametrize("step", ["make_tables", "write_text", "_append"])
def test_what_a_process_that_was_killed_while_it_began_a_ledger_has_left_is_no_hindrance(
    beginning, tmp_path, step, monkeypatch, capsys
):
    left = tmp_path / "ledger" / ".trained_on.txt.0a1b2c3d.partial"
    with monkeypatch.context() as patch:
        place = {"make_tables": database.Database, "write_text": files, "_append": ledger}[step]
        patch.setattr(place, step, killed)
        assert command("add", *beginning, tmp_path / "known.txt") == 130
    left.write_text("0\n")
    assert command("add", *beginning, tmp_path / "fewer.txt") == 0
    assert command("verify", "--ledger", tmp_path / "ledger", "--quick") == 0
    assert states(tmp_path / "ledger") == ["open"]
    assert not left.exists()


def test_all_examples_are_the_list_of_a_ledger_without_one(beginning, tmp_path, capsys):
    assert command("add", *beginning[:-1]) == 0
    assert command("verify", "--ledger", tmp_path / "ledger", "--quick") == 0
    total = len((tmp_path / "known.txt").read_text().splitlines()) + 1
    (tmp_path / "all.txt").write_text("".join(f"{position}\n" for position in range(total)))
    assert command("add", *beginning, tmp_path / "all.txt") == 0
    capsys.readouterr()
    assert command("add", *beginning, tmp_path / "known.txt") == 2
    assert "known.txt says something else" in error_of(capsys)
    with Ledger(tmp_path / "ledger") as book, pytest.raises(InputError, match="leave --trained-on out"):
        config_in_use(book, deletion.Subject(trained_on=str(tmp_path / "all.txt")))
    again = deletion.Subject(model_options={"hidden": (5,)})
    with Ledger(tmp_path / "ledger") as book:
        assert config_in_use(book, again).model_options == {"hidden": [5]}


@pytest.mark.parametrize("name", [".", "mine", "keys/mine", "../ledger/mine"])
def test_keys_within_the_ledgers_folder_lie_in_their_own_place(beginning, tmp_path, name, capsys):
    """Anywhere else there `verify` would name them for ever."""
    keys = ["--keys", tmp_path / "ledger" / name]
    assert command("add", *beginning[:-1], *keys) == 2
    assert "lies in the folder of the ledger, which holds keys in keys alone" in error_of(capsys)
    assert not (tmp_path / "ledger").exists()
    assert command("add", *beginning[:-1], "--keys", tmp_path / "ledger" / "keys") == 0


@pytest.fixture
def forgetful(beginning, tmp_path):
    """A ledger about the network of a run that has forgotten the first twenty examples, with a request for the next."""
    (tmp_path / "twenty").write_text("".join(f"{position}\n" for position in range(20)))
    (tmp_path / "first").write_text("20\n21\n")
    words = ["--checkpoint", tmp_path / "run", "--model", "mlp", "--dataset", f"npz:{tmp_path / 'data.npz'}"]
    network = ["--weights", tmp_path / "mlp.safetensors", "--model", "mlp", "model_options.hidden=[5]"]
    unlearned = [
        "unlearn",
        *network,
        *words[-2:],
        "--forget",
        f"indices:{tmp_path / 'twenty'}",
        *QUICK[:-2],
        "--insist",
    ]
    assert cli.main([*map(str, unlearned), "--out", str(tmp_path / "run")]) == 0
    words += ["--ledger", tmp_path / "ledger", "--requester", "A", "--forget", f"indices:{tmp_path / 'first'}"]
    assert command("add", *words) == 0
    return tmp_path / "ledger"


@pytest.mark.parametrize("place", ["the run", "a run with another list", "the file of its network"])
def test_what_was_forgotten_before_the_ledger_was_begun_stays_forgotten(forgetful, tmp_path, place, capsys):
    """Whatever the place of the original network says by then, or does not say."""
    run = tmp_path / "run"
    if place == "a run with another list":
        run = shutil.copytree(run, tmp_path / "copy")
        (run / "forget_indices.txt").write_text("19\n")
    words = ["--weights", run / "network.safetensors"] if place.startswith("the file") else ["--checkpoint", run]
    (tmp_path / "second").write_text("19\n")
    asked = ["--forget", f"indices:{tmp_path / 'second'}", "--requester", "B"]
    assert command("add", "--ledger", forgetful, *words, *asked) == 2
    assert "has not forgotten yet" in error_of(capsys)
    assert verified(forgetful, *words, capsys=capsys) == []
    retrain = ["--method", "retrain", "--epochs", "1", "--batch-size", "64", "--budget", "100"]
    assert command("run", "--ledger", forgetful, *retrain, "method.milestones=none", *words) in (0, 3)
    out = records.run_folder(forgetful, 1)
    lists = [set(map(int, (out / name).read_text().split())) for name in ("trained_on.txt", "forgotten_before.txt")]
    assert lists == [set(range(20, forking.EXAMPLES)), set(range(20))]
    assert verified(forgetful, *([] if states(forgetful) == ["forgotten"] else words), capsys=capsys) == []


def test_the_options_of_an_original_are_those_that_the_ledger_has_signed(forgetful, tmp_path):
    """They change its answers and not its numbers, so its hash does not show what its own folder says by then."""
    metadata = tmp_path / "run" / "network" / "meta" / "metadata"
    saved = json.loads(metadata.read_text())
    saved["description"]["model_options"] |= {"normalize": "fixed", "mean": [0.9], "std": [0.1]}
    metadata.write_text(json.dumps(saved))
    with Ledger(forgetful) as book:
        assert config_in_use(book, deletion.Subject()).model_options == {"hidden": [5]}


@pytest.mark.parametrize("damage", ["gone", "no description", "another network"])
def test_the_original_of_a_run_that_is_gone_or_damaged_is_a_change(forgetful, tmp_path, damage, capsys):
    """Whether or not something else was changed. What is named and is not there is none."""
    run = tmp_path / "run"
    if damage == "gone":
        shutil.rmtree(run)
    elif damage == "no description":
        (run / "network" / "meta" / "metadata").write_text("{")
    else:
        other = models.build("mlp", num_classes=3, image_shape=(4, 4, 1), hidden=(6,)).init(jax.random.key(0))
        checkpoints.save_network(run / "network", *other, {"model": "resnet9"})
    (found,) = verified(forgetful, "--quick", capsys=capsys)
    assert f"the original network in {run} cannot be read: " in found
    for place in (tmp_path / "nowhere", tmp_path):
        assert command("verify", "--ledger", forgetful, "--quick", "--checkpoint", place) == 2
        assert f"the original network in {place} cannot be read: there is no network" in error_of(capsys)
    (forgetful / "extra").touch()
    changes = verified(forgetful, "--quick", capsys=capsys)
    assert len(changes) == 2
    assert found in changes


def test_a_request_can_be_entered_while_the_original_is_lost(forgetful, tmp_path, capsys):
    """Unless it says where that is, which must then be right."""
    shutil.rmtree(tmp_path / "run")
    asked = ["--ledger", forgetful, "--forget", f"indices:{tmp_path / 'first'}", "--requester", "B"]
    assert command("add", *asked) == 0
    for words in (["add", *asked, "--checkpoint", tmp_path / "run"], ["run", "--ledger", forgetful, *QUICK]):
        assert command(*words) == 2
        assert f"there is no network checkpoint in {tmp_path / 'run'}" in error_of(capsys)
    assert states(forgetful) == ["open", "open"]


@pytest.mark.parametrize("name", ["trained_on.txt", "forgotten_before.txt"])
def test_the_lists_of_what_the_original_knew_are_signed(forgetful, name, capsys):
    place = forgetful / name
    place.write_text(place.read_text().replace("19\n", "").replace("21\n", ""))
    (found,) = verified(forgetful, "--quick", capsys=capsys)
    assert f"{place} was changed" in found
    assert command("run", "--ledger", forgetful, *QUICK) == 2
    assert f"{place} has changed since the ledger was begun" in error_of(capsys)
    assert states(forgetful) == ["open"]


def test_the_list_of_what_a_run_was_trained_on_may_be_named_again(forgetful, tmp_path, capsys):
    asked = ["--ledger", forgetful, "--requester", "B", "--forget", f"indices:{tmp_path / 'first'}", "--trained-on"]
    (tmp_path / "left").write_text("".join(f"{position}\n" for position in range(20, forking.EXAMPLES)))
    assert command("add", *asked, tmp_path / "left") == 0
    (tmp_path / "all").write_text("".join(f"{position}\n" for position in range(forking.EXAMPLES)))
    assert command("add", *asked, tmp_path / "all") == 2
    assert "all says something else; leave --trained-on out" in error_of(capsys)


@pytest.mark.parametrize("changed", ["options", "list"])
def test_of_two_processes_that_begin_a_ledger_with_other_lists_one_is_refused(
    beginning, tmp_path, changed, monkeypatch, capsys
):
    """What it says does not take the place of what the other one said."""
    begin = Ledger.begin

    def overtaken(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "begin", begin)
            assert command("add", *beginning, tmp_path / "known.txt") == 0
        return begin(*arguments, **options)

    monkeypatch.setattr(Ledger, "begin", overtaken)
    if changed == "list":
        assert command("add", *beginning, tmp_path / "fewer.txt") == 2
        message = error_of(capsys)
        assert "another process has just begun a ledger in" in message
        assert "with another trained on; name another folder" in message
    else:
        normalized = [f"model_options.{change}" for change in ("normalize=fixed", "mean=[0.5]", "std=[0.5]")]
        assert command("add", *beginning, tmp_path / "known.txt", *normalized) == 2
        assert "knows its model_options already, as another one" in error_of(capsys)
    assert command("verify", "--ledger", tmp_path / "ledger", "--quick") == 0
    assert states(tmp_path / "ledger") == ["open"]
