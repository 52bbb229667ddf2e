"""Tables on pages in words, made from committed results: `python -m experiments.findings` writes them into the pages.

A table stands behind the comment `<!-- experiments.findings: NAME -->` and an empty line; the next empty line ends it.
Numbers in sentences are not written but compared: `sentences` lists them as results have them, and
`tests/experiments/findings_test.py` looks for each on its page.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import diffusion_digits, programs, tables
from experiments.tofu import page as tofu
from experiments.tofu.scene import RETRAINED
from scissorhands_jax import files, reading, report
from scissorhands_jax.language.gates import TOLD
from scissorhands_jax.methods import METHODS
from scissorhands_jax.metrics import distances, intervals
from scissorhands_jax.report import rows as table_rows
from scissorhands_jax.report.gates import CAUGHT, SILENT
from scissorhands_jax.terminal import write_line

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "experiments" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_TABLE = re.compile(r"(<!-- experiments\.findings: ([a-z0-9_]+) -->\n\n)(?:\|.*\n)*\n?")
_SIMULATED = {
    "like a retrained one": "alike",
    "the same, differing by noise of single questions only": "alike, questions independent",
    "the same, runs differ by 0.1 nats as a whole": "alike, networks differ by 0.1",
    "the same, heavy tails": "alike, heavy tails",
    "knows 10 %": "knows 10 %",
    "knows 20 %": "knows 20 %",
    "knows 30 %": "knows 30 %",
    "forgot 20 % too much": "forgot 20 % too much",
    "right distribution, wrong answers": "right distribution, wrong answers",
}
_TOFU = (
    *("Network", "Seeds", "P, forget", "ROUGE, forget", "Extraction", "min-k AUC", "P, retain", "Retain utility"),
    *("P, 4 bits", "P, relearned", "Quality, p", "Told apart"),
)
_INTERVALS = {
    "population AUC": r".*: population_auc",
    "LiRA AUC": r".*: lira_auc",
    "RMIA AUC": r".*: rmia_auc",
    "U-LiRA AUC, methods and original": r"(original|perfect|leaky|overshot): u_lira_auc",
    "U-LiRA AUC, retrained against retrained (4 pairs)": r"retrained against retrained: u_lira_auc",
    "U-LiRA AUC, held out": r".*: u_lira_held_out_auc",
    "true positive rates at 1 %, methods, original and retrained": r"(?!retrained against).*_tpr_at_1",
    "true positive rates at 1 %, retrained against retrained (4 pairs)": r"retrained against.*_tpr_at_1",
    "true positive rates at 0.1 %": r".*_tpr_at_0\.1",
    "forgetting score": r".*: forgetting_score(_halves)?",
    "KLoM, 8 networks of each kind": r".*: klom_(forget|retain|held_out)",
    "KLoM, half the networks (4 of each kind), not printed": r".*: klom_.*_halves",
}

_PLAN_AIM = 1.25  # how far a plan may be from what a process took, as a factor


@programs.ending("pages are written whole")
def main(arguments: Sequence[str] | None = None) -> int:
    """Writes every table into the pages that show it, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.findings", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; the status is 1 if a page has other tables"
    )
    check = parser.parse_args(arguments).check
    status = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if filled(text) == text:
            continue
        if check:
            status = 1
            write_line(f"{page.relative_to(ROOT)} has other tables than the results")
        else:
            files.write_text(page, filled(text))
    return status


def filled(text: str) -> str:
    """A page with its tables as the committed results have them, each with an empty line behind it.

    Raises:
      KeyError: A comment names a table that there is not.
    """
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + "\n", text)


