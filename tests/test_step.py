"""The base: what a step is, and that the plain one is Keras's own, bit for bit."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.optimizers import SGD

from customstep import Batch, Objective, StepModel, Update
from tests.descriptors import classifier_compiled, equal, functional_classifier

X = np.random.default_rng(1).normal(size=(50, 6)).astype("float32")
Y = np.random.default_rng(2).integers(0, 3, 50)
WEIGHTS = np.random.default_rng(3).uniform(0, 2, 50).astype("float32")


def linear(cls=StepModel, **compile_arguments):
    """y = w x, w = 1 at the start: every number can be worked out by hand."""
    inputs = keras.Input((1,))
    outputs = layers.Dense(1, use_bias=False, kernel_initializer="ones")(inputs)
    model = cls(inputs=inputs, outputs=outputs)
    model.compile(**{"optimizer": keras.optimizers.SGD(0.5), "loss": "mse", **compile_arguments})
    return model


def weight(model):
    return float(model.get_weights()[0][0, 0])


# Parity with keras.Model


@pytest.mark.parametrize(
    "weighting",
    [{}, {"sample_weight": WEIGHTS}, {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}],
    ids=lambda weighting: next(iter(weighting), "unweighted"),
)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_plain_step_equals_keras_bit_for_bit(weighting, policy):
    keras.mixed_precision.set_global_policy(policy)
    results = []
    for cls in (keras.Model, StepModel):
        keras.utils.set_random_seed(0)
        model = functional_classifier(cls)
        model.compile(**classifier_compiled())
        # 50 examples in batches of 16: the last batch has 2
        history = model.fit(
            X, Y, batch_size=16, epochs=3, validation_data=(X, Y, WEIGHTS), verbose=0, **weighting
        )
        evaluated = model.evaluate(X, Y, sample_weight=WEIGHTS, verbose=0)
        results.append((model, history.history, evaluated, model.predict(X, verbose=0)))
    (theirs, *expected), (ours, *received) = results
    assert equal(ours.get_weights(), theirs.get_weights())
    optimizers = [[v.numpy() for v in one.optimizer.variables] for one in (ours, theirs)]
    assert equal(*optimizers)
    assert received[:2] == expected[:2]
    assert np.array_equal(received[2], expected[2])


def test_masked_sequences_equal_keras_bit_for_bit():
    tokens = np.random.default_rng(0).integers(0, 5, (20, 7))  # 0 is padding
    results = []
    for cls in (keras.Model, StepModel):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((7,), dtype="int32")
        x = layers.GRU(4, return_sequences=True)(layers.Embedding(5, 3, mask_zero=True)(inputs))
        model = cls(inputs=inputs, outputs=layers.Dense(5)(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"])
        history = model.fit(tokens, tokens, batch_size=8, epochs=2, verbose=0, shuffle=False)
        results.append((history.history, model.get_weights()))
    assert results[0][0] == results[1][0]
    assert equal(results[0][1], results[1][1])


def test_several_outputs_and_named_losses_equal_keras():
    results = []
    for cls in (keras.Model, StepModel):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = layers.Dense(4, activation="relu")(inputs)
        outputs = {"a": layers.Dense(1, name="a")(x), "b": layers.Dense(1, name="b")(x)}
        model = cls(inputs=inputs, outputs=outputs)
        model.compile(
            "adam",
            {"a": "mse", "b": "mae"},
            loss_weights={"a": 1.0, "b": 0.5},
            metrics={"a": "mae"},
        )
        targets = {"a": X[:, :1], "b": X[:, 1:2]}
        results.append(model.fit(X, targets, epochs=2, verbose=0, shuffle=False).history)
    assert results[0] == results[1]


def test_model_without_a_training_argument_is_trained():
    class Plain(StepModel):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    model = Plain()
    model.compile("sgd", "mse")
    losses = model.fit(X, X[:, :1], epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


# How a model is made


def test_functional_and_composite_models_share_a_base_class():
    """Keras would put its functional class among the bases of StepModel for good."""

    class Composite(StepModel):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def call(self, x, training=False):
            return self.network(x, training=training)

    functional = linear()
    composite = Composite(functional)
    assert isinstance(functional, StepModel) and type(functional) is not StepModel
    assert functional.__class__ is StepModel
    assert np.array_equal(composite(np.ones((2, 1))), [[1], [1]])
    assert linear()(np.ones((1, 1))) == 1


def test_constructor_argument_that_is_not_kept_cannot_be_saved(tmp_path):
    class Forgetful(StepModel):
        def __init__(self, width):
            super().__init__()

    with pytest.raises(NotImplementedError, match="attribute.*'width'.*self.width = width"):
        Forgetful(3).get_config()


# What a step does


def test_updates_run_in_order_with_their_optimizers():
    """One step by hand: w goes 1 -> 1 - 0.5 * 2 = 0, then 0 -> 0 - 0.25 * 3 = -0.75."""

    class Two(StepModel):
        terms = ("first", "second")

        def updates(self):
            variables = self.trainable_variables
            return Update("a", self.first, variables), Update("b", self.second, variables)

        def first(self, batch, training):
            return Objective({"first": 2 * self.trainable_variables[0][0, 0]})

        def second(self, batch, training):
            return Objective({"second": 3 * self.trainable_variables[0][0, 0]})

    optimizers = {"b": keras.optimizers.SGD(0.25), "a": keras.optimizers.SGD(0.5)}
    model = linear(Two, optimizer=optimizers, loss=None)
    logs = model.train_on_batch(np.ones((4, 1)), return_dict=True)
    assert logs == {"first": 2.0, "second": 0.0}  # each before its own descent
    assert weight(model) == -0.75


@pytest.mark.parametrize("times, slices", [(1, 1), (3, 1), (3, 3), (4, 2)])
def test_repetitions_see_their_slices_of_the_batch(times, slices):
    seen = []

    class Repeated(StepModel):
        terms = ("mean",)

        def updates(self):
            return (Update("a", self.mean, self.trainable_variables, times=times, slices=slices),)

        def mean(self, batch, training):
            seen.append(np.ravel(batch.x).tolist())
            return Objective({"mean": tf.reduce_mean(self(batch.x))})

    model = linear(Repeated, loss=None, run_eagerly=True)
    model.train_on_batch(np.arange(6.0).reshape(6, 1))
    assert len(seen) == times
    parts = np.arange(6.0).reshape(slices, -1).tolist()
    assert seen == [parts[i % slices] for i in range(times)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_parts_of_a_batch_are_equal_and_never_empty(size):
    batch = Batch(tf.range(size), {"y": tf.range(size)}, None)
    static = [np.array(batch.part(i, 3).x).tolist() for i in range(3)]

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)])
    def dynamic(x):
        return [Batch(x).part(i, 3).x for i in range(3)]

    assert [part.numpy().tolist() for part in dynamic(tf.range(size))] == static
    assert min(map(len, static)) >= 1
    if size >= 3:
        assert sum(static, []) == list(range(size))
        assert max(map(len, static)) - min(map(len, static)) <= 1


def test_terms_are_summed_and_logged_as_exact_means():
    """Batches of 2 and 1: the mean of x over the epoch is 7 / 3, not the mean of two means."""

    class Terms(StepModel):
        terms = ("value", "double")

        def objective(self, batch, training):
            mean = tf.reduce_mean(batch.x) + 0 * tf.reduce_sum(self.trainable_variables[0])
            return Objective({"value": mean, "double": 2 * mean})

    model = linear(Terms, loss=None)
    x = np.array([[1.0], [2.0], [4.0]])
    history = model.fit(x, batch_size=2, shuffle=False, verbose=0).history
    assert history["value"] == [pytest.approx(7 / 3)]
    assert history["double"] == [pytest.approx(14 / 3)]
    assert history["loss"] == [pytest.approx(21 / 3)]


def test_undeclared_term_is_an_error_that_names_the_class():
    class Careless(StepModel):
        def objective(self, batch, training):
            return Objective({"surprise": tf.reduce_mean(self(batch.x))})

    with pytest.raises(ValueError, match=r"Careless.*'surprise'.*terms = \('surprise',\)"):
        linear(Careless).fit(np.ones((2, 1)), verbose=0)


def test_hooks_are_called_with_what_they_promise():
    calls = []

    class Hooked(StepModel):
        def preprocess(self, batch, training):
            calls.append(("preprocess", training))
            return batch._replace(x=batch.x + 1)

        def after_step(self, batch):
            calls.append(("after_step", float(batch.x[0, 0])))

        def postprocess(self, outputs):
            return outputs * 10

    model = linear(Hooked, run_eagerly=True, optimizer=keras.optimizers.SGD(0.0))
    model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0)
    model.evaluate(np.ones((2, 1)), np.ones((2, 1)), verbose=0)
    assert calls == [("preprocess", True), ("after_step", 2.0), ("preprocess", False)]
    assert model.predict(np.ones((2, 1)), verbose=0).tolist() == [[20], [20]]


def test_gradients_can_be_replaced():
    class SignDescent(StepModel):
        def gradients(self, update, batch):
            gradients, objective = super().gradients(update, batch)
            return [tf.sign(gradient) for gradient in gradients], objective

    model = linear(SignDescent)  # loss (w - 3)^2 at x = 1: any slope, one step of 0.5
    model.train_on_batch(np.ones((1, 1)), np.full((1, 1), 3.0))
    assert weight(model) == 1.5


# Schedules


def document_schedule(step):
    """The source document's, word for word."""
    initial_lr = 0.001
    decay_steps = 1000
    decay_rate = 0.1
    lr = initial_lr * (decay_rate ** (step // decay_steps))
    return lr


def test_schedule_of_the_document_runs_as_written():
    model = linear(schedule_lr=document_schedule)
    model.optimizer.iterations.assign(2000)
    history = model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0).history
    assert history["learning_rate"] == [pytest.approx(1e-5)]


def test_schedule_is_in_force_in_the_very_step():
    """Rate 0 at steps 0 and 2, 0.5 at step 1: only the second step moves w, from 1 to 3."""
    model = linear(schedule_lr=lambda step: 0.5 * (step % 2))
    weights = []
    for _ in range(3):
        model.train_on_batch(np.ones((1, 1)), np.full((1, 1), 3.0))
        weights.append(weight(model))
    assert weights == [1.0, 3.0, 3.0]


def test_each_optimizer_has_its_own_schedule():
    class Two(StepModel):
        def updates(self):
            variables = self.trainable_variables
            return Update("a", self.zero, variables), Update("b", self.zero, variables, times=3)

        terms = ("zero",)

        def zero(self, batch, training):
            return Objective({"zero": tf.reduce_mean(self(batch.x)) * 0})

    optimizers = {name: keras.optimizers.SGD(0.7) for name in "ab"}
    model = linear(Two, optimizer=optimizers, loss=None, schedule_lr={"b": lambda step: step + 1})
    history = model.fit(np.ones((1, 1)), epochs=2, verbose=0).history
    # `b` descends three times a step; its last descents are numbers 2 and 5
    assert history["learning_rate_b"] == [3.0, 6.0]
    assert "learning_rate_a" not in history
    assert model.optimizers["a"].learning_rate.numpy() == pytest.approx(0.7)


# Saving


def test_steps_count_training_steps():
    model = linear()
    assert model.steps == 0
    model.fit(np.ones((6, 1)), np.ones((6, 1)), batch_size=2, epochs=2, verbose=0)
    assert model.steps == 6


def test_ema_of_an_optimizer_over_some_variables_leaves_the_others_alone():
    class Head(StepModel):
        def updates(self):
            return (Update("head", self.objective, self.layers[-1].trainable_variables),)

    inputs = keras.Input((6,))
    outputs = layers.Dense(1)(layers.Dense(1)(inputs))
    model = Head(inputs=inputs, outputs=outputs)
    model.compile({"head": keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)}, "mse")
    body = [w.copy() for w in model.layers[1].get_weights()]
    model.fit(X, X[:, :1], verbose=0)
    assert equal(model.layers[1].get_weights(), body)
    averages = model.optimizers["head"]._model_variables_moving_average
    assert equal(model.layers[2].get_weights(), [v.numpy() for v in averages])


