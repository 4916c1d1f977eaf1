"""Every template once, tiny: `tests/conformance` runs over this list.

A new template is one line in `DESCRIPTORS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers, ops
from keras.optimizers import SGD, Adam, AdamW

from customstep import GAN, Batch, Objective, StepModel, Update, losses, processing
from customstep.gradients import GradientCentralization, GradientSurgery, SharpnessAware
from customstep.conditions import Above
from customstep.schedules import LinearDecay, ReduceOnPlateau, WarmupCosine
from customstep.selection import Part
from customstep.templates import (
    VAE,
    AdaptiveGAN,
    AuxiliaryLoss,
    CycleGAN,
    Diffusion,
    Distillation,
    MaskedAutoencoder,
    MeanTeacher,
    MetricLearning,
    OnePassGAN,
    PartiallyFrozen,
    Processed,
    ScheduledClassifier,
    SimCLR,
)


class Descriptor(NamedTuple):
    """How to make one template and what to feed it.

    Attributes:
        name: shown in the test's name.
        create: makes the model, not yet compiled.
        compiled: makes the arguments of `compile`.
        batch: numpy arrays, `(x, y)` or `(x,)`, of 24 examples.
        predicts: input for `predict`.
        alone: whether what `evaluate` makes of an example depends on nothing else, such as noise
            or the other examples of its batch.
    """

    name: str
    create: Callable[[], StepModel]
    compiled: Callable[[], dict]
    batch: Batch
    predicts: np.ndarray
    alone: bool = True

    def make(self, seed=0, **compile_arguments):
        """The model, compiled; the same weights and noise for the same seed."""
        keras.utils.set_random_seed(seed)
        model = self.create()
        model.compile(**{**self.compiled(), **compile_arguments})
        return model

    def data(self):
        """What `fit` takes: `x`, `y` and whatever else the template needs."""
        x, y, *_ = self.batch
        return {"x": x} if y is None else {"x": x, "y": y}


def fit(model, descriptor, **arguments):
    """Two epochs in the stored order, batches of 8; returns the history."""
    defaults = dict(batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model.fit(**descriptor.data(), **{**defaults, **arguments}).history


def state(model):
    """All that training changes: weights, random states, optimizers, and what schedules keep."""
    kept = [v for one in model.optimizers.values() for v in one.variables]
    kept += model.step_state.variables.values() if model.compiled else []
    return [np.array(keras.ops.convert_to_numpy(v)) for v in [*model.variables, *kept]]


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


def scheduled_classifier():
    return functional_classifier(ScheduledClassifier)


def scheduled_classifier_compiled():
    return dict(classifier_compiled(), schedule_lr=WarmupCosine(0.02, steps=12, warmup=0.25))


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


@keras.saving.register_keras_serializable("tests")
class DecibelError(keras.metrics.MeanSquaredError):
    """Minus 10 log10 of the error of a whole set, which no mean over batches can give."""

    def result(self):
        return -10 * ops.log10(super().result())


@keras.saving.register_keras_serializable("tests")
class Perceptual(StepModel):
    """Restores its input, judged by the input and by its features in a frozen network."""

    terms = ("error", "perceptual", "shift")

    def __init__(self, network, features, **kwargs):
        super().__init__(**kwargs)
        self.network = network
        self.features = features
        self.features.trainable = False
        self.seen = keras.metrics.Sum(name="seen")
        self.decibel = DecibelError(name="decibel")
        self.area = keras.metrics.AUC(name="area")

    def call(self, x, training=False):
        return self.network(x, training=training)

    def objective(self, batch, training):
        x, y, weights, _ = batch
        restored = self(x, training=training)
        found, wanted = (self.features(each, training=False) for each in (restored, x))
        self.seen.update_state(ops.ones(batch.size))
        self.decibel.update_state(wanted, found, weights)
        self.area.update_state(y, level(found), weights)
        weights = 1.0 if weights is None else weights
        terms = {
            "error": ops.mean(weights * ops.mean((restored - x) ** 2, axis=1)),
            "perceptual": ops.mean(weights * ops.mean((found - wanted) ** 2, axis=1)),
        }
        return Objective(terms, logs={"shift": ops.mean(found - wanted)})


def level(found):
    """One of five scores: an AUC of so few levels does not depend on Keras's thresholds."""
    return ops.round(4 * ops.sigmoid(found[:, 0])) / 4


