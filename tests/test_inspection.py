"""What a step does, told in numbers that can be worked out by hand, of a model left as it was."""

import pathlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import customstep
from customstep import Objective, StepModel, Update
from customstep.inspection import inspect
from tests.descriptors import DESCRIPTORS, equal, fit, state
from tests.test_examples import load

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "inspect_step.py"
X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = 2 * X[:, :1] + 1


def report(model, batch=(X, Y)):
    return inspect(model, batch, verbose=False)


def kinds(model, batch=(X, Y)):
    return {finding.kind for finding in report(model, batch).warnings}


def dense(units=1, **arguments):
    """A built linear layer, by default without bias, of weights 1."""
    layer = layers.Dense(units, **{"use_bias": False, "kernel_initializer": "ones", **arguments})
    layer.build((None, 4))
    return layer


class Network(keras.Model):
    """A hand-written step without a mistake; the tests below make one each."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = list(parts) or [dense()]
        self.tracker = keras.metrics.Mean(name="loss")
        self.built = True

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x, training=training) if hasattr(part, "rate") else part(x)
        return x

    def loss_of(self, x, y, weights):
        return self.compute_loss(x, y, self(x, training=True), weights)

    def trained(self):
        return self.trainable_weights

    def scaled(self, loss):
        return self.optimizer.scale_loss(loss)

    def logs(self, loss, x):
        self.tracker.update_state(loss, sample_weight=tf.shape(x)[0])
        return {"loss": self.tracker.result()}

    def train_step(self, data):
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.loss_of(x, y, weights)
            scaled = self.scaled(loss)
        variables = self.trained()
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables))
        return self.logs(loss, x)


def compiled(model, **arguments):
    model.compile(**{"optimizer": keras.optimizers.SGD(0.01), "loss": "mse", **arguments})
    return model


# The numbers


class TwoTerms(StepModel):
    """y = 3 a, with two terms on one weight a = 2: a^2 + 3 a."""

    terms = ("square", "line", "weight")

    def objective(self, batch, training):
        a = tf.reduce_mean(self(batch.x, training=training)) / 3
        return Objective({"square": a**2, "line": 3 * a}, logs={"weight": a})


def two_terms(**arguments):
    inputs = keras.Input((1,))
    two = keras.initializers.Constant(2.0)
    outputs = layers.Dense(1, use_bias=False, kernel_initializer=two, name="line")(inputs)
    model = TwoTerms(inputs, outputs)
    model.compile(**{"optimizer": keras.optimizers.SGD(0.01), **arguments})
    return model


def test_numbers_match_hand_arithmetic():
    """At a = 2: terms 4 and 6, gradients 2 a = 4 and 3; the weight moves by 0.01 * 7 of 2."""
    [update] = report(two_terms(), np.full((6, 1), 3.0)).updates
    assert update.terms == pytest.approx({"square": 4.0, "line": 6.0})
    assert update.shares == pytest.approx({"square": 0.4, "line": 0.6})
    assert update.term_gradients == pytest.approx({"square": 4.0, "line": 3.0})
    assert update.logs == pytest.approx({"weight": 2.0})
    assert update.learning_rate == pytest.approx(0.01)
    assert update.gradient_norm == pytest.approx(7.0)
    assert update.ratio == pytest.approx(0.07 / 2)
    assert (update.name, update.optimizer, update.descents) == ("model", "SGD", 1)
    assert (update.moved, update.unmoved, update.without_gradient) == (("line",), (), ())


def test_hand_written_step_has_the_same_numbers():
    """Loss (y_pred - y)^2 of y_pred = w x: with w = 1, x = 3, y = 1 the gradient is 2 * 2 * 3."""
    layer = layers.Dense(1, use_bias=False, kernel_initializer="ones")
    layer.build((None, 1))
    model = compiled(Network(layer))
    seen = report(model, (np.full((6, 1), 3.0), np.ones((6, 1))))
    [update] = seen.updates
    assert (update.name, update.optimizer) == ("optimizer", "SGD")
    assert update.gradient_norm == pytest.approx(12.0)
    assert update.ratio == pytest.approx(0.12)
    assert seen.logs == pytest.approx({"loss": 4.0})


def test_loss_scale_is_taken_out_of_the_gradient():
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))
    [update] = report(two_terms(optimizer=scaled), np.full((6, 1), 3.0)).updates
    assert update.gradient_norm == pytest.approx(7.0)
    assert update.ratio == pytest.approx(0.035)
    assert update.optimizer == "SGD"


def test_update_held_back_did_not_descend():
    [update] = report(two_terms(when=lambda step: step > 0), np.full((6, 1), 3.0)).updates
    assert update.descents == 0
    assert update.terms == pytest.approx({"square": 4.0, "line": 6.0})
    assert (update.gradient_norm, update.learning_rate, update.moved) == (None, None, ())
    assert update.without_gradient == ()


def test_schedule_sets_the_rate_that_is_told():
    [update] = report(two_terms(schedule_lr=lambda step: 0.5), np.full((6, 1), 3.0)).updates
    assert update.learning_rate == 0.5


def descriptor(name):
    return next(one for one in DESCRIPTORS if one.name == name)


def test_each_update_tells_who_moved():
    gan = descriptor("GAN-wgan-gp")
    seen = report(gan.make(), gan.batch)
    first, second = seen.updates
    assert (first.name, first.descents, first.moved) == ("discriminator", 2, ("discriminator",))
    assert (second.name, second.descents, second.moved) == ("generator", 1, ("generator",))
    assert first.unmoved == ("generator", "ema_generator")
    assert seen.moved_after == ("ema_generator",)
    assert set(first.seconds) == {"gradients", "apply"}
    assert {"preprocess", "metrics", "after_step"} < set(seen.seconds)


# The model afterwards


@pytest.mark.parametrize("descriptor", DESCRIPTORS, ids=lambda descriptor: descriptor.name)
def test_template_is_left_as_it_was_and_has_no_mistake(descriptor):
    model = descriptor.make()
    before, attributes = state(model), dict(vars(model))
    seen = report(model, descriptor.batch)
    assert equal(state(model), before)
    assert vars(model) == attributes and model.train_function is None
    assert seen.warnings == ()


def test_training_goes_on_as_if_nothing_had_happened():
    """Weights, both optimizers, noise, metrics, and what Keras compiled, all in one."""
    gan = descriptor("GAN-conditional")
    histories, states = [], []
    for look in (False, True):
        model = gan.make()
        first = fit(model, gan, epochs=1)
        if look:
            function = model.train_function
            report(model, gan.batch)
            assert model.train_function is function
        histories.append((first, fit(model, gan, epochs=1)))
        states.append(state(model))
    assert histories[0] == histories[1]
    assert equal(*states)


class Lazy(keras.Model):
    """Nothing is built, and noise comes from Keras's global generator."""

    def __init__(self):
        super().__init__()
        self.hidden, self.last = layers.Dense(4), layers.Dense(1)
        self.seen = []

    def call(self, x):
        self.seen.append("call")
        return self.last(self.hidden(x) + keras.random.normal((4,)))


