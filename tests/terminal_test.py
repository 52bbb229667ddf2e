"""Plain lines in place of rich: the same numbers, without markup; and progress that can be followed in a log."""

import io
import re
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from scissorhands_jax import plain_terminal, report
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.progress import progress_bar, status
from scissorhands_jax.plain_terminal import PlainConsole, PlainProgress, PlainTable
from scissorhands_jax.terminal import LogFile, LoggedConsole, complain

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


def test_markup_is_left_out_and_brackets_of_text_stay(capsys):
    console = PlainConsole(stderr=True)
    complain(console, "a [thing]\nis missing")
    console.print("[bold red]x[/] [3, 4]", highlight=False)
    PlainConsole(quiet=True).print("never")
    captured = capsys.readouterr()
    assert captured.err == "error: a [thing] is missing\nx [3, 4]\n"
    assert captured.out == ""


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
        assert written.wait(30)
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
    console.print("[bold]end[/]")
    complain(console, "bad")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "a[b]?[2J c: started",
        "a[b]?[2J c: 2 done in 0.0 s, [bold]note[/]",
        "end",
        "error: bad",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


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
        "a remark",
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
