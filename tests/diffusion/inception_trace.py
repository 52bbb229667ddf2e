"""What pytorch-fid computes with its Inception at a sixteenth of the width and made-up weights.

`python -m tests.diffusion.inception_trace` writes `inception.npz`; it needs torch, torchvision and pytorch-fid (2.13.0,
0.29.1 and 0.3.0 made the file), which the tests do not.
"""

from __future__ import annotations

import json
import sys
import types
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_name("inception.npz")
NARROW = 16


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Made-up weights by name, which keep activations at about 1. dtype=float32"""
    arrays = {}
    for name, shape in shapes.items():
        normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) == 4:
            normal *= np.sqrt(2 / np.prod(shape[1:]))
        else:
            normal = 0.1 * normal + name.endswith(("bn.weight", "running_var"))
        arrays[name] = normal.astype(np.float32)
    return arrays


def images() -> list[np.ndarray]:
    """Two images, one that is stretched in both directions and one that is shrunk."""
    draw = np.random.default_rng(7)
    coarse = [draw.integers(0, 256, shape).astype(np.uint8) for shape in ((9, 13, 3), (40, 31, 3))]
    return [
        np.kron(image, np.ones((factor, factor, 1), np.uint8)) for image, factor in zip(coarse, (4, 9), strict=True)
    ]


def _record() -> None:
    import torch

    # No operator of torchvision is needed; this module of it needs the binary that fits to PyTorch's.
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("_meta_registrations")
    from pytorch_fid import inception as theirs
    from torchvision.models import inception as vision

    wide = vision.BasicConv2d

    class Narrow(wide):
        def __init__(self, in_channels, out_channels, **options):
            inputs = in_channels if in_channels == 3 else in_channels // NARROW
            super().__init__(inputs, out_channels // NARROW, **options)

    vision.BasicConv2d = Narrow
    network = vision.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for name, channels in {"5b": (192, 32), "5c": (256, 64), "5d": (288, 64)}.items():
        setattr(network, f"Mixed_{name}", theirs.FIDInceptionA(channels[0], pool_features=channels[1]))
    for letter, width in {"b": 128, "c": 160, "d": 160, "e": 192}.items():
        setattr(network, f"Mixed_6{letter}", theirs.FIDInceptionC(768, channels_7x7=width))
    network.Mixed_7b, network.Mixed_7c = theirs.FIDInceptionE_1(1280), theirs.FIDInceptionE_2(2048)
    shapes = {
        name: tuple(value.shape)
        for name, value in network.state_dict().items()
        if value.ndim and not name.startswith("fc.")
    }
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights(shapes).items()}, strict=False)
    theirs.fid_inception_v3 = lambda: network
    features = theirs.InceptionV3([3]).eval()
    with torch.no_grad():
        found = [
            features(torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32) / 255))[0].numpy().reshape(-1)
            for image in images()
        ]
    np.savez_compressed(RECORDED, features=np.stack(found), shapes=json.dumps(shapes))


if __name__ == "__main__":
    _record()