def test_unbuilt_model_stays_unbuilt_and_starts_the_same():
    weights = []
    for look in (False, True):
        keras.utils.set_random_seed(1)
        model = compiled(Lazy(), optimizer="adam", metrics=["mae"])
        if look:
            [update] = report(model).updates
            assert 0 < update.ratio < 0.1  # known from the first step on
            assert not model.built and not model.optimizer.built
            assert (model.weights, model.seen) == ([], [])
        model.fit(X, Y, epochs=2, verbose=0, shuffle=False)
        weights.append(model.get_weights())
    assert equal(*weights)


def test_model_is_left_as_it_was_when_the_step_raises():
    class Fails(Network):
        def logs(self, loss, x):
            self.extra = keras.Variable(1.0)
            raise RuntimeError("in the middle")

    model = compiled(Fails())
    weights = model.get_weights()
    with pytest.raises(RuntimeError, match="in the middle"):
        report(model)
    assert equal(model.get_weights(), weights)
    assert not hasattr(model, "extra") and not model.optimizer.built
    assert not tf.config.functions_run_eagerly()
    assert "apply" not in vars(model.optimizer)


def test_noise_of_tensorflow_and_python_goes_on_as_before():
    class Noisy(Network):
        def loss_of(self, x, y, weights):
            return super().loss_of(x + tf.random.normal(tf.shape(x)) + np.random.rand(), y, weights)

    draws = []
    for look in (False, True):
        keras.utils.set_random_seed(3)
        if look:
            report(compiled(Noisy()))
        draws.append((float(tf.random.normal(())), np.random.rand()))
    assert draws[0] == draws[1]


