"""Losses of features and several networks, and metrics on anything that the step computes."""

import contextlib
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from keras.optimizers import SGD, Adam
from PIL import Image

from customstep import Objective, StepModel, Update
from tests.descriptors import Perceptual, equal, perceptual, state
from tests.test_examples import load

RNG = np.random.default_rng(5)
X = RNG.normal(size=(23, 6)).astype("float32")  # batches of 8: the last has 7
Y = RNG.integers(0, 2, 23).astype("int32")
WEIGHTS = RNG.uniform(0.5, 2, 23).astype("float32")
X2, Y2, WEIGHTS2 = X[:13] ** 2, 1 - Y[:13], WEIGHTS[:13]  # to validate with


def compiled(model, optimizer=None, **arguments):
    model.compile(optimizer or SGD(0.0), **arguments)
    return model


def fit(model, **arguments):
    """Two epochs in the stored order; returns the history."""
    defaults = dict(x=X, y=Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model.fit(**{**defaults, **arguments}).history


def over_the_whole_set(model, x, y, weights):
    """All that the model logs, from its weights, in numpy alone."""
    kernel, bias = model.network.get_weights()
    first, shift, gamma, beta, mean, variance, last, offset = model.features.get_weights()

    def features(x):
        normalized = (np.tanh(x @ first + shift) - mean) / np.sqrt(variance + 1e-3)
        return (normalized * gamma + beta) @ last + offset

    restored = x @ kernel + bias
    found, wanted = features(restored), features(x)
    errors, distances = ((restored - x) ** 2).mean(1), ((found - wanted) ** 2).mean(1)
    scores = np.round(4 / (1 + np.exp(-found[:, 0]))) / 4
    positive, negative = y == 1, y == 0
    wins = np.sign(scores[positive, None] - scores[negative]) / 2 + 0.5  # a tie is half a win
    pairs = weights[positive, None] * weights[negative]
    logs = {
        "error": np.mean(weights * errors),
        "perceptual": np.mean(weights * distances),
        "shift": np.mean(found - wanted),
        "seen": len(x),
        "decibel": -10 * np.log10(np.average(distances, weights=weights)),
        "area": np.average(wins, weights=pairs),
    }
    return {**logs, "loss": logs["error"] + logs["perceptual"]}


# Metrics on anything


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"weighted": False},
        {"run_eagerly": True},
        {"steps_per_execution": 2},
        {"jit_compile": True},
        {"two_replicas": True},
    ],
    ids=lambda mode: next(iter(mode), "graph"),
)
def test_metrics_of_a_ragged_epoch_are_those_of_the_whole_set(mode, request):
    """The rate is 0, so both epochs see the same weights: a metric not reset would add up."""
    arguments, scope = dict(mode), contextlib.nullcontext()
    if arguments.pop("two_replicas", False):
        scope = request.getfixturevalue("two_replicas").scope()
    with_weights = arguments.pop("weighted", True)
    with scope:
        model = compiled(perceptual(), **arguments)
    data, validation = {"x": X, "y": Y}, (X2, Y2)
    weights, weights2 = np.ones(23), np.ones(13)
    if with_weights:
        data["sample_weight"] = weights = WEIGHTS
        validation = (X2, Y2, WEIGHTS2)
        weights2 = WEIGHTS2
    history = fit(model, **data, validation_data=validation)
    evaluated = model.evaluate(**data, batch_size=8, verbose=0, return_dict=True)
    trained = over_the_whole_set(model, X, Y, weights)
    validated = over_the_whole_set(model, X2, Y2, weights2)
    assert set(evaluated) == set(trained)
    assert set(history) == {*trained, *(f"val_{name}" for name in trained)}
    for name, value in trained.items():
        assert evaluated[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert history[name] == pytest.approx([value] * 2, rel=1e-4, abs=1e-5), name
        assert history[f"val_{name}"] == pytest.approx([validated[name]] * 2, rel=1e-4), name


class Logged(StepModel):
    """Descends w mean(x), and logs 10 + w beside it; w = 1 at the start."""

    terms = ("value", "beside")

    def objective(self, batch, training):
        weight = self.trainable_variables[0][0, 0]
        return Objective({"value": weight * ops.mean(batch.x)}, logs={"beside": 10 + weight})


def linear(cls):
    inputs = keras.Input((1,))
    dense = layers.Dense(1, use_bias=False, kernel_initializer="ones")
    return cls(inputs=inputs, outputs=dense(inputs))


def test_logs_are_means_over_the_examples_and_are_not_descended():
    """By hand: w goes 1 -> 1 - 0.5 * 2 = 0 on the examples 1 and 3, then to -0.5 * 5 on 5."""
    model = compiled(linear(Logged), SGD(0.5))
    history = fit(model, x=np.array([[1.0], [3.0], [5.0]]), y=None, batch_size=2, epochs=1)
    assert history["beside"] == pytest.approx([(2 * 11 + 1 * 10) / 3])
    assert history["value"] == history["loss"] == pytest.approx([(2 * 2 + 1 * 0) / 3])
    assert model.get_weights()[0] == -2.5


def test_log_that_is_not_declared_is_named():
    class Undeclared(Logged):
        terms = ("value",)

    with pytest.raises(ValueError, match="Undeclared.*does not declare.*'beside'"):
        fit(compiled(linear(Undeclared)), x=np.ones((2, 1)), y=None)


class Rivals(StepModel):
    """Two networks with a loss each on the difference of both, and a metric in each objective."""

    terms = ("up", "down")

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b
        self.seen_by_a = keras.metrics.Sum(name="seen_by_a")
        self.seen_by_b = keras.metrics.Sum(name="seen_by_b")

    def updates(self):
        return (
            Update("a", self.up, self.a.trainable_variables),
            Update("b", self.down, self.b.trainable_variables, times=2, slices=2),
        )

    def up(self, batch, training):
        self.seen_by_a.update_state(ops.ones(batch.size))
        return Objective({"up": ops.mean(self.a(batch.x) - self.b(batch.x))})

    def down(self, batch, training):
        self.seen_by_b.update_state(ops.ones(batch.size))
        return Objective({"down": ops.mean(self.b(batch.x) - self.a(batch.x))})


def test_metric_of_one_update_sees_what_that_update_sees():
    rivals = [keras.Sequential([keras.Input((6,)), layers.Dense(1)]) for _ in range(2)]
    model = compiled(Rivals(*rivals), {"a": SGD(0.1), "b": SGD(0.1)})
    history = fit(model, validation_data=(X2, Y2))
    for name in ("seen_by_a", "seen_by_b"):  # the slices of a batch make a whole one
        assert history[name] == [23, 23]
        assert history[f"val_{name}"] == [13, 13]


def test_compiled_metrics_stand_beside_those_of_the_objective():
    class Compared(Perceptual):
        def objective(self, batch, training):
            y_pred = self.features(self(batch.x))[:, :1]
            return super().objective(batch, training)._replace(y_pred=y_pred)

    model = compiled(perceptual(Compared), metrics=["mae"])
    logs = model.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True)
    y_pred = model.features(model(X)).numpy()[:, 0]
    assert logs["mae"] == pytest.approx(np.abs(y_pred - Y).mean(), rel=1e-5)
    assert logs["seen"] == 23


