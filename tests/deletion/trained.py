"""A network that knows the examples of `forking.prepare` by heart, in a ledger of its own."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import optax

from scissorhands_jax import deletion, losses, models, torch_weights
from tests.deletion import forking

STEPS = 150


def ledger_of_trained_network(folder: Path, trained_on: str | None = None) -> Path:
    """Makes the data, a trained network, and a ledger about it with a request for the examples 40 to 79.

    Args:
      folder: An empty folder. Afterwards it also holds `data.npz`, `trained.safetensors` and `forty`.
      trained_on: The file with the positions that the network is said to have seen.

    Returns:
      The folder of the ledger.
    """
    forking.write_data(folder)
    model = models.build("mlp", num_classes=3, image_shape=(4, 4, 1))
    optimizer = optax.adam(0.01)
    with np.load(folder / "data.npz") as arrays:
        images, labels = arrays["image"], arrays["label"]

    def loss(params, state):
        return losses.cross_entropy(model.apply(params, state, images, train=False)[0], labels).mean()

    @jax.jit
    def train(params, state):
        def step(_, carry):
            params, opt_state = carry
            updates, opt_state = optimizer.update(jax.grad(loss)(params, state), opt_state)
            return optax.apply_updates(params, updates), opt_state

        return jax.lax.fori_loop(0, STEPS, step, (params, optimizer.init(params)))[0]

    params, state = model.init(jax.random.key(0))
    network = torch_weights.to_state_dict(train(params, state), state)
    torch_weights.write_safetensors(folder / "trained.safetensors", network)
    (folder / "forty").write_text("".join(f"{position}\n" for position in range(40, 80)))
    subject = deletion.Subject(
        "mlp", f"npz:{folder / 'data.npz'}", None, str(folder / "trained.safetensors"), None, trained_on
    )
    deletion.add(folder / "ledger", forget=f"indices:{folder / 'forty'}", requester="A", subject=subject)
    return folder / "ledger"
