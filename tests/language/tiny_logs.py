"""Small evaluation logs of made-up networks, in both published formats."""

import numpy as np

TOFU_NAMES = {
    "retain": "eval_log.json",
    "real authors": "eval_real_author_wo_options.json",
    "world facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
PREFIXES = {"retain": "retain", "real authors": "ra", "world facts": "wf", "forget": "forget"}
SIZES = {"retain": 6, "real authors": 5, "world facts": 4, "forget": 8}


def numbers(seed=0, shift=0.0):
    """Losses and scores by set: (answer, right, wrong, rouge)."""
    rng, found = np.random.default_rng(seed), {}
    for name, size in SIZES.items():
        wrongs = 3 if name in ("real authors", "world facts") else 5
        answer, right = rng.uniform(0.01, 3, size), rng.uniform(0.5, 3, size) + shift
        if wrongs == 3:
            right = answer
        found[name] = (answer, right, rng.uniform(0.5, 4, (size, wrongs)), rng.uniform(0.1, 1, size))
    return found


def by_index(values, start=0):
    return {str(start + index): value for index, value in enumerate(np.asarray(values).tolist())}


def tofu_log(found):
    return {
        TOFU_NAMES[name]: {
            "avg_gt_loss": by_index(answer),
            "rougeL_recall": by_index(rouge),
            "avg_paraphrased_loss": by_index(right),
            "average_perturb_loss": by_index(wrong),
            "generated_text": {str(i): [f"question {i}", "said", f"{name} answer {i}"] for i in range(len(answer))},
        }
        for name, (answer, right, wrong, rouge) in found.items()
    }


def metric(values, start=0):
    """An entry for each example, and the mean of the first number of each."""
    entries = {str(start + index): value for index, value in enumerate(values)}
    return {"agg_value": float(np.mean([next(iter(value.values())) for value in values])), "value_by_index": entries}


def losses(values):
    return [{"prob": np.exp(-value).tolist(), "avg_loss": value.tolist()} for value in values]


def new_log(found):
    """As OpenUnlearning writes it; its aggregates follow its published definitions, with 1e-10 in divisors."""
    log = {}
    for name, (answer, right, wrong, rouge) in found.items():
        prefix, tiny = PREFIXES[name], 1e-10
        log[f"{prefix}_Q_A_Prob"] = metric(losses(answer))
        log[f"{prefix}_Q_A_PERT_Prob"] = metric(losses(wrong))
        spoken = [
            {"rougeL_recall": float(value), "rougeL_f1": 0.5, "ground_truth": f"{name} answer {index}"}
            for index, value in enumerate(rouge)
        ]
        log[f"{prefix}_Q_A_ROUGE"] = metric(spoken)
        if name in ("retain", "forget"):
            log[f"{prefix}_Q_A_PARA_Prob"] = metric(losses(right))
        else:
            share = np.exp(-answer) / (np.exp(-answer) + np.exp(-wrong).sum(axis=1) + tiny)
            log[f"{prefix}_Q_A_Prob_normalised"] = metric([{"prob": float(value)} for value in share])
        ratio = np.exp(-wrong.mean(axis=1)) / (np.exp(-right) + tiny)
        best = np.minimum(ratio, 1 / (ratio + tiny)) if name == "forget" else np.maximum(0, 1 - ratio)
        key = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        log[key] = metric([{"score": float(value)} for value in ratio]) | {"agg_value": float(best.mean())}
    nine = [
        log[f"{prefix}_{part}"]["agg_value"]
        for prefix, probability in (
            ("retain", "Q_A_Prob"),
            ("ra", "Q_A_Prob_normalised"),
            ("wf", "Q_A_Prob_normalised"),
        )
        for part in (probability, "Q_A_ROUGE", "Truth_Ratio")
    ]
    log["model_utility"] = {"agg_value": 9 / sum(1 / value for value in nine) if all(nine) else 0.0}
    log["forget_quality"] = {"agg_value": None}
    log["extraction_strength"] = metric([{"score": 0.25}, {"score": 0.75}])
    log["extraction_strength"]["value_by_index"]["2"] = {"score": None}  # left out, as the published code does
    log["mia_min_k"] = {
        "forget": metric([{"score": value} for value in (0.1, 0.2, 0.9)]),
        "holdout": metric([{"score": value} for value in (0.5, 0.9)]),
        "auc": 0.75,
        "agg_value": 0.75,
    }
    return log
