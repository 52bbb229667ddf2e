"""Every aggregate of published logs, number for number, in both formats; what is damaged or partial is said."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scissorhands_jax.cli.main import main
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.judging import PAIRED, judge_logs
from scissorhands_jax.language.tofu_logs import read_tofu_log
from tests.language.tiny_logs import new_log, numbers, tofu_log


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    for seed in range(5):
        for name, make in (("tofu", tofu_log), ("new", new_log)):
            (folder / f"{name}{seed}.json").write_text(json.dumps(make(numbers(0 if seed < 5 else seed, 0.1 * seed))))
    rng = np.random.default_rng(3)
    for seed in range(4):
        found = numbers(0)
        answer, right, wrong, rouge = found["forget"]
        found["forget"] = (answer, right + rng.normal(0, 0.05, len(right)), wrong, rouge)
        (folder / f"retain{seed}.json").write_text(json.dumps(tofu_log(found)))
    return folder


def flat(document, prefix=()):
    for key, value in document.items():
        if isinstance(value, dict):
            yield from flat(value, (*prefix, key))
        else:
            yield (*prefix, key), value


@pytest.fixture(scope="module")
def logs(shared):
    return shared / "data" / "tofu" / "logs"


@pytest.fixture(scope="module")
def judged(logs):
    return judge_logs(logs / "llama2-7b_full_wd0.01.json", [logs / "llama2-7b_retain90_wd0.01.json"])


class TestPublishedLogs:
    """Llama-2-7B, against what the published code and the definitions give."""

    def test_model_utility_and_forget_quality(self, judged):
        assert judged.model_utility["geometric"] == pytest.approx(0.6226773637427152, rel=1e-9)
        assert judged.model_utility["arithmetic"] == pytest.approx(0.585886035092722, rel=1e-9)
        (against,) = judged.against
        assert against.forget_quality["geometric"].p == pytest.approx(1.834066410994743e-21, rel=1e-6)
        assert against.forget_quality["arithmetic"].p == pytest.approx(6.031911569834469e-23, rel=1e-6)
        assert against.forget_quality["right_share"] == against.forget_quality["geometric"]
        assert against.paired_test["geometric"].p < 1e-43

    def test_means_of_every_set(self, judged, logs):
        log = json.loads((logs / "llama2-7b_full_wd0.01.json").read_text())
        for name, part in {"retain": "eval_log.json", "forget": "eval_log_forget.json"}.items():
            table = {
                key: np.array(list(values.values())) for key, values in log[part].items() if key != "generated_text"
            }
            found = judged.sets[name]
            assert found["examples"] == 300
            assert found["probability"] == pytest.approx(np.exp(-table["avg_gt_loss"]).mean(), rel=1e-12)
            assert found["rouge_l_recall"] == pytest.approx(table["rougeL_recall"].mean(), rel=1e-12)
            stated = table["truth_ratio"]  # what the published code wrote itself, in single precision
            best = np.minimum(stated, 1 / stated) if name == "forget" else np.maximum(0, 1 - stated)
            assert found["truth_ratio"]["geometric"] == pytest.approx(best.mean(), rel=1e-6)
        log = log["eval_real_author_wo_options.json"]
        normalized = np.exp(-np.array(list(log["normalized_gt_loss"].values()))).mean()
        assert judged.sets["real authors"]["probability_with_options"] == pytest.approx(normalized, rel=1e-9)

    def test_logs_of_other_questions_are_compared_on_those_that_they_share(self, logs):
        judged = judge_logs(logs / "llama2-7b_retain90_wd0.01.json", [logs / "llama2-7b_retain95_wd0.01.json"])
        (against,) = judged.against
        assert against.paired_test["geometric"].examples == 100
        assert against.paired_test["geometric"].p == pytest.approx(0.6205162798090659, rel=1e-9)
        assert any("compares 300 questions with 200, of which 100 are the same" in text for text in judged.remarks)
        apart = judge_logs(logs / "llama2-7b_full_wd0.01.json", [logs / "llama2-7b_retain99_wd0.01.json"])
        assert apart.against[0].paired_test == {}
        assert any("share no question" in text for text in apart.remarks)


def test_both_formats_give_the_same_numbers(folder):
    old = judge_logs(folder / "tofu1.json", [folder / "tofu0.json"]).document()
    new = judge_logs(folder / "new1.json", [folder / "new0.json"]).document()
    for key in ("sets", "model_utility"):
        theirs = dict(flat(new[key]))
        for path, value in flat(old[key]):
            assert theirs[path] == pytest.approx(value, rel=1e-7), path
    for old_test, new_test in zip(old["against"], new["against"], strict=True):
        assert old_test["paired_test"] == new_test["paired_test"]
        assert old_test["forget_quality"] == new_test["forget_quality"]


def test_what_the_newer_format_states_is_what_its_examples_give(folder, tmp_path):
    judged = judge_logs(folder / "new1.json", [folder / "new2.json"])
    assert not [remark for remark in judged.remarks if "states" in remark and "but" in remark]
    assert judged.attacks == {"mia_min_k": pytest.approx(0.75)}
    assert judged.scores == {"extraction_strength": 0.5}
    assert judged.against[0].privleak == {"mia_min_k": 0.0}
    log = json.loads((folder / "new1.json").read_text())
    for name in ("retain_Q_A_Prob", "forget_truth_ratio", "model_utility", "ra_Q_A_Prob_normalised", "mia_min_k"):
        other = json.loads(json.dumps(log))
        other[name]["agg_value"] *= 1.001
        (tmp_path / "other.json").write_text(json.dumps(other))
        assert any(f"for {name}, but" in remark for remark in judge_logs(tmp_path / "other.json").remarks)


def test_definitions_of_the_truth_ratio_are_those_of_the_documentation(folder):
    _, right, wrong, _ = numbers(0, 0.1)["forget"]
    true, false = np.exp(-right), np.exp(-wrong)
    ratios = {"arithmetic": false.mean(axis=1) / true, "geometric": stats.gmean(false, axis=1) / true}
    found = judge_logs(folder / "tofu1.json").sets["forget"]["truth_ratio"]
    for name, ratio in ratios.items():
        assert found[name] == pytest.approx(np.minimum(ratio, 1 / ratio).mean(), rel=1e-12)
    assert found["right_share"] == pytest.approx((true / (true + stats.gmean(false, axis=1))).mean(), rel=1e-12)


def test_a_collapsed_network_gets_finite_numbers(tmp_path):
    found = numbers(0)
    found = {name: (a + 900, r + 900, w, rouge) for name, (a, r, w, rouge) in found.items()}
    for make in (tofu_log, new_log):
        (tmp_path / "log.json").write_text(json.dumps(make(found)))
        judged = judge_logs(tmp_path / "log.json")
        assert all(math.isfinite(value) for _, value in flat(judged.sets))
        assert judged.model_utility["geometric"] == 0.0


def test_three_retrained_networks_calibrate_the_test(folder):
    retained = [folder / f"retain{seed}.json" for seed in range(3)]
    judged = judge_logs(folder / "retain3.json", retained, folder / "tofu4.json")
    assert judged.calibrated_test["geometric"].p > 0.05
    assert abs(judged.calibrated_test["geometric"].share.value) < 0.5
    judged = judge_logs(folder / "tofu4.json", retained)
    assert judged.calibrated_test["geometric"].p < 0.05
    assert judged.calibrated_test["geometric"].share is None


def test_why_there_is_no_calibrated_test(folder, tmp_path):
    logs = [tmp_path / f"{number}.json" for number in range(4)]
    for number, path in enumerate(logs):
        whole = json.loads((folder / f"new{number}.json").read_text())
        path.write_text(json.dumps({"forget_truth_ratio": whole["forget_truth_ratio"]}))
    judged = judge_logs(logs[0], logs[1:])
    assert set(judged.calibrated_test) == {"geometric"}
    (remark,) = (remark for remark in judged.remarks if "calibrated" in remark)
    assert f"(arithmetic): {logs[0]} states truth ratios of the forget set, but no losses of right and" in remark
    logs[3].write_text(json.dumps({"retain_Q_A_Prob": whole["retain_Q_A_Prob"]}))
    remarks = judge_logs(logs[0], logs[1:]).remarks
    assert f"no calibrated test (geometric): {logs[3]} has no truth ratios of the forget set" in remarks


def test_partial_logs_give_what_they_allow(folder, tmp_path):
    log = json.loads((folder / "tofu1.json").read_text())
    del log["eval_log.json"], log["eval_log_forget.json"]["rougeL_recall"]
    (tmp_path / "part.json").write_text(json.dumps(log | {"more.json": {}}))
    judged = judge_logs(tmp_path / "part.json", [folder / "tofu0.json"])
    assert judged.model_utility == {}
    assert set(judged.against[0].forget_quality) == {"arithmetic", "geometric", "right_share"}
    text = " ".join(judged.remarks)
    assert "nothing about retain" in text
    assert "'more.json'" in text
    new = json.loads((folder / "new1.json").read_text())
    (tmp_path / "new.json").write_text(json.dumps({"forget_truth_ratio": new["forget_truth_ratio"]}))
    judged = judge_logs(tmp_path / "new.json", [folder / "new0.json"])
    whole = judge_logs(folder / "new1.json", [folder / "new0.json"])
    assert judged.against[0].forget_quality["geometric"] == whole.against[0].forget_quality["geometric"]
    assert "arithmetic" not in judged.against[0].forget_quality
    assert set(judged.against[0].paired_test) == {"geometric"}
    new["forget_truth_ratio"]["value_by_index"]["0"]["score"] = 0.0  # which has no logarithm
    (tmp_path / "new.json").write_text(json.dumps({"forget_truth_ratio": new["forget_truth_ratio"]}))
    judged = judge_logs(tmp_path / "new.json", [folder / "new0.json"])
    assert judged.against[0].paired_test == {}
    assert not any("share no question" in remark or "are the same" in remark for remark in judged.remarks)
    reasons = {definition: f" against {folder / 'new0.json'}: {tmp_path / 'new.json'} states " for definition in PAIRED}
    reasons["arithmetic"] += "truth ratios of the forget set, but no losses of right and wrong answers"
    reasons["geometric"] += "a truth ratio of 0 in the forget set, which has no logarithm"
    assert {f"no paired test ({definition}){reason}" for definition, reason in reasons.items()} < set(judged.remarks)
    shutil.copy(folder / "tofu1.json", tmp_path / "x.json")
    (tmp_path / "eval_log_forget.json").write_text(
        json.dumps(json.loads((tmp_path / "x.json").read_text())["eval_log_forget.json"])
    )
    assert list(judge_logs(tmp_path / "eval_log_forget.json").sets) == ["forget"]


@pytest.mark.parametrize("entry", ["It was Paris.", ["Where?", "Paris."], ["Where?", "Paris.", 3], {"0": "a"}, None])
def test_texts_of_another_form_pair_no_questions(entry):
    log = tofu_log(numbers(0))
    log[FORGET]["generated_text"]["1"] = entry
    texts = read_tofu_log(Path("log.json"), log).sets["forget"].texts
    assert "1" not in texts
    assert texts["0"] == "forget answer 0"


@pytest.mark.parametrize("metric", ["Q_A_Prob", "Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio"])
def test_a_log_of_one_metric_is_judged_by_it(folder, tmp_path, metric):
    whole = json.loads((folder / "new1.json").read_text())
    (tmp_path / "log.json").write_text(json.dumps({f"ra_{metric}": whole[f"ra_{metric}"]}))
    (means,) = judge_logs(tmp_path / "log.json").sets.values()
    assert means.pop("examples") == 5
    assert len(means) == 1


@pytest.mark.parametrize("measure", ["avg_gt_loss", "rougeL_recall", "avg_paraphrased_loss", "average_perturb_loss"])
def test_a_set_of_one_measure_is_judged_by_it_or_left_out(folder, tmp_path, measure):
    part = json.loads((folder / "tofu1.json").read_text())[FORGET]
    (tmp_path / "log.json").write_text(json.dumps({FORGET: {name: part[name] for name in (measure, "generated_text")}}))
    judged = judge_logs(tmp_path / "log.json")
    if measure in ("avg_gt_loss", "rougeL_recall"):
        assert judged.sets["forget"].pop("examples") == 8
        assert len(judged.sets["forget"]) == 1
    else:
        assert judged.sets == {}
        assert any(f"has nothing but {measure} in {FORGET}, which makes no measure" in each for each in judged.remarks)


def change(log, path, value):
    *parts, last = path
    for part in parts:
        log = log[part]
    if value is None:
        del log[last]
    else:
        log[last] = value


FORGET = "eval_log_forget.json"
DAMAGES = [
    ("tofu", (FORGET, "avg_gt_loss", "3"), float("nan"), "avg_gt_loss of example '3' is nan and not a finite number"),
    ("tofu", (FORGET, "avg_gt_loss", "3"), -1.0, "is -1.0 and not a finite number of 0 or more"),
    ("tofu", (FORGET, "avg_gt_loss", "3"), float("inf"), "is inf and not a finite"),
    ("tofu", (FORGET, "avg_gt_loss", "3"), 10**400, "which is too large"),
    ("tofu", (FORGET, "avg_gt_loss", "3"), "x", "is x and no number"),
    ("tofu", (FORGET, "avg_gt_loss", "3"), True, "is True and no number"),
    ("tofu", (FORGET, "rougeL_recall", "0"), 1.5, "not a finite number from 0 to 1"),
    ("tofu", (FORGET, "rougeL_recall", "0"), None, "avg_gt_loss has 8 examples and rougeL_recall 7, and '0' is in one"),
    ("tofu", (FORGET, "average_perturb_loss", "2"), [1.0], "example '2' has 1 numbers, that of the first example 5"),
    ("tofu", (FORGET, "average_perturb_loss", "0"), [], "example '0' has 0 numbers"),
    ("tofu", (FORGET, "avg_gt_loss"), {}, "avg_gt_loss has no number for any example"),
    ("tofu", (FORGET, "avg_gt_loss"), [1.0], "avg_gt_loss is a list and not an object"),
    ("tofu", (FORGET,), {}, "has none of avg_gt_loss"),
    ("new", ("forget_Q_A_Prob", "value_by_index", "1"), {"loss": 1}, "example '1' has no prob"),
    ("new", ("forget_Q_A_Prob", "value_by_index", "1", "prob"), 1.5, "prob of example '1' is 1.5 and not a finite"),
    ("new", ("forget_Q_A_PARA_Prob", "value_by_index", "1"), None, "and '1' is in one of them only"),
    ("new", ("forget_Q_A_Prob", "value_by_index"), {}, "value_by_index has no number"),
    ("new", ("forget_Q_A_Prob", "agg_value"), None, "it has value_by_index and no agg_value"),
    ("new", ("forget_Q_A_Prob", "agg_value"), "x", "agg_value"),
    ("new", ("mia_min_k", "forget", "value_by_index", "0"), 3, "score of example '0' is None and no number"),
]


def test_other_logs_are_looked_at_before_a_model_is_asked(folder, tmp_path, capsys):
    (tmp_path / "forget.json").write_text("[]")
    asked = ["lm", "evaluate", "--model", str(tmp_path), "--forget", str(tmp_path / "forget.json"), "--out"]
    asked.append(str(tmp_path / "log.json"))
    for more, message in (
        (["--retain-logs", str(tmp_path / "none.json")], "none.json cannot be read"),
        (["--original-log", str(folder / "new1.json")], "needs 3 retain logs and has 0"),
        (["--retain-logs", str(tmp_path / "log.json")], "is given twice"),
    ):
        assert main([*asked, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "log.json").exists()


@pytest.mark.parametrize(("kind", "path", "value", "message"), DAMAGES)
def test_what_is_damaged_is_refused_in_one_sentence(folder, tmp_path, capsys, kind, path, value, message):
    log = json.loads((folder / f"{kind}1.json").read_text())
    change(log, path, value)
    (tmp_path / "log.json").write_text(json.dumps(log))
    with pytest.raises(InputError) as caught:
        judge_logs(tmp_path / "log.json")
    assert message in str(caught.value)
    assert main(["lm", "evaluate", "--logs", str(tmp_path / "log.json"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ('{"a"', "not JSON"),
        ("[]", "no named parts"),
        ("{}", "no named parts"),
        ('{"a": {}}', "its parts are 'a'"),
        ('{"model_utility": 0.5, "forget_quality": null}', "aggregates only"),
        ('{"avg_gt_loss": {"0": 1.0}}', "does not say of which"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, text, message):
    (tmp_path / "log.json").write_text(text)
    with pytest.raises(InputError, match=message):
        judge_logs(tmp_path / "log.json")


def test_logs_that_do_not_go_together_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        judge_logs(tmp_path / "none.json")
    with pytest.raises(InputError, match="given twice"):
        judge_logs(folder / "tofu1.json", [folder / "tofu0.json", folder / "tofu0.json"])
    with pytest.raises(InputError, match="given twice"):
        judge_logs(folder / "tofu0.json", [folder / "tofu0.json"])
    several = [folder / f"tofu{number}.json" for number in (0, 2, 3)]
    with pytest.raises(InputError, match="given twice"):
        judge_logs(folder / "tofu1.json", several, folder / "tofu1.json")
    with pytest.raises(InputError, match="needs 3 retain logs and has 1"):
        judge_logs(folder / "tofu1.json", [folder / "tofu0.json"], folder / "tofu2.json")


def test_the_command_prints_tables_and_json(folder, capsys):
    words = ["lm", "evaluate", "--logs", str(folder / "new1.json"), "--retain-logs", str(folder / "new0.json")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("model utility", "forget quality (KS)", "paired (Wilcoxon)", "PrivLeak"))
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == judge_logs(folder / "new1.json", [folder / "new0.json"]).document()


def test_scores_of_attacks_that_are_null_are_left_out(folder, tmp_path):
    log = json.loads((folder / "new1.json").read_text())
    for side in ("forget", "holdout"):
        log["mia_min_k"][side]["value_by_index"]["999"] = {"score": None}
    (tmp_path / "log.json").write_text(json.dumps(log))
    assert judge_logs(tmp_path / "log.json").attacks == judge_logs(folder / "new1.json").attacks
