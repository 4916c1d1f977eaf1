"""Auxiliary losses: Keras's own numbers where it has them, hand arithmetic where it has not."""

import pathlib
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from customstep import StepModel
from customstep.schedules import LinearDecay, ReduceOnPlateau
from customstep.templates import AuxiliaryLoss
from tests.descriptors import equal
from tests.test_examples import load

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples/auxiliary_rotation.py"
X = np.random.default_rng(1).normal(size=(24, 6)).astype("float32")
Y = {
    "classes": np.random.default_rng(2).integers(0, 3, 24),
    "sum": X.sum(1, keepdims=True),
    "first": X[:, :1],
}
WEIGHTS = np.random.default_rng(3).uniform(0, 2, (3, 24)).astype("float32")
LOSS = {"classes": "ce", "sum": "mse", "first": keras.losses.Huber()}


def heads(cls=AuxiliaryLoss, regularizer=None, **arguments):
    """Three outputs on one body, with batch norm and dropout."""
    inputs = keras.Input((6,))
    x = layers.Dense(8, kernel_regularizer=regularizer)(inputs)
    x = layers.Dropout(0.2, seed=3)(layers.ReLU()(layers.BatchNormalization()(x)))
    outputs = {
        "classes": layers.Dense(3, "softmax", dtype="float32", name="classes")(x),
        "sum": layers.Dense(1, dtype="float32", name="sum")(x),
        "first": layers.Dense(1, dtype="float32", name="first")(x),
    }
    return cls(inputs=inputs, outputs=outputs, **arguments)


def product(cls=AuxiliaryLoss, outputs=("a", "b"), regularizer=None, **compile_arguments):
    """All outputs are w x, w = 1 at the start, and the losses their means."""
    inputs = keras.Input((1,))
    kernel = dict(kernel_initializer="ones", kernel_regularizer=regularizer)
    wx = layers.Dense(1, use_bias=False, **kernel)(inputs)
    model = cls(inputs=inputs, outputs=dict.fromkeys(outputs, wx), main="a")
    arguments = {"loss": dict.fromkeys(outputs, mean), **compile_arguments}
    model.compile(keras.optimizers.SGD(0.25), **arguments)
    return model


@keras.saving.register_keras_serializable("tests")
def mean(y_true, y_pred):
    return keras.ops.mean(y_pred, axis=-1)


def weight(model):
    return float(model.get_weights()[0][0, 0])


ONES = np.ones((4, 1), "float32")
TARGETS = {"a": ONES, "b": ONES}


# Parity with keras.Model


@pytest.mark.parametrize(
    "policy, sample_weight",
    [
        ("float32", dict(zip(LOSS, WEIGHTS))),
        ("mixed_float16", WEIGHTS[0]),
    ],
    ids=["float32 weighted by output", "float16 weighted"],
)
def test_fixed_weights_equal_keras_bit_for_bit(policy, sample_weight):
    keras.mixed_precision.set_global_policy(policy)
    results = []
    for cls, arguments in ((keras.Model, {}), (AuxiliaryLoss, {"main": "classes"})):
        keras.utils.set_random_seed(0)
        model = heads(cls, **arguments)
        model.compile(
            "adam",
            loss=LOSS,
            loss_weights={"classes": 1.0, "sum": 0.3, "first": 0.0},
            metrics={"classes": ["accuracy"], "sum": "mae"},
            weighted_metrics={"classes": ["accuracy"]},
        )
        data = dict(x=X, y=Y, sample_weight=sample_weight, batch_size=8)
        history = model.fit(**data, epochs=2, validation_data=(X, Y), verbose=0).history
        results.append((model, history, model.predict(X, verbose=0)))
    (theirs, expected, expected_outputs), (ours, received, received_outputs) = results
    assert equal(ours.get_weights(), theirs.get_weights())
    assert expected == {name: received[name] for name in expected}
    for name, output in expected_outputs.items():
        assert np.array_equal(received_outputs[name], output)


