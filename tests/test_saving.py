"""Models that are saved whole, however they are made."""

import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from customstep import GAN, StepModel, losses
from tests.descriptors import (
    CLASSES,
    FEATURES,
    LATENTS,
    classifier_compiled,
    discriminator,
    equal,
    functional_classifier,
    gan,
    generator,
)


@keras.saving.register_keras_serializable("tests")
class ScaledGAN(GAN):
    def __init__(self, generator, discriminator, latent_dim, *, scale=1.0, **kwargs):
        super().__init__(generator, discriminator, latent_dim, **kwargs)
        self.scale = scale


@keras.saving.register_keras_serializable("tests")
class Tempered(StepModel):
    """A functional model with an argument of its own."""

    def __init__(self, *args, temperature=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.temperature = temperature


@keras.saving.register_keras_serializable("tests")
class NamedGraph(StepModel):
    """The same, with the graph's inputs and outputs by name."""

    def __init__(self, inputs, outputs, temperature=1.0, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.temperature = temperature


@keras.saving.register_keras_serializable("tests")
class OnBackbone(StepModel):
    """A graph that the constructor itself draws over a network."""

    def __init__(self, backbone, **kwargs):
        outputs = layers.Dense(1)(backbone.outputs[0])
        super().__init__(inputs=backbone.inputs, outputs=outputs, **kwargs)
        self.backbone = backbone


def reloaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


def test_subclass_of_a_template_keeps_the_arguments_of_both(tmp_path):
    model = ScaledGAN(
        generator(),
        discriminator(),
        3,
        scale=2.0,
        loss=losses.Hinge(),
        penalties=[losses.R1(0.1)],
        ema_decay=0.5,
        image_range=(0, 1),
        name="scaled",
    )
    model.compile({"discriminator": "adam", "generator": "sgd"})
    again = reloaded(model, tmp_path)
    for name in ("scale", "loss", "penalties", "ema_decay", "image_range", "name"):
        assert getattr(again, name) == getattr(model, name), name


@pytest.mark.parametrize("cls", [Tempered, NamedGraph])
def test_functional_model_keeps_arguments_of_its_own(cls, tmp_path):
    inputs = keras.Input((6,))
    model = cls(inputs=inputs, outputs=layers.Dense(2)(inputs), temperature=3.0)
    model.compile("adam", "mse")
    again = reloaded(model, tmp_path)
    assert again.temperature == 3.0 and again.name == model.name
    assert np.array_equal(again.predict(FEATURES, verbose=0), model.predict(FEATURES, verbose=0))


def test_model_that_draws_its_own_graph_is_made_from_its_arguments(tmp_path):
    backbone = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model = OnBackbone(backbone)
    model.compile("adam", "mse")
    again = reloaded(model, tmp_path)
    assert np.array_equal(again.predict(FEATURES, verbose=0), model.predict(FEATURES, verbose=0))


@pytest.mark.parametrize("frozen", ["layer", "model"])
def test_what_is_frozen_stays_frozen(frozen, tmp_path):
    model = functional_classifier()
    (model.layers[1] if frozen == "layer" else model).trainable = False
    model.compile(**classifier_compiled())
    again = reloaded(model, tmp_path)
    assert again.trainable == model.trainable
    flags = [[one.trainable for one in each.layers if one.weights] for each in (again, model)]
    assert flags[0] == flags[1]


@pytest.mark.parametrize("make", [functional_classifier, gan])
def test_pickled_model_is_the_same(make):
    model = make()
    again = pickle.loads(pickle.dumps(model))
    assert equal(again.get_weights(), model.get_weights())


def test_plain_keras_reads_the_weights_and_the_other_way_round(tmp_path):
    ours, theirs = functional_classifier(), functional_classifier(keras.Model)
    ours.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")
    assert equal(theirs.get_weights(), ours.get_weights())
    other = functional_classifier()
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    other.load_weights(tmp_path / "theirs.weights.h5")
    assert equal(other.get_weights(), theirs.get_weights())


def test_rejected_compile_leaves_the_earlier_one():
    model = functional_classifier()
    model.compile(**classifier_compiled())
    with pytest.raises(ValueError, match="do not fit the updates"):
        model.compile({"generator": "adam"})
    model.fit(FEATURES, CLASSES, verbose=0)
    assert "generator" not in str(model.get_compile_config())


def test_weights_load_into_a_gan_that_is_not_compiled(tmp_path):
    model = gan()
    model.save_weights(tmp_path / "gan.weights.h5")
    other = gan()
    other.load_weights(tmp_path / "gan.weights.h5")
    assert equal(other.get_weights(), model.get_weights())


def test_exported_gan_serves_its_average(tmp_path):
    model = gan()
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(served.serve(LATENTS), model.predict(LATENTS, verbose=0), rtol=1e-5)