# The mistakes: each where it is made, and the healthy step without it


@pytest.mark.parametrize("make", [Network, lambda: Network(dense(3), layers.Dense(1))])
def test_healthy_step_has_no_warning(make):
    batch = X, Y, np.linspace(0.5, 1.5, 12)
    assert kinds(compiled(make()), batch) == set()


def test_loss_that_is_not_finite_is_told():
    class Log(Network):
        def loss_of(self, x, y, weights):
            return tf.math.log(tf.reduce_sum(self(x) * 0.0))

    assert "not_finite" in kinds(compiled(Log()))


def test_gradient_that_is_not_finite_is_told():
    class Root(StepModel):
        terms = ("root",)

        def objective(self, batch, training):
            return Objective({"root": tf.sqrt(tf.reduce_sum(self(batch.x * 0.0)))})

    model = Root(inputs=(i := keras.Input((4,))), outputs=layers.Dense(1)(i))
    model.compile("sgd")
    assert "not_finite" in kinds(model)


class OwnOptimizer(Network):
    def __init__(self, optimizer):
        super().__init__()
        self.other = optimizer

    def train_step(self, data):
        self.optimizer, kept = self.other, self.optimizer
        logs = super().train_step(data)
        self.optimizer = kept
        return logs


def test_unused_optimizer_of_compile_and_one_built_too_late_are_told():
    other = keras.optimizers.SGD(0.01)
    model = OwnOptimizer(other)
    model.compile(loss="mse")
    assert kinds(model) == {"unused_optimizer", "loses_optimizers"}
    other.build(model.trainable_variables)
    assert kinds(model) == {"unused_optimizer"}


def test_float16_without_loss_scale_is_told():
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = OwnOptimizer(keras.optimizers.SGD(0.01))
    model.compile(loss="mse")
    assert "unscaled_float16" in kinds(model)
    scaled = OwnOptimizer(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01)))
    scaled.compile(loss="mse")
    assert not {"unscaled_float16", "unscaled_loss"} & kinds(scaled)


def test_loss_that_is_not_scaled_is_told():
    class Unscaled(Network):
        def scaled(self, loss):
            return loss

    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))
    assert "unscaled_loss" in kinds(compiled(Unscaled(), optimizer=optimizer))


@pytest.mark.parametrize("kind", [Network, StepModel])
def test_trainable_set_after_fit_is_told_until_compiled_again(kind):
    first, last = dense(3), layers.Dense(1)
    inputs = keras.Input((4,))
    model = Network(first, last) if kind is Network else kind(inputs, last(first(inputs)))
    compiled(model).fit(X, Y, verbose=0)
    assert "stale_trainable" not in kinds(model)
    first.trainable = False
    assert "stale_trainable" in kinds(model)
    assert "stale_trainable" not in kinds(compiled(model))


def test_frozen_layer_that_moves_is_told():
    class Listed(Network):
        def __init__(self):
            super().__init__()
            self.listed = self.trainable_weights
            self.parts[0].trainable = False

        def trained(self):
            return self.listed

    assert "frozen_moves" in kinds(compiled(Listed()))


class Normalized(StepModel):
    """Trains a head behind features with batch norm; how they are called is the test's."""

    terms = ("error",)

    def __init__(self, training, freeze=False):
        super().__init__()
        self.training = training
        self.features = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
        self.head = keras.Sequential([keras.Input((4,)), layers.Dropout(0.2), layers.Dense(1)])
        self.features.trainable = not freeze

    def updates(self):
        return (Update("head", self.objective, self.head.trainable_variables),)

    def objective(self, batch, training):
        x = self.features(batch.x, training=self.training[0])
        y = self.head(x, training=self.training[1])
        return Objective({"error": tf.reduce_mean((y - batch.y) ** 2)})


