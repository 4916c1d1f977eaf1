"""The error of `compile(nonfinite="stop")`: what it names, what it leaves alone, where it is."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.optimizers import SGD

from customstep import Objective, StepModel, Update, inspect
from customstep.conditions import Every
from tests.descriptors import equal, gan, gan_compiled, state

MODES = [{}, {"run_eagerly": True}, {"steps_per_execution": 3}]
modes = pytest.mark.parametrize("mode", MODES, ids=lambda mode: next(iter(mode), "graph"))
ONES = np.ones((6, 1), "float32")


def linear(cls=StepModel, **compile_arguments):
    """y = w x, w = 1 at the start: every number can be worked out by hand."""
    inputs = keras.Input((1,))
    own = dict(use_bias=False, kernel_initializer="ones", dtype="float32", name="line")
    model = cls(inputs=inputs, outputs=layers.Dense(1, **own)(inputs))
    model.compile(**{"optimizer": SGD(0.25), "loss": "mse", **compile_arguments})
    return model


def weight(model):
    return float(model.get_weights()[0][0, 0])


def fit(model, x=ONES, y=3 * ONES):
    """Steps of one example in which the weight goes halfway to 3: 1, 2, 2.5, 2.75."""
    return model.fit(x, y, batch_size=1, shuffle=False, verbose=0).history


def with_value(array, row, value):
    return np.where(np.arange(len(array))[:, None] == row, np.float32(value), array)


class TwoTerms(StepModel):
    terms = ("fine", "other")

    def objective(self, batch, training):
        y_pred = self(batch.x)
        return Objective({"fine": tf.reduce_mean(y_pred**2), "other": self.other(batch, y_pred)})


class Logarithm(TwoTerms):
    """The logarithm of a weight that has been driven to 0, whatever the batch."""

    def other(self, batch, y_pred):
        return tf.math.log(tf.reduce_mean(tf.abs(y_pred)))


class Rooted(TwoTerms):
    """sqrt(w x): 0 with the gradient inf * 0 where x is 0."""

    def other(self, batch, y_pred):
        return tf.sqrt(tf.reduce_mean(y_pred))


class Huge(TwoTerms):
    """Terms of 2e38 where x is 2, whose sum float32 does not hold; their gradients are 0."""

    def objective(self, batch, training):
        objective = super().objective(batch, training)
        huge = tf.where(tf.reduce_max(batch.x) == 2, 2e38, 0.0)
        return Objective({name: term + huge for name, term in objective.terms.items()})

    def other(self, batch, y_pred):
        return tf.reduce_mean(y_pred)


FIX = (
    "Look at the data of that batch, lower the learning rate, or pass "
    '`compile(nonfinite="skip")`, which passes over such updates and counts them.'
)


@modes
@pytest.mark.parametrize(
    "cls, x, found",
    [
        (Logarithm, 0, "its term 'other' is infinite"),
        (Rooted, 0, "the gradient of 'line/kernel' is NaN"),
        (Huge, 2, "the sum of its terms is infinite"),
        (Huge, np.nan, "its term 'fine' is NaN; the batch has NaN values in its inputs"),
    ],
    ids=["term", "gradient", "sum", "inputs"],
)
def test_error_names_the_update_the_step_and_what_is_not_finite(cls, x, found, mode):
    model = linear(cls, optimizer=SGD(0.01), loss=None, nonfinite="stop", **mode)
    with pytest.raises(FloatingPointError) as raised:
        fit(model, with_value(ONES, 2, x), y=None)
    kind = "infinite" if "infinite" in found else "NaN"
    assert str(raised.value) == (
        f"The update 'model' is not finite in step 2: {found}. Expected finite terms, gradients "
        f"and statistics; received one that is {kind}. {FIX}"
    )
    assert model.steps == int(model.optimizer.iterations) == 2


def test_targets_and_sample_weights_that_are_not_finite_are_named():
    model = linear(nonfinite="stop")
    both = "the batch has infinite values in its targets and NaN values in its sample weights"
    with pytest.raises(FloatingPointError, match=f"'loss' is NaN; {both}"):
        model.train_on_batch(ONES, with_value(ONES, 1, np.inf), with_value(ONES, 4, np.nan)[:, 0])


def normalized(**compile_arguments):
    """Its variance of inputs of 1e30 is infinite, though its loss and its gradients are finite."""
    inputs = keras.Input((1,))
    outputs = layers.Dense(1)(layers.BatchNormalization(name="norm")(inputs))
    model = StepModel(inputs=inputs, outputs=outputs)
    model.compile("sgd", "mse", **compile_arguments)
    return model


@pytest.mark.parametrize("mode", [*MODES, {"jit_compile": True}], ids=str)
def test_statistic_that_overflows_alone_makes_an_update_be_skipped(mode):
    model = normalized(nonfinite="skip", **mode)
    x = np.arange(6, dtype="float32")[:, None]
    x[3] = 1e30
    history = model.fit(x, ONES, batch_size=2, shuffle=False, verbose=0).history
    assert history["nonfinite"] == [1.0] and np.isfinite(history["loss"])
    assert all(np.isfinite(array).all() for array in state(model))


def test_statistic_that_overflows_alone_stops():
    model = normalized(nonfinite="stop")
    before = state(model)
    with pytest.raises(FloatingPointError, match="the statistic 'norm/moving_variance' is inf"):
        model.train_on_batch(with_value(ONES, 3, 1e30), ONES)
    assert equal(state(model), before)


def test_replica_without_examples_spoils_no_batch_norm(two_replicas):
    """The mean over no examples is NaN: of three examples in batches of two, one has none."""
    with two_replicas.scope():
        skipping, stopping = normalized(nonfinite="skip"), normalized(nonfinite="stop")
    history = skipping.fit(ONES[:3], ONES[:3], batch_size=2, verbose=0).history
    assert history["nonfinite"] == [0.0]
    stopping.fit(ONES[:3], ONES[:3], batch_size=2, verbose=0)
    for variable in [*skipping.variables, *stopping.variables]:
        for part in two_replicas.experimental_local_results(variable.value):
            assert np.isfinite(part).all()


def test_variable_that_is_infinite_from_the_start_is_no_offence():
    class Best(StepModel):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            infinity = keras.initializers.Constant(np.inf)
            self.best = self.add_weight(shape=(), initializer=infinity, trainable=False)

    for nonfinite in ("skip", "stop"):
        model = linear(Best, nonfinite=nonfinite)
        fit(model)
        assert int(model.optimizer.iterations) == 6


@modes
def test_training_goes_on_after_a_stop_as_if_nothing_had_been(mode):
    """Three halvings of the distance from 1 to 3, of which the stop interrupts the second."""
    model = linear(nonfinite="stop", **mode)
    with pytest.raises(FloatingPointError, match="in step 1:"):
        fit(model, with_value(ONES, 1, np.nan))
    assert weight(model) == 2.0
    history = fit(model, ONES[:2], 3 * ONES[:2])
    assert weight(model) == 2.75 and history["loss"] == [(1 + 1 / 4) / 2]


class InTurns(StepModel):
    """Two updates of a weight each; the second one's loss is NaN where the target is."""

    terms = ("first", "second")

    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self.first = first
        self.second = second
        self.done = self.add_weight(shape=(), initializer="zeros", trainable=False, name="done")

    def call(self, x):
        return self.first(x)

    def updates(self):
        return tuple(
            Update(name, getattr(self, f"{name}_objective"), getattr(self, name).trainable_weights)
            for name in ("first", "second")
        )

    def first_objective(self, batch, training):
        return Objective({"first": tf.reduce_mean((self.first(batch.x) - 3) ** 2)})

    def second_objective(self, batch, training):
        self.done.assign_add(1)
        return Objective({"second": tf.reduce_mean((self.second(batch.x) - batch.y) ** 2)})

    def after_step(self, batch):
        self.done.assign_add(100)


