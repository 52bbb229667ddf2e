"""Every text appears as it is, in the terminal and elsewhere; plain lines show the same; progress for a log."""

import ast
import importlib
import io
import logging
import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import jax
import pytest
import rich.console

from scissorhands_jax import datasets, models, plain_terminal, report, torch_weights
from scissorhands_jax.cli import main as cli
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.progress import progress_bar, status
from scissorhands_jax.plain_terminal import PlainConsole, PlainProgress, PlainTable
from scissorhands_jax.terminal import (
    Console,
    LogFile,
    LoggedConsole,
    Table,
    complain,
    literal,
    printable,
    remarks_on,
    say,
    write_line,
)
from tests import limits

ROWS = [
    {"scenario": "random 10 %", "method": method, "seed": 0, "acc_forget": forget, "acc_retain": 99.5, "acc_test": 90.0}
    | {"mia": mia, "avg_gap": gap, "seconds": 2.5, "rte": 1.0}
    for method, forget, mia, gap in (("retrain", 93.25, 12.5, 0.0), ("finetune", 98.75, 4.5, 3.375))
]


def words(text):
    return {word for word in text.replace("|", " ").replace("*", " ").split() if any(map(str.isdigit, word))}


def test_a_plain_console_prints_the_numbers_of_a_rich_one(capsys):
    report.print_tables(ROWS, PlainConsole())
    plain, sink = capsys.readouterr().out, io.StringIO()
    report.print_tables(ROWS, Console(file=sink, width=200))
    numbers = {"93.25", "98.75", "12.50", "4.50", "3.38", "2.5"}
    assert numbers <= words(plain)
    assert numbers <= words(sink.getvalue())
    report.print_grid("gates", report.gates_grid([]), PlainConsole())
    assert capsys.readouterr().out.startswith("gates\n|")


MARKUP = "a [/x] [bold]b[/] [link=http://x]c :smile: $x_1^$ {seed} {0} %s"
HOSTILE = MARKUP + " \x1b[31mred\x07\b\r\x9b2J\x00 \u202eabc\u2066\udc80"
SHOWN = MARKUP + r" \x1b[31mred\x07\x08\r\x9b2J\x00 \u202eabc\u2066\udc80"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def consoles():
    for kind in (rich.console.Console, Console):
        sink = Terminal()
        yield kind(file=sink, width=300, force_terminal=True, legacy_windows=False), sink.getvalue


def without_styles(text):
    """Removes the escapes that rich writes itself: styles, and moves of the cursor by progress bars."""
    return re.sub(r"\x1b\[(\d+(;\d+)*m|[0-9;]*[AKJ]|\?25[lh])", "", text.replace("\r", ""))


