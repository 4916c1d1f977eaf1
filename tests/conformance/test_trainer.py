"""`StepModel` is `keras.Model`: what Keras's trainer promises, both do, bit for bit.

Each case is a function of the class; it runs with both, and what it returns has to be equal.
"""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from keras.optimizers import SGD, Adam

from customstep import StepModel
from tests.descriptors import CLASSES, FEATURES, classifier_compiled, functional_classifier

WEIGHTS = np.random.default_rng(1).uniform(0.2, 3, 24).astype("float32")
TOKENS = np.random.default_rng(2).integers(0, 5, (12, 4))  # 0 is masked
QUIET = dict(batch_size=10, epochs=2, shuffle=False, verbose=0)
LOSS = dict(optimizer="sgd", loss="mse")
Crossentropy = keras.losses.SparseCategoricalCrossentropy
SUMS = FEATURES.sum(1, keepdims=True)

CASES, MISTAKES = [], []


def case(function):
    """A function `(cls) -> nest of numbers`, the same for both classes."""
    CASES.append(function)
    return function


def mistake(function):
    """A function `(cls)` that raises an error, of the same type for both classes."""
    MISTAKES.append(function)
    return function


def classifier(cls, **compiled):
    model = functional_classifier(cls)
    model.compile(**{**classifier_compiled(), **compiled})
    return model


def regressor(cls, outputs=layers.Dense(1), **compiled):
    """One dense layer, of the class's own `call` or compute methods, if it has any."""
    inputs = keras.Input((6,))
    model = cls(inputs=inputs, outputs=type(outputs).from_config(outputs.get_config())(inputs))
    model.compile(**{**LOSS, **compiled})
    return model


def trained(model, x=FEATURES, y=CLASSES, **arguments):
    """What training leaves of a model that is trained now."""
    history = model.fit(x, y, **{**QUIET, **arguments})
    optimizer = [np.array(variable) for variable in model.optimizer.variables]
    return history.history, history.epoch, model.get_weights(), optimizer


def fitted(model, x=FEATURES, y=CLASSES, **arguments):
    """The same, and all that can be seen of it afterwards."""
    return trained(model, x, y, **arguments), seen(model, x, y)


def seen(model, x=FEATURES, y=CLASSES):
    batch = dict(batch_size=10, verbose=0)
    return {
        "logs": model.evaluate(x, y, return_dict=True, **batch),
        "list": model.evaluate(x, y, **batch),
        "outputs": model.predict(x, **batch),
        "names": [metric.name for metric in model.metrics],
    }


# -- fit ------------------------------------------------------------------------------------


@case
def ragged_last_batch(cls):
    return fitted(classifier(cls))


@case
def shuffled_batches(cls):
    return trained(regressor(cls), y=SUMS, shuffle=True)


@case
def validation_split(cls):
    return trained(classifier(cls), validation_split=0.25)


@case
def validation_in_some_epochs(cls):
    validation = FEATURES[:7], SUMS[:7], WEIGHTS[:7]
    how = dict(validation_data=validation, validation_batch_size=3)
    return trained(regressor(cls), y=SUMS, epochs=4, validation_freq=[1, 4], **how)


@case
def validation_steps(cls):
    data = tf.data.Dataset.from_tensor_slices((FEATURES, SUMS)).batch(5).repeat()
    how = dict(validation_data=data, validation_steps=3, validation_freq=2)
    return trained(regressor(cls), y=SUMS, epochs=4, **how)


@case
def steps_per_epoch_of_endless_data(cls):
    model = classifier(cls)
    data = tf.data.Dataset.from_tensor_slices((FEATURES, CLASSES)).repeat().batch(7)
    history = model.fit(data, steps_per_epoch=2, epochs=3, shuffle=False, verbose=0).history
    return history, seen(model)


@case
def data_of_unknown_length(cls):
    model = classifier(cls)
    data = tf.data.Dataset.from_tensor_slices((FEATURES, CLASSES, WEIGHTS))
    data = data.filter(lambda x, y, w: y > 0).batch(7)
    with pytest.warns(UserWarning, match="ran out of data"):
        history = model.fit(data, epochs=2, shuffle=False, verbose=0).history
        return history, model.evaluate(data, verbose=0), model.predict(data, verbose=0)