# Models that are not built when they are compiled


class Lazy(StepModel):
    """Two layers of the same shape, made but not built; only the head is trained."""

    def __init__(self):
        super().__init__()
        self.body, self.head = layers.Dense(6), layers.Dense(6)

    def call(self, x):
        return self.head(self.body(x))

    def updates(self):
        return (Update("head", self.objective, self.head.trainable_variables),)


def test_unbuilt_model_trains_what_its_update_names():
    model = Lazy()
    model.compile({"head": keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)}, "mse")
    model(X)  # builds it after `compile`
    body = [w.copy() for w in model.body.get_weights()]
    model.fit(X, X, verbose=0)
    assert equal(model.body.get_weights(), body)
    averages = model.optimizers["head"]._model_variables_moving_average
    assert equal(model.head.get_weights(), [v.numpy() for v in averages])


def test_composite_with_a_build_of_its_own_is_built_by_it():
    class Shifted(StepModel):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def build(self, shape):
            self.shift = self.add_weight(shape=(1,), initializer="ones")

        def call(self, x, training=False):
            return self.network(x, training=training) + self.shift

    model = Shifted(linear())
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0)
    assert model.predict(np.zeros((1, 1)), verbose=0) < 1


def test_optional_input_may_be_none():
    inputs = [keras.Input((6,), optional=True), keras.Input((6,))]
    model = StepModel(inputs=inputs, outputs=layers.Dense(1)(inputs[1]))
    model.compile("sgd", "mse")
    model.fit([None, X], X[:, :1], verbose=0)