def in_turns(size=1, **arguments):
    networks = (
        keras.Sequential([keras.Input((1,)), layers.Dense(size, use_bias=False), layers.Dense(1)])
        for _ in range(2)
    )
    model = InTurns(*networks)
    optimizers = {name: keras.optimizers.Adam(0.01) for name in ("first", "second")}
    model.compile(optimizers, nonfinite="stop", **arguments)
    return model


@modes
def test_update_that_came_before_in_the_step_is_applied_whole(mode):
    """What follows is left out, though nothing in the graph asks it to wait."""
    model = in_turns(size=300_000, **mode)
    expected = in_turns(size=300_000, when={"second": Every(2)}, **mode)  # at rest in step 1
    expected.set_weights(model.get_weights())
    fit(expected, ONES[:2], 3 * ONES[:2])
    with pytest.raises(FloatingPointError, match="'second' is not finite in step 1: .*'second'"):
        fit(model, y=with_value(3 * ONES, 1, np.nan))
    pairs = zip(model.optimizer.variables, expected.optimizer.variables, strict=True)
    for one, other in [*zip(model.variables, expected.variables), *pairs]:
        if one is not model.done:
            np.testing.assert_array_equal(one, other)
    assert float(model.done) == 101  # of the first step
    assert model.steps == 1 and int(model.optimizers["first"].iterations) == 2


