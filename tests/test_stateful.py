"""Schedules that remember: the plateau rule is that of Keras, its state is saved."""

import dataclasses
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from customstep import Objective, StepModel
from customstep.conditions import Every
from customstep.schedules import ReduceOnPlateau
from customstep.stateful import BoundSchedule, StatefulSchedule
from tests.descriptors import equal, gan, gan_compiled, state

# Falls to a plateau of noise about 1, by far fewer steps than there are.
LOSSES = 1 + np.exp(-np.arange(80) / 5) + np.random.default_rng(0).normal(0, 0.05, 80)
X = np.random.default_rng(1).normal(size=(64, 4)).astype("float32")
Y = np.random.default_rng(2).normal(size=(64, 1)).astype("float32")


def of_keras(losses, rate, **arguments):
    """The rates after each loss, by Keras's own callback, for which each is an epoch."""
    optimizer = keras.optimizers.SGD(rate)
    callback = keras.callbacks.ReduceLROnPlateau("loss", mode="min", **arguments)
    callback.set_model(types.SimpleNamespace(optimizer=optimizer))
    callback.on_train_begin()
    rates = []
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"loss": float(loss)})
        rates.append(float(optimizer.learning_rate.value))
    return rates


def moving_means(losses, smoothing):
    weights = smoothing ** np.arange(len(losses), dtype=float)
    return [np.average(losses[: n + 1], weights=weights[n::-1]) for n in range(len(losses))]


def regression(**compile_arguments):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    outputs = layers.Dense(1)(layers.Dense(8, "relu")(inputs))
    model = StepModel(inputs=inputs, outputs=outputs)
    model.compile(**{"optimizer": "sgd", "loss": "mse", **compile_arguments})
    return model


def plateau(**arguments):
    """Impatient enough to reduce the rate within eight steps of `regression`."""
    return ReduceOnPlateau(
        0.05, **{"patience": 2, "factor": 0.5, "min_delta": 0.1, "smoothing": 0.5, **arguments}
    )


def fit(model, **arguments):
    history = model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **arguments)
    return history.history


def rates_by_step(model, steps=8):
    """The rate in force in each of some steps, and the losses."""
    logs = [model.train_on_batch(X[i::8], Y[i::8], return_dict=True) for i in range(steps)]
    return [log["learning_rate"] for log in logs], [log["loss"] for log in logs]