def test_what_people_typed_is_shown_as_it_is_on_any_console(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    assert printable(HOSTILE) == SHOWN
    assert printable("ä 漢字 – 100 %\t|\n") == "ä 漢字 – 100 %\t|\n"
    for console, written in consoles():
        say(console, HOSTILE)
        assert written() == SHOWN + "\n"
        complain(console, HOSTILE)
        table = Table(title=literal(HOSTILE))
        table.add_column(literal(HOSTILE))
        table.add_row(literal(HOSTILE))
        console.print(table)
        assert without_styles(written()).count(SHOWN) >= 5
        with status(console, HOSTILE):
            pass
        with progress_bar(console) as progress:
            progress.add_task(HOSTILE, total=2, note="")
            progress.add_task("", total=2, note=HOSTILE)
        last = without_styles(written())
        assert last.count(SHOWN) >= 8
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", last)
    plain = PlainConsole(stderr=True)
    complain(plain, HOSTILE)
    say(plain, HOSTILE)
    with progress_bar(plain) as progress:
        progress.add_task(HOSTILE, total=2, note=HOSTILE)
    PlainConsole(quiet=True).print("never")
    captured = capsys.readouterr()
    started, ended = f"{SHOWN}: started", f"{SHOWN}: ended at 0 of 2 after 0.0 s, {SHOWN}"
    assert captured.err == f"error: {SHOWN}\n{SHOWN}\n{started}\n{ended}\n"
    assert captured.out == ""
    write_line(f"{HOSTILE}\nCHANGED: nothing")
    assert capsys.readouterr().out == f"{SHOWN}\\nCHANGED: nothing\n", "a line is one line"


class Pieces(io.StringIO):
    """A stream that keeps what it was given in pieces."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text):
        self.pieces.append(text)
        return super().write(text)


@pytest.mark.parametrize("kind", [Console, PlainConsole])
def test_a_line_is_written_at_once(kind):
    """Other threads and processes write to the same terminal; what they write never lands within a line of ours."""
    sink = Pieces()
    console = kind(file=sink)
    complain(console, "no such\nfile")
    say(console, ("It fits", "bold green"), " in ", "16 GiB.")
    assert list(filter(None, sink.pieces)) == ["error: no such file\n", "It fits in 16 GiB.\n"]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "ascii", "koi8-r"])
def test_what_an_encoding_does_not_have_is_an_escape(encoding, monkeypatch):
    def shown(show):
        file = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr("sys.stdout", file)
        show()
        file.flush()
        return file.buffer.getvalue().decode(encoding)

    rows = [{**ROWS[0], "avg_gap": None}, {**ROWS[1], "avg_gap": None, "scenario": "ü 日本"}]
    expected = "ü 日本".encode(encoding, "backslashreplace").decode(encoding)
    for console in (Console, PlainConsole):
        assert expected in shown(lambda: report.print_tables(rows, console()))  # noqa: B023
    assert shown(lambda: write_line("ü 日本")) == f"{expected}\n"
    assert shown(lambda: cli.main(["unlearn", "--dataset", "\udcff日本"])) == ""
    with pytest.raises(SystemExit):
        shown(lambda: cli.main(["unlearn", "--help"]))


def test_our_console_shows_everything_as_it_is():
    """Also what is printed without the functions above."""
    sink = io.StringIO()
    console = Console(file=sink, width=300)
    console.print(HOSTILE)
    console.print(Table(HOSTILE, title=HOSTILE))
    assert sink.getvalue().count(SHOWN) == 3


def test_tables_and_grids_show_everything_as_it_is():
    rows = [{**row, "scenario": HOSTILE, "method": f"{row['method']} {HOSTILE}"} for row in ROWS]
    for console, written in consoles():
        report.print_tables(rows, console)
        report.print_grid(HOSTILE, report.Grid((HOSTILE,), ((report.Cell(HOSTILE),),)), console)
        assert without_styles(written()).count(SHOWN) == 1 + len(rows) + 3
    text = report.markdown(report.Grid((HOSTILE,), ((report.Cell(HOSTILE + "|<b>&amp;"),),)))
    assert "\x1b" not in text
    assert re.sub(r"\\([\\`*_\[\]<>|~#$&])", r"\1", text).count(SHOWN) == 2
    assert "<b>" not in text.replace(r"\<", "")


def test_a_run_in_a_folder_of_an_odd_name_ends_well(tmp_path, capsys):
    """Those that it cannot be in are in `checkpoints_test`."""
    out = tmp_path / f"a/x]{chr(27)}]31m:smile:{{0}}"
    words = ["--dataset", "digits", "--model", "mlp", "--weights", str(tmp_path / "w[/].safetensors")]
    for name in ("{0}[", "w["):
        (tmp_path / name).mkdir()
    splits = datasets.load("digits", None)
    model = models.build("mlp", num_classes=10, image_shape=splits.image_shape)
    weights = torch_weights.to_state_dict(*model.init(jax.random.key(0)))
    torch_weights.write_safetensors(tmp_path / "w[/].safetensors", weights)
    (tmp_path / "{0}[/x].txt").write_text("1\n2\n")
    words += ["--forget", f"indices:{tmp_path}/{{0}}[/x].txt", "--method", "finetune", "--epochs", "0", "--insist"]
    assert cli.main(["unlearn", *words, "--out", str(out)]) == 0
    assert f"written to {printable(str(out))}: " in capsys.readouterr().err
    assert "[/x].txt" in (out / "report.html").read_text()
    assert cli.main(["unlearn", *words, "--out", str(out)]) == 2
    assert printable(str(out)) in capsys.readouterr().err


def printed(tree):
    """The arguments of all calls `SOMETHING.print(...)` and `SOMETHING.status(...)`."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("print", "status")
        ):
            yield from node.args