@pytest.mark.parametrize(
    "training, freeze, expected",
    [
        ((False, True), False, set()),
        ((True, True), False, {"statistics_drift"}),
        ((True, True), True, set()),
        ((False, False), False, {"training_not_passed"}),
    ],
)
def test_statistics_and_noise_tell_how_networks_are_called(training, freeze, expected):
    model = Normalized(training, freeze)
    model.compile({"head": "sgd"})
    assert kinds(model) == expected


def test_sample_weights_that_nobody_uses_are_told():
    class Drops(Network):
        def loss_of(self, x, y, weights):
            return super().loss_of(x, y, None)

    batch = X, Y, np.linspace(0.5, 1.5, 12)
    assert kinds(compiled(Drops()), batch) == {"ignored_sample_weight"}
    assert kinds(compiled(Drops())) == set()


@pytest.mark.parametrize("size", [None, 1])
def test_log_that_is_no_mean_over_the_examples_is_told(size):
    class Wrong(Network):
        def logs(self, loss, x):
            if size is None:
                return {"loss": loss}
            self.tracker.update_state(loss, sample_weight=size)
            return {"loss": self.tracker.result()}

    [finding] = report(compiled(Wrong())).warnings
    assert finding.kind == "inexact_log"
    assert ("last batch alone" if size is None else "forgets their sizes") in finding.text


def test_step_that_fails_on_a_short_batch_is_told():
    class Fixed(Network):
        def loss_of(self, x, y, weights):
            return super().loss_of(tf.reshape(x, (12, 4)), y, weights)

    assert kinds(compiled(Fixed())) == {"short_batch"}


@pytest.mark.parametrize(
    "draw, kind",
    [
        (lambda: tf.random.normal(()), "global_noise"),
        (lambda: tf.random.gamma((), 1.0), "global_noise"),
        (lambda: keras.random.normal(()), "global_noise"),
        (lambda: np.random.rand(), "python_noise"),
    ],
)
def test_noise_from_outside_of_the_model_is_told(draw, kind):
    class Noisy(Network):
        def loss_of(self, x, y, weights):
            return super().loss_of(x + tf.cast(draw(), tf.float32), y, weights)

    assert kinds(compiled(Noisy())) & {"global_noise", "python_noise"} == {kind}


def test_noise_from_a_generator_of_the_model_is_not_told():
    class Noisy(Network):
        def __init__(self):
            super().__init__()
            self.seeds = keras.random.SeedGenerator(1)

        def loss_of(self, x, y, weights):
            noise = keras.random.normal(tf.shape(x), seed=self.seeds)
            return super().loss_of(x + noise, y, weights)

    assert kinds(compiled(Noisy())) == set()


def test_model_that_can_be_neither_evaluated_nor_saved_is_told():
    class NoCall(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = compiled(Network())

        def train_step(self, data):
            self.inner.train_step(data)
            return {}

    model = NoCall()
    model.compile(optimizer=model.inner.optimizer)
    assert kinds(model) == {"evaluate", "cannot_be_saved"}


def test_variables_without_gradient_are_told():
    class Cut(Network):
        def call(self, x):
            return self.parts[1](tf.stop_gradient(self.parts[0](x)))

    model = compiled(Cut(dense(3), layers.Dense(1)))
    seen = report(model)
    assert [finding.kind for finding in seen.warnings] == ["no_gradient"]
    assert seen.updates[0].without_gradient == (model.parts[0].kernel.path,)


def test_update_without_variables_is_told():
    model = Normalized((False, True))
    model.head.trainable = False
    model.compile({"head": "sgd"})
    assert "no_variables" in kinds(model)


class Terms(StepModel):
    """Its objective is what the test says."""

    terms = ("a", "b")

    def __init__(self, make, **kwargs):
        super().__init__(**kwargs)
        self.make = make
        self.dense = dense()
        self.built = True

    def call(self, x):
        return self.dense(x)

    def objective(self, batch, training):
        return Objective(self.make(tf.reduce_mean(self(batch.x) ** 2)))


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda a: {"a": a, "b": a / 2}, set()),
        (lambda a: {"a": a, "b": a / 1000}, {"dominant_term"}),
        (lambda a: {"a": a, "b": a * 0}, {"zero_term"}),
        (lambda a: {"a": a, "b": tf.stop_gradient(a)}, {"term_without_gradient"}),
    ],
)
def test_terms_that_teach_nothing_are_told(make, expected):
    model = Terms(make)
    model.compile(keras.optimizers.SGD(0.01))
    assert kinds(model) == expected


