"""The scheduled classifier: the source document's own code, and the rate it gives the optimizer."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image

from customstep import schedules
from customstep.templates import ScheduledClassifier
from tests.test_examples import load

X = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4)
Y = np.array([0, 1, 2, 0, 1, 2])
EXAMPLE = pathlib.Path(__file__).parent.parent / "examples/scheduled_classifier.py"


@keras.saving.register_keras_serializable("tests")
def schedule_lr(step):
    """The source document's function, word for word."""
    initial_lr = 0.001  # 초기 학습률
    decay_steps = 1000  # 감소 단위 단계 수
    decay_rate = 0.1  # 감소율
    lr = initial_lr * (decay_rate ** (step // decay_steps))
    return lr


def smooth_schedule_lr(step):
    """The formula below that function."""
    initial_lr, decay_steps, decay_rate = 0.001, 1000, 0.1
    return initial_lr * decay_rate ** (step / decay_steps)


def get_model(**head):
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", **head)(inputs))


def classifier(schedule, optimizer="adam", **arguments):
    """As in the document, with the class's name alone changed."""
    model = get_model()
    custom_model = ScheduledClassifier(inputs=model.input, outputs=model.output)
    loss = "sparse_categorical_crossentropy"
    custom_model.compile(optimizer, loss, ["accuracy"], schedule_lr=schedule, **arguments)
    return custom_model


def rate(model):
    return float(model.optimizer.learning_rate.numpy())


STAIRS = {0: 1e-3, 999: 1e-3, 1000: 1e-4, 1999: 1e-4, 2000: 1e-5, 10_000: 1e-13}
# one step before the edge of a stair the rate is 10 ** 0.001 = 1.0023052 times that at the edge
SMOOTH = {0: 1e-3, 999: 1.0023052e-4, 1000: 1e-4, 1999: 1.0023052e-5, 2000: 1e-5, 10_000: 1e-13}


@pytest.mark.parametrize(
    "schedule, rates",
    [
        pytest.param(schedule_lr, STAIRS, id="document-code"),
        pytest.param(schedules.StepDecay(0.001, 1000), STAIRS, id="StepDecay"),
        pytest.param(smooth_schedule_lr, SMOOTH, id="document-formula"),
        pytest.param(schedules.ExponentialDecay(0.001, 1000), SMOOTH, id="ExponentialDecay"),
    ],
)
def test_both_forms_of_the_document_give_the_rates_of_hand_arithmetic(schedule, rates):
    model = classifier(schedule)
    for step, expected in rates.items():
        model.optimizer.iterations.assign(step)
        logs = model.train_on_batch(X, Y, return_dict=True)
        assert rate(model) == pytest.approx(expected, rel=1e-5), step
        assert logs["learning_rate"] == pytest.approx(expected, rel=1e-5), step


def test_fit_logs_the_rate_of_the_last_step_of_each_epoch():
    model = classifier(lambda step: 0.5 * 0.5 ** (step // 2), keras.optimizers.SGD())
    history = model.fit(X, Y, batch_size=2, epochs=3, verbose=0).history  # steps 0-2, 3-5, 6-8
    assert history["learning_rate"] == [0.25, 0.125, 0.03125]
    assert {"loss", "accuracy"} <= set(history)


def test_optimizer_descends_with_the_scheduled_rate():
    """One step of gradient descent moves a weight by the rate times the gradient, no other."""
    model = classifier(lambda step: 0.25 + step, keras.optimizers.SGD(100.0))
    kernel, bias = (np.array(v) for v in model.trainable_variables)
    logits = X @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gradient = X.T @ (p - np.eye(3)[Y]) / len(X)  # of softmax and cross-entropy
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(
        model.trainable_variables[0], kernel - 0.25 * gradient, rtol=1e-4, atol=1e-6
    )


def test_without_a_schedule_the_rate_is_the_optimizers_own():
    model = classifier(None, keras.optimizers.SGD(0.125))
    assert "learning_rate" not in model.fit(X, Y, verbose=0).history
    assert rate(model) == 0.125


def test_sequential_model_is_taken_by_its_lists():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])
    classifier = ScheduledClassifier(inputs=model.inputs, outputs=model.outputs)
    classifier.compile("adam", "sparse_categorical_crossentropy", schedule_lr=schedule_lr)
    classifier.fit(X, Y, verbose=0)
    # It is another graph of the same layers.
    np.testing.assert_array_equal(classifier.predict(X, verbose=0), model.predict(X, verbose=0))


EVERY_SCHEDULE = [
    pytest.param(schedules.StepDecay(0.5, decay_steps=2), id="StepDecay"),
    pytest.param(schedules.ExponentialDecay(0.5, decay_steps=2), id="ExponentialDecay"),
    pytest.param(schedules.LinearDecay(0.5, steps=10), id="LinearDecay"),
    pytest.param(schedules.WarmupCosine(0.5, steps=10, warmup=0.2), id="WarmupCosine"),
    pytest.param(schedules.OneCycle(0.5, steps=10), id="OneCycle"),
    pytest.param(keras.optimizers.schedules.CosineDecay(0.5, 10), id="CosineDecay-of-Keras"),
    pytest.param(schedule_lr, id="registered-function"),
]


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_loaded_model_goes_on_where_the_schedule_was(schedule, tmp_path):
    model = classifier(schedule)
    model.fit(X, Y, batch_size=2, epochs=2, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert rate(loaded) == rate(model)
    for one in (model, loaded):  # step 6
        one.train_on_batch(X, Y)
        assert rate(one) == pytest.approx(float(schedule(tf.constant(6.0))), rel=1e-5)
    for a, b in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_schedule_under_xla_is_that_of_the_graph():
    model = classifier(schedules.WarmupCosine(0.5, steps=8, warmup=0.25), jit_compile=True)
    history = model.fit(X, Y, batch_size=2, epochs=2, verbose=0).history  # last steps 2 and 5
    assert history["learning_rate"] == pytest.approx([0.5, 0.25])  # top, then half the cosine


# Errors


def test_schedule_beside_one_inside_the_optimizer_is_refused():
    own = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5)
    message = (
        r"has a schedule already\. Expected a fixed `learning_rate` beside `schedule_lr`; "
        r"received a schedule\. Pass one of the two\."
    )
    with pytest.raises(ValueError, match=message):
        classifier(schedule_lr, keras.optimizers.SGD(own))


def test_rate_in_the_place_of_a_schedule_is_refused():
    message = r"cannot be called\. Expected a callable of the step; received 0\.1\."
    with pytest.raises(TypeError, match=message):
        classifier(0.1)


# The example


def test_example_leaves_what_it_promises(tmp_path, capsys):
    history = load(EXAMPLE).main(["--smoke", "--out", str(tmp_path)]).history
    assert np.isfinite(history["val_loss"]).all()
    names = {"training.png", "classifier.keras", "checkpoints"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert "Test accuracy" in capsys.readouterr().out
    with Image.open(tmp_path / "training.png") as image:
        assert image.width == 800