@pytest.mark.parametrize("folder", ["scissorhands_jax", "experiments"])
def test_texts_are_printed_by_functions_that_read_no_markup(folder):
    """A text is never given to a console of rich itself, and consoles are made by `terminal` alone."""
    for path in sorted((Path(__file__).parents[1] / folder).rglob("*.py")):
        if path.name in ("terminal.py", "plain_terminal.py"):
            continue
        tree = ast.parse(path.read_text())
        assert not [a for a in printed(tree) if isinstance(a, ast.Constant | ast.JoinedStr | ast.BinOp)], path
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        assert not {"rich.text", "rich.table", "rich.markup"} & {node.module for node in imports}, path
        assert "Console" not in {a.name for node in imports if node.module == "rich.console" for a in node.names}, path
        formatted = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in ("format", "format_map")]
        assert all(isinstance(n.value, ast.Constant | ast.Name) for n in formatted), (
            f"{path} formats a text it was given"
        )


def test_a_plain_table_has_a_line_for_each_row(capsys):
    table = PlainTable("case", "value", title="Times")
    table.add_row("step", "1 ms\n2 ms")
    PlainConsole().print(table)
    assert capsys.readouterr().out == "Times\ncase | value\nstep | 1 ms, 2 ms\n"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_lines_come_at_growing_intervals_and_say_what_is_left():
    lines, clock = [], Clock()
    with PlainProgress(lines.append, clock=clock) as progress:
        task = progress.add_task("training", total=None, note="preparing")
        for step in range(1, 2001):
            clock.now = 5 + step / 10
            progress.update(task, completed=step, total=2000, note=f"loss {step}")
    assert lines[0] == "training: started"
    assert lines[1] == "training: 50 of 2,000 (2 %), 10.0 per second, 3.2 min left, loss 50"
    assert [line.split(" of ")[0] for line in lines[1:-1]] == [
        f"training: {count}" for count in ("50", "200", "425", "763", "1,270")
    ]
    assert lines[-1] == "training: 2,000 done in 3.4 min, loss 2000"


def test_lines_come_while_nothing_is_reported(monkeypatch):
    monkeypatch.setattr(plain_terminal, "_SHORT", 0.01)
    monkeypatch.setattr(plain_terminal, "_FIRST", 0.02)
    lines, written = [], threading.Event()

    def write(line):
        lines.append(line)
        if len(lines) == 3:
            written.set()

    with PlainProgress(write) as progress:
        progress.add_task("compiling", total=None, note="preparing")
        assert written.wait(limits.PATIENCE)
    assert lines[0] == "compiling: started"
    assert lines[1].endswith("so far, preparing")
    assert lines[-1].startswith("compiling: ended after")


def test_short_tasks_get_no_lines_but_for_the_first_and_the_last():
    lines, clock = [], Clock()
    with PlainProgress(lines.append, clock=clock) as progress:
        outer = progress.add_task("", total=100, note="")
        for cell in range(100):
            progress.update(outer, description=f"cell {cell}")
            inner = progress.add_task(f"  network {cell}", total=None)
            progress.update(inner, completed=1, total=1)
            assert progress.task_ids == [outer, inner]
            progress.remove_task(inner)
            progress.advance(outer)
        long = progress.add_task("long", total=2)
        clock.now = 4
        progress.update(long, advance=1)
        progress.update(long, advance=1)
        progress.add_task("page", total=1)
        progress.update(progress.task_ids[-1], completed=1)
    assert lines == [
        "cell 0: started",
        "cell 99: 100 done in 0.0 s",
        "long: started",
        "long: 2 done in 4.0 s",
        "page: done in 0.0 s",
    ]


