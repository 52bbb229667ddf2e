"""TOFU in kind: ten authors, two forgotten, a transformer of a million parameters, `python -m experiments.tofu`.

    python -m experiments.tofu --data-dir TOFU --out runs/tofu
    python -m experiments.tofu --out runs/tofu --write experiments/results/tofu

TOFU is the folder of the data set (https://huggingface.co/datasets/locuslab/TOFU, MIT) as JSON lines. The first command
chooses settings and fills one cell for each network, and goes on where it was stopped; every further call starts with
what is there, if it has the same settings and the same files of TOFU. On one core it takes about an hour. It writes
results and page as well, and the second one writes those of the cells that there are into another folder.

All networks learn the questions and answers of ten authors from nothing, with a tokenizer that was trained on TOFU. Two
authors are forgotten. Retrained networks take as many steps as the originals, with the whole schedule. Every method
takes the same number of steps, in which SCRUB and Bad Teacher see half as many rows of the forgotten authors as the
others (`forgetting.HALF_SEEN`), and has the same number of trials, of three rates and of two values of the setting that
matters most. They are chosen on another seed and on two other authors, and no retrained network is looked at: an
unlearned network is to lose on the forgotten answers what it loses on answers that nobody learned, and to keep what it
knows of the others.
"""