# Bad input


@pytest.mark.parametrize(
    "objective, message",
    [
        ({"error": tf.ones((4,))}, "'error' is not a scalar.*shape \\(4,\\).*reduce_mean"),
        ({}, "no terms.*empty dict"),
    ],
)
def test_objectives_that_are_no_scalars_are_refused(objective, message):
    class Wrong(StepModel):
        terms = ("error",)

        def objective(self, batch, training):
            return Objective(objective)

    with pytest.raises(ValueError, match=message):
        linear(Wrong).fit(np.ones((4, 1)), verbose=0)


@pytest.mark.parametrize("argument", [{"times": 0}, {"slices": 0}, {"times": 2.0}])
def test_updates_that_never_run_are_refused(argument):
    [(name, value)] = argument.items()
    with pytest.raises(ValueError, match=f"`{name}`.*at least 1; received {value}"):
        Update("a", None, (), **argument)


def test_terms_written_without_a_comma_are_named():
    class Comma(StepModel):
        terms = "error"

    with pytest.raises(TypeError, match=r"terms = \('error',\)"):
        linear(Comma)


def test_float16_inside_a_custom_layer_is_scaled_too():
    class Inner(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1, dtype="mixed_float16")

        def call(self, x):
            return self.dense(x)

    inputs = keras.Input((6,))
    model = StepModel(inputs=inputs, outputs=Inner()(inputs))
    model.compile("sgd", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


# What is asked of `compile` and `fit`, and cannot be


def line(cls=StepModel):
    inputs = keras.Input((4,))
    return cls(inputs=inputs, outputs=layers.Dense(1)(inputs))


ONES = dict(x=np.ones((16, 4), "float32"), y=np.ones((16, 1), "float32"), verbose=0)


@pytest.mark.parametrize("nonfinite", [None, "skip", "stop"])
def test_overridden_compute_metrics_is_logged(nonfinite):
    class Extra(StepModel):
        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            logs = super().compute_metrics(x, y, y_pred, sample_weight)
            return {**logs, "largest": tf.reduce_max(y)}

    model = line(Extra)
    model.compile("sgd", "mse", nonfinite=nonfinite)
    assert model.fit(**ONES).history["largest"] == [1.0]


class Measured(StepModel):
    terms = ("error",)
    gives_predictions = False

    def objective(self, batch, training):
        y_pred = self(batch.x)
        error = tf.reduce_mean(tf.abs(y_pred - batch.y))
        return Objective({"error": error}, y_pred if self.gives_predictions else None)


class LossOfCompile(Measured):
    def objective(self, batch, training):
        y_pred = self(batch.x)
        loss = self.compute_loss(batch.x, batch.y, y_pred, batch.sample_weight)
        return Objective({"error": loss})


@pytest.mark.parametrize("eager, replicated", [(False, False), (True, False), (False, True)])
def test_loss_that_no_objective_uses_is_a_warning(eager, replicated, two_replicas):
    with two_replicas.scope() if replicated else contextlib.nullcontext():
        model = line(Measured)
        model.compile("sgd", "mse", run_eagerly=eager)
    model.evaluate(**ONES)
    with pytest.warns(UserWarning, match="No objective of Measured asks for the loss"):
        model.fit(**ONES)


def test_loss_that_an_objective_uses_gives_no_warning(recwarn):
    for model, loss in ((line(LossOfCompile), "mse"), (line(), "mse"), (line(Measured), None)):
        model.compile("sgd", loss)
        model.fit(**ONES)
    assert not [one for one in recwarn if "No objective" in str(one.message)]


def test_metrics_without_predictions_are_refused():
    model = line(Measured)
    model.compile("sgd", metrics=["mae"])
    with pytest.raises(ValueError, match="nothing to measure.*of Measured with predictions"):
        model.fit(**ONES)


def test_compiled_metric_with_the_name_of_a_term_is_refused():
    model = line(Measured)
    model.gives_predictions = True
    model.compile("sgd", metrics=[keras.metrics.MeanAbsoluteError(name="error")])
    with pytest.raises(ValueError, match="name of a term.*'error' twice"):
        model.fit(**ONES)


def test_predictions_of_a_later_update_feed_the_metrics():
    class Late(StepModel):
        terms = ("first", "second")

        def updates(self):
            first = Update("a", self.first, self.trainable_variables)
            return first, Update("b", self.second, self.trainable_variables)

        def first(self, batch, training):
            return Objective({"first": tf.reduce_mean(self(batch.x) ** 2)})

        def second(self, batch, training):
            y_pred = self(batch.x)
            return Objective({"second": tf.reduce_mean((y_pred - batch.y) ** 2)}, y_pred)

    model = line(Late)
    model.compile({"a": SGD(0.0), "b": SGD(0.0)}, metrics=["mse"])
    history = model.fit(**ONES, validation_data=(ONES["x"], ONES["y"])).history
    assert history["mse"] == pytest.approx(history["second"])
    assert history["val_mse"] == pytest.approx(history["mse"])


def test_rate_callback_beside_a_schedule_is_refused():
    model = line()
    model.compile("sgd", "mse", schedule_lr=lambda step: 0.1)
    callback = keras.callbacks.ReduceLROnPlateau()
    with pytest.raises(ValueError, match="set from two sides.*received both, ReduceLROnPlateau"):
        model.fit(**ONES, callbacks=[callback])


def test_evaluate_refuses_weights_that_keras_would_drop():
    model = line()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="sample weights would be ignored"):
        model.evaluate(ONES["x"], sample_weight=np.ones(16), verbose=0)


