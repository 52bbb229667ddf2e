"""Values in words: what computes the same has one description, and what computes something else has another."""

import dataclasses
import enum
import functools
import importlib
import json
import operator
import re
import site
import subprocess
import sys
import threading
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from scissorhands_jax.base import Method, Model, lift
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import classification_loss, microbatched
from scissorhands_jax.models import from_equinox, from_nnx
from scissorhands_jax.training import descriptions
from scissorhands_jax.training.descriptions import describe_value, named
from scissorhands_jax.training.identity import differences
from tests import tiny

SCALE = 1.0
TABLE = {"rates": [1.0, 2.0]}
settings = types.ModuleType("own_settings")
sys.modules["own_settings"] = settings
settings.factor = 1.0


def described(value) -> str:
    return json.dumps(describe_value(value, "value"))


def using_a_global(params, batch):
    return SCALE * jnp.sum(params * batch)


def using_a_table(params, batch):
    return jnp.sum(params * batch) * sum(TABLE["rates"])


def using_a_module(params, batch):
    return settings.factor * jnp.sum(params * batch)


def helped(x):
    return x + 1


def using_a_helper(params, batch):
    return helped(params)


def nested(params, batch):
    def inner():
        return SCALE * params

    return inner()


@pytest.mark.parametrize(
    ("function", "owner", "name", "value"),
    [
        (using_a_global, sys.modules[__name__], "SCALE", 2.0),
        (nested, sys.modules[__name__], "SCALE", 2.0),
        (using_a_table, TABLE, "rates", [1.0, 3.0]),
        (using_a_module, settings, "factor", 2.0),
        (using_a_helper, sys.modules[__name__], "helped", lambda x: x + 2),
        (using_a_helper, sys.modules[__name__], "helped", jnp.abs),
        (using_a_global, using_a_global, "__defaults__", (3,)),
    ],
)
def test_what_a_function_refers_to_counts(function, owner, name, value, monkeypatch):
    before = described(function)
    assert described(function) == before
    if isinstance(owner, dict):
        monkeypatch.setitem(owner, name, value)
    else:
        monkeypatch.setattr(owner, name, value)
    assert described(function) != before


def made_package(folder, monkeypatch, where, loss, name="own_pkg"):
    """Writes a package with a loss into a folder of its own, and imports a function that uses it from there."""
    for path, text in {
        "__init__": "",
        "losses": f"from {name} import parts\nimport {name}\ndef my_loss(p, b): return parts.power(p)",
        "parts": f"def power(p): return {loss}",
        "using": where,
    }.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{path}.py").write_text(text.replace("PKG", name))
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(folder))
        using = importlib.import_module(f"{name}.using").using
        described(using)  # imports what the function imports
    return using


@pytest.mark.parametrize(
    "where",
    [
        "import PKG.losses\ndef using(p, b): return PKG.losses.my_loss(p, b)",
        "def using(p, b):\n from PKG.losses import my_loss\n return my_loss(p, b)",
        "def using(p, b):\n import PKG.losses\n return PKG.losses.my_loss(p, b)",
        "def using(p, b):\n import PKG.losses as own\n return own.my_loss(p, b)",
        "def using(p, b):\n from .losses import my_loss\n return my_loss(p, b)",
        "def using(p, b):\n from . import losses\n return losses.my_loss(p, b)",
        "def using(p, b):\n def inner():\n  from . import losses\n  return losses.my_loss(p, b)\n return inner()",
        "def make():\n from . import losses\n return lambda p, b: losses.my_loss(p, b)\nusing = make()",
    ],
)
def test_what_a_function_takes_from_a_package_counts(where, tmp_path, monkeypatch):
    found = [
        described(made_package(tmp_path / str(number), monkeypatch, where, loss))
        for number, loss in enumerate(("p ** 2", "p ** 3", "p ** 2"))
    ]
    assert found[0] != found[1]
    assert found[0] == found[2]


