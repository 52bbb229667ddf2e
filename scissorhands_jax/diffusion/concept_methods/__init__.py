"""The methods of `scissorhands sd unlearn` next to Scissorhands, by name: settings that build a `Method` for a UNet.

`CONCEPT_METHODS[name].method(unet, schedule)` is run by `training.run`, as every method is.
Scissorhands has presets in place of one set of defaults: `concept_scissorhands.PRESETS`.
"""

from __future__ import annotations

from scissorhands_jax.diffusion.concept_methods.concept_training import (
    NAMED_PARTS,
    ConceptTraining,
    named_part,
    training_only,
)
from scissorhands_jax.diffusion.concept_methods.esd import EsdSettings, esd
from scissorhands_jax.diffusion.concept_methods.loss_only import (
    ConceptAscentSettings,
    ConceptFinetuneSettings,
    ConceptL1SparseSettings,
    ConceptNegGradPlusSettings,
    ConceptSsdSettings,
)
from scissorhands_jax.diffusion.concept_methods.replacing import (
    ConceptMunbaSettings,
    ConceptSalunSettings,
    EraseDiffSettings,
    concept_munba,
    concept_salun,
    erase_diff,
)
from scissorhands_jax.diffusion.concept_methods.selective_amnesia import SelectiveAmnesiaSettings, selective_amnesia
from scissorhands_jax.diffusion.concept_methods.uce import UceSettings, uce

__all__ = [
    "CONCEPT_METHODS",
    "NAMED_PARTS",
    "ConceptTraining",
    "concept_munba",
    "concept_salun",
    "erase_diff",
    "esd",
    "named_part",
    "selective_amnesia",
    "training_only",
    "uce",
]

CONCEPT_METHODS: dict[str, ConceptTraining] = {
    "esd": EsdSettings(),
    "uce": UceSettings(),
    "salun": ConceptSalunSettings(),
    "munba": ConceptMunbaSettings(),
    "erase_diff": EraseDiffSettings(),
    "selective_amnesia": SelectiveAmnesiaSettings(),
    "finetune": ConceptFinetuneSettings(),
    "gradient_ascent": ConceptAscentSettings(),
    "neggrad_plus": ConceptNegGradPlusSettings(),
    "l1_sparse": ConceptL1SparseSettings(),
    "ssd": ConceptSsdSettings(),
}
"""The methods by their names on the command line, each with its defaults."""