@modes
def test_update_at_rest_does_not_stop(mode):
    model = linear(when=Every(2), nonfinite="stop", **mode)
    history = fit(model, with_value(ONES, 3, np.nan))
    assert weight(model) == 3 - 2 / 8 and np.isnan(history["loss"])
    with pytest.raises(FloatingPointError, match="in step 8:"):
        fit(model, with_value(ONES, 2, np.nan))
    assert weight(model) == 3 - 2 / 16


def test_repetition_that_is_not_finite_stops():
    """Of two descents the first halves the distance from 1 to 3, the second finds the NaN."""

    class Twice(StepModel):
        def updates(self):
            weights = self.trainable_variables
            return (Update("model", self.objective, weights, times=2, slices=2),)

    model = linear(Twice, nonfinite="stop")
    with pytest.raises(FloatingPointError, match="in step 0:"):
        model.train_on_batch(with_value(ONES, 4, np.nan), 3 * ONES)
    assert weight(model) == 2.0 and model.steps == 0


def test_evaluation_does_not_stop():
    model = linear(nonfinite="stop")
    spoiled = with_value(ONES, 3, np.nan)
    model.fit(ONES, ONES, validation_data=(spoiled, ONES), verbose=0)
    assert np.isnan(model.evaluate(spoiled, ONES, verbose=0))


def test_loss_scale_may_overflow_and_terms_may_not():
    keras.mixed_precision.set_global_policy("mixed_float16")
    inputs = keras.Input((1,))
    model = StepModel(inputs=inputs, outputs=layers.Dense(1)(inputs))
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.25), initial_scale=1e38)
    model.compile(optimizer, "mse", nonfinite="stop")
    model.train_on_batch(ONES, 3 * ONES)
    assert float(optimizer.dynamic_scale) < 1e38 and int(optimizer.iterations) == 0
    before = state(model)
    with pytest.raises(FloatingPointError, match="'loss' is infinite"):
        model.train_on_batch(1e6 * ONES, 3 * ONES)  # more than float16 holds
    assert equal(state(model), before)


def test_callbacks_are_told_of_the_stop():
    told = []

    class Told(keras.callbacks.Callback):
        def on_train_interrupted(self, error):
            told.append(error)

    model = linear(nonfinite="stop")
    with pytest.raises(FloatingPointError) as raised:
        model.fit(ONES, with_value(ONES, 3, np.nan), callbacks=[Told()], verbose=0)
    assert told == [raised.value]


def test_other_errors_of_a_step_stay_what_they_are():
    class Failing(StepModel):
        def after_step(self, batch):
            tf.debugging.assert_less(tf.reduce_max(batch.x), 2.0, "too large")

    model = linear(Failing, nonfinite="stop")
    with pytest.raises(FloatingPointError):
        fit(model, np.nan * ONES)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        fit(model, 2 * ONES)


@pytest.mark.parametrize("nonfinite", [True, "raise"])
def test_choice_that_does_not_exist_is_refused(nonfinite):
    message = f"Expected None, 'skip' or 'stop'; received {nonfinite!r}"
    with pytest.raises(ValueError, match=message):
        linear(nonfinite=nonfinite)


def test_argument_of_another_name_is_refused():
    model = gan()
    with pytest.raises(TypeError, match="skip_nonfinite"):
        model.compile(**gan_compiled(), skip_nonfinite=True)


def test_xla_beside_stop_is_refused_and_not_chosen():
    with pytest.raises(ValueError, match="XLA has compiled cannot stop.*received True"):
        linear(nonfinite="stop", jit_compile=True)
    assert linear(nonfinite="stop", jit_compile="auto").jit_compile is False


def test_inspection_reports_what_would_stop():
    model = linear(nonfinite="stop")
    report = inspect(model, (np.nan * ONES, ONES), verbose=False)
    assert [finding.kind for finding in report.warnings] == ["not_finite"]
    with pytest.raises(FloatingPointError):
        fit(model, np.nan * ONES)


def test_choice_is_saved(tmp_path):
    model = linear(nonfinite="stop")
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    with pytest.raises(FloatingPointError):
        fit(restored, np.nan * ONES)