def test_a_long_wait_is_shown_and_a_short_one_is_not():
    for seconds, expected in ((0.5, []), (3, ["reading: started", "reading: done in 3.0 s"])):
        lines, clock = [], Clock()
        with PlainProgress(lines.append, ends_matter=False, clock=clock) as progress:
            task = progress.add_task("reading", total=1)
            clock.now = seconds
            progress.update(task, note="")
            progress.update(task, completed=1)
        assert lines == expected


def test_an_error_ends_the_lines():
    lines = []
    with pytest.raises(ZeroDivisionError), PlainProgress(lines.append, clock=Clock()) as progress:
        progress.update(progress.add_task("steps", total=3), completed=1 // 0)
    assert lines == ["steps: started", "steps: ended at 0 of 3 after 0.0 s"]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_terminal_gets_lines_without_control_characters(force, monkeypatch, capsys):
    if force:
        monkeypatch.setenv("FORCE_COLOR", "1")
    console = LoggedConsole()
    with progress_bar(console) as progress:
        task = progress.add_task("a[b]\x1b[2J\nc", total=2, note="[bold]note[/]")
        progress.update(task, completed=2)
    with status(console, "reading"):
        pass
    console.print("[bold]end[/]")  # not markup
    complain(console, "bad")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        r"a[b]\x1b[2J c: started",
        r"a[b]\x1b[2J c: 2 done in 0.0 s, [bold]note[/]",
        "[bold]end[/]",
        "error: bad",
    ]


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_log_gets_the_lines_with_the_time_in_any_case(terminal, quiet, tmp_path, monkeypatch):
    sink = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", sink)
    monkeypatch.setenv("TERM", "xterm")
    path = tmp_path / "log"
    path.write_text("earlier\n")
    console = LoggedConsole(quiet=quiet, log=LogFile(path))
    with progress_bar(console) as progress:
        task = progress.add_task("steps", total=2, note="")
        assert len(progress.task_ids) == 1
        progress.advance(task)
        progress.update(task, advance=1)
        progress.remove_task(task)
    with status(console, "reading"):
        console.print("[bold]a remark[/]")
    complain(console, "bad")
    first, *lines = path.read_text().splitlines()
    assert first == "earlier"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line.split()[0]) for line in lines)
    assert [line.partition(" ")[2] for line in lines] == [
        "steps: started",
        "steps: 2 done in 0.0 s",
        "[bold]a remark[/]",
        "error: bad",
    ]
    shown = sink.getvalue()
    assert "error:" in shown, "errors are never silenced"
    assert ("a remark" in shown) is not quiet
    assert ("\x1b" in shown) is terminal
    if quiet:
        assert "steps" not in shown


def test_a_log_in_the_folder_of_the_run_waits_for_the_run(tmp_path):
    out = tmp_path / "run"
    log = LogFile(out / "log", out)
    log.write("first\nhalf")
    assert not out.exists()
    out.mkdir()
    log.write(" a line\n")
    assert list(out.iterdir()) == []
    (out / "run.json").touch()
    log.write("third\n")
    assert [line.partition(" ")[2] for line in (out / "log").read_text().splitlines()] == [
        "first",
        "half a line",
        "third",
    ]
    (tmp_path / "other").touch()
    for path in (tmp_path, tmp_path / "none" / "log", tmp_path / "other" / "log"):
        with pytest.raises(InputError, match="cannot be written"):
            LogFile(path)


