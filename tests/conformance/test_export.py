"""Every template is served without this package, and copied with all it was made with."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from customstep import GAN, StepModel
from customstep.processing import Flip, Normalize, Softmax
from customstep.templates import Processed
from tests.descriptors import (
    CLASSES,
    FEATURES,
    IMAGES,
    LATENTS,
    auxiliary_loss,
    conditional_gan,
    equal,
    fit,
    functional_classifier,
    gan,
    processed,
    state,
    two_heads,
)

# By `keras.models.clone_model`.
REFUSED = {"AuxiliaryLoss", "MetricLearning", "PartiallyFrozen", "Processed"}


def serve(path, inputs):
    artifact = tf.saved_model.load(path)
    return keras.tree.map_structure(np.array, artifact.serve(inputs))


def export_and_serve(model, path, inputs, **arguments):
    model.export(path, verbose=False, **arguments)
    return serve(path, inputs)


def test_exported_model_serves_what_predict_returns(descriptor, tmp_path):
    model = descriptor.make()
    fit(model, descriptor, epochs=1)
    outputs = model.predict(descriptor.predicts, verbose=0)
    before = state(model)
    again = export_and_serve(model, tmp_path / "served", descriptor.predicts)
    assert equal(state(model), before)
    keras.tree.assert_same_structure(outputs, again)
    assert equal(keras.tree.flatten(outputs), keras.tree.flatten(again))


def test_model_is_served_without_compile_and_after_loading(descriptor, tmp_path):
    model = descriptor.create()
    outputs = model.predict(descriptor.predicts, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    restored.predict(descriptor.predicts, verbose=0)  # which is how a composite learns its inputs
    for number, one in enumerate((model, restored)):
        again = export_and_serve(one, tmp_path / str(number), descriptor.predicts)
        assert equal(keras.tree.flatten(outputs), keras.tree.flatten(again))


def test_served_model_takes_batches_of_any_size_and_integer_labels(tmp_path):
    model = conditional_gan()
    model.export(tmp_path / "served", verbose=False)
    labels = tf.constant(CLASSES[:5])
    assert labels.dtype == tf.int32
    for n in (1, 2, 5):
        images = serve(tmp_path / "served", [tf.constant(LATENTS[:n]), labels[:n]])
        # the matrix products of other batch sizes are rounded otherwise
        expected = model.predict([LATENTS[:n], CLASSES[:n]], verbose=0)
        np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-7)


def test_gan_serves_the_average_of_its_generator_within_the_range_of_images(tmp_path):
    generator = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Reshape((2, 2, 1))])
    discriminator = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(1)])
    model = GAN(generator, discriminator, 3, image_range=(0, 1))
    model.ema_generator.set_weights([np.eye(3, 4, dtype="float32"), np.full(4, 0.5, "float32")])
    latents = np.diag([-1.0, 0.25, 9.0]).astype("float32")
    images = export_and_serve(model, tmp_path / "served", latents)
    # each latent plus 0.5, cut off at 0 and 1
    expected = [[0, 0.5, 0.5, 0.5], [0.5, 0.75, 0.5, 0.5], [0.5, 0.5, 1, 0.5]]
    np.testing.assert_array_equal(np.reshape(images, (3, 4)), np.array(expected, "float32"))


def test_processed_model_serves_finished_predictions_of_raw_images(tmp_path):
    inputs = keras.Input((1, 2, 1))
    logits = layers.Dense(2, use_bias=False)(layers.Flatten()(inputs))
    processors = [Normalize(100, 50), Softmax()]
    model = Processed(inputs=inputs, outputs=logits, processors=processors, views=[Flip()])
    model.set_weights([np.array([[1.0, 0.0], [0.0, 2.0]])])
    raw = np.array([[[[50], [200]]]], "uint8")
    signature = [keras.InputSpec("uint8", (None, 1, 2, 1))]
    outputs = export_and_serve(
        model, tmp_path / "served", tf.constant(raw), input_signature=signature
    )
    # scaled: -1 and 2; logits (-1, 4), of the mirror image (2, -2); the mean (0.5, 1)
    np.testing.assert_allclose(outputs, [np.exp([0.5, 1]) / np.exp([0.5, 1]).sum()], rtol=1e-6)
    np.testing.assert_array_equal(outputs, model.predict(raw, verbose=0))


def test_main_output_is_served_alone(tmp_path):
    model = auxiliary_loss()
    outputs = export_and_serve(model.main_model(), tmp_path / "served", FEATURES)
    np.testing.assert_array_equal(outputs, model.predict(FEATURES, verbose=0)["classes"])


def test_mixed_precision_serves_what_predict_returns(tmp_path):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = processed()
    outputs = model.predict(IMAGES, verbose=0)
    again = export_and_serve(model, tmp_path / "served", IMAGES)
    np.testing.assert_array_equal(outputs, again)


LOADS = """
import sys
import numpy as np
import tensorflow as tf

