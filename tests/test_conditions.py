"""Updates that run while a condition holds, the guard against NaN, actions now and then."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from customstep import Objective, StepModel, Update
from customstep.conditions import Above, Below, Every, run_if
from customstep.stateful import BoundSchedule
from tests.descriptors import IMAGES, equal, gan, gan_compiled, state
from tests.test_examples import EXAMPLES, load

MODES = [{}, {"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 3}]
X = np.random.default_rng(1).normal(size=(48, 6)).astype("float32")
Y = np.random.default_rng(2).normal(size=(48, 1)).astype("float32")
modes = pytest.mark.parametrize("mode", MODES, ids=lambda mode: next(iter(mode), "graph"))


def never(step):
    return step < 0


def always(step):
    return step >= 0


def linear(cls=StepModel, **compile_arguments):
    """y = w x, w = 1 at the start: every number can be worked out by hand."""
    inputs = keras.Input((1,))
    dense = layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype="float32")
    model = cls(inputs=inputs, outputs=dense(inputs))
    model.compile(**{"optimizer": keras.optimizers.SGD(0.5), "loss": "mse", **compile_arguments})
    return model


def regression(**compile_arguments):
    """Batch norm, Adam, an average of the weights, a metric: much that a step can change."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.BatchNormalization()(layers.Dense(8, use_bias=False)(inputs))
    outputs = layers.Dense(1, dtype="float32")(layers.ReLU()(x))
    model = StepModel(inputs=inputs, outputs=outputs)
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, "mse", ["mae"], **compile_arguments)
    return model


def fit(model, x=X, y=Y, **arguments):
    return model.fit(x, y, batch_size=8, shuffle=False, verbose=0, **arguments).history


def weight(model):
    return float(model.get_weights()[0][0, 0])


# The conditions


@pytest.mark.parametrize(
    "condition, steps",
    [(Every(3), [0, 3, 6]), (Every(3, offset=2), [2, 5]), (Every(1), [0, 1, 2, 3, 4, 5, 6])],
    ids=str,
)
def test_every_holds_once_in_a_cycle(condition, steps):
    assert [step for step in range(7) if condition(tf.constant(float(step)))] == steps


def test_thresholds_look_at_the_exponential_mean_of_all_that_was_measured():
    values = np.random.default_rng(0).normal(size=30)
    above, below = (BoundSchedule(kind("x", 0.1, 0.8), tf.bool) for kind in (Above, Below))
    assert bool(above(0.0)) and bool(below(0.0))  # nothing measured
    seen = []
    for count in range(1, len(values) + 1):
        for one in (above, below):
            one.observe(Objective({"x": tf.constant(values[count - 1], tf.float32)}), size=1)
        mean = np.average(values[:count], weights=0.8 ** np.arange(count)[::-1])
        assert float(above.variables["mean"].value) == pytest.approx(mean, abs=1e-6)
        assert (bool(above(0.0)), bool(below(0.0))) == (mean > 0.1, mean < 0.1)
        seen.append(mean > 0.1)
    assert len(set(seen)) == 2


def test_threshold_without_smoothing_looks_at_the_last_value():
    above = BoundSchedule(Above("x", 0.1, smoothing=0), tf.bool)
    for value in (1e6, 0.0, 0.125):
        above.observe(Objective({"x": tf.constant(value)}), size=1)
        assert float(above.variables["mean"].value) == value
        assert bool(above(0.0)) == (value > 0.1)


@pytest.mark.parametrize("condition", [Every(4, 3), Above("loss", 0.5), Below("x", 1.0, 0.5)])
def test_condition_is_saved_and_loaded(condition):
    saved = keras.saving.serialize_keras_object(condition)
    assert keras.saving.deserialize_keras_object(saved) == condition


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Every(0), "n"),
        (lambda: Every(3, offset=3), "offset"),
        (lambda: Above("loss", float("nan")), "threshold"),
        (lambda: Below("loss", 1.0, smoothing=1.0), "smoothing"),
    ],
)
def test_argument_out_of_range_is_named(make, name):
    with pytest.raises(ValueError, match=f"`{name}` is out of its range"):
        make()


def test_name_that_the_objective_does_not_measure_is_refused_with_the_known_ones():
    model = linear(when=Above("lose", 0.5))
    message = r"looks at 'lose', .* Expected one of \['loss'\]; received 'lose'\. Correct the name"
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(np.ones((2, 1)), np.ones((2, 1)))


