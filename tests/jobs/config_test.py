"""Dotted overrides: every type of field, and every way of getting one wrong."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import pytest

from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config
from scissorhands_jax.methods import METHODS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    count: int = 3
    limit: int | None = 5
    name: str | None = None
    mode: Literal["fast", "slow"] = "fast"
    on: bool = False
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    title: str = "a"
    inner: Inner = dataclasses.field(default_factory=Inner)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("inner.rate=2", "rate", 2.0),
        ("inner.rate=1e-3", "rate", 1e-3),
        ("inner.count=-7", "count", -7),
        ("inner.limit=9", "limit", 9),
        ("inner.limit=none", "limit", None),
        ("inner.limit=NULL", "limit", None),
        ("inner.name=layer3|fc", "name", "layer3|fc"),
        ("inner.name=none", "name", None),
        ("inner.name=", "name", ""),
        ("inner.name=a=b", "name", "a=b"),
        ("inner.mode=slow", "mode", "slow"),
        ("inner.on=True", "on", True),
        ("inner.on=yes", "on", True),
        ("inner.on=0", "on", False),
        ("inner.extra.margin=.5", "extra", {"margin": 0.5}),
        ("inner.extra.margin=0.5", "extra", {"margin": 0.5}),
        ("inner.extra.count=3", "extra", {"count": 3}),
        ("inner.extra.on=True", "extra", {"on": True}),
        ("inner.extra.limit=None", "extra", {"limit": None}),
        ("inner.extra.name=layer3|fc", "extra", {"name": "layer3|fc"}),
        ("inner.extra.widths=4,8,8", "extra", {"widths": [4, 8, 8]}),
        ("inner.extra.on=true,FALSE", "extra", {"on": [True, False]}),
        ("inner.extra.name=a,3", "extra", {"name": "a,3"}),
    ],
)
def test_values_are_read_by_the_type_of_their_field(text, field, value):
    changed = getattr(config.override(Outer(), [text]).inner, field)
    assert changed == value
    assert type(changed) is type(value)


def test_changes_apply_in_order_to_a_copy():
    original = Outer()
    changes = ["title=b", "inner.count=1", "inner.extra.a=1", "inner.count=2", "inner.extra.b=2"]
    changed = config.override(original, changes)
    assert changed == Outer(title="b", inner=Inner(count=2, extra={"a": 1, "b": 2}))
    assert original == Outer()
    assert config.override(original, []) is original


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title", "cannot read the setting 'title'; write name=value"),
        ("=3", "cannot read the setting '=3'"),
        ("inner.rate=fast", "inner.rate must be float, got 'fast'"),
        ("inner.count=1.5", "inner.count must be int, got '1.5'"),
        ("inner.count=none", "inner.count must be int, got 'none'"),
        ("inner.limit=many", "inner.limit must be int or none, got 'many'"),
        ("inner.mode=medium", "inner.mode is 'medium'; choose one of fast, slow"),
        ("inner.on=maybe", "inner.on must be bool, got 'maybe'"),
        ("inner.rat=1", "there is no setting 'inner.rat'; near matches: inner.rate"),
        ("iner.rate=1", "there is no setting 'iner.rate'; near matches: inner.rate"),
        ("rate=1", "there is no setting 'rate'; near matches: inner.rate"),
        (
            "zzz=1",
            "choose one of title, inner.rate, inner.count, inner.limit, .*, inner.extra; --help-settings explains",
        ),
        ("title.x=1", "there is no setting 'title.x'"),
        ("inner.=1", "there is no setting 'inner.'"),
        ("inner.extra.a.b=1", "there is no setting 'inner.extra.a.b'; near matches: inner.extra.a"),
        ("inner.rate=inf", "inner.rate must be a finite number, got inf"),
        ("inner.extra.rates=1,nan", r"inner.extra.rates.1 must be a finite number, got nan"),
        ("inner=3", "inner holds several settings; write inner.NAME=value"),
        ("inner.extra=3", "inner.extra holds several settings; write inner.extra.NAME=value"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_would_do(text, message):
    with pytest.raises(InputError, match=message):
        config.override(Outer(), [text])


def test_an_infinite_ceiling_is_none():
    changed = config.override(METHODS["scissorhands"](), ["ceiling=inf"])
    assert changed == METHODS["scissorhands"](ceiling="off") == METHODS["scissorhands"](ceiling=math.inf)
    assert changed.changed(mode="authors") == METHODS["scissorhands"](mode="authors")


def test_where_numbers_and_names_are_taken_the_names_are_listed():
    with pytest.raises(InputError, match="ceiling must be float or uniform, held-out, off, got 'held_out'"):
        config.override(METHODS["scissorhands"](), ["ceiling=held_out"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described:
    steps: tuple[int, ...] = (1, 2)
    """The steps,
    of which there are some."""
    inner: Inner = dataclasses.field(default_factory=lambda: Inner(on=True, extra={"a": None}))
    """Settings of their own."""


def test_settings_are_described_with_values_that_can_be_written():
    described = config.describe_settings(Described(), "x.")
    assert described["x.steps"] == ("1,2", "The steps, of which there are some.")
    assert {name: value for name, (value, _) in described.items() if name != "x.steps"} == {
        "x.inner.rate": "0.1",
        "x.inner.count": "3",
        "x.inner.limit": "5",
        "x.inner.name": "none",
        "x.inner.mode": "fast",
        "x.inner.on": "true",
        "x.inner.extra": "a=none",
    }


def test_a_path_is_read_as_one():
    assert config.parse_value("a/b", Path, "--out") == Path("a/b")


def test_all_names_are_listed():
    assert config.setting_names(Outer()) == ["title"] + [f"inner.{field.name}" for field in dataclasses.fields(Inner)]


@pytest.mark.parametrize("name", list(METHODS))
def test_every_setting_of_every_method_takes_its_own_value_as_text(name):
    run = config.RunConfig(model="mlp", dataset="digits", forget="class:1", method_name=name, method=METHODS[name]())
    names = config.setting_names(run)
    assert {"seed", "retain_limit", "method.epochs", "method.batch_size"} <= set(names)
    values = {}
    for setting in names:
        values[setting] = run
        for part in setting.split("."):
            values[setting] = getattr(values[setting], part)
    values = {
        setting: ",".join(map(str, value)) or "none" if isinstance(value, tuple) else value
        for setting, value in values.items()
        if not isinstance(value, dict)
    }
    changes = [f"{setting}={value}" for setting, value in values.items()]
    assert config.override(run, changes) == run


def test_a_run_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.RunConfig(model="mlp", dataset="digits", forget="class:1").seed = 1