def perceptual(cls=Perceptual):
    network = keras.Sequential([keras.Input((6,)), layers.Dense(6, dtype="float32")])
    features = [keras.Input((6,)), layers.Dense(5, "tanh"), layers.BatchNormalization()]
    features += [layers.Dropout(0.5), layers.Dense(2, dtype="float32")]
    features = keras.Sequential(features)
    *_, mean, variance = features.layers[1].weights
    mean.assign([-0.2, -0.1, 0.0, 0.1, 0.2])
    variance.assign([0.2, 0.4, 0.6, 0.8, 1.0])
    return cls(network, features)


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


def one_pass_gan():
    penalties = [losses.R1(0.1)]
    return OnePassGAN(generator(3), discriminator(3), 3, penalties=penalties, num_classes=3)


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


def conditions_compiled():
    """A discriminator that rests while it wins, a guard, and rates that fall on plateaus."""
    return dict(
        gan_compiled(),
        when={"discriminator": Above("discriminator_loss", 1.6, smoothing=0.5)},
        nonfinite="skip",
        schedule_lr=ReduceOnPlateau(1e-3, patience=2, factor=0.5, min_delta=0.1, smoothing=0.5),
    )


def two_heads_compiled():
    return dict(optimizer={"main": Adam(0.01), "head": SGD(0.01, 0.9)}, metrics=["accuracy"])


def auxiliary_loss():
    """A functional graph with a head that is not the main one, on a shared body."""
    inputs = keras.Input((6,))
    x = layers.Dense(8, use_bias=False, kernel_regularizer="l2")(inputs)
    x = layers.Dropout(0.2, seed=3)(layers.ReLU()(layers.BatchNormalization()(x)))
    heads = {name: layers.Dense(n, dtype="float32")(x) for name, n in (("classes", 3), ("sum", 1))}
    return AuxiliaryLoss(inputs=inputs, outputs=heads, main="classes")


def auxiliary_loss_compiled():
    return dict(
        optimizer=Adam(0.01),
        loss={
            "classes": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "sum": "mse",
        },
        loss_weights={"sum": LinearDecay(0.5, steps=6)},
        metrics={"classes": "accuracy"},
    )


def partially_frozen():
    """A frozen stem with batch norm, and a head of which some rows are frozen."""
    inputs = keras.Input((6,))
    x = layers.BatchNormalization()(layers.Dense(8, use_bias=False)(inputs))
    stem = keras.Model(inputs, layers.ReLU()(x), name="stem")
    x = layers.Dense(8, use_bias=False, kernel_regularizer="l2")(stem(inputs))
    x = layers.Dropout(0.2, seed=3)(layers.ReLU()(layers.BatchNormalization()(x)))
    outputs = layers.Dense(3, dtype="float32", name="head")(x)
    freeze = ["stem/*", Part("head/kernel", rows=[0, 5])]
    return PartiallyFrozen(inputs=inputs, outputs=outputs, freeze=freeze)


def partially_frozen_compiled():
    return dict(classifier_compiled(), optimizer=AdamW(0.01, weight_decay=0.1))


def sharpness_aware_compiled():
    return dict(classifier_compiled(), gradients=[SharpnessAware(), GradientCentralization()])


@keras.saving.register_keras_serializable("tests")
class TwoTerms(StepModel):
    """Terms that conflict: being right, and being modest."""

    terms = ("error", "size")

    def objective(self, batch, training):
        y_pred = self(batch.x, training=training)
        error = keras.losses.sparse_categorical_crossentropy(batch.y, y_pred, from_logits=True)
        terms = {"error": keras.ops.mean(error), "size": keras.ops.mean(y_pred**2)}
        return Objective(terms, y_pred)


def two_terms():
    return functional_classifier(TwoTerms)