@pytest.mark.parametrize(
    "argument, function, received",
    [("when", lambda step: step % 5, "float32"), ("schedule_lr", lambda step: step > 5, "bool")],
)
def test_rates_are_numbers_and_conditions_are_bools(argument, function, received):
    with pytest.raises(TypeError, match=f"value of the wrong kind.*received {received}"):
        line().compile("sgd", "mse", **{argument: function})


def test_guard_keeps_metrics_that_are_made_in_a_broken_first_step():
    model = line()
    model.compile("sgd", "mse", metrics=["mae"], nonfinite="skip", run_eagerly=True)
    y = np.where(np.arange(16)[:, None] < 4, np.nan, 1.0)
    history = model.fit(ONES["x"], y, batch_size=4, shuffle=False, verbose=0).history
    assert history["nonfinite"] == [1.0]
    assert np.isfinite(history["mae"]).all() and np.isfinite(history["loss"]).all()


def test_fit_passes_a_wrapper_that_names_no_argument_what_the_caller_passed(monkeypatch):
    fit, seen = keras.Model.fit, {}

    def wrapper(self, *args, **kwargs):
        seen.update(args=args, names=set(kwargs))
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", wrapper)
    model = line()
    model.compile("sgd", "mse")
    model.fit(ONES["x"], ONES["y"], 8, verbose=0)
    assert seen["args"][0] is ONES["x"] and seen["args"][2:] == (8,)
    assert seen["names"] == {"verbose", "callbacks"}