@pytest.mark.parametrize("asked", ["getusersitepackages", "getsitepackages"])
def test_packages_in_the_folder_of_a_user_or_a_system_are_installed(asked, tmp_path, monkeypatch):
    found = str(tmp_path) if asked == "getusersitepackages" else [str(tmp_path)]
    monkeypatch.setattr(site, asked, lambda: found)
    for cached in (descriptions._folders, descriptions._origin):
        monkeypatch.setattr(descriptions, cached.__name__, functools.cache(cached.__wrapped__))
    assert descriptions._origin(str(tmp_path / "package" / "losses.py")) == "installed"
    assert descriptions._origin(str(tmp_path.parent / "losses.py")) == "own"


def importing_what_is_missing(params, batch):
    try:
        import no_such_module_of_mine  # noqa: F401
    except ImportError:
        return params
    return batch


def importing_a_library(params, batch):
    import colorsys

    import pytest

    return params, colorsys, pytest


def test_imports_of_what_is_missing_and_of_libraries_are_no_obstacle():
    assert "(missing)" in described(importing_what_is_missing)
    assert "import" not in json.dumps([*describe_value(importing_a_library, "loss")])


weight = 1.0


def closing_over_a_name_of_others(weight):
    def loss(params, batch):
        return jnp.sum(params.weight * batch - weight)

    return loss


def test_a_closed_over_value_counts_beside_a_global_of_the_same_name(monkeypatch):
    two, three = (described(closing_over_a_name_of_others(value)) for value in (2.0, 3.0))
    assert two != three
    monkeypatch.setattr(sys.modules[__name__], "weight", 5.0)
    assert described(closing_over_a_name_of_others(2.0)) != two


def closing_over(value):
    return lambda params, batch=None: params * value


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Loss:
    weight: float = 1.0

    def __call__(self, params):
        return self.weight * params


class Plain:
    power = 2

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, params):
        return self.weight * params**self.power


class Slotted:
    __slots__ = ("weight",)

    def __init__(self, weight):
        self.weight = weight


@dataclasses.dataclass
class Derived:
    """What it computes with is no field."""

    weight: dataclasses.InitVar[float]

    def __post_init__(self, weight):
        self._table = np.full(2, weight)

    @functools.cached_property
    def total(self):
        return self._table.sum()


class Wrapping:
    def __init__(self, function, weight):
        functools.update_wrapper(self, function)
        self._weight = weight


def attributed(weight):
    def loss(params, batch=None):
        return loss.weight * params

    loss.weight = weight
    return loss