# Updates that rest


@modes
def test_update_runs_in_the_steps_where_its_condition_holds(mode):
    """Each step halves the distance from w to 3, from 2 at the start, where it runs: 0, 2, 4."""
    model = linear(optimizer=keras.optimizers.SGD(0.25), when=Every(2), **mode)
    ones = np.ones((6, 1), "float32")
    history = model.fit(ones, 3 * ones, batch_size=1, shuffle=False, verbose=0).history
    assert weight(model) == 3 - 2 / 8
    assert history["active"] == [0.5]
    # The loss is evaluated in the steps between, too: 2, 1, 1, 1/2, 1/2, 1/4 are the distances.
    assert history["loss"] == [(4 + 1 + 1 + 1 / 4 + 1 / 4 + 1 / 16) / 6]
    assert int(model.optimizer.iterations) == 3 and model.steps == 6


@pytest.mark.parametrize("mode", MODES[:2], ids=["graph", "eager"])
def test_update_at_rest_changes_nothing(mode):
    model = gan()
    model.compile(**gan_compiled(), when=never, **mode)
    before = state(model)[:-1]  # all but the number of the step
    history = model.fit(IMAGES, batch_size=8, verbose=0).history
    assert equal(state(model)[:-1], before)
    assert history["active_discriminator"] == history["active_generator"] == [0.0]
    assert np.isfinite(history["discriminator_loss"] + history["generator_loss"]).all()