def gradient_surgery_compiled():
    return dict(optimizer=Adam(0.01), gradients=GradientSurgery(), metrics=["accuracy"])


def processed():
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    outputs = layers.Dense(3, dtype="float32")(layers.Flatten()(x))
    return Processed(
        inputs=inputs,
        outputs=outputs,
        processors=[
            processing.Normalize(0.1, 0.5),
            processing.OneHot(3),
            processing.RandomShift(1),
            processing.RandomFlip(),
            processing.Mixup(0.4),
        ],
        views=[processing.Flip()],
    )


def processed_compiled():
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    return dict(optimizer=Adam(0.01), loss=loss, metrics=["accuracy"])


# -- The zoo --------------------------------------------------------------------------------

VIEWS = [processing.RandomShift(1), processing.RandomFlip()]


def image_network(units, kernel_regularizer=None):
    """Images `(4, 4, 1)` to some numbers, with batch norm of one set of statistics for all."""
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(4, 3, 2, use_bias=False, kernel_regularizer=kernel_regularizer),
            layers.BatchNormalization(synchronized=True),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(units, dtype="float32"),
        ]
    )


def translator(name):
    """Images `(4, 4, 1)` to such images."""
    x = [layers.Conv2D(4, 3, padding="same", use_bias=False), layers.BatchNormalization()]
    x += [layers.ReLU(), layers.Conv2D(1, 3, padding="same", dtype="float32")]
    return keras.Sequential([keras.Input((4, 4, 1)), *x], name=name)


def adaptive_gan():
    return AdaptiveGAN(generator(3), discriminator(3), 3, augment=VIEWS, ramp=50, num_classes=3)


def adaptive_gan_compiled():
    return dict(optimizer={"discriminator": SGD(0.01), "generator": SGD(0.01)})


def cycle_gan():
    return CycleGAN(translator("to_b"), translator("to_a"), image_network(1), image_network(1))


def cycle_gan_compiled():
    return dict(optimizer={"generators": Adam(1e-3, 0.5), "discriminators": Adam(1e-3, 0.5)})


def vae():
    decoder = [keras.Input((3,)), layers.Dense(16, dtype="float32"), layers.Reshape((4, 4, 1))]
    growing = keras.optimizers.schedules.PolynomialDecay(0.2, 5, 1.0)
    return VAE(image_network(6), keras.Sequential(decoder), 3, kl_weight=growing)


def diffusion():
    mixture, angle = keras.Input((4, 4, 1)), keras.Input((1,))
    label = keras.Input((), dtype="int32")
    x = layers.Concatenate()([layers.Flatten()(mixture), angle, layers.Embedding(3, 2)(label)])
    x = layers.Dense(16, dtype="float32")(layers.ReLU()(layers.Dense(8)(x)))
    network = keras.Model([mixture, angle, label], layers.Reshape((4, 4, 1))(x))
    return Diffusion(network, (4, 4, 1), sampling_steps=3, num_classes=3)


def distillation():
    return Distillation(image_network(3, "l2"), image_network(3))


def mean_teacher():
    growing = keras.optimizers.schedules.PolynomialDecay(1.0, 5, 10.0)
    return MeanTeacher(image_network(3, "l2"), augment=VIEWS, consistency_weight=growing)


def simclr():
    projector, probe = (
        keras.Sequential([keras.Input((5,)), layers.Dense(n, dtype="float32")]) for n in (4, 3)
    )
    return SimCLR(image_network(5), projector, probe, augment=VIEWS)


def simclr_compiled():
    return dict(classifier_compiled(), optimizer={"contrastive": Adam(0.01), "probe": SGD(0.1)})


def metric_learning():
    inputs = keras.Input((6,))
    x = layers.Dense(8, "relu", kernel_regularizer="l2")(inputs)
    return MetricLearning(inputs=inputs, outputs=layers.Dense(3, dtype="float32")(x))