# The rule


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
@pytest.mark.parametrize(
    "rule",
    [
        dict(patience=3, factor=0.5, min_delta=0.0),
        dict(patience=1, factor=0.9, min_delta=0.01),
        dict(patience=5, factor=0.1, min_delta=0.02, min_rate=2e-3),
    ],
    ids=str,
)
def test_plateau_rule_is_that_of_keras(rule, smoothing):
    schedule = BoundSchedule(ReduceOnPlateau(0.1, **rule, smoothing=smoothing))
    assert float(schedule(0.0)) == pytest.approx(0.1)
    rates = []
    for loss in LOSSES:
        schedule.observe(Objective({"x": tf.constant(loss, tf.float32)}), size=1)
        rates.append(float(schedule(0.0)))
    keras_names = {"min_rate": "min_lr"}
    rule = {keras_names.get(name, name): value for name, value in rule.items()}
    expected = of_keras(moving_means(LOSSES, smoothing), 0.1, **rule)
    assert len(set(expected)) > 2
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"rate": 0.0},
        {"patience": 0},
        {"factor": 1.0},
        {"min_delta": -1.0},
        {"min_rate": 0.2},
        {"smoothing": 1.0},
    ],
    ids=str,
)
def test_argument_out_of_range_is_named(arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(ValueError, match=f"`{name}`.*received {value}"):
        ReduceOnPlateau(**{"rate": 0.1, "patience": 2, **arguments})


def test_schedule_is_saved_and_loaded():
    saved = keras.saving.serialize_keras_object(plateau(min_rate=0.01))
    assert keras.saving.deserialize_keras_object(saved) == plateau(min_rate=0.01)


# In a model


@pytest.mark.parametrize("mode", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_rate_of_a_model_follows_its_losses(mode):
    model = regression(schedule_lr=plateau(), **mode)
    rates, losses = rates_by_step(model)
    # The rate of a step is decided by the losses of the steps before it.
    rule = dict(patience=2, factor=0.5, min_delta=0.1)
    expected = [0.05, *of_keras(moving_means(losses, 0.5), 0.05, **rule)][:-1]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert len(set(rates)) > 1


@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5"])
def test_plateau_goes_on_from_a_file_bit_for_bit(file, tmp_path):
    whole, half = regression(schedule_lr=plateau()), regression(schedule_lr=plateau())
    expected = rates_by_step(whole, 6)[0] + rates_by_step(whole, 6)[0]
    received = rates_by_step(half, 6)[0]  # stops while it waits
    assert float(half.step_state.variables["schedule_lr/model/waited"].value) > 0
    if file.endswith("h5"):
        half.save_weights(tmp_path / file)
        restored = regression(schedule_lr=plateau())
        restored.load_weights(tmp_path / file)
    else:
        half.save(tmp_path / file)
        restored = keras.models.load_model(tmp_path / file)
    received += rates_by_step(restored, 6)[0]
    assert received == expected
    assert equal(state(restored), state(whole))


def test_two_replicas_decide_as_one_does(two_replicas):
    one = regression(schedule_lr=plateau())
    with two_replicas.scope():
        two = regression(schedule_lr=plateau())
    histories = [fit(model, epochs=2) for model in (one, two)]
    assert histories[0]["learning_rate"] == histories[1]["learning_rate"]
    assert histories[0]["learning_rate"][-1] < 0.05
    for a, b in zip(state(one), state(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_every_update_has_a_plateau_of_its_own():
    model = gan()
    schedule = ReduceOnPlateau(1e-3, patience=1, factor=0.5, min_delta=10, smoothing=0)
    model.compile(**gan_compiled(), schedule_lr=schedule, when={"generator": Every(2)})
    images = np.zeros((2, 4, 4, 1), "float32")
    logs = [model.train_on_batch(images, return_dict=True) for _ in range(5)]
    halves = {
        name: [round(np.log2(1e-3 / log[f"learning_rate_{name}"])) for log in logs]
        for name in ("discriminator", "generator")
    }
    # The first loss improves on nothing; each one after it that is trained on halves the rate
    # of the next descent. The generator descends in the steps 0, 2 and 4, and rests between.
    assert halves == {"discriminator": [0, 0, 1, 2, 3], "generator": [0, 0, 0, 0, 1]}


# Schedules of one's own


@keras.saving.register_keras_serializable("tests")
@dataclasses.dataclass(frozen=True)
class Recent(StatefulSchedule):
    """A rate by what was last measured; counts in whole numbers, and remembers a bool."""

    name: str

    def initial_state(self):
        return {"value": 1.0, "count": 0, "large": False}

    def observe(self, state, values):
        value = values[self.name]
        return {"value": value, "count": tf.cast(state["count"], tf.int32) + 1, "large": value > 2}

    def __call__(self, step, state):
        return 0.1 * state["value"]


def kept(bound):
    return {name: float(variable.value) for name, variable in bound.variables.items()}


def test_state_may_hold_whole_numbers_and_truths():
    bound = BoundSchedule(Recent("x"))
    bound.observe(Objective({"x": tf.constant(3.0)}), size=1)
    assert kept(bound) == {"value": 3.0, "count": 1.0, "large": 1.0}
    assert float(bound(0.0)) == pytest.approx(0.3)


@pytest.mark.parametrize("name, value", [("x", 1.0), ("y", 2.0), ("z", 5.0), ("loss", 3.0)])
def test_terms_logs_and_their_sum_are_measured(name, value):
    bound = BoundSchedule(Recent(name))
    terms = {"x": tf.constant(1.0), "y": tf.constant(2.0)}
    bound.observe(Objective(terms, logs={"z": tf.constant(5.0)}), size=1)
    assert kept(bound)["value"] == value


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_state_is_kept_where_a_measurement_is_not_finite(value):
    bound = BoundSchedule(Recent("x"))
    bound.observe(Objective({"x": tf.constant(3.0)}), size=1)
    bound.observe(Objective({"x": tf.constant(4.0), "y": tf.constant(value)}), size=1)
    assert kept(bound) == {"value": 3.0, "count": 1.0, "large": 1.0}


def test_unknown_name_is_refused_with_the_known_ones():
    bound = BoundSchedule(Recent("accuracy"))
    message = (
        r"looks at 'accuracy', which its update does not measure\. Expected one of "
        r"\['loss', 'x', 'z'\]; received 'accuracy'\. Correct the name, or return the quantity "
        r"in the `logs`"
    )
    with pytest.raises(ValueError, match=message):
        bound.observe(Objective({"x": tf.constant(3.0)}, logs={"z": tf.constant(5.0)}), size=1)


def test_schedule_of_ones_own_sets_the_rate():
    model = regression(schedule_lr=Recent("loss"))
    rates, losses = rates_by_step(model, 4)
    np.testing.assert_allclose(rates, [0.1, *np.multiply(0.1, losses[:-1])], rtol=1e-6)
