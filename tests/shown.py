"""The commands that README.md and docs/ show: what tests run in their place, and what they do not run, and why."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

SMALLER = {
    "resnet20-12fca82f.th": "mine.safetensors",
    "mine.pt": "mine.safetensors",
    "--model resnet20": "--model mlp",
    "--dataset cifar10 --data-dir data": "--dataset npz:mine.npz",
    "--dataset digits": "--dataset npz:mine.npz",
    "indices:FILE": "indices:forget.txt",
    "--trials 12": "--trials 2",
    "--epochs 5": "--epochs 1",
    "erase --ledger LEDGER 3": "erase --ledger LEDGER 1",
}
"""What is written, with what is run in its place."""

MORE = {
    "unlearn": "--epochs 2 --batch-size 40 --max-loss 100",
    "tune": "--epochs 1 --batch-size 40",
    "request run": "--batch-size 40 --budget 100",
}
"""What is added to the commands that begin so."""

ELSEWHERE = {
    "demo --out": "jobs/demo_test.py::test_there_is_one_row_per_scenario_and_method",
    "demo diffusion": "diffusion/demo/demo_test.py::out",
    "demo language": "language/demo/demo_test.py::test_every_network_is_in_the_table_the_page_and_the_answers",
    "audit --tier smoke": "audit/run_test.py::test_one_pair_of_networks_and_a_population_attack",
    "audit --tier standard": "deletion/audits_test.py::whole",
    "audit sign": "deletion/audits_test.py::whole",
    "request run --ledger LEDGER --epochs 5 --audit": "deletion/audits_test.py::stopped",
    "unlearn --weights mine.pt --model mlp": "task_commands_test.py::runs",
    "lm unlearn": "language/unlearning_test.py::test_lora_moves_its_matrices_alone",
    "lm plan": "language/planning_test.py::test_the_command_takes_the_arguments_of_lm_unlearn",
    "lm generate": "language/unlearning_test.py::test_generating",
    "lm evaluate --model": "language/unlearning_test.py::test_evaluating_a_folder",
    "sd import": "diffusion/importing_test.py::test_there_and_back_is_bit_exact",
    "sd export": "diffusion/importing_test.py::test_there_and_back_is_bit_exact",
    "sd generate": "diffusion/generating_test.py::test_command_line",
    "sd import --random": "diffusion/importing_test.py::test_random_networks_work_from_end_to_end",
    "sd unlearn": "diffusion/unlearning_test.py::folder",
    "sd evaluate": "diffusion/evaluating_test.py::test_prompts_are_drawn_by_both_networks_and_counted",
    "sd plan": "diffusion/planning_test.py::test_it_says_whether_it_fits",
    "sd attack": "diffusion/attacking_test.py::test_attacks_are_counted_and_gone_on_with",
    "experiments.pack_cifar10": "datasets/compact_test.py::test_the_command_packs_what_it_reads_and_names_the_files",
    "experiments.accelerator": "experiments/accelerator_test.py::test_all_parts_run_with_jax_and_its_companions_alone",
    "experiments.attacks": "jobs/late_attacks_test.py::test_the_command_fills_in_tables_and_results_of_an_accelerator",
    "experiments.run": "experiments/run_test.py::test_a_small_real_table",
    "experiments.tables": "experiments/tables_test.py::test_rendered_folder_has_tables_beside_the_paper_and_every_plot",
}
"""Commands that begin so take longer or need other files: a test or fixture of tests/ runs them, small."""

NOT_RUN = {
    "python3 -m venv": "makes an environment, as tests/run.sh and tests/package.sh do",
    ".venv/bin/pip install": "installs an extra, as tests/run.sh does",
    ".venv/bin/python": "opens Python for the blocks of the page, which are run",
}
"""Commands that begin so are not run, and why."""


def lines(page: Path) -> list[str]:
    """The command lines of a page in order, continued lines joined, comments left out."""
    text = "\n".join(re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL))
    parts = [part for line in text.replace("\\\n", " ").splitlines() for part in line.split("&&")]
    bare = (" ".join(re.sub(r"(^|\s)#.*", "", part).split()) for part in parts)
    return [line for line in bare if line]


def command(line: str) -> str:
    """A command line without the program: what follows `scissorhands`, or the module of `python -m`."""
    return re.sub(r"^(\.venv/bin/scissorhands |(\.venv/bin/)?python -m (?=experiments))", "", line)


def begins(line: str, table: dict[str, str]) -> str | None:
    """The longest entry of a table that a command begins with."""
    return max((key for key in table if command(line).startswith(key)), key=len, default=None)


def smaller(line: str) -> str:
    """The command that is run in place of one that is shown."""
    text = command(line)
    for written, run in SMALLER.items():
        text = text.replace(written, run)
    more = begins(line, MORE)
    return f"{text} {MORE[more]}" if more else text