def test_condition_that_always_holds_equals_keras_bit_for_bit():
    """Masks as well, by which metrics know the padding."""
    tokens = np.random.default_rng(0).integers(0, 5, (20, 7))  # 0 is padding
    results = []
    for cls, arguments in ((keras.Model, {}), (StepModel, {"when": always})):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((7,), dtype="int32")
        x = layers.Embedding(5, 3, mask_zero=True)(inputs)
        model = cls(inputs=inputs, outputs=layers.Dense(5)(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"], **arguments)
        history = model.fit(tokens, tokens, batch_size=8, epochs=2, verbose=0, shuffle=False)
        results.append((history.history, model.get_weights()))
    (theirs, expected), (ours, received) = results
    assert ours == {**theirs, "active": [1.0, 1.0]}
    assert equal(received, expected)


def test_discriminator_rests_in_the_steps_after_it_has_won():
    threshold = 1.6
    model = gan()
    when = {"discriminator": Above("discriminator_loss", threshold, smoothing=0)}
    model.compile(**gan_compiled(), when=when)
    last, ran = np.inf, []
    for step in range(8):
        before = [np.array(v) for v in model.discriminator.variables]
        model.reset_metrics()
        batch = IMAGES[np.arange(8 * step, 8 * step + 8) % 24]
        logs = model.train_on_batch(batch, return_dict=True)
        moved = not equal(before, [np.array(v) for v in model.discriminator.variables])
        assert moved == (last > threshold) == (logs["active_discriminator"] == 1)
        last = logs["discriminator_loss"]
        ran.append(moved)
    assert 1 < sum(ran) < 8
    assert int(model.optimizers["discriminator"].iterations) == sum(ran)
    assert int(model.optimizers["generator"].iterations) == 8


def test_repeated_update_is_asked_before_every_repetition():
    """By hand: loss 2 w with w = 1, 0; the third repetition finds 0, which is not above 0."""

    class Repeated(StepModel):
        terms = ("double",)

        def updates(self):
            return (Update("a", self.double, self.trainable_variables, times=4),)

        def double(self, batch, training):
            return Objective({"double": 2 * self.trainable_variables[0][0, 0]})

    model = linear(Repeated, loss=None, when=Above("double", 0.0, smoothing=0))
    logs = model.train_on_batch(np.ones((1, 1)), return_dict=True)
    assert weight(model) == -1.0 and logs["active"] == 0.5
    assert logs["double"] == (2 + 0 - 2 - 2) / 4


def test_condition_on_two_replicas_runs_as_on_one(two_replicas):
    def train():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        hidden = layers.Dense(8, "relu", kernel_regularizer="l2")(inputs)
        model = StepModel(inputs=inputs, outputs=layers.Dense(1)(hidden))
        when = Above("loss", 2.0, smoothing=0.5)
        model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], when=when)
        return model, fit(model, epochs=2)

    one, history_of_one = train()
    with two_replicas.scope():
        two, history_of_two = train()
    assert 0 < np.mean(history_of_one["active"]) < 1
    for name, values in history_of_one.items():
        np.testing.assert_allclose(history_of_two[name], values, rtol=1e-5)
    for a, b in zip(state(one), state(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# The guard


def spoiled(row):
    x = X.copy()
    x[row, 2] = np.nan
    return x


def without(batch):
    keep = np.arange(len(X)) // 8 != batch
    return X[keep], Y[keep]


def trained_states(model):
    """All but the number of steps done, which counts the skipped ones."""
    return state(model)[:-1]


@pytest.mark.parametrize("batch, mode", [(0, {}), *((3, mode) for mode in MODES)], ids=str)
def test_training_with_a_broken_batch_equals_training_without_it(batch, mode):
    guarded, plain = regression(nonfinite="skip", **mode), regression(**mode)
    history = fit(guarded, spoiled(8 * batch + 5))
    expected = fit(plain, *without(batch))
    assert history.pop("nonfinite") == [1.0]
    assert history == expected
    # XLA fuses the operations of the two programs in its own ways, which round differently.
    tolerance = 1e-6 if mode.get("jit_compile") else 0
    for a, b in zip(trained_states(guarded), trained_states(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert guarded.steps == plain.steps + 1


def test_guard_changes_nothing_where_all_is_finite():
    guarded, plain = regression(nonfinite="skip"), regression()
    assert fit(guarded) == {**fit(plain), "nonfinite": [0.0]}
    assert equal(state(guarded), state(plain))


class Rooted(StepModel):
    """sqrt(w x): 0 with the gradient inf * 0 where x is 0."""

    terms = ("root",)

    def objective(self, batch, training):
        return Objective({"root": tf.sqrt(tf.reduce_mean(self(batch.x)))})


class Spoiled(StepModel):
    """A term that is not finite where x is 0, with a gradient that is."""

    terms = ("root",)

    def objective(self, batch, training):
        fine = tf.reduce_all(batch.x != 0)
        bad = tf.stop_gradient(tf.where(fine, 0.0, np.inf))
        return Objective({"root": tf.sqrt(tf.reduce_mean(self(batch.x + 1e-9))) + bad})


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("cls", [Rooted, Spoiled])
def test_objective_or_gradient_alone_makes_a_step_be_skipped(cls, policy):
    optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256.0)
    model = linear(cls, optimizer=optimizer, loss=None, nonfinite="skip")
    model.train_on_batch(np.ones((2, 1)))
    assert weight(model) == pytest.approx(0.75)
    before, iterations = model.get_weights(), int(optimizer.iterations)
    logs = model.train_on_batch(np.zeros((2, 1)), return_dict=True)
    assert equal(model.get_weights(), before) and int(optimizer.iterations) == iterations == 1
    assert logs == {"loss": 0.0, "root": 0.0, "nonfinite": 1.0}  # the means hold nothing
    if policy == "mixed_float16":
        assert float(optimizer.dynamic_scale.value) == 128.0


@pytest.mark.parametrize(
    "row, policy", [(24, "float32"), (31, "float32"), (31, "mixed_float16")], ids=str
)
def test_nan_on_one_replica_makes_both_skip(two_replicas, row, policy):
    keras.mixed_precision.set_global_policy(policy)
    with two_replicas.scope():
        guarded = regression(nonfinite="skip")
        plain = regression()
    history = fit(guarded, spoiled(row))
    expected = fit(plain, *without(3))
    assert history.pop("nonfinite") == [1.0]
    assert history == expected
    assert equal(guarded.get_weights(), plain.get_weights())
    assert [int(one.optimizer.iterations.numpy()) for one in (guarded, plain)] == [5, 5]


def test_sparse_gradients_are_guarded():
    words = np.arange(12).reshape(6, 2) % 5
    targets = np.arange(6, dtype="float32")[:, None]

    def train(words, targets, **arguments):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((2,), dtype="int32")
        x = layers.Flatten()(layers.Embedding(5, 3)(inputs))
        model = StepModel(inputs=inputs, outputs=layers.Dense(1)(x))
        model.compile("adam", "mse", **arguments)
        model.fit(words, targets, batch_size=2, shuffle=False, verbose=0)
        return model.get_weights()

    broken = np.where(np.arange(6)[:, None] == 3, np.nan, targets)
    expected = train(words[[0, 1, 4, 5]], targets[[0, 1, 4, 5]])
    assert equal(train(words, broken, nonfinite="skip"), expected)


@modes
def test_broken_batch_is_counted_and_forgotten_where_the_update_rests_too(mode):
    """Steps 1, 3 and 5 rest; the batches of steps 1 and 2 are broken."""
    model = regression(when=Every(2), nonfinite="skip", **mode)
    x = spoiled([8, 16])
    history = fit(model, x)
    assert history["nonfinite"] == [2.0] and history["active"] == [0.5]
    assert int(model.optimizer.iterations) == 2  # steps 0 and 4
    assert np.isfinite([*history["loss"], *history["mae"]]).all()
    assert all(np.isfinite(array).all() for array in state(model))


def test_conditions_pass_over_what_is_not_finite():
    """Steps 0 and 1 leave the mean at the loss of step 0, so step 2 runs."""
    model = linear(optimizer="sgd", when=Above("loss", 0.5, smoothing=0), nonfinite="skip")
    for x in (1.0, np.nan, 1.0):
        model.train_on_batch(np.full((1, 1), x), np.full((1, 1), 3.0))
    assert int(model.optimizer.iterations) == 2
    assert np.isfinite(list(map(float, model.step_state.variables.values()))).all()


# Actions now and then


class Copying(StepModel):
    """Clips its weight, and copies it, after every third step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.copied = keras.metrics.Mean("copied")

    def after_step(self, batch):
        due = Every(3, offset=2)(self.step)
        run_if(due, self.copy, 2 * tf.reduce_max(batch.x))
        self.copied.update_state(due)

    def copy(self, limit):
        """Clips to twice the largest number of the batch, which is 1."""
        [source], [target] = self.trainable_weights, self.non_trainable_weights
        source.assign(tf.minimum(source, limit))
        target.assign(source)
        return source  # what an action returns is dropped


def copying(**compile_arguments):
    inputs = keras.Input((1,))
    own = dict(use_bias=False, kernel_initializer="ones", dtype="float32")
    outputs = layers.Dense(1, **own)(inputs) + layers.Dense(1, **own, trainable=False)(inputs) * 0
    model = Copying(inputs=inputs, outputs=outputs)
    model.compile(keras.optimizers.SGD(0.25), "mse", **compile_arguments)
    return model


def fit_ones(model, steps):
    """Steps of two examples in which the weight goes halfway to 3: 1, 2, 2.5, 2.75."""
    ones = np.ones((2 * steps, 1), "float32")
    return model.fit(ones, 3 * ones, batch_size=2, shuffle=False, verbose=0).history


def values(model):
    return [float(v[0, 0]) for v in (*model.trainable_weights, *model.non_trainable_weights)]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@modes
def test_action_runs_every_n_steps_and_is_logged(mode, policy):
    keras.mixed_precision.set_global_policy(policy)
    model = copying(**mode)
    fit_ones(model, 2)
    assert values(model) == [2.5, 1.0]
    history = fit_ones(model, 6)  # 2.75 is cut to 2; 2.5, 2.75, cut again; 2.5, 2.75
    assert values(model) == [2.75, 2.0]
    assert history["copied"] == [pytest.approx(2 / 6)]


def test_action_runs_on_two_replicas(two_replicas):
    with two_replicas.scope():
        model = copying()
    history = fit_ones(model, 8)
    assert values(model) == [2.75, 2.0]
    assert history["copied"] == [pytest.approx(2 / 8)]


# The example


def test_example_skips_what_is_corrupted(tmp_path, capsys):
    example = load(EXAMPLES[0].with_name("conditional_updates.py"))
    histories = example.main(["--smoke", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.count("4 steps skipped of 4 corrupted batches, all weights finite") == 2
    assert sum(histories["pausing"]["nonfinite_discriminator"]) == 4
    names = {"conditional_updates.png", "always.keras", "pausing.keras", "checkpoints"}
    assert {path.name for path in tmp_path.iterdir()} == names
    restored = keras.models.load_model(tmp_path / "pausing.keras")
    assert restored.steps == 17 and type(restored).__name__ == "RestartingGAN"