def masked_autoencoder():
    patches, places = keras.Input((None, 4)), keras.Input((None,), dtype="int32")
    codes = layers.Add()([layers.Dense(5)(patches), layers.Embedding(4, 5)(places)])
    encoder = keras.Model([patches, places], layers.ReLU()(codes))
    decoder = [keras.Input((4, 5)), layers.Flatten(), layers.Dense(16, dtype="float32")]
    decoder = keras.Sequential([*decoder, layers.Reshape((4, 4))])
    return MaskedAutoencoder(encoder, decoder, 5, patch_size=2, mask_ratio=0.5)


def adam_compiled():
    return dict(optimizer=Adam(0.01))


LABELLED = Batch(FEATURES, CLASSES)
PICTURES = (IMAGES + 1) / 2  # in [0, 1]
DESCRIPTORS = (
    Descriptor(
        "AuxiliaryLoss",
        auxiliary_loss,
        auxiliary_loss_compiled,
        Batch(FEATURES, {"classes": CLASSES, "sum": FEATURES.sum(1, keepdims=True)}),
        FEATURES[:5],
    ),
    Descriptor(
        "ScheduledClassifier",
        scheduled_classifier,
        scheduled_classifier_compiled,
        LABELLED,
        FEATURES[:5],
    ),
    Descriptor(
        "PartiallyFrozen",
        partially_frozen,
        partially_frozen_compiled,
        LABELLED,
        FEATURES[:5],
    ),
    Descriptor(
        "StepModel-sharpness-aware",
        functional_classifier,
        sharpness_aware_compiled,
        LABELLED,
        FEATURES[:5],
    ),
    Descriptor("TwoHeads", two_heads, two_heads_compiled, LABELLED, FEATURES[:5]),
    Descriptor(
        "TwoTerms-gradient-surgery",
        two_terms,
        gradient_surgery_compiled,
        LABELLED,
        FEATURES[:5],
    ),
    Descriptor(
        "GAN-conditional",
        conditional_gan,
        gan_compiled,
        Batch(IMAGES, CLASSES),
        [LATENTS, CLASSES[:5]],
        alone=False,
    ),
    Descriptor(
        "OnePassGAN",
        one_pass_gan,
        gan_compiled,
        Batch(IMAGES, CLASSES),
        [LATENTS, CLASSES[:5]],
        alone=False,
    ),
    Descriptor("GAN-wgan-gp", wgan_gp, gan_compiled, Batch(IMAGES), LATENTS, alone=False),
    Descriptor("GAN-conditions", gan, conditions_compiled, Batch(IMAGES), LATENTS, alone=False),
    Descriptor("Processed", processed, processed_compiled, Batch(IMAGES, CLASSES), IMAGES[:5]),
    Descriptor(
        "AdaptiveGAN",
        adaptive_gan,
        adaptive_gan_compiled,
        Batch(IMAGES, CLASSES),
        [LATENTS, CLASSES[:5]],
        alone=False,
    ),
    Descriptor("CycleGAN", cycle_gan, cycle_gan_compiled, Batch(IMAGES, -IMAGES), IMAGES[:5]),
    Descriptor("VAE", vae, adam_compiled, Batch(PICTURES), PICTURES[:5], alone=False),
    Descriptor(
        "Diffusion",
        diffusion,
        adam_compiled,
        Batch(IMAGES, CLASSES),
        [IMAGES[:5], CLASSES[:5]],
        alone=False,
    ),
    Descriptor(
        "Distillation",
        distillation,
        classifier_compiled,
        Batch(IMAGES, CLASSES),
        IMAGES[:5],
    ),
    Descriptor(
        "MeanTeacher",
        mean_teacher,
        classifier_compiled,
        Batch(IMAGES, CLASSES),
        IMAGES[:5],
    ),
    Descriptor(
        "SimCLR", simclr, simclr_compiled, Batch(IMAGES, CLASSES), IMAGES[:5], alone=False
    ),
    Descriptor(
        "MetricLearning", metric_learning, adam_compiled, LABELLED, FEATURES[:5], alone=False
    ),
    Descriptor(
        "MaskedAutoencoder",
        masked_autoencoder,
        lambda: dict(optimizer=Adam(1e-3)),
        Batch(IMAGES),
        IMAGES[:5],
        alone=False,
    ),
)