def sentences() -> Iterator[tuple[str, str]]:
    """Parts of sentences with numbers, as committed results have them, each with the page on which it stands."""
    findings = "experiments/README.md"
    real = _read("real_network/results.json")
    rows, scores = {row["method"]: row for row in real["rows"]}, real["scores"]
    before, after = rows[report.ORIGINAL], rows["scissorhands"]
    for part, words in (
        ("forget", "forgotten images went"),
        ("retain", "on the retained"),
        ("test", "on the test images"),
    ):
        yield findings, f"{words} from {before[f'acc_{part}']:.2f} % to {after[f'acc_{part}']:.2f} %"
    yield findings, f"The Avg. Gap went from {before['avg_gap']:.1f} to {after['avg_gap']:.1f}"
    yield findings, f"is {rows[report.REDRAWN]['avg_gap']:.1f} between the two retrained networks"
    yield (
        findings,
        f"a score of {scores['scissorhands']['score']:.2f} ({scores[report.ORIGINAL]['score']:.2f} for the original)",
    )
    gentle = _read("resnet20_cifar10_random10/results.json")["after"]
    yield (
        "docs/results/what-did-not-work.md",
        f"{gentle['acc_forget']:.1f} % of the forgotten images were still answered",
    )
    gaps = _gaps("cifar10_small")
    yield (
        "README.md",
        f"is {_mean(gaps['original'])} points for the original, {_interval(gaps['scissorhands'])} for Scissorhands, "
        f"{_interval(gaps['neggrad_plus'])} for the next method, NegGrad+",
    )
    yield "README.md", f"and {_interval(gaps[report.REDRAWN])} between two retrained networks"
    faces = _gaps("faces")
    yield (
        findings,
        f"The Avg. Gap is {_mean(faces['original'])} for the original and "
        f"{_interval(faces[report.REDRAWN], 2)} between two retrained networks",
    )
    gaps = _gaps("cifar10_full")
    share = _mean(_of_seeds("cifar10_full", "gap_share")["scissorhands"])
    words = f"Scissorhands has {_mean(gaps['scissorhands'], 2)}, which is {share} % of the original's"
    yield findings, words
    yield findings, f"NegGrad+ is closer, with {_mean(gaps['neggrad_plus'], 2)}"
    yield findings, f"so is MUNBa with {_mean(gaps['munba'], 2)}"
    nearer = (
        _interval([a - b for a, b in zip(gaps["scissorhands"], gaps[name], strict=True)], 2)
        for name in ("neggrad_plus", "munba")
    )
    yield findings, f"by {' and '.join(nearer)} points"
    found = _of_seeds("cifar10_full", "mia")
    unseen, retrained = (
        " and ".join(f"{value:.1f}" for value in found[name]) for name in ("scissorhands", report.REFERENCE)
    )
    yield findings, f"takes {unseen} % of its forget set for test images where retraining has {retrained} %"
    left = f"Scissorhands has {_mean(gaps['scissorhands'], 2)} of the original's {_mean(gaps['original'], 2)} points"
    yield "docs/results/what-did-not-work.md", left
    others = f"NegGrad+ ({_mean(gaps['neggrad_plus'], 2)}) and MUNBa ({_mean(gaps['munba'], 2)}) were closer"
    yield "docs/results/what-did-not-work.md", others
    floor = faces[report.REDRAWN]
    minus = {name: _interval([a - b for a, b in zip(gaps, floor, strict=True)]) for name, gaps in faces.items()}
    yield findings, f"DELETE is {minus['delete']} points farther and Bad Teacher {minus['bad_teacher']}"
    yield (
        findings,
        f"CT is, with {_mean(faces['ct'])} ({minus['ct']}), and so are boundary shrinking with "
        f"{_mean(faces['boundary_shrink'])} ({minus['boundary_shrink']})",
    )
    yield from ((findings, words) for words in _own_tasks_sentences())
    yield from ((findings, words) for words in _variants_sentences())
    alone = [row["calibrated_p"] for row in _read("tofu/results.json")["rows"] if row["network"] == RETRAINED]
    where = "above" if len(alone) * min(alone) > TOLD else "at most"
    words = f"the smallest p-value is {min(alone):.2g}, and {_in_words(len(alone))} times that is {where} {TOLD}"
    yield findings, words
    step = _read("diffusion_full_cpu.json")["unlearn"]
    yield findings, f"({step['parameters']:,} random weights"
    yield findings, f"The step was projected (dual variable {step['steps'][0]['dual']:.2f})"
    peak = f"{step['peak_gib']:.0f} GiB"
    yield "docs/guides/diffusion.md", f"took {peak} on a CPU"
    plan, traced = (_read("diffusion_full_cpu.json")[stage] for stage in ("plan", "plan_traced"))
    taken = plan["phases_gib"]["repair"]
    estimate = traced["batch 1"]["phases_gib"]["steps"]["together"]
    yield (
        "docs/guides/diffusion.md",
        f"it says {estimate:.1f} GiB, XLA {taken['together'] - taken['process']:.1f}, and "
        f"{step['peak_gib'] - taken['process']:.1f} were taken",
    )
    yield "docs/guides/language.md", _held_by_ranges()
    steps = _read("token_steps_cpu.json")["steps"]
    ratios = {name: one["ratio_to_training_step"]["median"] for name, one in steps.items()}
    rates = [steps[name]["tokens_per_second"] for name in ("training step", "training step, padded to the longest")]
    for words in (
        f"takes {ratios['repair step']:.2f} times as long as a training step",
        f"a step of NPO {ratios['NPO step']:.2f} times",
        f"Packed rows take {rates[0] / rates[1]:.2f} times as many tokens",
    ):
        yield "docs/guides/language.md", words
    ratios = [1 / row["memory_bytes"]["ratio"] for row in _read("plan_language_cpu.json")["results"]]
    cases, met = _in_words(len(ratios)), _in_words(sum(1 / _PLAN_AIM <= ratio <= _PLAN_AIM for ratio in ratios))
    for words in (
        f"took {min(ratios):.2f} to {max(ratios):.2f} times the memory that was planned",
        f"`python -m experiments.plan_check --language`, {cases} cases",
        f"a factor of {_PLAN_AIM} was aimed at, and {met} case of {cases} has it",
    ):
        yield "docs/guides/cost-and-devices.md", words
    yield "docs/guides/language.md", f"on a CPU took up to {max(ratios):.2f} times as much"
    for page in ("README.md", "docs/index.md"):
        yield page, f"and {_in_words(len(METHODS) - 1)} other methods are pure"


