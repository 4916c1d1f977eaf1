"""Every template works with functional, sequential and subclassed networks alike.

Each is trained, evaluated, saved and loaded, and goes on bit for bit.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras.optimizers import Adam

from customstep import GAN, OnePassGAN, StepModel, processing, schedules, selection, templates
from customstep.templates import (
    AuxiliaryLoss,
    MetricLearning,
    PartiallyFrozen,
    Processed,
    ScheduledClassifier,
)
from tests import descriptors
from tests.descriptors import CLASSES, FEATURES, IMAGES, LATENTS, equal, state
from tests.soak import SOAK

KINDS = ("functional", "sequential", "subclassed")


# -- Templates of one network ---------------------------------------------------------------


def classifier_layers(inputs):
    """A frozen name, statistics, noise and a regularizer, on features or on images."""
    return [
        keras.Input(inputs),
        layers.Flatten(),
        layers.Dense(8, use_bias=False, kernel_regularizer="l2", name="stem"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Dropout(0.2, seed=3),
        layers.Dense(3, name="head"),
    ]


def named(outputs):
    return {"classes": outputs}


class Called:
    """A `call` for a template: a network that is an argument of its constructor."""

    def __init__(self, network, **kwargs):
        super().__init__(**kwargs)
        self.network = network

    def call(self, x, training=False):
        return self.network(x, training=training)


def subclass_of(template):
    return keras.saving.register_keras_serializable("tests")(
        type(f"Called{template.__name__}", (Called, template), {"__module__": __name__})
    )


CalledStepModel, CalledScheduledClassifier, CalledPartiallyFrozen, CalledProcessed = map(
    subclass_of, (StepModel, ScheduledClassifier, PartiallyFrozen, Processed)
)
CalledMetricLearning = subclass_of(MetricLearning)


@keras.saving.register_keras_serializable("tests")
class CalledAuxiliaryLoss(Called, AuxiliaryLoss):
    def call(self, x, training=False):
        return named(super().call(x, training=training))


def one_network(template, kind, **arguments):
    shape = IMAGES.shape[1:] if template is Processed else (6,)
    network = keras.Sequential(classifier_layers(shape))
    if kind == "subclassed":
        called = globals()[f"Called{template.__name__}"]
        return called(network, **arguments)
    if kind == "sequential":
        [output] = network.outputs
        inputs, outputs = network.inputs, network.outputs
    else:
        inputs = outputs = keras.Input(shape)
        for layer in network.layers:
            outputs = output = layer(outputs)
    if template is AuxiliaryLoss:
        outputs = named(output)
    return template(inputs=inputs, outputs=outputs, **arguments)


# -- GANs -----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Generator(keras.Model):
    """Latents, or latents and labels, to images; it builds its layers itself."""

    def __init__(self, num_classes=0, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.embedding = layers.Embedding(num_classes, 2) if num_classes else None
        self.hidden = layers.Dense(16, use_bias=False)
        self.norm = layers.BatchNormalization()
        self.image = layers.Dense(16, "tanh")
        self.reshape = layers.Reshape((4, 4, 1))

    def build(self, input_shape):
        latents = input_shape[0] if self.num_classes else input_shape
        width = latents[-1] + (2 if self.num_classes else 0)
        if self.num_classes:
            self.embedding.build(None)
        self.hidden.build((None, width))
        self.norm.build((None, 16))
        self.image.build((None, 16))
        self.built = True

    def call(self, inputs, training=False):
        x = inputs
        if self.num_classes:
            latents, labels = inputs
            x = keras.ops.concatenate([latents, self.embedding(labels)], axis=1)
        x = keras.ops.relu(self.norm(self.hidden(x), training=training))
        return self.reshape(self.image(x))

    def get_config(self):
        return {"num_classes": self.num_classes, "name": self.name}


@keras.saving.register_keras_serializable("tests")
class Discriminator(keras.Model):
    """Images, or images and labels, to a logit; Keras builds its layers by calling it."""

    def __init__(self, num_classes=0, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.convolution = layers.Conv2D(4, 3, 2, "same")
        self.dropout = layers.Dropout(0.2)
        self.flatten = layers.Flatten()
        self.embedding = layers.Embedding(num_classes, 2) if num_classes else None
        self.logit = layers.Dense(1)

    def call(self, inputs, training=False):
        images, labels = inputs if self.num_classes else (inputs, None)
        x = keras.ops.leaky_relu(self.convolution(images), 0.2)
        x = self.flatten(self.dropout(x, training=training))
        if self.num_classes:
            x = keras.ops.concatenate([x, self.embedding(labels)], axis=1)
        return self.logit(x)

    def get_config(self):
        return {"num_classes": self.num_classes, "name": self.name}


def sequential_networks():
    generator = [keras.Input((3,)), layers.Dense(16, use_bias=False)]
    generator += [layers.BatchNormalization(), layers.ReLU(), layers.Dense(16, "tanh")]
    discriminator = [keras.Input((4, 4, 1)), layers.Conv2D(4, 3, 2, "same")]
    discriminator += [layers.Dropout(0.2), layers.Flatten(), layers.Dense(1)]
    generator += [layers.Reshape((4, 4, 1))]
    return keras.Sequential(generator), keras.Sequential(discriminator)


def functional_networks(num_classes=0):
    """The layers of the sequential ones, with labels added where there are classes."""
    latents, images = keras.Input((3,)), keras.Input((4, 4, 1))
    labels = [keras.Input((), dtype="int32") for _ in range(2)]
    inputs = [latents, labels[0]] if num_classes else latents
    judged = [images, labels[1]] if num_classes else images
    generator, discriminator = sequential_networks()
    x, y = generator.layers[0](latents), discriminator(images)
    if num_classes:
        x = layers.Add()([x, layers.Embedding(num_classes, 16)(labels[0])])
        y = layers.Add()([y, layers.Embedding(num_classes, 1)(labels[1])])
    for layer in generator.layers[1:]:
        x = layer(x)
    return keras.Model(inputs, x), keras.Model(judged, y)


def gan(kind, num_classes=None, cls=GAN):
    if kind == "sequential":
        networks = sequential_networks()
    elif kind == "functional":
        networks = functional_networks(num_classes)
    else:
        networks = Generator(num_classes or 0), Discriminator(num_classes or 0)
    return cls(*networks, 3, num_classes=num_classes)


# -- The table ------------------------------------------------------------------------------


def classifier_compiled(**arguments):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return dict(optimizer=Adam(0.01), loss=loss, metrics=["accuracy"], **arguments)


def gan_compiled():
    return dict(optimizer={"discriminator": Adam(1e-3, 0.5), "generator": Adam(1e-3, 0.5)})


def auxiliary_compiled():
    arguments = classifier_compiled()
    return {**arguments, "loss": {"classes": arguments["loss"]}, "metrics": {"classes": "accuracy"}}


class Case:
    """One template, made of each kind of network: how, and what it is fed."""

    def __init__(self, make, compiled, data, predicts, kinds=KINDS):
        self.make, self.compiled, self.kinds = make, compiled, kinds
        self.data, self.predicts = data, predicts

    def model(self, kind):
        keras.utils.set_random_seed(0)
        model = self.make(kind)
        model.compile(**self.compiled())
        return model

    def fit(self, model, epochs=1):
        x, y = self.data
        return model.fit(x, y, batch_size=10, epochs=epochs, shuffle=False, verbose=0).history


# -- The zoo --------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Wrapped(keras.Model):
    """The layers of a network in a subclass, which Keras builds by calling it."""

    def __init__(self, network, **kwargs):
        super().__init__(**kwargs)
        self.network = network

    def call(self, inputs, training=False):
        return self.network(inputs, training=training)

    def get_config(self):
        return {"network": keras.saving.serialize_keras_object(self.network), "name": self.name}

    @classmethod
    def from_config(cls, config):
        network = keras.saving.deserialize_keras_object(config["network"])
        return as_kind("subclassed", network, name=config["name"])


def as_kind(kind, network, name=None):
    if kind != "subclassed":
        return network
    wrapped = Wrapped(network, name=name or f"{network.name}_wrapped")
    inputs = [keras.KerasTensor(one.shape, one.dtype) for one in network.inputs]
    wrapped(inputs if len(inputs) > 1 else inputs[0])
    return wrapped


def zoo(name, networks):
    """A template as in `tests/descriptors.py`, its networks as they are there or in a subclass."""
    [descriptor] = [one for one in descriptors.DESCRIPTORS if one.name == name]
    x, y, *_ = descriptor.batch

    def make(kind):
        model = descriptor.create()
        config = model.get_config()
        for network in networks.split():
            network_of_kind = as_kind(kind, getattr(model, network))
            config[network] = keras.saving.serialize_keras_object(network_of_kind)
        return type(model).from_config(config)

    kinds = ("functional", "subclassed")
    return Case(make, descriptor.compiled, (x, y), descriptor.predicts, kinds)


LABELLED = FEATURES, CLASSES
CASES = {
    "StepModel": Case(
        lambda kind: one_network(StepModel, kind), classifier_compiled, LABELLED, FEATURES[:5]
    ),
    "ScheduledClassifier": Case(
        lambda kind: one_network(ScheduledClassifier, kind),
        lambda: classifier_compiled(schedule_lr=schedules.LinearDecay(0.01, steps=10)),
        LABELLED,
        FEATURES[:5],
    ),
    "AuxiliaryLoss": Case(
        lambda kind: one_network(AuxiliaryLoss, kind, main="classes"),
        auxiliary_compiled,
        (FEATURES, {"classes": CLASSES}),
        FEATURES[:5],
    ),
    "PartiallyFrozen": Case(
        lambda kind: one_network(
            PartiallyFrozen, kind, freeze=["*stem/*", selection.Part("*head/kernel", rows=[0])]
        ),
        classifier_compiled,
        LABELLED,
        FEATURES[:5],
    ),
    "Processed": Case(
        lambda kind: one_network(
            Processed,
            kind,
            processors=[processing.Normalize(0.1, 0.5), processing.RandomFlip()],
            views=[processing.Flip()],
        ),
        classifier_compiled,
        (IMAGES, CLASSES),
        IMAGES[:5],
    ),
    "GAN": Case(gan, gan_compiled, (IMAGES, None), LATENTS),
    "OnePassGAN": Case(
        lambda kind: gan(kind, cls=OnePassGAN), gan_compiled, (IMAGES, None), LATENTS
    ),
    "AdaptiveGAN": zoo("AdaptiveGAN", "generator discriminator"),
    "CycleGAN": zoo("CycleGAN", "to_b to_a judge_b judge_a"),
    "VAE": zoo("VAE", "encoder decoder"),
    "Diffusion": zoo("Diffusion", "network"),
    "Distillation": zoo("Distillation", "student teacher"),
    "MeanTeacher": zoo("MeanTeacher", "student"),
    "SimCLR": zoo("SimCLR", "encoder projector probe"),
    "MaskedAutoencoder": zoo("MaskedAutoencoder", "encoder decoder"),
    "MetricLearning": Case(
        lambda kind: one_network(MetricLearning, kind),
        descriptors.adam_compiled,
        LABELLED,
        FEATURES[:5],
    ),
    # A network of two inputs cannot be sequential.
    "GAN-conditional": Case(
        lambda kind: gan(kind, 3),
        gan_compiled,
        (IMAGES, CLASSES),
        [LATENTS, CLASSES[:5]],
        ("functional", "subclassed"),
    ),
}
# All other tests have functional networks.
each = pytest.mark.parametrize(
    "case, kind",
    [
        pytest.param(case, kind, id=f"{name}-{kind}")
        for name, case in CASES.items()
        for kind in case.kinds
        if SOAK or kind != "functional"
    ],
)


def test_every_template_is_here():
    assert set(templates.__all__) <= set(CASES)


@each
def test_template_trains_and_goes_on_from_its_file(case, kind, tmp_path):
    model = case.model(kind)
    before = {u.name: [np.array(v) for v in u.variables] for u in model.updates()}
    history = case.fit(model)
    assert all(np.isfinite(values).all() for values in history.values())
    for update in model.updates():
        assert not equal(before[update.name], [np.array(v) for v in update.variables])
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert restored.__class__ is model.__class__
    assert equal(state(model), state(restored))
    x, y = case.data
    logs, again = (
        one.evaluate(x, y, batch_size=10, verbose=0, return_dict=True) for one in (model, restored)
    )
    assert logs == again
    outputs, same = (one.predict(case.predicts, verbose=0) for one in (model, restored))
    assert equal(keras.tree.flatten(outputs), keras.tree.flatten(same))
    assert all(len(output) == 5 for output in keras.tree.flatten(outputs))
    assert case.fit(model) == case.fit(restored)
    assert equal(state(model), state(restored))


@pytest.mark.parametrize("name", [name for name in CASES if "GAN" not in name])
def test_kinds_of_the_same_layers_train_alike(name):
    """Functional, sequential and subclassed are three ways to write one model."""
    case = CASES[name]
    results = []
    for kind in case.kinds:
        model = case.model(kind)
        results.append((case.fit(model), state(model)))
    for history, weights in results[1:]:
        assert history == results[0][0]
        assert equal(weights, results[0][1])