@case
def steps_per_execution_with_a_rest(cls):
    return trained(regressor(cls, steps_per_execution=2), y=SUMS)


@case
def initial_epoch(cls):
    return trained(regressor(cls), y=SUMS, epochs=5, initial_epoch=3)


@case
def sample_weight(cls):
    return fitted(classifier(cls), sample_weight=WEIGHTS)


@case
def class_weight(cls):
    return trained(classifier(cls), class_weight={0: 0.5, 2: 3.0})


@case
def no_examples(cls):
    """An epoch without a step, of which Keras only warns."""
    with pytest.warns(UserWarning, match="ran out of data"):
        return trained(regressor(cls), FEATURES[:0], SUMS[:0])


@case
def fitting_twice(cls):
    model = classifier(cls)
    return trained(model), trained(model)


@case
def compiling_twice(cls):
    model = classifier(cls)
    first = trained(model)
    model.compile(SGD(0.1), Crossentropy(from_logits=True), weighted_metrics=["accuracy"])
    return first, fitted(model)


@case
def eager_steps(cls):
    return trained(classifier(cls, run_eagerly=True))


@case
def stop_training(cls):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 1 and self.model.optimizer.iterations > 3

    return trained(regressor(cls), y=SUMS, epochs=9, callbacks=[Stop()])


@case
def every_event_of_a_callback(cls):
    events = []

    class Recorder(keras.callbacks.Callback):
        def __getattribute__(self, name):
            if not name.startswith("on_"):
                return super().__getattribute__(name)
            return lambda *arguments, **how: events.append((name, repr((arguments, how))))

    model = classifier(cls)
    model.fit(FEATURES, CLASSES, **QUIET, validation_split=0.5, callbacks=[Recorder()])
    model.predict(FEATURES[:2], verbose=0, callbacks=[Recorder()])
    return [event for event in events if "outputs" not in event[1]]


@case
def one_list_of_callbacks_for_all(cls):
    model = regressor(cls)
    history = keras.callbacks.History()
    callbacks = keras.callbacks.CallbackList([history], model=model, epochs=2, steps=3)
    model.fit(FEATURES, SUMS, **QUIET, callbacks=callbacks)
    return history.history, model.evaluate(FEATURES, SUMS, verbose=0, callbacks=callbacks)


@case
def early_stopping_restores_the_best(cls):
    model = regressor(cls, optimizer=SGD(0.3))
    stop = keras.callbacks.EarlyStopping("val_loss", restore_best_weights=True)
    return trained(model, y=SUMS, epochs=6, validation_split=0.5, callbacks=[stop]), stop.stopped_epoch


@case
def names_of_progress(cls):
    """What the bar prints, without its times."""
    lines = []

    class Bar(keras.callbacks.ProgbarLogger):
        def on_train_batch_end(self, batch, logs=None):
            lines.append(list(logs))

    classifier(cls).fit(FEATURES, CLASSES, **QUIET, callbacks=[Bar()])
    return lines


# -- Losses and metrics ---------------------------------------------------------------------


@case
def masked_sequences(cls):
    inputs = keras.Input((4,))
    x = layers.GRU(3, return_sequences=True)(layers.Embedding(5, 3, mask_zero=True)(inputs))
    model = cls(inputs=inputs, outputs=layers.Dense(2)(x))
    loss = Crossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], weighted_metrics=["accuracy"])
    return fitted(model, TOKENS, TOKENS % 2, sample_weight=TOKENS / 2.0)


@case
def masked_sequence_to_one(cls):
    inputs = keras.Input((4,))
    x = layers.LSTM(3)(layers.Embedding(5, 3, mask_zero=True)(inputs))
    model = cls(inputs=inputs, outputs=layers.Dense(1)(x))
    model.compile("adam", "mse", metrics=["mae"])
    return trained(model, TOKENS, TOKENS.mean(1, keepdims=True))


def two_outputs(cls, kind, **compiled):
    inputs = keras.Input((6,))
    heads = {"a": layers.Dense(1, name="a")(inputs), "b": layers.Dense(3, name="b")(inputs)}
    outputs = heads if kind is dict else list(heads.values())
    model = cls(inputs=inputs, outputs=outputs)
    model.compile("sgd", **compiled)
    return model