PAIRS = {
    "lambdas of one line": (lambda x: x + 1, lambda x: x + 2),
    "constants of other types": (lambda x: x + 1, lambda x: x + 1.0),
    "operators": (lambda x: x + 1, lambda x: x - 1),
    "called names": (lambda x: jnp.sin(x), lambda x: jnp.cos(x)),
    "defaults": (lambda x, y=1: x + y, lambda x, y=2: x + y),
    "keyword defaults": (lambda x, *, y=1: x + y, lambda x, *, y=2: x + y),
    "numbers in closures": (closing_over(1.0), closing_over(2.0)),
    "arrays in closures": (closing_over(np.zeros(3)), closing_over(np.array([0, 0, 1.0]))),
    "arrays on devices": (closing_over(jnp.zeros(3)), closing_over(jnp.ones(3))),
    "types of arrays": (closing_over(np.zeros(2, np.float32)), closing_over(np.zeros(2, np.int32))),
    "shapes of arrays": (closing_over(np.zeros((2, 1))), closing_over(np.zeros((1, 2)))),
    "labels in another order": (closing_over(np.array([1, 0, 0, 1])), closing_over(np.array([0, 1, 1, 0]))),
    "functions in closures": (closing_over(jnp.sin), closing_over(jnp.cos)),
    "lists in closures": (closing_over([1, 2]), closing_over([1, 3])),
    "long lists": (closing_over([1] * 500), closing_over([1] * 499 + [2])),
    "sets": (closing_over({1, 2}), closing_over({1, 3})),
    "keys": (closing_over(jax.random.key(0)), closing_over(jax.random.key(1))),
    "enums": (closing_over(Colour.RED), closing_over(Colour.BLUE)),
    "partials": (functools.partial(helped, x=1), functools.partial(helped, x=2)),
    "partials by position": (functools.partial(helped, 1), functools.partial(helped, 2)),
    "compiled functions": (jax.jit(closing_over(1.0)), jax.jit(closing_over(2.0))),
    "functions that keep results": (functools.cache(closing_over(1.0)), functools.cache(closing_over(2.0))),
    "own derivatives": (jax.custom_vjp(closing_over(1.0)), jax.custom_vjp(closing_over(2.0))),
    "dataclasses": (Loss(1.0), Loss(2.0)),
    "what a dataclass makes of its arguments": (Derived(1.0), Derived(2.0)),
    "attributes of functions": (attributed(1.0), attributed(2.0)),
    "own wrappers": (Wrapping(helped, 1.0), Wrapping(helped, 2.0)),
    "functions in own wrappers": (Wrapping(helped, 1.0), Wrapping(using_a_global, 1.0)),
    "objects": (Plain(1.0), Plain(2.0)),
    "objects with slots": (Slotted(1.0), Slotted(2.0)),
    "bound methods": (Loss(1.0).__call__, Loss(2.0).__call__),
    "bound methods of builtins": ([1].count, [2].count),
    "patterns": (closing_over(re.compile("a")), closing_over(re.compile("b"))),
    "getters": (operator.itemgetter(0), operator.itemgetter(1)),
    "generators of numbers": (np.random.default_rng(0), np.random.default_rng(1)),
    "dtypes": (closing_over(jnp.float32), closing_over(jnp.bfloat16)),
    "numbers and truth": (closing_over(1), closing_over(True)),
    "numbers and text": (closing_over(1), closing_over("1")),
    "NumPy's numbers": (closing_over(np.float32(1)), closing_over(np.float64(1))),
    "optimizers": (optax.sgd(0.1), optax.sgd(0.2)),
    "schedules": (optax.sgd(optax.linear_schedule(0.1, 0, 5)), optax.sgd(optax.linear_schedule(0.1, 0, 6))),
    "kinds of optimizers": (optax.sgd(0.1), optax.adam(0.1)),
    "losses": (tiny.loss(), tiny.loss(augment=True)),
    "smoothing": (tiny.loss(), classification_loss(tiny.model(), label_smoothing=0.1)),
    "parts of batches": (tiny.loss(), microbatched(tiny.loss(), 2)),
    "lifted losses": (lift(closing_over(1.0)), lift(closing_over(2.0))),
    "networks": (tiny.model(3), tiny.model(4)),
    "methods": (tiny.method("finetune"), tiny.method("finetune", momentum=0.5)),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_what_differs_is_told_apart(kind):
    first, other = PAIRS[kind]
    assert described(first) != described(other)
    assert described(first) == described(first)


class Linen(linen.Module):
    width: int

    def __post_init__(self):
        self.doubled = 2 * self.width
        super().__post_init__()


def test_what_differs_between_equal_objects_does_not_count():
    first, other = Derived(1.0), Derived(1.0)
    assert first.total == 2.0
    assert described(first) == described(other)
    assert described(Linen(3)) == described(Linen(3)) != described(Linen(4))


def test_what_an_object_holds_beside_its_fields_counts_unless_it_says_what_it_is():
    first, other = Loss(1.0), Loss(1.0)
    object.__setattr__(other, "remembered", {1: 2.0})
    assert described(first) != described(other)
    object.__setattr__(other, "remembered", threading.Lock())
    with pytest.raises(
        InputError, match=r"remembered is a _thread\.lock, .*; leave it out of the function or object, or"
    ):
        described(other)
    assert described(named("loss", first)) == described(named("loss", other))
    for loss in (first, other):
        object.__setattr__(loss, "__identity__", "the loss")
    assert described(first) == described(other)


@pytest.mark.parametrize("members", [{"power": 3}, {"__call__": lambda self, params: params}, {"extra": 1}])
def test_the_code_of_a_class_counts(members, monkeypatch):
    before = described(Plain(1.0))
    for name, value in members.items():
        monkeypatch.setattr(Plain, name, value, raising=False)
    assert described(Plain(1.0)) != before


class Flax(nnx.Module):
    def __init__(self, width, rngs):
        self.linear = nnx.Linear(2, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return jax.nn.relu(self.dropout(self.linear(x)))


class Equinox(eqx.Module):
    linear: eqx.nn.Linear
    act: object = eqx.field(static=True)

    def __init__(self, width, key):
        self.linear = eqx.nn.Linear(2, width, key=key)
        self.act = jax.nn.relu

    def __call__(self, x):
        return self.act(self.linear(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda width: from_nnx(lambda rngs: Flax(width, rngs)),
        lambda width: from_equinox(lambda key: Equinox(width, key)),
    ],
)
def test_networks_of_any_framework(build):
    assert described(build(3)) == described(build(3))
    assert described(build(3)) != described(build(4))


def test_it_is_the_same_in_another_process():
    """Hashes of text, addresses and the order of sets differ there."""
    code = "import json; from tests.training import descriptions_test as here; print(json.dumps(here.all_of_them()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here, there = json.loads(json.dumps(all_of_them())), json.loads(done.stdout.splitlines()[-1])
    assert list(differences(here, there)) == []


def all_of_them():
    values = {name: pair for name, pair in PAIRS.items() if name != "own derivatives"}
    return describe_value({"pairs": values, "set": {"a", "b", "c"}, "helper": using_a_helper}, "values")


def test_names_and_places_in_files_do_not_count():
    spaces: list[dict] = [{}, {}]
    for space, text in zip(spaces, ("def f(x): return x + 1", "\n\n# more\ndef f(x):\n    return x + 1"), strict=True):
        exec(text, space)
    assert described(spaces[0]["f"]) == described(spaces[1]["f"])


def recursive(n):
    return n * recursive(n - 1) if n else 1


def test_what_refers_to_itself_has_an_end():
    loop = []
    loop.append(loop)
    assert "(itself)" in described(loop)
    assert "(itself)" in described(recursive)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (threading.Lock(), "a _thread.lock"),
        ((number for number in range(3)), "a builtins.generator"),
        (sys.stderr, "a .*"),
        ([settings], "the module own_settings"),
        (functools.reduce(lambda inside, _: [inside], range(300), 1), "something that is nested too deeply"),
    ],
)
def test_what_has_no_description_is_refused_with_its_place(value, what):
    message = rf"^loss\.value.* is {what}, of which two cannot be told apart; .* with sh\.named$"
    with pytest.raises(InputError, match=message):
        describe_value(closing_over(value), "loss")


def test_an_array_that_is_traced_is_refused():
    with pytest.raises(InputError, match="an array that is being traced"):
        jax.jit(lambda x: described(closing_over(x)))(1.0)


class TestNamed:
    def test_a_name_stands_for_the_function(self):
        first, same, other = named("a", closing_over(1.0)), named("a", closing_over(2.0)), named("b", closing_over(1.0))
        assert described(first) == described(same)
        assert described(first) != described(other)
        assert first(3) == 3.0
        assert jax.jit(lambda f, x: f(x), static_argnums=0)(first, 2.0) == 2.0
        assert described(lift(named("lock", lambda p: threading.Lock()))) == described(lift(named("lock", helped)))

    def test_functions_that_belong_together(self):
        method = named("mine", tiny.method("finetune"))
        assert isinstance(method, Method)
        assert "named mine.step" in described(method)
        assert isinstance(named("net", tiny.model()), Model)

    @pytest.mark.parametrize(("name", "value"), [("", helped), ("a", 3)])
    def test_what_cannot_be_named_is_refused(self, name, value):
        with pytest.raises(InputError, match=r"must not be empty|only a function can be given a name"):
            named(name, value)