def test_regularizers_and_a_short_last_batch_are_treated_as_in_keras():
    results = []
    for cls, arguments in ((keras.Model, {}), (AuxiliaryLoss, {"main": "sum"})):
        keras.utils.set_random_seed(0)
        model = heads(cls, regularizer="l1l2", **arguments)
        weights = {"classes": 1.0, "sum": 0.3, "first": 2.0}
        model.compile("adam", loss=LOSS, loss_weights=weights)
        history = model.fit(X, Y, batch_size=9, epochs=2, verbose=0).history
        results.append((model.get_weights(), history["loss"]))
    assert equal(results[0][0], results[1][0])
    # Keras adds the regularizers up in another order, which rounds differently. Its means of
    # single outputs, unlike `loss`, are not exact over a short last batch.
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-6)


def test_masked_outputs_equal_keras_bit_for_bit():
    tokens = np.random.default_rng(0).integers(0, 5, (24, 7))  # 0 is padding
    targets = {"next": tokens, "value": tokens[..., None].astype("float32")}
    results = []
    for cls, arguments in ((keras.Model, {}), (AuxiliaryLoss, {"main": "next"})):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((7,), dtype="int32")
        x = layers.GRU(4, return_sequences=True)(layers.Embedding(5, 3, mask_zero=True)(inputs))
        outputs = {"next": layers.Dense(5, "softmax", name="next")(x)}
        outputs["value"] = layers.Dense(1, name="value")(x)
        model = cls(inputs=inputs, outputs=outputs, **arguments)
        loss = {"next": "sparse_categorical_crossentropy", "value": "mae"}
        model.compile("adam", loss, metrics={"next": "accuracy"})
        history = model.fit(tokens, targets, batch_size=8, verbose=0, shuffle=False).history
        results.append((model.get_weights(), history))
    assert equal(results[0][0], results[1][0])
    assert results[0][1] == {name: results[1][1][name] for name in results[0][1]}


# What is minimized and logged


def test_scheduled_weight_is_that_of_the_step():
    """By hand: w = 1 - 0.25 (1 + 1) = 0.5, then 0.5 - 0.25 (1 + 2) = -0.25."""
    model = product(loss_weights={"b": lambda step: step + 1})
    logs = model.train_on_batch(ONES, TARGETS, return_dict=True)
    expected = {"a_loss": 1, "b_loss": 1, "weighted_a_loss": 1, "weighted_b_loss": 1, "loss": 2}
    assert logs == expected
    assert weight(model) == 0.5
    model.reset_metrics()
    logs = model.train_on_batch(ONES, TARGETS, return_dict=True)
    expected = {"a_loss": 0.5, "b_loss": 0.5, "weighted_a_loss": 0.5, "weighted_b_loss": 1}
    assert logs == {**expected, "loss": 1.5}
    assert weight(model) == -0.25


def test_evaluation_reports_the_same_names_with_the_weight_in_force():
    model = product(loss_weights={"b": LinearDecay(1.0, steps=2, start=0.0)})
    trained = model.train_on_batch(ONES, TARGETS, return_dict=True)
    assert weight(model) == 0.5
    evaluated = model.evaluate(ONES, TARGETS, verbose=0, return_dict=True)
    assert list(evaluated) == list(trained)
    # After one step of two, the weight is a half.
    assert (evaluated["b_loss"], evaluated["weighted_b_loss"]) == (0.5, 0.25)


@pytest.mark.parametrize("weights, after", [({}, 0.5), ({"b": 0}, 0.75), ({"a": 0, "b": 3}, 0.25)])
def test_missing_weight_is_1_and_weight_0_only_logs(weights, after):
    """w = 1 - 0.25 (weight of a + weight of b)."""
    model = product(loss_weights=weights)
    logs = model.train_on_batch(ONES, TARGETS, return_dict=True)
    assert weight(model) == after
    assert logs["b_loss"] == 1 and logs["weighted_b_loss"] == weights.get("b", 1)


def test_means_are_exact_over_a_short_last_batch():
    """1, 2, ..., 7 in batches of 3: the mean is 4, and 4/3 of it weighted."""
    model = product(loss_weights={"b": 0.5})
    x = np.arange(1.0, 8).reshape(7, 1)
    logs = model.evaluate(x, {"a": x, "b": x}, batch_size=3, verbose=0, return_dict=True)
    assert logs == pytest.approx(
        {"a_loss": 4, "b_loss": 4, "weighted_a_loss": 4, "weighted_b_loss": 2, "loss": 6}
    )