@case
def outputs_in_a_dict(cls):
    model = two_outputs(
        cls,
        dict,
        loss={"a": "mse", "b": Crossentropy(from_logits=True)},
        loss_weights={"a": 0.3, "b": 2.0},
        metrics={"a": ["mae", "mse"], "b": "accuracy"},
        weighted_metrics={"b": ["accuracy"]},
    )
    y, weights = {"a": SUMS, "b": CLASSES}, {"a": WEIGHTS, "b": WEIGHTS[::-1]}
    return fitted(model, y=y, sample_weight=weights), model.predict(FEATURES, verbose=0)


@case
def outputs_in_a_list(cls):
    model = two_outputs(
        cls,
        list,
        loss=["mae", Crossentropy(from_logits=True)],
        loss_weights=[1.0, 0.5],
        metrics=[["mse"], ["accuracy"]],
    )
    return trained(model, y=[SUMS, CLASSES], validation_split=0.25)


@case
def outputs_without_a_loss(cls):
    model = two_outputs(cls, dict, loss={"a": "mse"})
    with pytest.warns(UserWarning, match="Gradients do not exist for variables .'b/kernel'"):
        model.fit(FEATURES, {"a": SUMS}, **QUIET)
    return seen(model, FEATURES, {"a": SUMS})


@case
def inputs_in_a_dict(cls):
    inputs = {"left": keras.Input((4,), name="left"), "right": keras.Input((2,), name="right")}
    outputs = layers.Dense(1)(layers.Concatenate()(list(inputs.values())))
    model = cls(inputs=inputs, outputs=outputs)
    model.compile("sgd", "mse")
    return fitted(model, {"right": FEATURES[:, 4:], "left": FEATURES[:, :4]}, SUMS)


@case
def inputs_in_a_list(cls):
    inputs = [keras.Input((4,)), keras.Input((2,))]
    model = cls(inputs=inputs, outputs=layers.Dense(1)(layers.Concatenate()(inputs)))
    model.compile("sgd", "mse")
    return trained(model, [FEATURES[:, :4], FEATURES[:, 4:]], SUMS)


@case
def reductions_of_the_loss(cls):
    results = []
    for reduction in ("sum", "mean_with_sample_weight", "sum_over_batch_size"):
        loss = keras.losses.MeanAbsoluteError(reduction=reduction)
        results.append(trained(regressor(cls, loss=loss), y=SUMS, sample_weight=WEIGHTS))
    return results


@case
def functions_as_losses_and_metrics(cls):
    def error(y, y_pred):
        return ops.mean(ops.abs(y - y_pred) ** 1.5, axis=-1)

    return trained(regressor(cls, loss=error, metrics=[error], weighted_metrics=["mae"]), y=SUMS)


@case
def activity_regularizer(cls):
    return trained(regressor(cls, layers.Dense(1, activity_regularizer="l1")), y=SUMS)