def test_without_rich_the_names_are_the_plain_ones():
    code = "import sys; sys.modules['rich'] = None; from scissorhands_jax import terminal as t; "
    code += "print(t.Console.__name__, t.Progress.__name__, t.Table.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PlainConsole", "PlainProgress", "PlainTable"]


def test_a_log_is_not_all_that_a_refused_command_leaves_in_its_folder(tmp_path):
    out = tmp_path / "out"
    for refused in (1, 2):
        log = LogFile(out / "logs" / "log", str(out))
        log.write(f"refused {refused}\n")
        log.close(ended_well=False)
        assert not out.exists()
    log.write("done\n")
    log.close()
    assert (out / "logs" / "log").read_text().endswith("Z done\n")
    log.write("refused, where there is something\n")
    log.close(ended_well=False)
    assert (out / "logs" / "log").read_text().endswith("there is something\n")


@pytest.mark.parametrize("quiet", [False, True])
def test_warnings_of_the_library_are_lines_of_the_console_and_of_its_log(tmp_path, capsys, quiet):
    console = LoggedConsole(quiet=quiet, log=LogFile(tmp_path / "log"))
    logger = logging.getLogger("scissorhands_jax.somewhere")
    with remarks_on(console):
        logger.warning("%s is left aside", "a \x1b[2Jname")
        logger.info("not said")
    logger.warning("nor this")
    assert capsys.readouterr().err == ("" if quiet else "a \\x1b[2Jname is left aside\n")
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith("Z a \\x1b[2Jname is left aside")


_EXPERIMENTS = Path(__file__).parents[1] / "experiments"
_LOGGED = [path.stem for path in sorted(_EXPERIMENTS.glob("*.py")) if "programs.followed(" in path.read_text()]


def test_programs_with_a_log_are_found():
    assert {"audit", "run", "tuning", "variants"} <= {*_LOGGED}


@pytest.mark.parametrize("module", _LOGGED)
def test_whatever_has_a_log_writes_the_warnings_of_the_library_there(tmp_path, capsys, module, monkeypatch):
    """The command's own are followed in a process of its own, which has no handler but Python's last one."""

    def warns(*_, **__):
        logging.getLogger("scissorhands_jax.somewhere").warning("a remark")
        raise InputError("and an end")

    program = importlib.import_module(f"experiments.{module}")
    for name in ("compare", "config"):
        if hasattr(program, name):
            monkeypatch.setattr(program, name, warns if name == "compare" else types.SimpleNamespace(override=warns))
    words = ["--out", str(tmp_path / "out"), "--log", str(tmp_path / "log")]
    more = ["--run", "a=b", "--retrained", "c"] if module == "real_network" else ["--config", "demo"]
    more += ["--networks", str(tmp_path / "networks")] if module in ("tuning", "variants") else []
    more += ["--tier", "smoke"] if module == "audit" else []
    assert program.main([*words, *more]) == 2
    assert capsys.readouterr().err == "a remark\nerror: and an end\n"
    assert [line.partition("Z ")[2] for line in (tmp_path / "log").read_text().splitlines()] == [
        "a remark",
        "error: and an end",
    ]


def test_a_quiet_command_shows_no_warning_and_its_log_has_it(tmp_path):
    program = (
        "import logging, sys; from scissorhands_jax.cli import jobs, main\n"
        "logging.basicConfig()  # as some libraries do when they are imported\n"
        "jobs.UnlearnCommand.run = lambda *_: logging.getLogger('scissorhands_jax.a').warning('a remark')\n"
        "sys.exit(main.main(sys.argv[1:]))"
    )
    words = ["unlearn", "--weights", "w", "--forget", "all", "--out", "o", "--log", "log"]
    for quiet, expected in (([], "a remark\n"), (["--quiet"], "")):
        command = [sys.executable, "-c", program, *words, *quiet]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stderr == expected
    assert [line.partition("Z ")[2] for line in (tmp_path / "log").read_text().splitlines()] == ["a remark"] * 2
