"""What a user can choose by name, each in one line for `--help`, which loads neither JAX nor the methods themselves."""

from __future__ import annotations

METHOD_LINES = {
    "scissorhands": "re-initialises the salient weights and repairs with projected gradients (Wu and Harandi 2024)",
    "retrain": "trains a new network without the forget set: what the others should become",
    "finetune": "trains for longer on the retain set",
    "l1_sparse": "the same with an L1 penalty (Jia et al. 2023)",
    "gradient_ascent": "climbs the loss of the forget set",
    "neggrad_plus": "climbs the forget loss while it descends the retain loss",
    "influence": "takes one Newton step with the damped empirical Fisher matrix (WoodFisher)",
    "boundary_shrink": "moves forget examples over the nearest decision boundary (Chen et al. 2023)",
    "boundary_expand": "moves forget examples to an extra class, which is then removed (Chen et al. 2023)",
    "random_label": "trains on wrong labels for the forget set",
    "salun": "the same, moving salient weights only (Fan et al. 2024)",
    "munba": "lets the retain and the forget gradient strike a Nash bargain at every step (Wu and Harandi 2024)",
    "orthograd": "climbs the forget loss orthogonally to the gradient of each retained example (Shamsian et al. 2025)",
    "delete": "distils from the original without the true class, on the forget set alone (Zhou et al. 2025)",
    "amun": "trains on the nearest adversarial examples of the forget set (Ebrahimpour-Boroojeny et al. 2025)",
    "scrub": "distils from the original, and disobeys it on the forget set (Kurmanji et al. 2023)",
    "bad_teacher": "distils from a random network on the forget set (Chundawat et al. 2023)",
    "ssd": "dampens the weights that matter to the forget set only, without training (Foster et al. 2024)",
    "cf_k": "fine-tunes the last layers only (Goel et al. 2022)",
    "eu_k": "trains the last layers from scratch (Goel et al. 2022)",
    "msg": "redraws the weights whose gradients differ least between the sets, tunes mostly these (Cadet et al. 2024)",
    "ct": "transposes the kernels of convolutions and fine-tunes (Cadet et al. 2024)",
    "sfron": "every few steps climbs the weighted forget loss with weights that matter to it (Huang et al. 2024)",
}
"""What each unlearning method does, as the guide to tables has it."""

NETWORK_LINES = {
    "resnet8": "CIFAR's ResNet of He et al. with 8 layers",
    "resnet20": "the same with 20 layers",
    "resnet32": "the same with 32 layers",
    "resnet44": "the same with 44 layers",
    "resnet56": "the same with 56 layers",
    "resnet110": "the same with 110 layers",
    "resnet18": "ImageNet's ResNet-18, with a stem for small images",
    "resnet34": "ImageNet's ResNet-34",
    "resnet9": "a small network that learns CIFAR-10 in minutes",
    "vgg16_bn": "VGG-16 with BatchNorm",
    "mlp": "a multilayer perceptron, for images and for feature vectors",
}
"""What each network of the registry is."""

PRESET_LINES = {
    "paper": "Algorithm 1",
    "released": "what the published code does for nudity",
    "released-objects": "what the published code does for classes of objects",
}
"""What the settings of a preset for diffusion networks follow."""

WITHOUT_IMAGES = ("esd", "uce")
"""The methods for diffusion networks that read prompts alone."""

_OF_TOKENS = {
    "gradient_difference": "the answers to forget less probable, those to keep more probable",
    "npo": "answers are pushed down until they are improbable, and then ever less",
    "simnpo": "the same without the original, by length",
    "dpo": "refusals are preferred to the answers to forget",
    "rmu": "activations of a layer are steered to a random direction",
    "undial": "learns from the original with the right tokens made less probable",
    "ce_u": "learns from itself without the right tokens",
    "wga": "gradient ascent that leaves alone what is improbable",
    "task_vector": "learns the forget set once more, and goes the other way",
}
_SHARED_WITH_TOKENS = (
    *("scissorhands", "finetune", "gradient_ascent", "neggrad_plus", "l1_sparse"),
    *("munba", "ssd", "scrub", "bad_teacher"),
)
TOKEN_METHOD_LINES = _OF_TOKENS | {name: METHOD_LINES[name] for name in _SHARED_WITH_TOKENS}
"""The methods for language models, each with what it does."""
