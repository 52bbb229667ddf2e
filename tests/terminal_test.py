"""Plain lines in place of rich: the same numbers, without markup."""

import io
import subprocess
import sys

from rich.console import Console

from scissorhands_jax import report
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.plain_terminal import PlainConsole, PlainTable
from scissorhands_jax.terminal import complain

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


def test_progress_prints_a_line_for_every_new_name(capsys):
    with progress_bar(PlainConsole()) as progress:
        task = progress.add_task("first", total=2, note="")
        other = progress.add_task("", total=None, note="")
        for count in range(2):
            progress.update(task, completed=count, note="loss 0.1")
            progress.advance(task)
        progress.update(task, description="second")
        assert progress.task_ids == [task, other]
        progress.remove_task(progress.task_ids[-1])
        assert progress.task_ids == [task]
    assert capsys.readouterr().out == "first\nsecond\n"


def test_without_rich_the_names_are_the_plain_ones():
    code = "import sys; sys.modules['rich'] = None; from scissorhands_jax import terminal as t; "
    code += "print(t.Console.__name__, t.Progress.__name__, t.Table.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PlainConsole", "PlainProgress", "PlainTable"]