def test_second_look_at_a_batch_does_not_count_twice():
    class SecondLook(Perceptual):
        def gradients(self, update, batch):
            gradients, objective = self.differentiate(update, batch)
            moved = [v + 0.1 * g for v, g in zip(update.variables, gradients)]
            return self.differentiate(update, batch, at=moved)[0], objective

    assert fit(compiled(perceptual(SecondLook)))["seen"] == [23, 23]


# Frozen networks


def test_frozen_network_stays_bit_equal_and_has_no_slots():
    model = compiled(perceptual(), Adam(0.1))
    network, features = model.network.get_weights(), model.features.get_weights()
    fit(model)
    assert equal(model.features.get_weights(), features)
    assert not any(np.array_equal(a, b) for a, b in zip(model.network.get_weights(), network))
    # a momentum and a velocity for each kernel and bias, the iteration and the rate
    assert len(model.optimizer.variables) == 2 * len(network) + 2


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_network_costs_no_gradient(frozen):
    """No matrix product of the step, as it runs, has the shape of a frozen kernel."""
    model = perceptual()
    model.features.trainable = not frozen
    compiled(model, SGD(0.1))
    data = (tf.constant(X), tf.constant(Y))
    graph = tf.function(model.train_step).get_concrete_function(data).graph
    runs, waiting = set(), [*(tensor.op for tensor in graph.outputs), *graph.control_outputs]
    while waiting:
        if (op := waiting.pop()) not in runs:
            runs.add(op)
            waiting += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
    products = {tuple(op.outputs[0].shape) for op in runs if op.type == "MatMul"}
    assert (6, 6) in products
    assert {(6, 5), (5, 2)}.isdisjoint(products) == frozen


class ByUpdates(Perceptual):
    """Freezes by naming who is trained; as far as Keras knows, the features are trainable."""

    def __init__(self, network, features, **kwargs):
        super().__init__(network, features, **kwargs)
        self.features.trainable = True

    def updates(self):
        return (Update("network", self.objective, self.network.trainable_variables),)


