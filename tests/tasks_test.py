"""Tasks: closed forms, what padding changes (nothing), and that classification is measured as it always was."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, models, saliency
from scissorhands_jax.base import Data, Model
from scissorhands_jax.data import split
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import scenarios as scenarios_lib
from scissorhands_jax.jobs.experiment import Experiment, LoadedExperiment, OwnNetwork, Scenario
from scissorhands_jax.methods import METHODS
from scissorhands_jax.methods.influence import removal_gradients
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.methods.settings import of_task
from scissorhands_jax.metrics import accuracies, answers, attacks
from scissorhands_jax.metrics.row import measure_row
from scissorhands_jax.report import table_gates
from scissorhands_jax.tasks import (
    CLASSIFICATION,
    Metric,
    Task,
    classification,
    masked,
    multi_label,
    regression,
    task_loss,
    task_of,
    with_task,
)
from scissorhands_jax.training.loop import run
from tests import tiny

DRAW = np.random.default_rng(0)
TEN_LINES = {"retain": 12, "forget": 5, "test": 9}


def linear(outputs):
    """A network that is one matrix, whose answers can be computed by hand."""
    weights = DRAW.normal(size=(3, outputs)).astype(np.float32)
    return Model(lambda key: (weights, ()), lambda params, state, x, *, train, key=None: (x @ params, state)), weights


def examples(count, label):
    return {"features": DRAW.normal(size=(count, 3)).astype(np.float32), "label": label(count)}


def sets(label):
    found = {name: examples(count, label) for name, count in TEN_LINES.items()}
    return found, Data(found["forget"], found["retain"]), found["test"]


class TestClosedForms:
    def test_the_row_of_a_regression(self):
        model, weights = linear(2)
        found, data, test = sets(lambda count: DRAW.normal(size=(count, 2)).astype(np.float32))
        row = measure_row(model, weights, (), data, test, task=regression(4.0), every_attack=True)
        for name, part in found.items():
            errors = (part["features"].astype(np.float64) @ weights - part["label"]) / 4
            assert row[f"rmse_{name}"] == pytest.approx(100 * np.sqrt(np.mean(errors**2)), rel=1e-5)
            assert row[f"mae_{name}"] == pytest.approx(100 * np.mean(np.abs(errors)), rel=1e-5)
            squares = 1e4 * np.mean(errors**2, axis=1)
            error = squares.std(ddof=1) / math.sqrt(len(squares)) / (2 * row[f"rmse_{name}"])
            assert row[f"rmse_{name}_error"] == pytest.approx(error, rel=1e-4)
            assert row[f"num_{name}"] == TEN_LINES[name]
        assert all(0 <= row[name] <= 100 for name in ("mia", "mia_loss"))
        assert row["task"]["metrics"][0] == {"name": "rmse", "title": "RMSE", "better": "lower", "unit": "%"}
        loss, _ = task_loss(model, regression(4.0))(weights, (), test, train=True, key=None)
        assert float(loss) == pytest.approx((row["rmse_test"] / 100) ** 2, rel=1e-5)

    def test_targets_and_outputs_of_one_size_are_not_broadcast(self):
        model, weights = linear(1)  # gives shape (N, 1) for targets of shape (N,)
        part = examples(7, lambda count: DRAW.normal(size=count).astype(np.float32))
        loss, _ = task_loss(model, regression())(weights, (), part, train=True, key=None)
        assert float(loss) == pytest.approx(float(np.mean((part["features"] @ weights[:, 0] - part["label"]) ** 2)))
        with pytest.raises(InputError, match=r"shape \(7, 2\) for targets of shape \(7,\)"):
            task_loss(linear(2)[0], regression())(linear(2)[1], (), part, train=True, key=None)

    def test_several_labels(self):
        logits = np.array([[2.0, -1.0, 0.5], [-3.0, 1.0, 2.0]], np.float32)
        part = {"label": np.array([[1, 0, 1], [1, 0, 1]])}
        right = np.array([[1, 1, 1], [0, 0, 1]])
        labels, exact = (answers.metric_value(multi_label(), one, logits, part).value for one in multi_label().metrics)
        assert (labels, exact) == (pytest.approx(100 * right.mean()), 50.0)
        each = -np.log(np.where(part["label"], 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits))))
        np.testing.assert_allclose(answers.example_losses(multi_label(), logits, part), each.mean(axis=1), rtol=1e-5)

    def test_a_loss_of_ones_own(self):
        counts = Task(
            name="counts",
            loss=lambda outputs, batch: jnp.exp(outputs[:, 0]) - batch["label"] * outputs[:, 0],
            predictions=lambda outputs: np.exp(outputs[:, 0]),
            metrics=(
                Metric("error", "Error", lambda mean, batch: abs(mean - batch["label"]), better="lower", unit="1"),
            ),
        )
        model, weights = linear(1)
        _, data, test = sets(lambda count: DRAW.poisson(2, count))
        row = measure_row(model, weights, (), data, test, task=counts)
        mean = np.exp(test["features"] @ weights[:, 0])
        assert row["error_test"] == pytest.approx(np.abs(mean - test["label"]).mean(), rel=1e-5)


class TestMasked:
    STEPS = 6
    LENGTHS = np.array([6, 1, 3])
    MASK = np.arange(STEPS) < LENGTHS[:, None]

    @pytest.fixture(params=["regression", "classification"])
    def case(self, request):
        """A task of steps, outputs and targets for three sequences, and a function that spoils what is padding."""
        generator = np.random.default_rng(1)
        shape = (3, self.STEPS)
        if request.param == "regression":
            task, outputs = regression(2.0), generator.normal(size=shape).astype(np.float32)
            target, bad = generator.normal(size=shape).astype(np.float32), np.float32("nan")
        else:
            task, outputs = classification(), generator.normal(size=(*shape, 4)).astype(np.float32)
            target, bad = generator.integers(0, 4, shape), -1
        spoiled = np.where(self.MASK, target, bad)
        keep = self.MASK.reshape(*shape, *[1] * (outputs.ndim - 2))
        return task, outputs, target, np.where(keep, outputs, np.float32("nan")), spoiled

    def test_padding_changes_neither_loss_nor_gradient_nor_metrics(self, case):
        task, outputs, target, bad_outputs, bad_target = case
        whole = masked(task)

        def mean(outputs, label):
            return jnp.mean(whole.loss(outputs, {"label": label, "mask": self.MASK}))

        clean, spoiled = (
            jax.value_and_grad(mean)(jnp.asarray(o), jnp.asarray(t))
            for o, t in ((outputs, target), (bad_outputs, bad_target))
        )
        np.testing.assert_array_equal(clean[0], spoiled[0])
        np.testing.assert_array_equal(clean[1], spoiled[1])
        moved = np.asarray(clean[1]).reshape(*self.MASK.shape, -1).any(axis=2)
        np.testing.assert_array_equal(moved, self.MASK)
        for metric in whole.metrics:
            values = [
                answers.metric_value(whole, metric, o, {"label": t, "mask": self.MASK})
                for o, t in ((outputs, target), (bad_outputs, bad_target))
            ]
            assert values[0] == values[1]

    def test_every_sequence_counts_once_with_the_mean_of_its_real_steps(self, case):
        task, outputs, target, *_ = case
        whole = masked(task)
        part = {"label": target, "mask": self.MASK}
        found = answers.example_losses(whole, outputs, part)
        own = [
            np.asarray(task.loss(jnp.asarray(outputs[i, :n]), {"label": target[i, :n]})).mean()
            for i, n in enumerate(self.LENGTHS)
        ]
        np.testing.assert_allclose(found, own, rtol=1e-5)
        if task is not CLASSIFICATION:
            squares = [np.mean((outputs[i, :n] - target[i, :n]) ** 2) for i, n in enumerate(self.LENGTHS)]
            value = answers.metric_value(whole, whole.metrics[0], outputs, part).value
            assert value == pytest.approx(100 * math.sqrt(np.mean(squares)) / 2, rel=1e-5)

    def test_what_cannot_be_measured_is_said(self, case):
        task, outputs, target, *_ = case
        whole = masked(task)
        mask = self.MASK.copy()
        mask[1] = False
        with pytest.raises(InputError, match="1 sequences have no real step"):
            answers.metric_value(whole, whole.metrics[0], outputs, {"label": target, "mask": mask})
        with pytest.raises(InputError, match="have no 'mask'"):
            whole.loss(outputs, {"label": target})
        with pytest.raises(InputError, match="next to a mask of shape"):
            whole.loss(outputs, {"label": target[:, :2], "mask": self.MASK})


class TestClassificationIsAsItWas:
    def test_the_row_is_that_of_accuracies_and_the_papers_attack_to_the_bit(self):
        data, test = tiny.data(20, 30), tiny.examples(25, 3)
        row = measure_row(tiny.model(), *tiny.start(), data, test, seed=2, every_attack=True)
        pairs = {}
        for name, part in (("forget", data.forget), ("retain", data.retain), ("test", test)):
            logits = accuracies.predict(tiny.model(), *tiny.start(), part["image"], batch_size=500)
            pairs[name] = logits, part["label"]
            assert row[f"acc_{name}"] == accuracies.accuracy(*pairs[name])
            assert row[f"correct_{name}"] == accuracies.correct(*pairs[name])
        attacked = [array for name in ("retain", "test", "forget") for array in pairs[name]]
        assert row["mia"] == attacks.paper_mia(*attacked, seed=2)
        assert row["mia_loss"] == attacks.paper_mia(*attacked, seed=2, feature="loss", attack="logistic")
        assert list(row)[:5] == ["acc_forget", "acc_retain", "acc_test", "mia", "mia_correctness"]
        assert "task" not in row

    def test_its_loss_is_classification_loss(self):
        assert task_loss(tiny.model(), CLASSIFICATION) == losses.classification_loss(tiny.model())

    def test_what_the_network_takes_may_have_any_name(self):
        batch = tiny.examples(4)
        whole, _ = tiny.loss()(*tiny.start(), batch, train=False, key=None)
        other = {"pixels": batch["image"], "label": batch["label"]}
        assert tiny.loss()(*tiny.start(), other, train=False, key=None)[0] == whole
        assert losses.inputs_of({**other, "mask": 1}) == {"pixels": other["pixels"], "mask": 1}
        assert losses.inputs_of({**batch, "mask": 1}) is batch["image"]
        with pytest.raises(InputError, match="the network takes pixels, mask, and this method changes one array"):
            losses.images_of({**other, "mask": 1})

    @pytest.mark.parametrize("name", ["scrub", "bad_teacher"])
    def test_methods_that_read_logits_take_any_name_too(self, name):
        method, data = tiny.method(name, augment=False), tiny.data()
        renamed = Data(*({"pixels": part["image"], "label": part["label"]} for part in data))
        results = []
        for one in (data, renamed):
            carry = method.init(jax.random.key(0), *tiny.start(), one)
            batch = next(iter(method.batches(jax.random.key(1), one, 0)))
            taken = [
                None if p is None else jax.tree.map(lambda a, p=p: a[p], part)
                for part, p in zip(one, batch, strict=True)
            ]
            results.append(jax.jit(method.step)(carry, type(batch)(*taken))[0].params)
        jax.tree.map(np.testing.assert_array_equal, *results)


class TestAttacks:
    """A known truth: the losses of members are small, those of others are not."""

    @staticmethod
    def losses_of(generator, count, *, memorised):
        return generator.exponential(0.02 if memorised else 1.0, count)

    @pytest.mark.parametrize("memorised", [True, False])
    def test_they_separate_what_was_memorised_from_what_was_not(self, memorised):
        generator = np.random.default_rng(3)
        retain, test = (self.losses_of(generator, 400, memorised=kind) for kind in (True, False))
        forget = self.losses_of(generator, 200, memorised=memorised)
        for attack in ("svc", "logistic"):
            mia = attacks.loss_mia(retain, test, forget, seed=0, attack=attack)
            assert mia < 10 if memorised else mia > 90
        groups = [np.zeros(len(one), int) for one in (forget, test)]
        ranks = table_gates.held_out_ranks(-forget, groups[0], -test, groups[1])
        assert (ranks["held_out_auc"] > ranks["held_out_high"]) is memorised
        assert ranks["held_out_low"] <= ranks["held_out_auc"]

    def test_only_the_order_of_losses_counts(self):
        generator = np.random.default_rng(4)
        sets = [generator.normal(size=count) for count in (50, 60, 30)]
        found = [attacks.loss_mia(*map(change, sets), seed=1) for change in (np.asarray, np.exp, lambda x: 1e6 * x - 3)]
        assert found[0] == found[1] == found[2]


class TestClassifiersOfTheirOwn:
    """Tasks with classes whose examples, inputs or weights are not those of `classification()`."""

    OWN = dataclasses.replace(
        CLASSIFICATION,
        name="own",
        loss=lambda logits, examples: losses.cross_entropies(logits, examples["kind"]),
        metrics=(Metric("acc", "Acc", lambda found, examples: 100.0 * (found == np.asarray(examples["kind"]))),),
        labels=lambda examples: examples["kind"],
        inputs=lambda examples: examples["image"] / 2,
        weights=lambda examples: examples["weight"],
    )
    RELABEL = ("random_label", "salun", "munba", "boundary_shrink")
    READ = ("delete", "amun", "sfron", "boundary_expand")

    def examples(self, count, usual):
        """Examples for the own task, or the same ones for classification."""
        generator = np.random.default_rng(count)
        images, kinds = generator.random((count, 2, 2, 1), np.float32), generator.integers(0, 3, count)
        if usual:
            return {"image": images / 2, "label": kinds}
        return {"image": images, "kind": kinds, "label": kinds * 0, "weight": np.full(count, 5.0, np.float16)}

    def method(self, name, task, **changes):
        quick = {"epochs": 1, "batch_size": 4, "learning_rate": 0.1, **changes}
        model = models.build("mlp", num_classes=3, image_shape=(2, 2, 1), hidden=(4,))
        return model, METHODS[name](**quick).build(model, task_loss(model, task), 3)

    def run(self, name, task, data):
        model, method = self.method(name, task)
        return jax.tree.leaves(run(method, jax.random.key(1), *model.init(jax.random.key(0)), data, num_epochs=1)[:2])

    @pytest.mark.parametrize("name", READ)
    def test_methods_that_read_classes_read_those_of_the_task(self, name):
        usual, own = (Data(*(self.examples(count, kind) for count in (4, 8))) for kind in (True, False))
        for one, other in zip(self.run(name, CLASSIFICATION, usual), self.run(name, self.OWN, own), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)

    @pytest.mark.parametrize("name", READ)
    def test_methods_that_read_classes_weigh_examples(self, name):
        """An example without weight might as well have another class, or other pixels."""
        data = Data(*(self.examples(count, usual=False) for count in (4, 8)))
        found = []
        for image in (0.5, 0.9):
            forget = {key: np.array(part) for key, part in data.forget.items()}
            forget["image"][0], forget["weight"][0] = image, 0
            model, method = self.method(name, self.OWN, **({"threshold": None} if name == "sfron" else {}))
            steps = []
            run(
                *(method, jax.random.key(1), *model.init(jax.random.key(0)), Data(forget, data.retain)),
                num_epochs=1,
                on_step=steps.append,
            )
            found.append(steps[0].metrics)
        assert {key: value.tolist() for key, value in found[0].items()} == pytest.approx(
            {key: value.tolist() for key, value in found[1].items()}, rel=1e-5
        )

    @pytest.mark.parametrize("name", RELABEL)
    def test_labels_that_the_task_does_not_read_are_not_replaced_in_vain(self, name):
        assert METHODS[name]().relabels
        data = Data(*(self.examples(count, usual=False) for count in (4, 8)))
        with pytest.raises(InputError, match=r"'label', where the task 'own' does not find its classes; keep what"):
            self.run(name, self.OWN, data)

    def test_a_table_refuses_them_before_it_begins(self):
        model, _ = self.method("finetune", self.OWN)
        train, task = self.examples(8, usual=False), self.OWN

        def loaded(task, method, **changes):
            own = OwnNetwork(model=model, train={**train, **changes}, test=train, task=task)
            scenario = Scenario(name="a", forget=("indices:0",), methods={method: METHODS[method]()})
            return LoadedExperiment(
                Experiment(
                    **{name: "own" for name in ("name", "dataset", "model")},
                    training=RetrainSettings(epochs=1, batch_size=4),
                    scenarios=(scenario,),
                ),
                None,
                own,
            )

        loaded(task, "delete")
        with pytest.raises(InputError, match="or do without SalunSettings"):
            loaded(task, "salun")
        for wrong in (-1.0, math.nan, 0.0):
            with pytest.raises(InputError, match=r"the task 'own' gives .* examples of the training set .*weight"):
                loaded(task, "delete", weight=np.full(8, wrong))
        with pytest.raises(InputError, match=r"wrong targets would be put into 'label'"):
            scenarios_lib._with_wrong_targets(loaded(task, "delete"), 0.5, 0)

    def test_wrong_targets_and_the_ceiling_of_a_classifier_may_be_its_own(self):
        task = dataclasses.replace(
            CLASSIFICATION, name="ordered", ceiling=0.25, flip=lambda targets, generator: (targets + 1) % 3
        )
        assert of_task(METHODS["scissorhands"](), task).ceiling == 0.25
        assert of_task(METHODS["scissorhands"](ceiling=1.0), task).ceiling == 1.0
        model, _ = self.method("finetune", task)
        train = self.examples(8, usual=True)
        own = OwnNetwork(model=model, train=train, test=train, task=task)
        experiment = Experiment(name="o", dataset="o", model="o", training=RetrainSettings(), scenarios=())
        wrong, chosen = scenarios_lib._with_wrong_targets(LoadedExperiment(experiment, None, own), 0.5, 0)
        assert len(chosen) == 4
        np.testing.assert_array_equal(wrong["label"][chosen], (train["label"][chosen] + 1) % 3)

    @pytest.mark.parametrize("part", ["forget", "retain"])
    @pytest.mark.parametrize(
        ("change", "message"),
        [(lambda y: np.eye(3, dtype=int)[y], "argmax"), (lambda y: y[:, None], "ravel"), (np.float32, "give integers")],
    )
    @pytest.mark.parametrize("name", [*RELABEL, *READ])
    def test_labels_of_another_form_are_refused_before_anything_is_computed(self, name, change, message, part):
        data = Data(*(self.examples(count, usual=True) for count in (4, 8)))
        examples = getattr(data, part)
        data = data._replace(**{part: {**examples, "label": change(examples["label"])}})
        model, method = self.method(name, CLASSIFICATION)
        with pytest.raises(InputError, match=f"the labels of the {part} set .*{message}"):
            method.init(jax.random.key(0), *model.init(jax.random.key(0)), data)

    def test_the_augmentation_of_a_loss_with_a_task_is_known(self):
        model, _ = self.method("finetune", CLASSIFICATION)
        for parts in (1, 2):
            loss = losses.microbatched(losses.classification_loss(model, augment=lambda key, images: images), parts)
            held = with_task(loss, self.OWN)
            assert losses.augmentation_of(held) is losses.augmentation_of(loss) is not None
            assert losses.altered(held, label_smoothing=0.1) == with_task(
                losses.altered(loss, label_smoothing=0.1), self.OWN
            )
        METHODS["retrain"](recipe="fast").build(model, held, 3)


class TestWhatIsNotSupported:
    def test_methods_that_need_classes_are_refused_by_name(self):
        refused = {"random_label", "salun", "munba", "scrub", "bad_teacher", "delete", "amun", "sfron"}
        refused |= {"boundary_shrink", "boundary_expand"}
        for name, settings in METHODS.items():
            assert of_task(settings(), CLASSIFICATION) == settings()
            if name in refused:
                with pytest.raises(InputError, match="take a method that needs only a loss"):
                    of_task(settings(), regression())
            else:
                of_task(settings(), regression())
        assert of_task(METHODS["munba"](forget_loss="ascent"), regression()).forget_loss == "ascent"

    def test_the_uniform_ceiling_is_the_tasks_own(self):
        settings = METHODS["scissorhands"]()
        assert of_task(settings, multi_label()).ceiling == math.log(2)
        assert of_task(settings, masked(regression())).ceiling == 1.0
        with pytest.raises(InputError, match="give the ceiling of Scissorhands as a number"):
            of_task(settings, masked(CLASSIFICATION))

    @pytest.mark.parametrize("name", ["Acc", "acc", "mia", "num", "two words", ""])
    def test_names_of_metrics_fit_into_rows(self, name):
        with pytest.raises(InputError, match="give each a name of its own"):
            Task(name="own", loss=optax.l2_loss, metrics=(Metric(name, "", lambda *pair: pair[0]),))

    @pytest.mark.parametrize("changes", [{"summary": "median"}, {"better": "Higher"}])
    def test_words_of_metrics_are_checked(self, changes):
        with pytest.raises(
            InputError, match=f"{next(iter(changes))} of the metric err is '{next(iter(changes.values()))}'"
        ):
            Task(name="own", loss=optax.l2_loss, metrics=(Metric("err", "", lambda *pair: pair[0], **changes),))

    @pytest.mark.parametrize("targets", [[3.0], [1.0, 2.0, 3.0], [5.0, 5.0], [1, 2, 3], [[0.0, 1.0], [2.0, 1.0]]])
    def test_every_wrong_target_of_a_regression_is_wrong(self, targets):
        right = np.array(targets)
        wrong = regression(0.5).flip(right, np.random.default_rng(0))
        assert wrong.shape == right.shape
        assert wrong.dtype == right.dtype
        assert (wrong != right).all()

    def test_losses_in_half_precision_are_those_of_the_numbers_as_they_are(self):
        outputs, targets = jnp.array([1000.0], jnp.bfloat16), {"label": np.array([1003])}
        assert float(regression().loss(outputs, targets)[0]) == 9.0
        logits = jnp.array([[8.0, 0.0, 0.25]], jnp.bfloat16)
        each = losses.cross_entropies(logits, jnp.array([0]))
        assert each.dtype == jnp.float32
        np.testing.assert_array_equal(each, losses.cross_entropies(logits.astype(jnp.float32), jnp.array([0])))

    def test_a_loss_must_be_one_number_for_each_example(self):
        wrong = Task(name="wrong", loss=lambda outputs, batch: outputs.mean(), metrics=regression().metrics)
        model, weights = linear(1)
        part = examples(4, lambda count: np.zeros(count, np.float32))
        with pytest.raises(InputError, match=r"has shape \(\) for 4 examples"):
            task_loss(model, wrong)(weights, (), part, train=True, key=None)
        with pytest.raises(InputError, match=r"have shape \(\) for 4 examples"):
            answers.example_losses(wrong, part["features"] @ weights, part)

    def test_a_network_that_diverged_is_not_measured(self):
        outputs = np.array([1.0, np.inf], np.float32)
        with pytest.raises(InputError, match="1 of 2 losses of the task 'regression' are NaN or infinity"):
            answers.example_losses(regression(), outputs, {"label": np.zeros(2, np.float32)})


class TestWeightedLosses:
    """A task whose examples have weights, over batches and parts of batches."""

    TASK = dataclasses.replace(
        regression(),
        name="weighted",
        weights=lambda examples: examples["weight"],
        inputs=lambda examples: examples["x"],
    )
    MODEL = Model(init=lambda key: (jnp.ones(()), ()), apply=lambda w, s, x, *, train, key=None: (w * x, s))
    EXAMPLES: ClassVar = {
        "x": jnp.array([1.0, 2.0, 3.0, 4.0]),
        "label": jnp.zeros(4),
        "weight": jnp.array([1.0, 1.0, 1.0, 9.0]),
    }
    WHOLE = (1 + 4 + 9 + 9 * 16) / 12

    def test_a_batch_in_parts_is_the_whole_batch(self):
        whole = task_loss(self.MODEL, self.TASK)
        for parts in (1, 2, 4):
            loss = losses.microbatched(whole, parts)
            value, slope = jax.value_and_grad(lambda w, loss=loss: loss(w, (), self.EXAMPLES, train=True, key=None)[0])(
                1.0
            )
            assert float(value) == pytest.approx(self.WHOLE)
            assert float(slope) == pytest.approx(2 * self.WHOLE)
            assert losses.microbatches_of(loss) == parts
            assert task_of(loss) == self.TASK

    def test_a_mean_loss_does_not_depend_on_the_batches(self):
        whole = task_loss(self.MODEL, self.TASK)
        for size in (1, 2, 3, 4):
            assert losses.average_loss(whole, 1.0, (), self.EXAMPLES, batch_size=size) == pytest.approx(self.WHOLE)

    @pytest.mark.parametrize("order", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 3], [1, 2]], [[0], [1], [2], [3]]])
    def test_scores_of_weights_do_not_depend_on_the_batches(self, order):
        batches = [data_lib.take(self.EXAMPLES, np.array(positions)) for positions in order]
        for loss in (task_loss(self.MODEL, self.TASK), losses.microbatched(task_loss(self.MODEL, self.TASK), 1)):
            sums = saliency.gradient_sum(loss, jnp.ones(()), (), batches)
            assert float(sums.weight) == 12
            assert float(sums.gradient) == pytest.approx(12 * 2 * self.WHOLE)
            assert float(saliency.scores_of(sums, jnp.ones(()))) == pytest.approx(2 * self.WHOLE)

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_the_gradients_of_influence_do_not_depend_on_the_batches(self, batch_size):
        data = split(self.EXAMPLES, [3])
        loss = task_loss(self.MODEL, self.TASK)
        forget, retain = removal_gradients(loss, jnp.ones(()), (), data, batch_size=batch_size)
        assert float(forget) == pytest.approx(9 / 12 * 2 * 16)
        assert float(retain) == pytest.approx(9 / 12 * 2 * (1 + 4 + 9) / 3)

    def test_a_loss_of_ones_own_weighs_as_its_task_does(self):
        whole = task_loss(self.MODEL, self.TASK)
        own = with_task(lambda *args, train, key: whole(*args, train=train, key=key), self.TASK)
        assert losses.weight_of(own, self.EXAMPLES) == losses.weight_of(whole, self.EXAMPLES) == 12
        for size in (1, 2, 3):
            assert losses.average_loss(own, 1.0, (), self.EXAMPLES, batch_size=size) == pytest.approx(self.WHOLE)

    def test_weights_in_half_precision_can_be_added_up(self):
        whole = task_loss(self.MODEL, self.TASK)
        examples = {"x": jnp.ones(600), "label": jnp.zeros(600), "weight": jnp.full(600, 200, jnp.float16)}
        assert losses.weight_of(whole, examples) == 120_000
        assert losses.average_loss(whole, 1.0, (), examples, batch_size=600) == 1.0

    def test_examples_without_weight_have_no_gradient_to_follow(self):
        examples = {**self.EXAMPLES, "weight": jnp.zeros(4)}
        data = Data(data_lib.take(examples, slice(2)), data_lib.take(self.EXAMPLES, slice(2, None)))
        with pytest.raises(InputError, match="the weights of the examples that were scored add up to 0; give at least"):
            removal_gradients(task_loss(self.MODEL, self.TASK), jnp.ones(()), (), data, batch_size=2)

    def test_a_loss_of_ones_own_keeps_its_task(self):
        def own(params, model_state, batch, *, train, key):
            return jnp.zeros(()), model_state

        assert task_of(own) == CLASSIFICATION
        for loss in (with_task(own, self.TASK), losses.microbatched(with_task(own, self.TASK), 2)):
            assert task_of(loss) == self.TASK
        for parts in (2, 4, 1):  # The number can be changed again.
            loss = losses.microbatched(loss, parts)
            assert losses.microbatches_of(loss) == parts
            assert task_of(loss) == self.TASK
        assert with_task(own, CLASSIFICATION) is own
        assert with_task(own, self.TASK) == with_task(own, self.TASK)


def test_methods_that_compare_answers_use_the_task_of_a_network_with_a_loss_of_its_own():
    task = dataclasses.replace(masked(CLASSIFICATION), name="steps")
    generator = np.random.default_rng(0)
    examples = {
        "x": generator.normal(size=(12, 3, 2)).astype(np.float32),
        "mask": np.tile([True, True, False], (12, 1)),
        "label": generator.integers(0, 4, (12, 3)).astype(np.int32),
    }
    model = Model(
        init=lambda key: (jax.random.normal(key, (2, 4)), ()),
        apply=lambda w, s, batch, *, train, key=None: (batch["x"] @ w, s),
    )
    own = OwnNetwork(
        model=model,
        train=examples,
        test=examples,
        task=task,
        loss_fn=lambda *a, train, key: (jnp.zeros(()), ()),
        owners=np.zeros(12, int),
    )
    experiment = Experiment(
        name="own", dataset="own", model="own", training=RetrainSettings(epochs=1, batch_size=4), scenarios=()
    )
    loaded = LoadedExperiment(experiment, None, own)
    assert task_of(loaded.loss_fn) == task
    method = loaded.method(METHODS["scrub"](epochs=1, batch_size=4, forget_batch_size=4))
    network = model.init(jax.random.key(0))
    batch = Data(
        {name: part[:4] for name, part in examples.items()}, {name: part[4:] for name, part in examples.items()}
    )
    changed = Data(*({**part, "label": np.where(part["mask"], part["label"], 3)} for part in batch))
    results = [run(method, jax.random.key(1), *network, part, num_epochs=1).params for part in (batch, changed)]
    np.testing.assert_array_equal(*results)  # what stands where no step is changes nothing


def test_a_task_with_classes_is_judged_by_its_accuracy():
    (accuracy,) = CLASSIFICATION.metrics
    other = Metric("error", "Error", lambda predicted, examples: 100.0 - accuracy.values(predicted, examples), "lower")
    lower = Metric("acc", "Acc", accuracy.values, "lower")
    dataclasses.replace(CLASSIFICATION, name="both", metrics=(accuracy, other))
    for metrics in ((other,), (other, accuracy), (lower,)):
        with pytest.raises(InputError, match=r"the first metric of the task 'mine' is .*; name that first"):
            dataclasses.replace(CLASSIFICATION, name="mine", metrics=metrics)


@pytest.mark.parametrize("shapes", [((2, 2, 3), (2, 3, 2)), ((2, 6), (2, 3, 2)), ((2, 3), (3, 2))])
def test_outputs_of_another_layout_are_not_read_as_targets(shapes):
    outputs, targets = (jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape) for shape in shapes)
    with pytest.raises(InputError, match="make them equal"):
        regression().loss(outputs, {"label": targets})


@pytest.mark.parametrize("shapes", [((4, 1), (4,)), ((4,), (4, 1)), ((4, 1, 3), (4, 3)), ((4, 3), (4, 3, 1))])
def test_an_axis_of_one_may_be_missing(shapes):
    outputs, targets = (jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape) for shape in shapes)
    assert regression().loss(outputs, {"label": targets}).tolist() == [0.0] * 4


def test_one_task_has_one_value_however_it_is_written():
    assert regression() is regression(1.0) is regression(scale=1)
    assert regression(2.0) is not regression()
    assert masked(regression()) is masked(regression(1.0), "mask") is masked(step_task=regression(), mask="mask")
    assert masked(regression(), "real") is not masked(regression())


@pytest.mark.parametrize("changes", [{"weights": lambda e: e["w"]}, {"inputs": lambda e: e["x"]}])
def test_weights_and_inputs_of_steps_are_not_lost(changes):
    (name,) = changes
    with pytest.raises(InputError, match=f"the task of one step, 'mine', has {name} of its own"):
        masked(dataclasses.replace(regression(), name="mine", **changes))


def test_a_loss_with_a_task_is_known_to_be_in_parts():
    loss = losses.microbatched(lambda params, state, batch, *, train, key: (0.0, state), 4)
    assert losses.microbatches_of(with_task(loss, regression())) == 4
    assert losses.microbatches_of(with_task(losses.undivided(loss), regression())) == 1