for name in ("gan", "processed"):
    served = tf.saved_model.load(f"{sys.argv[1]}/{name}")
    inputs = np.load(f"{sys.argv[1]}/{name}.npy")
    np.save(f"{sys.argv[1]}/{name}-served.npy", served.serve(inputs))
assert "customstep" not in sys.modules
"""


def test_served_model_does_not_need_this_package(tmp_path):
    models = {"gan": (gan(), LATENTS), "processed": (processed(), IMAGES)}
    for name, (model, inputs) in models.items():
        model.export(tmp_path / name, verbose=False)
        np.save(tmp_path / f"{name}.npy", inputs)
    command = [sys.executable, "-c", LOADS, str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for name, (model, inputs) in models.items():
        outputs = np.load(tmp_path / f"{name}-served.npy")
        np.testing.assert_allclose(outputs, model.predict(inputs, verbose=0), rtol=1e-5, atol=1e-6)


def test_model_that_was_never_called_says_how_to_export_it(tmp_path):
    model = two_heads()
    model.compile({"main": "adam", "head": "adam"})
    with pytest.raises(ValueError, match="never called. Call it on a batch"):
        model.export(tmp_path / "served", verbose=False)
    signature = [keras.InputSpec("float32", (None, 6))]
    outputs = export_and_serve(model, tmp_path / "served", FEATURES, input_signature=signature)
    np.testing.assert_array_equal(outputs, model.predict(FEATURES, verbose=0))


def test_model_without_variables_says_how_to_export_it(tmp_path):
    @keras.saving.register_keras_serializable("tests")
    class Unbuilt(StepModel):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.head = layers.Dense(1)

        def call(self, x):
            return self.head(x)

    with pytest.raises(ValueError, match="never called. Call it on a batch"):
        Unbuilt().export(tmp_path / "served", verbose=False)
    model = Unbuilt()
    signature = [keras.InputSpec("float32", (None, 6))]
    outputs = export_and_serve(model, tmp_path / "served", FEATURES, input_signature=signature)
    np.testing.assert_array_equal(outputs, model.predict(FEATURES, verbose=0))


def described(model):
    """The configuration, of a functional graph without the names of its inputs, which differ."""
    config = model.get_config()
    if "layers" in config:
        for name in ("input_layers", "output_layers"):
            del config[name]
        config["layers"] = [
            {key: value for key, value in layer.items() if key in ("class_name", "config")}
            for layer in config["layers"]
            if layer["class_name"] != "InputLayer"
        ]
    return json.dumps(config)


def assert_same_but_fresh(copy, model):
    assert copy.__class__ is model.__class__
    assert described(copy) == described(model)
    assert len(copy.weights) == len(model.weights)
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
    kernels = [
        (fresh, old)
        for fresh, old in zip(copy.weights, model.weights)
        if old.path.endswith("kernel")
    ]
    assert kernels
    for fresh, old in kernels:
        assert not np.array_equal(fresh, old), old.path


def test_copy_from_the_configuration_has_the_arguments_and_fresh_weights(descriptor):
    model = descriptor.make()
    copy = type(model).from_config(model.get_config())
    assert_same_but_fresh(copy, model)
    assert not copy.compiled


def test_clone_has_the_arguments_and_fresh_weights_or_is_refused(descriptor):
    model = descriptor.make()
    if descriptor.name in REFUSED:
        with pytest.raises(ValueError, match="from_config.model.get_config"):
            keras.models.clone_model(model)
        return
    clone = keras.models.clone_model(model)
    assert_same_but_fresh(clone, model)
    assert clone.get_compile_config() == model.get_compile_config()
    history = fit(clone, descriptor, epochs=1)
    assert all(np.isfinite(values).all() for values in history.values())


def test_clone_of_a_constructor_of_named_arguments_is_refused_rather_than_another_class():
    class Named(StepModel):
        def __init__(self, inputs, outputs, **kwargs):
            super().__init__(inputs=inputs, outputs=outputs, **kwargs)

    inputs = keras.Input((6,))
    model = Named(inputs, layers.Dense(1)(inputs))
    with pytest.raises(ValueError, match="Named cannot be cloned"):
        keras.models.clone_model(model)
    plain = keras.models.clone_model(keras.Model(model.input, model.output))
    assert Named(plain.input, plain.output).predict(FEATURES, verbose=0).shape == (24, 1)


def test_clone_takes_the_functions_of_keras():
    model = functional_classifier()

    def narrow(layer):
        config = layer.get_config()
        if isinstance(layer, layers.Dropout):
            config["rate"] = 0.5
        return type(layer).from_config(config)

    clone = keras.models.clone_model(model, clone_function=narrow)
    assert type(clone).__name__ == "StepModel"
    assert [one.rate for one in clone.layers if isinstance(one, layers.Dropout)] == [0.5]