def _held_by_ranges() -> str:
    """What the guide says of the ranges of the calibrated test, of networks that are like retrained ones."""
    found = _read("forgetting_tests.json")["simulations"]
    alike = [one["rejected"] for name, one in found.items() if ", alike" in name]

    def held(*parts: str) -> str:
        shares = [100 * (1 - rejected[part]) for rejected in alike for part in parts]
        return f"{min(shares):.0f} to {max(shares):.0f} %"

    return (
        f"the ranges of the first two hold {held('shift', 'share')} of retrained networks and that of the distance "
        f"{held('distance')}"
    )


def _own_tasks_sentences() -> Iterator[str]:
    """What the findings say of the regression, the speakers and the forecasts."""

    def means(name: str, method: str) -> Callable[[str], float]:
        rows = [row for row in _read(f"{name}/results.json")["rows"] if row["method"] == method]
        return lambda column: statistics.fmean(row[column] for row in rows)

    first, retrained, unlearned = (means("diabetes", method) for method in ("original", "retrain", "scissorhands"))
    yield (
        f"its error on these is {first('rmse_forget'):.1f} % of the targets' standard deviation, that of retrained "
        f"networks {retrained('rmse_forget'):.0f} %"
    )
    right = "rmse_forget_true_labels"
    yield (
        f"targets to {unlearned('rmse_forget'):.0f} %, and that on the right targets of the same patients from "
        f"{first(right):.0f} to {unlearned(right):.0f} % (retrained: {retrained(right):.0f} %)"
    )
    yield f"({unlearned('rmse_retain'):.0f} % in place of {retrained('rmse_retain'):.0f} %)"
    yield (
        f"its error on unseen patients is {unlearned('rmse_test'):.0f} % (original {first('rmse_test'):.0f} %, "
        f"retrained {retrained('rmse_test'):.0f} %)"
    )
    retrained, unlearned = (means("japanese_vowels", method) for method in ("retrain", "scissorhands"))
    yield (
        f"with {unlearned('acc_retain'):.1f} % right on the retain and {unlearned('acc_test'):.1f} % on the test set "
        f"(retrained: {retrained('acc_retain'):.1f} and {retrained('acc_test'):.1f} %)"
    )
    gaps = _gaps("japanese_vowels")
    nearest, *others, last, farthest = sorted(gaps["scissorhands"])
    count = _in_words(len(others) + 2)
    yield f"the other {count} are at {nearest:.1f} to {last:.1f}, this one at {farthest:.1f}"
    minus = [theirs - ours for theirs, ours in zip(gaps["finetune"], gaps["scissorhands"], strict=True)]
    yield f"fine-tuning is {_interval(minus)} points farther"
    first, retrained, unlearned = (means("m1_yearly", method) for method in ("original", "retrain", "scissorhands"))
    yield (
        f"(from {first('rmse_forget'):.0f} to {unlearned('rmse_forget'):.0f} %; retrained networks have "
        f"{retrained('rmse_forget'):.0f} %"
    )
    yield f"(from {first('rmse_retain'):.0f} to {unlearned('rmse_retain'):.0f} %); NegGrad+ moves it less"
    yield f"moves it less ({means('m1_yearly', 'neggrad_plus')('rmse_forget'):.0f} %)"
    gaps = _gaps("m1_yearly")
    pairs = list(zip(gaps["original"], gaps["scissorhands"], strict=True))
    shares = _interval([100 * ours / first for first, ours in pairs], 0)
    yield f"{shares} % of the original's gap is left"
    yield f"in {_in_words(sum(ours > first for first, ours in pairs))} of {_in_words(len(pairs))} seeds it ends farther"


