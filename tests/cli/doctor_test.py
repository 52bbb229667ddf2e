"""What `scissorhands doctor` prints, and what it must not print."""

import re

import jax
import pytest

from scissorhands_jax.cli import doctor
from scissorhands_jax.cli import main as cli
from scissorhands_jax.training.reproducibility import LIBRARIES


def printed(capsys, *arguments) -> dict[str, dict[str, str]]:
    """The sections that the command prints, by heading."""
    assert cli.main(["doctor", *arguments]) == 0
    sections, heading = {}, ""
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  "):
            name, _, value = line.strip().partition(": ")
            sections[heading][name] = value
        else:
            heading = line
            sections[heading] = {}
    return sections


def test_versions_devices_flags_and_data_are_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_TEST_FLAG", "--one")
    (tmp_path / "orl_faces.npz").touch()
    (tmp_path / "cifar-10-binary.tar.gz").touch()
    (tmp_path / "cifar100_own_train.npz").touch()
    found = printed(capsys, "--data-dir", str(tmp_path))
    assert {*LIBRARIES.values(), *doctor.EXTRAS, "python"} <= set(found["versions"])
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"]["backend"] == jax.default_backend()
    assert found["settings"]["XLA_TEST_FLAG"] == "--one"
    assert found["settings"]["jax_enable_x64"] == "False"
    assert found["data"] == {
        "digits": "there, with scikit-learn",
        "cifar10": "official archives, to be prepared",
        "cifar100_own": "compact files",
        "orl_faces": "one file",
        **dict.fromkeys(("svhn", "faces", "cifar100"), "not there"),
    }


def test_no_path_and_no_secret_is_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAX_API_TOKEN", "hunter2")
    people = {
        "JAX_COORDINATOR_ADDRESS": "anna-laptop.example.org:1234",
        "TPU_WORKER_HOSTNAMES": "node17,node18",
        "JAX_COMPILATION_CACHE_DIR": "cache_of_anna",
        "TPU_NAME": "tpu-of-anna",
    }
    for name, value in people.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_PLATFORM_NAME", "cpu")
    assert cli.main(["doctor", "--data-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path) not in out
    assert "hunter2" not in out
    assert not re.search("anna|node17", out)
    assert "JAX_PLATFORM_NAME: cpu" in out
    assert out.count("set, not shown") >= 2


def test_devices_that_cannot_be_had_are_a_finding(capsys, monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend\n'cuda': no device")

    monkeypatch.setattr(jax, "devices", fail)
    found = printed(capsys)
    assert found["devices"] == {"none": "Unable to initialize backend 'cuda': no device"}
    assert "--data-dir" in found["data"]["others"]


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_folder_that_is_none_is_refused(capsys, tmp_path, name):
    (tmp_path / "file").touch()
    assert cli.main(["doctor", "--data-dir", str(tmp_path / name)]) == 2
    assert "is not a folder" in capsys.readouterr().err