@pytest.mark.parametrize(
    "rate, expected",
    [(1e-2, set()), (10.0, {"large_update"}), (1e-7, {"small_update"}), (0.0, {"zero_rate"})],
)
def test_updates_of_unusual_size_are_told(rate, expected):
    assert kinds(compiled(Network(), optimizer=keras.optimizers.SGD(rate))) == expected


def test_warning_of_the_step_is_told_and_does_not_escape():
    class Warns(Network):
        def loss_of(self, x, y, weights):
            warnings.warn("look here", stacklevel=1)
            return super().loss_of(x, y, weights)

    [finding] = report(compiled(Warns())).warnings
    assert (finding.kind, finding.text) == ("warned", "The step itself warned: look here")


# What is printed, and what is refused


def test_report_is_printed_in_80_columns(capsys):
    gan = descriptor("GAN-wgan-gp")
    seen = inspect(gan.make(), gan.batch)
    text = capsys.readouterr().out
    assert text == f"{seen}\n"
    assert max(map(len, text.splitlines())) <= 80
    for words in ("gradient_penalty", "ema_generator", "2 descents", "No mistake was seen"):
        assert words in text
    assert repr(seen) == "<Report of GAN: updates discriminator, generator; warnings: none>"
    inspect(gan.make(), gan.batch, verbose=False)
    assert capsys.readouterr().out == ""


def test_long_table_leaves_out_its_middle():
    network = Network(dense(4), *(dense(4, kernel_initializer="orthogonal") for _ in range(19)))
    text = str(report(compiled(network), (X, X)))
    assert "... 8 more, see `networks` of the report ..." in text
    assert text.count("yes") == 12


def test_first_batch_of_a_data_set_is_taken():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(6)
    assert report(compiled(Network()), data).examples == 6


@pytest.mark.parametrize("model", [keras.Sequential([layers.Dense(1)]), "model.keras"])
def test_model_without_a_step_is_refused(model):
    with pytest.raises(ValueError, match="no step to inspect. Expected .*; received .*Call"):
        inspect(model, X)


def test_model_on_several_replicas_is_refused(two_replicas):
    with two_replicas.scope():
        model = compiled(keras.Sequential([keras.Input((4,)), layers.Dense(1)]))
    with pytest.raises(ValueError, match="several replicas .*Expected .*; received .*2.*Make"):
        inspect(model, X)


def test_unbuilt_model_whose_step_cannot_be_compiled_is_refused():
    class EagerOnly(Lazy):
        def call(self, x):
            return super().call(x if tf.reduce_sum(x) > 1e9 else -x)

    model = compiled(EagerOnly(), run_eagerly=True)
    with pytest.raises(ValueError, match="cannot be made .*Expected .*; received .*Call the model"):
        report(model)
    assert not model.built


def test_example_finds_what_it_broke(capsys):
    reports = load(EXAMPLE).main(["--smoke"])
    found = {name: {f.kind for f in seen.warnings} for name, seen in reports.items()}
    assert found["GAN"] == set()
    assert {"training_not_passed", "unused_optimizer", "inexact_log"} < found["TutorialGAN"]
    assert {"frozen_moves", "ignored_sample_weight"} < found["FineTuning"]
    assert found["CutGradient"] == {"term_without_gradient"}
    assert "after   10 steps" in capsys.readouterr().out