@keras.saving.register_keras_serializable("tests")
class Small(layers.Layer):
    """Adds a loss and counts what it sees."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.largest = keras.metrics.Mean(name="largest")

    def call(self, x):
        self.add_loss(0.1 * ops.mean(x**2))
        self.largest.update_state(ops.max(x, axis=1))
        return x


@case
def losses_and_metrics_of_a_layer(cls):
    inputs = keras.Input((6,))
    model = cls(inputs=inputs, outputs=layers.Dense(1)(Small()(layers.Dense(4)(inputs))))
    model.compile("sgd", "mse", metrics=["mae"])
    return fitted(model, y=SUMS)


@case
def losses_of_layers_alone(cls):
    inputs = keras.Input((6,))
    model = cls(inputs=inputs, outputs=Small()(layers.Dense(4)(inputs)))
    model.compile("sgd", loss=None)
    history = model.fit(FEATURES, **QUIET).history
    return history, model.get_weights(), model.evaluate(FEATURES, verbose=0)


@case
def metric_in_an_attribute(cls):
    class Model(cls):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.spread = keras.metrics.Mean(name="spread")

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            self.spread.update_state(ops.abs(y_pred))
            return super().compute_metrics(x, y, y_pred, sample_weight)

    return fitted(regressor(Model, metrics=["mae"]), y=SUMS)


# -- Overriding -----------------------------------------------------------------------------


@case
def compute_loss_of_ones_own(cls):
    class Model(cls):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            return loss + ops.mean(y_pred**2) * (0.5 if training else 0.25)

    return fitted(regressor(Model), y=SUMS, sample_weight=WEIGHTS)


@case
def compute_loss_without_training(cls):
    class Model(cls):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return ops.mean(ops.abs(y - y_pred)) + ops.sum(self.losses)

    return fitted(regressor(Model), y=SUMS)


@case
def compute_metrics_of_ones_own(cls):
    class Model(cls):
        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            logs = super().compute_metrics(x, y, y_pred, sample_weight)
            return {**logs, "largest": ops.max(y_pred)}

    return fitted(regressor(Model, metrics=["mae"]), y=SUMS)


@case
def train_step_of_ones_own(cls):
    class Model(cls):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.compute_loss(y=y, y_pred=y_pred)
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, y_pred)
            return {metric.name: metric.result() for metric in self.metrics}

        def test_step(self, data):
            x, y = data
            y_pred = self(x, training=False)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(self.compute_loss(y=y, y_pred=y_pred))
                else:
                    metric.update_state(y, y_pred)
            return {metric.name: metric.result() for metric in self.metrics}

    return trained(regressor(Model, metrics=["mae"]), y=SUMS, validation_split=0.25)


@case
def metrics_and_losses_all_ones_own(cls):
    """The guide "Customizing what happens in fit", at its lowest level."""

    class Model(cls):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.loss_tracker = keras.metrics.Mean(name="loss")
            self.mae_metric = keras.metrics.MeanAbsoluteError(name="mae")

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = ops.mean(keras.losses.mean_squared_error(y, y_pred))
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply(gradients, self.trainable_weights)
            self.loss_tracker.update_state(loss)
            self.mae_metric.update_state(y, y_pred)
            return {"loss": self.loss_tracker.result(), "mae": self.mae_metric.result()}

        @property
        def metrics(self):
            return [self.loss_tracker, self.mae_metric]

    model = regressor(Model, loss=None)
    return model.fit(FEATURES, SUMS, **QUIET).history, model.get_weights()


@case
def predict_step_and_call_of_ones_own(cls):
    class Model(cls):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, x, training=False):
            return self.dense(x) * (2.0 if training else 1.0)

        def predict_step(self, data):
            return -super().predict_step(data)

    model = Model()
    model.compile(**LOSS)
    return fitted(model, y=SUMS)


@case
def call_without_training(cls):
    class Model(cls):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    model = Model()
    model.compile(**LOSS)
    return trained(model, y=SUMS)


# -- One batch at a time, and predictions -----------------------------------------------------


@case
def one_batch_at_a_time(cls):
    model = classifier(cls)
    x, y, w = FEATURES[:8], CLASSES[:8], WEIGHTS[:8]
    return (
        model.train_on_batch(x, y),
        model.train_on_batch(x, y, return_dict=True),
        model.train_on_batch(x, y, sample_weight=w),
        model.train_on_batch(x, y, class_weight={1: 2.0}),
        model.test_on_batch(x, y),
        model.test_on_batch(x, y, sample_weight=w, return_dict=True),
        model.predict_on_batch(x),
        regressor(cls).train_on_batch(FEATURES, SUMS),  # a lone loss is no list
        model.get_weights(),
    )


@case
def metrics_between_epochs(cls):
    model = classifier(cls)
    model.fit(FEATURES, CLASSES, **QUIET)
    trained = dict(model.get_metrics_result())
    model.reset_metrics()
    return trained, dict(model.get_metrics_result()), model.metrics_names


@case
def steps_of_evaluate_and_predict(cls):
    model = regressor(cls)
    data = tf.data.Dataset.from_tensor_slices((FEATURES, SUMS)).repeat().batch(7)
    return model.evaluate(data, steps=3, verbose=0), model.predict(data, steps=2, verbose=0)


@case
def stop_evaluating_and_predicting(cls):
    class Stop(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            self.model.stop_evaluating = True

        def on_predict_batch_end(self, batch, logs=None):
            self.model.stop_predicting = True

    model = regressor(cls)
    how = dict(batch_size=10, verbose=0, callbacks=[Stop()])
    return model.evaluate(FEATURES, SUMS, **how), model.predict(FEATURES, **how)


@case
def several_outputs_are_predicted_in_their_structure(cls):
    return [
        two_outputs(cls, kind, loss="mse").predict(FEATURES, batch_size=10, verbose=0)
        for kind in (dict, list)
    ]


@case
def predict_without_compile(cls):
    return functional_classifier(cls).predict(FEATURES, verbose=0)


# -- Optimizers, precision and what does not train --------------------------------------------


@case
def what_optimizers_can_do(cls):
    optimizers = (
        Adam(0.1, use_ema=True, ema_momentum=0.5),
        SGD(0.1, use_ema=True, ema_overwrite_frequency=2),
        keras.optimizers.AdamW(0.1, weight_decay=0.1),
        Adam(0.1, gradient_accumulation_steps=2),
        SGD(0.1, 0.9, clipnorm=0.1),
        SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), global_clipnorm=0.1),
        SGD(0.1, clipvalue=0.01, loss_scale_factor=4.0),
    )
    return [
        trained(regressor(cls, optimizer=type(one).from_config(one.get_config())), y=SUMS)
        for one in optimizers
    ]


@case
def weights_of_an_optimizer_that_is_given_by_name(cls):
    return [trained(regressor(cls, optimizer=name), y=SUMS) for name in ("adam", "RMSprop")]


@case
def precision_of_one_layer(cls):
    optimizers = {
        "mixed_bfloat16": "sgd",
        "mixed_float16": keras.optimizers.LossScaleOptimizer(SGD(0.1)),  # `StepModel`'s default
        "float64": "sgd",
    }
    return [
        trained(regressor(cls, layers.Dense(1, dtype=policy), optimizer=one), y=SUMS)
        for policy, one in optimizers.items()
    ]


@case
def frozen_layer(cls):
    model = functional_classifier(cls)
    model.layers[1].trainable = False
    model.compile(**classifier_compiled())
    return trained(model), model.count_params(), len(model.trainable_weights)


@case
def frozen_model_warns(cls):
    model = functional_classifier(cls)
    model.trainable = False
    model.compile(**classifier_compiled())
    with pytest.warns(UserWarning, match="trainable weights|no variables to train"):
        history = model.fit(FEATURES, CLASSES, **QUIET).history
    return history, model.get_weights()


@case
def model_without_weights_warns(cls):
    inputs = keras.Input((6,))
    model = cls(inputs=inputs, outputs=layers.Rescaling(2.0)(inputs))
    model.compile(**LOSS)
    with pytest.warns(UserWarning, match="trainable weights|no variables to train"):
        history = model.fit(FEATURES, FEATURES, **QUIET).history
    return history, model.evaluate(FEATURES, FEATURES, verbose=0)


# -- The model as an object -------------------------------------------------------------------


@case
def description(cls):
    lines = []
    model = functional_classifier(cls)
    model.summary(print_fn=lambda line, **how: lines.append(line))
    title, *table = "\n".join(lines).splitlines()
    names = [layer.name for layer in model.layers]
    for number, name in enumerate(names):  # which Keras counts up from model to model
        table = [line.replace(name, "x" * min(len(name), 5)) for line in table]
    numbers = [line for line in table if "params" in line]
    return numbers, model.count_params(), model.get_layer(index=1) is model.layers[1]


@case
def json_and_back(cls):
    model = functional_classifier(cls)
    again = keras.models.model_from_json(model.to_json())
    assert type(again).__name__ == type(model).__name__
    again.set_weights(model.get_weights())
    again.compile(**classifier_compiled())
    return trained(again)


@case
def layer_by_name(cls):
    model = functional_classifier(cls)
    return [model.get_layer(layer.name) is layer for layer in model.layers], model.input_shape


@case
def model_as_a_layer(cls):
    inner = functional_classifier(cls)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3)(inner(inputs)))
    model.compile(**classifier_compiled())
    return trained(model)


@case
def trainable_state_of_one_optimizer(cls):
    """It goes on in another model."""
    model, other = (regressor(cls, optimizer="adam") for _ in range(2))
    model.fit(FEATURES, SUMS, **QUIET)
    other.optimizer.build(other.trainable_variables)
    values = {}
    model.optimizer.save_own_variables(values)
    other.optimizer.load_own_variables(values)
    other.set_weights(model.get_weights())
    return trained(other, y=SUMS)


# -- Mistakes -------------------------------------------------------------------------------


@mistake
def fit_before_compile(cls):
    functional_classifier(cls).fit(FEATURES, CLASSES)


@mistake
def evaluate_before_compile(cls):
    functional_classifier(cls).evaluate(FEATURES, CLASSES)


@mistake
def train_on_batch_before_compile(cls):
    functional_classifier(cls).train_on_batch(FEATURES, CLASSES)


@mistake
def lengths_that_differ(cls):
    classifier(cls).fit(FEATURES, CLASSES[:5], verbose=0)


@mistake
def no_targets(cls):
    classifier(cls).fit(FEATURES, verbose=0)


@mistake
def wrong_input_shape(cls):
    classifier(cls).fit(FEATURES[:, :3], CLASSES, verbose=0)


@mistake
def both_kinds_of_weights(cls):
    both = dict(sample_weight=WEIGHTS, class_weight={0: 1.0})
    classifier(cls).fit(FEATURES, CLASSES, **both, verbose=0)


@mistake
def targets_beside_a_data_set(cls):
    data = tf.data.Dataset.from_tensor_slices((FEATURES, CLASSES)).batch(5)
    classifier(cls).fit(data, CLASSES, verbose=0)


@mistake
def unknown_argument_of_compile(cls):
    functional_classifier(cls).compile("sgd", "mse", learning_rate=3)


@mistake
def unknown_argument_of_evaluate(cls):
    classifier(cls).evaluate(FEATURES, CLASSES, steps_per_epoch=3)


@mistake
def unknown_loss(cls):
    classifier(cls, loss="no such loss").fit(FEATURES, CLASSES, verbose=0)


@mistake
def unknown_optimizer(cls):
    functional_classifier(cls).compile("no such optimizer", "mse")


@mistake
def unknown_metric(cls):
    classifier(cls, metrics=["no such metric"]).fit(FEATURES, CLASSES, verbose=0)


@mistake
def wrong_validation_freq(cls):
    how = dict(validation_split=0.5, validation_freq="all")
    classifier(cls).fit(FEATURES, CLASSES, **how, verbose=0)


@mistake
def no_call(cls):
    model = cls()
    model.compile(**LOSS)
    model.fit(FEATURES, SUMS, verbose=0)


@mistake
def unknown_layer(cls):
    functional_classifier(cls).get_layer("no such layer")


# -- The comparison -------------------------------------------------------------------------


def run(function, cls):
    keras.utils.set_random_seed(0)
    keras.utils.clear_session(free_memory=False)
    return function(cls)


def leaves(result):
    return [(path, np.array(value)) for path, value in keras.tree.flatten_with_path(result)]


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_step_model_is_keras_model_bit_for_bit(function):
    ours, theirs = (leaves(run(function, cls)) for cls in (StepModel, keras.Model))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, one), (_, other) in zip(ours, theirs):
        assert one.dtype == other.dtype, path
        np.testing.assert_array_equal(one, other, err_msg=str(path))


@pytest.mark.parametrize("function", MISTAKES, ids=lambda function: function.__name__)
def test_mistakes_raise_what_keras_raises(function):
    kinds = []
    for cls in (keras.Model, StepModel):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(Exception) as error:  # noqa: B017, the type is what is compared
                run(function, cls)
        kinds.append(error.type)
    assert kinds[0] is kinds[1]


def test_missing_optimizer_is_refused_before_it_is_missed():
    """Keras compiles without one, and `fit` then fails on None; see `predict` for a model as is."""
    with pytest.raises(ValueError, match="The update 'model' has no optimizer"):
        functional_classifier().compile(None, "mse")
