"""PyTorch's weights: reading and writing their files without executing anything, and converting their names."""

from scissorhands_jax.torch_weights.fitting import fit_in_order, fit_names, read_renaming
from scissorhands_jax.torch_weights.state_dicts import (
    check_shapes,
    from_state_dict,
    state_dict_shapes,
    state_dict_views,
    to_state_dict,
    with_fresh_head,
)
from scissorhands_jax.torch_weights.weight_files import (
    LazyStateDict,
    is_averaged,
    names_metadata,
    open_state_dict,
    read_names,
    read_state_dict,
    write_safetensors,
)

__all__ = [
    "LazyStateDict",
    "check_shapes",
    "fit_in_order",
    "fit_names",
    "from_state_dict",
    "is_averaged",
    "names_metadata",
    "open_state_dict",
    "read_names",
    "read_renaming",
    "read_state_dict",
    "state_dict_shapes",
    "state_dict_views",
    "to_state_dict",
    "with_fresh_head",
    "write_safetensors",
]