def test_main_term_contains_the_regularizers():
    """0.1 w^2 of w = 1 is 0.1; with it, w = 1 - 0.25 (1 + 1 + 0.2)."""
    model = product(regularizer=keras.regularizers.L2(0.1))
    logs = model.train_on_batch(ONES, TARGETS, return_dict=True)
    assert logs["a_loss"] == 1 and logs["weighted_a_loss"] == pytest.approx(1.1)
    assert logs["loss"] == pytest.approx(2.1)
    assert weight(model) == pytest.approx(0.45)


def test_sample_weights_of_one_output_leave_the_other_alone():
    """Weights 0, 0, 2, 2 of x = 1, 2, 3, 4 in a: its mean is (6 + 8) / 4; that of b 10 / 4."""
    model = product()
    x = np.arange(1.0, 5).reshape(4, 1)
    weights = {"a": np.array([0.0, 0, 2, 2])}
    logs = model.test_on_batch(x, TARGETS, sample_weight=weights, return_dict=True)
    assert (logs["a_loss"], logs["b_loss"]) == (3.5, 2.5)


def test_output_without_a_loss_is_predicted_and_needs_no_target():
    model = product(loss={"a": mean}, metrics={"a": "mae"})
    logs = model.train_on_batch(2 * ONES, {"a": ONES}, return_dict=True)
    assert logs == {"a_loss": 2, "weighted_a_loss": 2, "a_mae": 1, "loss": 2}
    assert set(model.predict(ONES, verbose=0)) == {"a", "b"}


# Terms that are no output's loss


@keras.saving.register_keras_serializable("tests")
class WithSquare(AuxiliaryLoss):
    auxiliary_names = ("square",)

    def auxiliary_terms(self, batch, outputs, training):
        return {"square": tf.reduce_mean(outputs["a"] ** 2)}


def test_auxiliary_term_is_weighted_and_logged():
    """3 w + 0.5 * 9 w^2 with w = 1: 7.5, and its slope 3 + 9 = 12."""
    model = product(WithSquare, outputs=("a",), loss_weights={"square": 0.5})
    logs = model.train_on_batch(3 * ONES, {"a": ONES}, return_dict=True)
    expected = {"a_loss": 3, "square_loss": 9, "weighted_a_loss": 3, "weighted_square_loss": 4.5}
    assert logs == {**expected, "loss": 7.5}
    assert weight(model) == 1 - 0.25 * 12


@pytest.mark.parametrize("returned", [{}, {"cube": 1.0}, {"square": 1.0, "cube": 1.0}])
def test_auxiliary_terms_other_than_declared_are_named(returned):
    model = product(WithSquare)
    model.auxiliary_terms = lambda batch, outputs, training: returned
    with pytest.raises(ValueError, match="Expected 'square'; received .*auxiliary_names ="):
        model.train_on_batch(ONES, TARGETS)


def test_terms_and_arguments_of_several_templates_add_up():
    class Shifted(StepModel):
        def __init__(self, *args, shift, **kwargs):
            super().__init__(*args, **kwargs)
            self.shift = shift

        def preprocess(self, batch, training):
            return batch._replace(x=batch.x + self.shift)

    class Both(Shifted, WithSquare):
        pass

    inputs = keras.Input((1,))
    outputs = {"a": layers.Activation("linear")(inputs)}
    model = Both(inputs=inputs, outputs=outputs, main="a", shift=2.0)
    model.compile("sgd", loss={"a": mean})
    logs = model.evaluate(ONES, {"a": ONES}, verbose=0, return_dict=True)
    assert (logs["a_loss"], logs["square_loss"], logs["loss"]) == (3, 9, 12)
    assert model.get_config()["main"] == "a" and model.get_config()["shift"] == 2.0


# The main model