def _variants_sentences() -> Iterator[str]:
    """What the findings say of variants on the digits that are better than the base."""
    cells: dict[str, dict[tuple[int, int], float]] = {}
    for row in _read("variants/digits.json")["rows"]:
        cells.setdefault(row["variant"], {})[row["seed"], row["draw"]] = row["avg_gap"]
    base = cells["base"]
    for variant, words in {
        "once an epoch, constant rate": "a constant rate ({gap}; minus base {minus})",
        "once an epoch, averaged, constant rate": "at a constant rate ({gap}; {minus})",
        "once an epoch, sensitivity ratio": "({gap}; {minus}). Distillation",
    }.items():
        gaps = _by_seed((seed, gap) for (seed, _), gap in cells[variant].items())
        minus = _by_seed((place[0], gap - base[place]) for place, gap in cells[variant].items())
        yield words.format(gap=f"{_mean(gaps)} ± {statistics.stdev(gaps):.1f}", minus=_interval(minus))


def _variants_table() -> str:
    """Three seeds of `cifar10_small` with one thing changed at a time, each beside the base of its seed and draw."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in _read("variants/cifar10_small.json")["rows"]:
        cells.setdefault(row["variant"], []).append(row)
    lines, base = [], {(row["seed"], row["draw"]): row["avg_gap"] for row in cells["base"]}
    for variant, rows in cells.items():
        name = {"every step": "every step, no ceiling"}.get(variant, variant.replace("once an epoch, ", "base, "))
        whole = [row for row in rows if row["avg_gap"] is not None]
        if len(whole) < len(rows):
            name += f" ({len(rows) - len(whole)} of {len(rows)} diverged)"
        if not whole:
            lines.append([name, *["–"] * (len(distances.GAP_FIELDS) + 3)])
            continue
        numbers = [_mean([row["metrics"][column] for row in whole]) for column in distances.GAP_FIELDS]
        pairs = [(row["seed"], row["avg_gap"], base.get((row["seed"], row["draw"]))) for row in whole]
        minus = _by_seed((seed, gap - other) for seed, gap, other in pairs if other is not None)
        numbers += [_mean([row["avg_gap"] for row in whole]), "" if variant == "base" else _interval(minus)]
        lines.append([name, *numbers, _mean([row["score"] for row in whole])])
    header = ["`cifar10_small`, three seeds", "Acc forget", "Acc retain", "Acc test", "MIA", "Avg. Gap", "minus base"]
    return _table([*header, "score"], lines)


def _real_network_table() -> str:
    """A published network after some runs, beside two that were retrained."""
    document = _read("real_network/results.json")
    lines = []
    for row in document["rows"]:
        name = row["method"]
        numbers = [f"{row[column]:.2f}" for column in ("acc_forget", "acc_retain", "acc_test", "mia")]
        score = document["scores"].get(name)
        lines.append([name, *numbers, f"{row['avg_gap']:.2f}", "" if score is None else f"{score['score']:.2f}"])
    return _table(["ResNet-20", "Acc forget", "Acc retain", "Acc test", "MIA", "Avg. Gap", "score"], lines)


def _own_tasks_table() -> str:
    """The gaps of three networks that are no image classifiers, with intervals; the lowest mean is in bold type."""
    columns = {"original": "original", report.REDRAWN: report.REDRAWN, "finetune": "finetune"}
    columns |= {"gradient_ascent": "gradient ascent", "neggrad_plus": "NegGrad+", "scissorhands": "Scissorhands"}
    lines = []
    for name, words in (("diabetes", "diabetes"), ("japanese_vowels", "Japanese vowels"), ("m1_yearly", "M1 yearly")):
        gaps = {method: found for method, found in _gaps(name).items() if method in columns}
        unlearned = [method for method in columns if method not in ("original", report.REDRAWN)]
        best = min(unlearned, key=lambda method: statistics.fmean(gaps[method]))
        texts = {method: _interval(gaps[method]) for method in columns}
        cells = [f"**{text}**" if method == best else text for method, text in texts.items()]
        lines.append([f"Avg. Gap, {words}", *cells])
    return _table(["", *columns.values()], lines)


def _recipes_table() -> str:
    """Both recipes of retraining on the same images."""
    document = _read("recipes_small/results.json")
    (methods,) = report.grouped(report.with_gaps(document["rows"])).values()
    epochs = {name: settings["epochs"] for name, settings in document["config"]["scenarios"][0]["methods"].items()}
    paper = document["config"]["training"]["epochs"]
    names = {
        f"paper's recipe, {paper} epochs": "retrain",
        "the same, drawn again": "paper, drawn again",
        f"paper's recipe, {epochs['paper, shortened']} epochs": "paper, shortened",
        f"fast recipe, {epochs['fast']} epochs": "fast",
        f"fast recipe, {epochs['fast, half as long']} epochs": "fast, half as long",
    }
    lines = []
    for words, method in names.items():
        retain, test, gap, rte = (
            table_rows.numbers(methods[method], column) for column in ("acc_retain", "acc_test", "avg_gap", "rte")
        )
        spread = f" ± {statistics.stdev(test):.1f}"
        lines.append([words, _mean(retain), f"{_mean(test)}{spread}", _mean(gap), f"{statistics.fmean(rte):.2f}"])
    return _table(["retrained by", "Acc retain", "Acc test", "Avg. Gap", "RTE"], lines)


def _digits_table(part: int) -> str:
    """How diffusion networks draw digits (0), or how far they are from retrained ones (1)."""
    return diffusion_digits.table(_read("diffusion_digits.json")["summary"]).strip().split("\n\n")[part] + "\n"


def _digits_methods_table() -> str:
    """How diffusion networks draw after other methods, also when they are attacked."""
    return diffusion_digits.table(_read("diffusion_methods.json")["summary"]).strip().split("\n\n")[0] + "\n"


def _diffusion_plan_table() -> str:
    """What Scissorhands holds at batch 16, by phase, as `sd plan --traced` prints it."""
    phases = _read("diffusion_full_cpu.json")["plan_traced"]["paper"]["phases_gib"]
    first = ("original network", "params and model state", "optimizer state", "what the method holds", "gradients")
    parts = [*first, "activations and temporaries", "together"]
    lines = [
        [part, *(f"{each[part]:.1f}" if each.get(part, 0) >= 0.05 else "" for each in phases.values())]
        for part in parts
        if any(each.get(part, 0) >= 0.05 for each in phases.values())
    ]
    return _table(["GiB", *phases], lines)


def _diffusion_plans_table() -> str:
    """What every method holds at batch 16."""
    plans = _read("diffusion_full_cpu.json")["plan_traced"]
    lines = []
    for method, plan in plans.items():
        if method != "batch 1" and isinstance(plan, dict):  # the rest is about the machine
            phases = {phase: parts["together"] for phase, parts in plan["phases_gib"].items()}
            steps = phases.pop("steps", None)
            name, size = max(phases.items(), key=lambda one: one[1], default=("", None))
            before = "" if size is None else f"{size:.1f} ({name})"
            words = "Scissorhands, `paper`" if method == "paper" else f"`{method}`"
            lines.append([words, before, "" if steps is None else f"{steps:.1f}"])
    return _table(["method", "before the steps, GiB", "steps, GiB"], lines)


def _full_step_table() -> str:
    """What a step of unlearning costs at the size of Stable Diffusion."""
    names = {
        "saliency of one example": "saliency of one example",
        "exact threshold over all kernels, and mask": "threshold and mask",
        "re-initialisation": "re-initialisation",
        "projected repair step": "repair step",
    }
    parts = _read("diffusion_full_cpu.json")["unlearn"]["parts"]
    lines = [
        [words, f"{cost['seconds']:.0f}", f"{cost['seconds_compile']:.0f}", f"{cost['peak_gib']:.1f}"]
        for words, cost in ((words, parts[part]) for words, part in names.items())
    ]
    return _table(["part", "seconds", "compilation", "peak of the process, GiB"], lines)


def _forgetting_tests_table() -> str:
    """How often three tests of forgetting reject at 5 %, in percent, with 400 questions."""
    found = _read("forgetting_tests.json")["simulations"]

    def rejected(retrained: int, case: str, test: str) -> str:
        return f"{100 * found[f'{retrained} retrained, 400 questions, {case}']['rejected'][test]:.1f}"

    lines = [
        [
            words,
            *(rejected(5, case, test) for test in ("forget quality", "paired")),
            *(rejected(retrained, case, "calibrated") for retrained in (3, 5, 10)),
        ]
        for words, case in _SIMULATED.items()
    ]
    header = ["unlearned network", "forget quality", "paired (Wilcoxon)", "calibrated, 3 retrained"]
    return _table([*header, "5 retrained", "10 retrained"], lines)


def _calibration_table() -> str:
    """How often the intervals of simulated audits hold the number that they are about, and how wide they are."""
    audits, lines = _read("calibration.json")["audits"], []
    for words, pattern in _INTERVALS.items():
        one, three = (
            [value for name, value in audits[made]["numbers"].items() if re.fullmatch(pattern, name)]
            for made in ("standard", "standard, three forget sets")
        )
        coverage = [_range([f"{100 * value['coverage']:.0f}" for value in found]) for found in (one, three)]
        reach = _range([f"{value['reach']:.1f}" if value["reach"] < 10 else f"{value['reach']:.0f}" for value in one])
        lines.append([words, coverage[0], reach, coverage[1]])
    header = ["number", "coverage, %", "half-width, standard deviations"]
    return _table([*header, "three forget sets: coverage, %"], lines)


def _few_examples_table() -> str:
    """How gates of simulated audits of a few forget examples end."""
    audits, lines = _read("calibration.json")["audits"], []
    for size in (1, 3, 10, 50):
        found = audits["standard" if size == 50 else f"standard, forget sets of {size}"]
        failed, caught = (
            [
                100 * (share if gate == CAUGHT else 1 - share)
                for attack in ("population", "lira", "rmia", "u_lira")
                for gate_of, share in found[part].items()
                if gate_of == f"{attack}_auc: {gate}"
            ]
            for part, gate in (("gates_without_memory", SILENT), ("gates", CAUGHT))
        )
        lines.append([str(size), _range([f"{share:.0f}" for share in failed]), *(f"{share:.0f}" for share in caught)])
    header = ["forget examples", "finds something in retrained networks, %", "original caught by population, %"]
    return _table([*header, "LiRA", "RMIA", "U-LiRA"], lines)


def _tofu_table() -> str:
    """What language models know of two authors whom they were to forget: means over seeds."""
    grid = tofu.tofu_grid(_read("tofu/results.json")["rows"])
    kept = [grid.headers.index(name) for name in _TOFU]
    return _table(list(_TOFU), [[line[place].text for place in kept] for line in grid.lines])


TABLES: Mapping[str, Callable[[], str]] = {
    "cifar10_small": lambda: tables.brief(report.read_results(tables.RESULTS / "cifar10_small" / "results.json")),
    "cifar10_full": lambda: tables.brief(report.read_results(tables.RESULTS / "cifar10_full" / "results.json")),
    "variants": _variants_table,
    "real_network": _real_network_table,
    "own_tasks": _own_tasks_table,
    "recipes": _recipes_table,
    "digits": lambda: _digits_table(0),
    "digits_distances": lambda: _digits_table(1),
    "digits_methods": _digits_methods_table,
    "full_step": _full_step_table,
    "diffusion_plan": _diffusion_plan_table,
    "diffusion_plans": _diffusion_plans_table,
    "forgetting_tests": _forgetting_tests_table,
    "calibration": _calibration_table,
    "few_examples": _few_examples_table,
    "tofu": _tofu_table,
}
"""What makes each table, by the name in the comment."""


def _read(name: str) -> Any:
    return reading.read_json(tables.RESULTS / name)


def _gaps(name: str) -> dict[str, list[float]]:
    """The Avg. Gap of every seed of a table with one scenario, by method."""
    return _of_seeds(name, "avg_gap")


def _of_seeds(name: str, column: str) -> dict[str, list[float]]:
    """A column's number in every seed of a table with one scenario, by method."""
    document = report.read_results(tables.RESULTS / name / "results.json")
    (methods,) = report.grouped(report.with_gaps(document["rows"])).values()
    return {method: table_rows.numbers(rows, column) for method, rows in methods.items()}


def _mean(values: Sequence[float], digits: int = 1) -> str:
    return f"{statistics.fmean(values):.{digits}f}"


def _by_seed(numbers: Iterable[tuple[int, float]]) -> list[float]:
    """The mean of the numbers of each seed. Draws of one seed share its networks, so only seeds are independent."""
    found: dict[int, list[float]] = {}
    for seed, number in numbers:
        found.setdefault(seed, []).append(number)
    return [statistics.fmean(own) for own in found.values()]


def _interval(values: Sequence[float], digits: int = 1) -> str:
    """A mean with Student's 95 % interval, which equal numbers do not have."""
    found = intervals.mean_estimate(values)
    if not intervals.differ(values):
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _in_words(number: int) -> str:
    return {1: "one", 2: "two", 4: "four", 5: "five", 22: "twenty-two"}.get(number, str(number))


def _range(values: Sequence[str]) -> str:
    """The smallest and the largest of some numbers in words."""
    low, high = min(values, key=float), max(values, key=float)
    return low if low == high else f"{low} to {high}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, whose columns but the first are set to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in (header, rule, *lines))


if __name__ == "__main__":
    raise SystemExit(main())
