"""Layouts are told apart by the names in a file, and have the numbers of the data sets of their authors."""

import pytest

from scissorhands_jax.models.layouts import LAYOUTS, find_layout

NAMES = {
    ("authors", "resnet18"): ["normalize.mean", "layer2.0.downsample.0.weight", "fc.weight"],
    ("akamaster", "resnet20"): ["layer1.0.conv1.weight", "linear.weight"],
    ("torchvision", "resnet18"): ["layer2.0.downsample.0.weight", "fc.weight"],
    ("chenyaofo", "resnet20"): ["layer2.0.downsample.0.weight", "fc.weight"],
    ("kuangliu", "resnet18"): ["layer2.0.shortcut.0.weight", "linear.weight"],
    ("kuangliu", "vgg16_bn"): ["features.0.weight", "classifier.weight"],
}


@pytest.mark.parametrize(("key", "names"), NAMES.items(), ids=["-".join(key) for key in NAMES])
def test_the_first_layout_that_fits_is_that_of_the_author(key, names):
    name, model = key
    assert next(layout.name for layout in LAYOUTS if layout.fits(model, names)) == name
    assert not find_layout(name, model).fits("mlp", names)
    for part in find_layout(name, model).parts:
        assert not find_layout(name, model).fits(model, [text for text in names if part not in text.split(".")]), part
    for part in find_layout(name, model).absent:
        assert not find_layout(name, model).fits(model, [*names, f"x.{part}.weight"]), part


@pytest.mark.parametrize(
    ("classes", "mean", "std"),
    [
        (10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        (100, (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
        (7, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ],
)
def test_networks_of_cifar_have_its_numbers(classes, mean, std):
    for name, model in (("chenyaofo", "resnet20"), ("kuangliu", "resnet18"), ("kuangliu", "vgg16_bn")):
        options = find_layout(name, model).options(classes)
        assert (options["normalize"], options["mean"], options["std"]) == ("fixed", mean, std)