def test_main_model_predicts_the_same_bits_without_this_package(tmp_path):
    model = heads(main="classes")
    model.compile("adam", loss=LOSS)
    model.fit(X, Y, verbose=0)
    expected = model.predict(X, verbose=0)["classes"]
    main = model.main_model()
    assert type(main) is type(keras.Model(main.input, main.output))
    assert np.array_equal(main.predict(X, verbose=0), expected)
    # The two heads of 8 weights and a bias each are gone.
    assert main.count_params() == model.count_params() - 2 * 9
    main.save(tmp_path / "main.keras")
    with zipfile.ZipFile(tmp_path / "main.keras") as file:
        assert b"customstep" not in file.read("config.json")
    loaded = keras.models.load_model(tmp_path / "main.keras")
    assert np.array_equal(loaded.predict(X, verbose=0), expected)


def test_main_model_shares_the_weights():
    model = heads(main="classes")
    main = model.main_model()
    model.compile("adam", loss=LOSS)
    model.fit(X, Y, verbose=0)
    assert np.array_equal(main.predict(X, verbose=0), model.predict(X, verbose=0)["classes"])


# A model with a call of its own


@keras.saving.register_keras_serializable("tests")
class TwoNetworks(AuxiliaryLoss):
    def __init__(self, body, head, **kwargs):
        super().__init__(**kwargs)
        self.body = body
        self.head = head

    def call(self, x, training=False):
        x = self.body(x, training=training)
        return {"code": x, "sum": self.head(x)}


def two_networks(**compile_arguments):
    model = TwoNetworks(layers.Dense(4), layers.Dense(1), main="sum")
    model.compile("sgd", **{"loss": {"sum": "mse", "code": "mae"}, **compile_arguments})
    return model


def test_model_with_its_own_call_trains_and_is_loaded(tmp_path):
    model = two_networks(loss_weights={"code": 0.1}, metrics={"sum": "mae"})
    targets = {"sum": Y["sum"], "code": np.zeros((24, 4))}
    losses = model.fit(X, targets, epochs=8, verbose=0).history["sum_loss"]
    assert losses[-1] < 0.8 * losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    logs = [m.evaluate(X, targets, verbose=0, return_dict=True) for m in (model, loaded)]
    assert logs[0] == logs[1]


def test_main_model_of_a_model_with_its_own_call_is_refused():
    with pytest.raises(ValueError, match="TwoNetworks cannot be cut out.*`call` of its own"):
        two_networks().main_model()


# Replicas


def test_two_replicas_match_one(two_replicas):
    """Regularizers, sample weights by output and a schedule, in batches that divide."""

    def train():
        model = product(
            regularizer="l2",
            loss={"a": "mse", "b": "mae"},
            loss_weights={"b": LinearDecay(1.0, steps=6, start=0.0)},
            metrics={"b": "mae"},
        )
        x = np.linspace(-1, 1, 24, dtype="float32")[:, None]
        data = dict(x=x, y={"a": x, "b": -x}, sample_weight={"a": 1 - x[:, 0], "b": 1 + x[:, 0]})
        return model.fit(**data, batch_size=8, epochs=2, shuffle=False, verbose=0), weight(model)

    one, weight_of_one = train()
    with two_replicas.scope():
        two, weight_of_two = train()
    assert weight_of_two == pytest.approx(weight_of_one, abs=1e-6)
    for name, values in one.history.items():
        np.testing.assert_allclose(two.history[name], values, rtol=1e-5)


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"loss": None}, "main output has no loss.*'a'; received losses for none"),
        ({"loss": {"b": "mse"}}, "main output has no loss.*received losses for 'b'"),
        ({"loss": "mse"}, "Expected a dict of output name to loss; received 'mse'"),
        ({"loss": {"a": "mse", "c": "mse"}}, "does not exist. Expected 'a', 'b'; received 'c'"),
        ({"loss": {"a": ["mse", "mae"]}}, "'a' has several losses"),
        ({"loss_weights": {"c": 1.0}}, "names 'a', 'b', all or some; received.*'c'"),
        ({"loss_weights": 0.3}, "names 'a', 'b', all or some; received 0.3"),
        ({"loss": {"a": "mse"}, "loss_weights": {"b": 1.0}}, "names 'a', all.*give each output a"),
        ({"loss_weights": {"b": -1.0}}, r"`loss_weights\['b'\]`.*\[0, inf\); received -1.0"),
        ({"loss_weights": {"b": np.nan}}, "received nan"),
        ({"loss_weights": {"b": np.inf}}, "received inf"),
        ({"loss_weights": {"b": "half"}}, "received 'half'"),
        (
            {"loss_weights": {"b": ReduceOnPlateau(0.1, patience=9)}},
            r"loss_weights\['b'\]` depends on what was measured.*step alone; received ReduceOnPlat",
        ),
    ],
)
def test_losses_and_weights_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        product(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"loss": {"a": "mse", "c": "mse"}},
        {"loss": {"a": "mse"}, "loss_weights": {"b": 1.0}},
        {"loss": {"a": "mse"}, "optimizer": {"generator": "sgd"}},
    ],
    ids=["loss", "weight", "optimizer"],
)
def test_refused_compile_leaves_the_earlier_one_as_it_was(arguments):
    model = product()
    terms = model.terms
    with pytest.raises(ValueError):
        model.compile(**arguments)
    assert model.terms == terms
    logs = model.train_on_batch(ONES, TARGETS, return_dict=True)
    assert logs["b_loss"] == 1 and weight(model) == 0.5