def test_naming_who_is_trained_equals_freezing_the_rest():
    models = [compiled(perceptual(cls), Adam(0.1)) for cls in (Perceptual, ByUpdates)]
    models[1].set_weights(models[0].get_weights())
    histories = [fit(model) for model in models]
    assert histories[0] == histories[1]
    assert equal(*(model.network.get_weights() for model in models))
    assert equal(*(model.features.get_weights() for model in models))
    slots = [sorted(tuple(v.shape) for v in model.optimizer.variables) for model in models]
    assert slots[0] == slots[1]


@pytest.mark.parametrize("cls, drifts", [(Perceptual, False), (ByUpdates, True)])
def test_only_trainable_false_holds_the_statistics_of_a_training_pass(cls, drifts):
    class InTraining(cls):
        def objective(self, batch, training):
            self.features(batch.x, training=training)
            return super().objective(batch, training)

    model = compiled(perceptual(InTraining), Adam(0.1))
    before = model.features.get_weights()
    fit(model)
    moved = [not np.array_equal(*pair) for pair in zip(before, model.features.get_weights())]
    *_, mean, variance, last, offset = moved
    assert mean == variance == drifts
    assert not any([*moved[:4], last, offset])


# Saving


def test_loaded_model_measures_the_same_and_stays_frozen(tmp_path):
    model = compiled(perceptual(), Adam(0.1))
    fit(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    logs = [one.evaluate(X, Y, verbose=0, return_dict=True) for one in (model, again)]
    assert logs[0] == logs[1]
    assert not again.features.trainable_weights
    assert fit(again) == fit(model)
    assert equal(state(again), state(model))


@keras.saving.register_keras_serializable("tests")
class FeaturesFromFile:
    """A frozen network that is no part of the model: Keras does not look into plain objects."""

    def __init__(self, path):
        self.path = path
        self.network = keras.models.load_model(path)

    def __call__(self, x, training=False):
        return self.network(x, training=training)

    def get_config(self):
        return {"path": self.path}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_feature_network_in_a_plain_object_is_not_saved_but_measures_the_same(tmp_path):
    inside = compiled(perceptual(), Adam(0.1))
    inside.features.save(tmp_path / "features.keras")
    network = keras.models.clone_model(inside.network)
    network.set_weights(inside.network.get_weights())
    outside = Perceptual(network, FeaturesFromFile(str(tmp_path / "features.keras")))
    compiled(outside, Adam(0.1))
    assert fit(outside) == fit(inside)
    assert equal(outside.get_weights(), inside.network.get_weights())
    outside.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.count_params() == inside.network.count_params()
    assert fit(again) == fit(outside)


# The example


def test_example_compares_its_denoisers_and_shows_them(tmp_path):
    example = load(pathlib.Path(__file__).parent.parent / "examples/perceptual_denoiser.py")
    results = example.main(["--smoke", "--out", str(tmp_path)])
    assert set(results) == set(example.WEIGHTS)
    for name, [logs] in results.items():
        weight = example.WEIGHTS[name]
        assert logs["perceptual"] == pytest.approx(weight * logs["feature_distance"], rel=1e-5)
        # 200 images of one shape: the mean error of all pixels, in decibels
        assert logs["psnr"] == pytest.approx(-10 * np.log10(logs["pixel"]), rel=1e-4)
        assert 0 <= logs["recognized"] <= 1
    with Image.open(tmp_path / "grid.png") as image:
        assert image.size[1] > 10 * 4 * 28  # ten images, one below the other
    network = keras.models.load_model(tmp_path / "denoiser.keras")
    assert network.predict(np.zeros((1, 28, 28, 1)), verbose=0).shape == (1, 28, 28, 1)


def test_resting_update_is_measured_all_the_same(two_replicas):
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            model = compiled(perceptual(), when=lambda step: step % 2 == 0)
        history = fit(model)
        for name, value in over_the_whole_set(model, X, Y, np.ones(23)).items():
            assert history[name] == pytest.approx([value] * 2, rel=1e-4), name


def test_replica_without_examples_does_not_spoil_the_means(two_replicas):
    """Nine examples in batches of eight: the last batch is one example, for one replica of two."""
    with two_replicas.scope():
        model = compiled(perceptual())
    history = fit(model, x=X[:9], y=Y[:9])
    for name, value in over_the_whole_set(model, X[:9], Y[:9], np.ones(9)).items():
        assert history[name] == pytest.approx([value] * 2, rel=1e-4), name


@pytest.mark.parametrize("name", ["loss", "main"])
def test_metric_with_the_name_of_a_term_is_refused(name):
    class Clashing(StepModel):
        terms = ("main",)

    inputs = keras.Input((6,))
    model = Clashing(inputs=inputs, outputs=layers.Dense(3)(inputs))
    model.measure = keras.metrics.Mean(name=name)
    with pytest.raises(ValueError, match=f"has the name of a term.*received '{name}' twice"):
        model.compile("sgd")
