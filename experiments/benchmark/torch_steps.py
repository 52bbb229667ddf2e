"""The training step and the Scissorhands repair step in eager PyTorch, with which the library's are compared.

`Steps` is plain PyTorch as its users write it, in its fastest eager form: channels last, no gradient hooks, no
collection of garbage between steps. `Published` repairs as the published code does. Networks bear the names of the
library's, so that `torch_weights.to_state_dict` fills them.
"""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, which is learned or padded with zero channels."""

    def __init__(self, inputs: int, width: int, stride: int, *, learned: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.missing = stride, width - inputs
        self.downsample = None
        if learned and (stride != 1 or width != inputs):
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.missing:
            before = self.missing // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.missing - before))
        return functional.relu(y + x, inplace=True)


class ResNet(nn.Module):
    """The library's `ResNet` with the stem for CIFAR. Images have dtype uint8 and shape (N, H, W, 3)."""

    def __init__(
        self,
        stage_sizes: Sequence[int],
        widths: Sequence[int],
        *,
        head: str,
        learned: bool,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.layout = torch.channels_last  # of the images
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        self.stages = [f"layer{index + 1}" for index in range(len(widths))]
        for index, (name, blocks, width) in enumerate(zip(self.stages, stage_sizes, widths, strict=True)):
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if index and not block else 1
                stage.append(Block(inputs, width, stride, learned=learned))
                inputs = width
            self.add_module(name, stage)
        self.head = head
        self.add_module(head, nn.Linear(inputs, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.permute(0, 3, 1, 2).float() / 255  # a view of (N, H, W, C) is channels last
        x = x.contiguous(memory_format=self.layout)
        x = (x - self.mean) / self.std
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        for name in self.stages:
            x = getattr(self, name)(x)
        return getattr(self, self.head)(x.mean((2, 3)))


class Perceptron(nn.Module):
    """The library's `MLP`, for rehearsals."""

    def __init__(self, inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        self.layers = [f"layer{index + 1}" for index in range(len(hidden))]
        for name, width, following in zip(self.layers, widths[:-1], widths[1:], strict=True):
            self.add_module(name, nn.Linear(width, following))
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float().flatten(1) / 255
        for name in self.layers:
            x = functional.relu(getattr(self, name)(x))
        return self.head(x)


def network(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Builds the counterpart of `models.build(name, num_classes=10, **options)`, as far as the benchmark needs it."""
    if name == "mlp":
        return Perceptron(int(np.prod(options["image_shape"])), options["hidden"])
    if name == "resnet20":
        constants = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        return ResNet((3, 3, 3), options.get("widths", (16, 32, 64)), head="linear", learned=False, **constants)
    constants = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
    return ResNet((2, 2, 2, 2), options.get("widths", (64, 128, 256, 512)), head="fc", learned=True, **constants)


Examples = tuple[torch.Tensor, torch.Tensor]  # images, uint8, shape (N, H, W, C), and labels


class Steps:
    """A network with its optimizer, and the two steps and the epoch that are timed."""

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        learning_rate: float,
        forget_weight: float,
        state: Mapping[str, np.ndarray] | None = None,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        """Makes the network; `state` holds its first weights under the library's names, and None draws them."""
        self.module = network(name, options)
        if state is not None:
            known = self.module.state_dict()
            given = {key: torch.from_numpy(np.array(value)) for key, value in state.items() if key in known}
            self.module.load_state_dict(given)
        self.module.to(memory_format=layout).train()
        self.module.layout = layout
        self.forget_weight = forget_weight
        self.optimizer = torch.optim.SGD(
            self.module.parameters(), learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def train(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Takes one step of SGD on the cross-entropy and returns the loss."""
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.module(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def epoch(self, retain: Examples, forget: Examples, batch_size: int) -> torch.Tensor:
        """Makes one pass over both sets in random order, with random crops and flips: joint, then retain-only steps."""
        last = torch.zeros(())
        batches = [torch.randperm(len(labels)).split(batch_size) for _, labels in (retain, forget)]
        for kept, gone in itertools.zip_longest(*batches):
            images, labels = crop_and_flip(retain[0][kept]), retain[1][kept]
            if gone is None:
                last = self.train(images, labels)
            else:
                last = self.repair((images, labels), (crop_and_flip(forget[0][gone]), forget[1][gone]))
        return last

    def repair(self, retain: Examples, forget: Examples) -> torch.Tensor:
        """Takes one joint step of Algorithm 1 (both gradients, projection, SGD) and returns the dual."""
        parameters = list(self.module.parameters())
        slopes = []
        for images, labels in (retain, forget):
            loss = functional.cross_entropy(self.module(images), labels)
            slopes.append(torch.autograd.grad(loss, parameters))
        gradient = torch._foreach_sub(slopes[0], slopes[1], alpha=self.forget_weight)
        dot = sum(torch.sum(g * f) for g, f in zip(gradient, slopes[1], strict=True))
        square = sum(torch.sum(f * f) for f in slopes[1])
        dual = torch.clamp(dot / square, min=0)
        torch._foreach_sub_(gradient, torch._foreach_mul(slopes[1], dual))
        for parameter, slope in zip(parameters, gradient, strict=True):
            parameter.grad = slope
        self.optimizer.step()
        return dual


class Published(Steps):
    """The repair as the published code runs it, written from a description of what that code does.

    PyTorch's default layout, one backward pass of the difference of both losses, a constraint that a copy of the
    network in evaluation mode gives once an epoch, a projection of the upper layers in float64, numbers read back after
    every step, and garbage collected after every step.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, layout=torch.contiguous_format)
        self.held: torch.Tensor | None = None  # of the projected layers, shape=(n,), the gradient of minus the loss

    def epoch(self, retain: Examples, forget: Examples, batch_size: int) -> torch.Tensor:
        """Makes the same pass over both sets as the published code does.

        Objects that exist before the pass are exempt from garbage collection, so that those of JAX cost it nothing.
        """
        gc.freeze()
        try:
            first = torch.randperm(len(forget[1]))[:batch_size]
            self.held = self.constraint(crop_and_flip(forget[0][first]), forget[1][first])
            return super().epoch(retain, forget, batch_size)
        finally:
            gc.unfreeze()

    def constraint(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the gradient of minus the forget loss in evaluation mode, of shape (n,)."""
        network = copy.deepcopy(self.module).eval()
        network.zero_grad()
        (-functional.cross_entropy(network(images), labels)).backward()
        return torch.cat([parameter.grad.flatten() for parameter in upper(network)])

    def train(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = super().train(images, labels)
        loss.item()
        gc.collect()
        return loss

    def repair(self, retain: Examples, forget: Examples) -> torch.Tensor:
        """Takes one joint step and returns the dual, which is 0 without a conflict and at least 1/2 with one."""
        assert self.held is not None
        self.optimizer.zero_grad()
        retain_loss, forget_loss = (functional.cross_entropy(self.module(x), y) for x, y in (retain, forget))
        loss = retain_loss - self.forget_weight * forget_loss
        loss.backward()
        projected = upper(self.module)
        gradient = torch.cat([parameter.grad.flatten() for parameter in projected])
        dual = torch.zeros((), dtype=torch.float64)
        if torch.dot(gradient, self.held).item() < 0:
            g, memory = gradient.double(), self.held.double()
            dual = torch.clamp(-torch.dot(g, memory) / (torch.dot(memory, memory) + 1e-3), min=0.5)
            parts = (g + dual * memory).float().split([parameter.numel() for parameter in projected])
            for parameter, part in zip(projected, parts, strict=True):
                parameter.grad.copy_(part.view_as(parameter))
        self.optimizer.step()
        loss.item()
        gc.collect()
        return dual


UPPER = ("layer3", "layer4", "fc", "linear", "head")


def upper(module: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters of the layers that the published code projects, and of the like of other networks."""
    return [parameter for name, parameter in module.named_parameters() if name.split(".")[0] in UPPER]


def crop_and_flip(images: torch.Tensor, padding: int = 4) -> torch.Tensor:
    """Crops zero-padded images of shape (N, H, W, C) at random, and flips them at random."""
    count, height, width, _ = images.shape
    padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
    offsets = torch.randint(0, 2 * padding + 1, (count, 2)).tolist()
    crops = torch.stack(
        [image[top : top + height, left : left + width] for image, (top, left) in zip(padded, offsets, strict=True)]
    )
    return torch.where((torch.rand(count) < 0.5)[:, None, None, None], crops.flip(2), crops)


def tensors(batch: Mapping[str, Any]) -> Examples:
    """Converts a batch of the library to tensors of PyTorch."""
    images, labels = np.array(batch["image"]), np.array(batch["label"])
    return torch.from_numpy(images), torch.from_numpy(labels).long()