@pytest.mark.parametrize(
    "y, sample_weight, message",
    [
        ({"a": ONES}, None, "'b' has a loss and no target.*received those of 'a'"),
        (ONES, None, "not given by output.*'a', 'b'"),
        (TARGETS, {"c": ONES}, "does not exist. Expected 'a', 'b'; received 'c'"),
    ],
)
def test_data_that_do_not_fit_are_named(y, sample_weight, message):
    with pytest.raises(ValueError, match=message):
        product().train_on_batch(ONES, y, sample_weight)


@pytest.mark.parametrize("outputs", [{"b": ONES}, [ONES]])
def test_outputs_without_the_main_one_are_named(outputs):
    inputs = keras.Input((1,))
    outputs = keras.tree.map_structure(lambda _: layers.Dense(1)(inputs), outputs)
    with pytest.raises(ValueError, match="Expected a dict with 'a' in it; received"):
        AuxiliaryLoss(inputs=inputs, outputs=outputs, main="a")


def test_loss_for_an_output_that_call_does_not_return_is_named():
    model = two_networks(loss={"sum": "mse", "total": "mse"})
    with pytest.raises(ValueError, match="Expected 'code', 'sum'; received 'total'"):
        model.fit(X, {"sum": Y["sum"]}, verbose=0)


def test_names_that_clash_in_the_logs_are_refused():
    with pytest.raises(ValueError, match="same name in the logs.*'a', 'weighted_a'"):
        product(outputs=("a", "weighted_a"))
    with pytest.raises(ValueError, match="same name in the logs.*'a', 'square', 'square'"):
        product(WithSquare, outputs=("a", "square"))


# The example


def test_example_leaves_what_it_promises(tmp_path):
    accuracies = load(EXAMPLE).main(["--smoke", "--out", str(tmp_path)])
    assert [len(values) for values in accuracies.values()] == [2, 2]
    names = {"accuracies.png", "classifier.keras", "checkpoints"}
    assert {path.name for path in tmp_path.iterdir()} == names
    classifier = keras.models.load_model(tmp_path / "classifier.keras")
    assert classifier.output_shape == (None, 10)


def test_example_labels_as_many_images_of_every_class_and_weighs_only_these():
    example = load(EXAMPLE)
    images, targets = example.load_data("test")
    labelled = example.choose_labelled(targets["classes"], 30, seed=0)
    assert np.bincount(targets["classes"][labelled]).tolist() == [3 * 4] * 10
    assert np.bincount(targets["turns"][labelled]).tolist() == [30] * 4
    [(x, y, weights)] = example.batches(images, targets, labelled, steps=1, seed=0)
    assert len(x) == len(y["classes"]) == len(weights["classes"])
    assert np.mean(weights["classes"]) == 1
    assert np.count_nonzero(weights["classes"]) == example.LABELLED
