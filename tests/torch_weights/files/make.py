"""Makes the files in this folder with real PyTorch: `python tests/torch_weights/files/make.py` (torch 2.13 made these).

The library and its tests never import torch; `tests/torch_weights` knows the numbers that are written here.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).parent
BOTH = {"zip": True, "legacy": False}
DTYPES = ["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "complex64"]
LATE = ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"]


def network() -> nn.Module:
    """Two layers whose n-th array holds n, n + 1/8, n + 2/8 and so on."""
    module = nn.Sequential()
    module.add_module("conv1", nn.Conv2d(2, 3, (1, 2)))
    module.add_module("bn1", nn.BatchNorm2d(3))
    module.add_module("fc", nn.Linear(3, 2))
    with torch.no_grad():
        for index, tensor in enumerate(module.state_dict().values()):
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) / 8 + index)
    return module


def checkpoint() -> dict:
    """What a training script saves: the state dict of a DataParallel model among much else."""
    model = nn.DataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    model.load_state_dict({f"module.{name}": tensor for name, tensor in network().state_dict().items()})
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[5, 5, 8])
    return {
        "epoch": 3,
        "arch": "network",
        "best_prec1": np.float64(91.25),
        "best_acc": torch.tensor(91.25),
        "seen": {1, 2},
        "raw": b"\xff\x00",
        "shape": torch.Size([1, 2]),
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }


def tensors() -> dict[str, torch.Tensor]:
    """Every element type, and tensors that are not plain and contiguous."""
    base = torch.arange(12.0).reshape(3, 4)
    found = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in DTYPES}
    found["bool"] = torch.tensor([True, False, True])
    found["scalar"] = torch.tensor(7)
    found["empty"] = torch.zeros(0, 3)
    found["whole"] = base
    found["tied"] = base
    found["transposed"] = base.t()
    found["part"] = base[1:, ::2]
    found["parameter"] = nn.Parameter(base[2])
    return found


for kind, is_zip in BOTH.items():
    torch.save(network().state_dict(), FOLDER / f"plain_{kind}.pt", _use_new_zipfile_serialization=is_zip)
    torch.save(checkpoint(), FOLDER / f"checkpoint_{kind}.pt", _use_new_zipfile_serialization=is_zip)
    torch.save(tensors(), FOLDER / f"tensors_{kind}.pt", _use_new_zipfile_serialization=is_zip)
torch.save(checkpoint(), FOLDER / "protocol5_legacy.pt", _use_new_zipfile_serialization=False, pickle_protocol=5)
torch.save(nn.Linear(1, 1), FOLDER / "module.pt")
torch.save({name: torch.arange(6.0).reshape(2, 3).to(getattr(torch, name)) for name in LATE}, FOLDER / "late_types.pt")
torch.serialization.set_crc32_options(False)
torch.save({"x": torch.arange(3.0)}, FOLDER / "no_checksums.pt")
