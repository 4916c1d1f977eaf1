"""Every template once, tiny: `tests/conformance` runs over this list.

A new template is one line in `DESCRIPTORS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from keras.optimizers import SGD, Adam

from customstep import GAN, Batch, Objective, StepModel, Update, losses


class Descriptor(NamedTuple):
    """How to make one template and what to feed it.

    Attributes:
        name: shown in the test's name.
        create: makes the model, not yet compiled.
        compiled: makes the arguments of `compile`.
        batch: numpy arrays, `(x, y)` or `(x,)`, of 24 examples.
        predicts: input for `predict`.
    """

    name: str
    create: Callable[[], StepModel]
    compiled: Callable[[], dict]
    batch: Batch
    predicts: np.ndarray

    def make(self, seed=0, **compile_arguments):
        """The model, compiled; the same weights and noise for the same seed."""
        keras.utils.set_random_seed(seed)
        model = self.create()
        model.compile(**self.compiled(), **compile_arguments)
        return model

    def data(self):
        """What `fit` takes: `x`, `y` and whatever else the template needs."""
        x, y, _ = self.batch
        return {"x": x} if y is None else {"x": x, "y": y}


def fit(model, descriptor, **arguments):
    """Two epochs in the stored order, batches of 8; returns the history."""
    defaults = dict(batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model.fit(**descriptor.data(), **{**defaults, **arguments}).history


def state(model):
    """All that training changes: weights, random states, and every optimizer's own variables."""
    optimizers = [v for one in model.optimizers.values() for v in one.variables]
    return [np.array(keras.ops.convert_to_numpy(v)) for v in [*model.variables, *optimizers]]


def equal(a, b):
    """Whether two states or lists of arrays are the same bit for bit."""
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


_rng = np.random.default_rng(0)
FEATURES = _rng.normal(size=(24, 6)).astype("float32")
CLASSES = _rng.integers(0, 3, 24).astype("int32")
IMAGES = _rng.uniform(-1, 1, (24, 4, 4, 1)).astype("float32")
LATENTS = _rng.normal(size=(5, 3)).astype("float32")


def functional_classifier(cls=StepModel):
    """Batch norm, dropout and a regularizer, which every step has to treat as Keras does."""
    inputs = keras.Input((6,))
    x = layers.Dense(8, use_bias=False, kernel_regularizer="l2")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.2, seed=3)(x)
    return cls(inputs=inputs, outputs=layers.Dense(3, dtype="float32")(x))


def classifier_compiled():
    return dict(
        optimizer=Adam(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
    )


@keras.saving.register_keras_serializable("tests")
class TwoHeads(StepModel):
    """A composite of networks with two updates on terms of their own, one of them repeated."""

    terms = ("main", "head")

    def __init__(self, body, main, head, **kwargs):
        super().__init__(**kwargs)
        self.body = body
        self.main = main
        self.head = head

    def call(self, x, training=False):
        return self.main(self.body(x, training=training))

    def updates(self):
        main = self.body.trainable_variables + self.main.trainable_variables
        return (
            Update("main", self.main_objective, main),
            Update("head", self.head_objective, self.head.trainable_variables, times=2, slices=2),
        )

    def main_objective(self, batch, training):
        y_pred = self(batch.x, training=training)
        error = keras.losses.sparse_categorical_crossentropy(batch.y, y_pred, from_logits=True)
        return Objective({"main": keras.ops.mean(error)}, y_pred)

    def head_objective(self, batch, training):
        guess = self.head(batch.x)[:, 0] - keras.ops.sum(batch.x, axis=1)
        return Objective({"head": keras.ops.mean(guess**2)})


def two_heads():
    return TwoHeads(
        keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="relu")]),
        keras.Sequential([keras.Input((8,)), layers.Dense(3, dtype="float32")]),
        keras.Sequential([keras.Input((6,)), layers.Dense(1, dtype="float32")]),
    )


def generator(num_classes=None):
    """Latents `(3,)` to images `(4, 4, 1)`, with batch norm."""
    inputs = latents = keras.Input((3,))
    if num_classes:
        labels = keras.Input((), dtype="int32")
        latents = layers.Concatenate()([latents, layers.Embedding(num_classes, 2)(labels)])
        inputs = [inputs, labels]
    x = layers.Dense(16, use_bias=False)(latents)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(16)(x)
    x = layers.Activation("tanh", dtype="float32")(layers.Reshape((4, 4, 1))(x))
    return keras.Model(inputs, x, name="generator")


def discriminator(num_classes=None, normalized=True):
    """Images `(4, 4, 1)` to one logit, with batch norm and dropout unless not `normalized`."""
    inputs = images = keras.Input((4, 4, 1))
    x = layers.LeakyReLU(0.2)(layers.Conv2D(4, 3, 2, "same")(images))
    if normalized:
        x = layers.Dropout(0.2)(layers.BatchNormalization()(x))
    x = layers.Flatten()(x)
    if num_classes:
        labels = keras.Input((), dtype="int32")
        x = layers.Concatenate()([x, layers.Embedding(num_classes, 2)(labels)])
        inputs = [images, labels]
    return keras.Model(inputs, layers.Dense(1, dtype="float32")(x), name="discriminator")


def gan(**arguments):
    return GAN(generator(), discriminator(), 3, **arguments)


def conditional_gan():
    return GAN(generator(3), discriminator(3), 3, num_classes=3)


def wgan_gp():
    return GAN(
        generator(),
        discriminator(normalized=False),
        3,
        loss=losses.Wasserstein(),
        penalties=[losses.GradientPenalty(10)],
        discriminator_steps=2,
    )


def gan_compiled():
    return dict(optimizer={"discriminator": Adam(1e-3, 0.5), "generator": Adam(1e-3, 0.5)})


def two_heads_compiled():
    return dict(optimizer={"main": Adam(0.01), "head": SGD(0.01, 0.9)}, metrics=["accuracy"])


LABELLED = Batch(FEATURES, CLASSES)
DESCRIPTORS = (
    Descriptor("StepModel", functional_classifier, classifier_compiled, LABELLED, FEATURES[:5]),
    Descriptor("TwoHeads", two_heads, two_heads_compiled, LABELLED, FEATURES[:5]),
    Descriptor("GAN", gan, gan_compiled, Batch(IMAGES), LATENTS),
    Descriptor(
        "GAN-conditional",
        conditional_gan,
        gan_compiled,
        Batch(IMAGES, CLASSES),
        [LATENTS, CLASSES[:5]],
    ),
    Descriptor("GAN-wgan-gp", wgan_gp, gan_compiled, Batch(IMAGES), LATENTS),
)
