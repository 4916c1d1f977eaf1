"""Bad input: each mistake is a clear error at the earliest moment, and changes nothing.

A row of a table is one mistake: what is called, and what the message has to say. `clear` holds
every message to the form that the package promises: what happened; "Expected ...; received ...";
how to fix it.
"""

import io
import json
import os
import pathlib
import re
import sys
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from keras import layers
from keras.optimizers import Adam

import customstep
from customstep import (
    GAN,
    AuxiliaryLoss,
    Batch,
    Objective,
    PartiallyFrozen,
    Processed,
    SampleGrid,
    StepModel,
    Unfreeze,
    Update,
    cli,
    conditions,
    gradients,
    grids,
    latents,
    load_images,
    losses,
    pictures,
    plot_history,
    processing,
    read_images,
    schedules,
    scripts,
)
from customstep.selection import Part
from tests import descriptors
from tests.descriptors import CLASSES, FEATURES, IMAGES, discriminator, generator
from tests.soak import SOAK
from tests.test_examples import EXAMPLES, load

NAN, INF = float("nan"), float("inf")


class Case(NamedTuple):
    """One mistake.

    Attributes:
        id: shown in the test's name.
        call: makes the mistake; takes nothing, or what the test of its table passes.
        words: regular expression that the message contains.
        error: the type of the error.
    """

    id: str
    call: Callable
    words: str
    error: type = ValueError


def table(*cases):
    assert len({case.id for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def clear(error):
    """The message of an error, on one line, if it is one that helps."""
    message = " ".join(str(error).split())
    assert re.search(r"\. Expected .+; received .+\. \S", message), message
    sentences = re.findall(r"[.?!](?=['\")\]`]*(?: [A-Z`'\"(]|$))", message)
    assert len(sentences) >= 3, message
    return message


def check(case, *arguments):
    with pytest.raises(case.error) as caught:
        case.call(*arguments)
    assert re.search(case.words, clear(caught.value)), clear(caught.value)


# Models and small objects as they are made.


def gan(**arguments):
    networks = {"generator": generator(), "discriminator": discriminator()}
    return GAN(**{**networks, "latent_dim": 3, **arguments})


def judge(*shape, last=None):
    return keras.Sequential([keras.Input(shape), layers.Flatten(), last or layers.Dense(1)])


def graph(cls, **arguments):
    inputs = keras.Input((6,))
    return cls(inputs=inputs, outputs=layers.Dense(3, name="dense")(inputs), **arguments)


def frozen(what):
    return graph(PartiallyFrozen, freeze=what)


def heads(**arguments):
    inputs = keras.Input((6,))
    return AuxiliaryLoss(inputs=inputs, outputs={"a": layers.Dense(1)(inputs)}, **arguments)


def images_of(dtype="float32", shape=(2, 4, 4, 1)):
    return Batch(tf.zeros(shape, dtype), tf.zeros(2))


@table(
    Case("latent_dim of another length",
         lambda: gan(latent_dim=4), r"generator cannot.*\(None, 4\)"),
    Case("latent_dim 1 for 3", lambda: gan(latent_dim=1), r"generator cannot.*\(None, 1\)"),
    Case("latent_dim 0", lambda: gan(latent_dim=0), "`latent_dim`.*at least 1; received 0"),
    Case("latent_dim a str", lambda: gan(latent_dim="3"), "`latent_dim`.*received '3'"),
    Case("latent_dim a float", lambda: gan(latent_dim=3.0), "`latent_dim`.*received 3.0"),
    Case("generator None", lambda: gan(generator=None), "generator cannot be called"),
    Case("generator a class",
         lambda: gan(generator=keras.Sequential), "generator cannot be called"),
    Case("networks swapped", lambda: GAN(discriminator(), generator(), 3), "generator cannot"),
    Case("generator of vectors", lambda: gan(generator=judge(3)), "does not make images.*Reshape"),
    Case(
        "discriminator of another size",
        lambda: gan(discriminator=judge(8, 8, 1)),
        r"discriminator cannot be called.*\(None, 4, 4, 1\).*Change the network",
    ),
    Case(
        "discriminator of colour for gray",
        lambda: gan(discriminator=judge(4, 4, 3)),
        r"discriminator cannot be called.*\(None, 4, 4, 1\).*\(None, 4, 4, 3\)",
    ),
    Case(
        "two logits",
        lambda: gan(discriminator=judge(4, 4, 1, last=layers.Dense(2))),
        r"one logit.*\(None, 2\)",
    ),
    Case(
        "sigmoid instead of logits",
        lambda: gan(discriminator=judge(4, 4, 1, last=layers.Dense(1, "sigmoid"))),
        "ends in a sigmoid.*Remove the activation",
    ),
    Case("ema_decay 1", lambda: gan(ema_decay=1.0), r"`ema_decay`.*\[0, 1\); received 1.0"),
    Case("ema_decay NaN", lambda: gan(ema_decay=NAN), "`ema_decay`.*received nan"),
    Case("ema_decay a str", lambda: gan(ema_decay="0.9"), "`ema_decay`.*received '0.9'"),
    Case("discriminator_steps 0", lambda: gan(discriminator_steps=0), "`discriminator_steps`"),
    Case("discriminator_steps 1.5", lambda: gan(discriminator_steps=1.5), "received 1.5"),
    Case("num_classes 0", lambda: gan(num_classes=0), "`num_classes`.*at least 1; received 0"),
    Case("num_classes True", lambda: gan(num_classes=True), "`num_classes`.*received True"),
    Case("networks take no labels",
         lambda: gan(num_classes=3), "generator cannot be called.*num_cl"),
    Case("image_range reversed", lambda: gan(image_range=(1, -1)), "`image_range`.*low < high"),
    Case("image_range of three", lambda: gan(image_range=(0, 1, 2)), "`image_range`.*two finite"),
    Case("image_range a number", lambda: gan(image_range=1), "`image_range`.*received 1"),
    Case("image_range NaN", lambda: gan(image_range=(NAN, 1)), "`image_range`.*nan"),
    Case("loss a str", lambda: gan(loss="hinge"), "`loss`.*received 'hinge'", TypeError),
    Case("loss a class", lambda: gan(loss=losses.Hinge), r"such as `losses.Hinge\(\)`", TypeError),
    Case("penalty a str", lambda: gan(penalties=["r1"]), "`penalties`.*received 'r1'", TypeError),
    Case("penalty a class", lambda: gan(penalties=[losses.R1]), "received <class", TypeError),
    Case(
        "one penalty twice",
        lambda: gan(penalties=[losses.R1(), losses.R1()]),
        "`penalties` of different names.*'r1', 'r1'",
    ),
    Case("negative weight", lambda: losses.GradientPenalty(-1), "`weight`.*received -1"),
    Case("infinite weight", lambda: losses.GradientPenalty(INF), "`weight`.*received inf"),
    Case("weight a str", lambda: losses.GradientPenalty("10"), "`weight`.*received '10'"),
    Case("target NaN", lambda: losses.DRAGAN(target=NAN), "`target`.*received nan"),
    Case("gamma infinite", lambda: losses.R1(INF), "`gamma`.*received inf"),
    Case("deviation 0", lambda: losses.FiniteDifferenceR1(deviation=0), "`deviation`.*received 0"),
    Case("label_smoothing 1", lambda: losses.NonSaturating(1.0), r"`label_smoothing`.*\[0, 1\)"),
    Case("label_smoothing None", lambda: losses.NonSaturating(None), "received None"),
    Case("decay over 0 steps", lambda: schedules.LinearDecay(0.1, steps=0), "`steps`.*received 0"),
    Case("half a step", lambda: schedules.StepDecay(0.1, 2.5), "`decay_steps`.*received 2.5"),
    Case("rate NaN", lambda: schedules.WarmupCosine(NAN, 5), "`rate`.*received nan"),
    Case("rate negative", lambda: schedules.OneCycle(-0.1, 5), "`rate`.*received -0.1"),
    Case("rate a str", lambda: schedules.ExponentialDecay("0.1", 5), "`rate`.*received '0.1'"),
    Case("rate True", lambda: schedules.LinearDecay(True, 5), "`rate`.*received True"),
    Case("start at the end", lambda: schedules.LinearDecay(0.1, 5, start=1.0), r"\[0, 1\)"),
    Case("no patience", lambda: schedules.ReduceOnPlateau(0.1, patience=0), "`patience`"),
    Case(
        "lowest rate above the first",
        lambda: schedules.ReduceOnPlateau(0.1, patience=1, min_rate=0.2),
        r"`min_rate`.*\[0, 0.1\]; received 0.2",
    ),
    Case("every 0 steps", lambda: conditions.Every(0), "`n`.*at least 1"),
    Case("offset beyond the cycle", lambda: conditions.Every(3, 3), "`offset`.*from 0 to 2"),
    Case("threshold NaN", lambda: conditions.Above("loss", NAN), "`threshold`.*received nan"),
    Case("radius 0", lambda: gradients.SharpnessAware(0), "`radius`.*received 0"),
    Case("ratio negative", lambda: gradients.AdaptiveClipping(-1), "`ratio`.*received -1"),
    Case("update 0 times", lambda: Update("a", None, [], times=0), "`times`.*at least 1"),
    Case("std 0", lambda: processing.Normalize(0, 0), "`std`.*above 0; received 0"),
    Case("mean a str", lambda: processing.Normalize("a", 1), "`mean`.*received 'a'"),
    Case("mean ragged", lambda: processing.Normalize([[1], [1, 2]], 1), "`mean` is not an array"),
    Case("no classes", lambda: processing.OneHot(0), "`num_classes`.*received 0"),
    Case("alpha 0", lambda: processing.Mixup(0), "`alpha`.*above 0; received 0"),
    Case("alpha infinite", lambda: processing.CutMix(INF), "`alpha`.*received inf"),
    Case("temperature 0", lambda: processing.Softmax(0), "`temperature`.*received 0"),
    Case("shift by half a pixel", lambda: processing.Shift(0.5, 1), "`dy`.*received 0.5"),
    Case("shift by no pixel", lambda: processing.RandomShift(0), "`pixels`.*received 0"),
    Case(
        "processor a str",
        lambda: graph(Processed, processors=["flip"]),
        "`processors` holds something else.*received 'flip'",
        TypeError,
    ),
    Case(
        "view a class",
        lambda: graph(Processed, views=[processing.Flip]),
        "`views` holds something else",
        TypeError,
    ),
    Case("no main output", lambda: heads(main="b"), "'b' in it; received 'a'"),
    Case("pattern matches nothing", lambda: frozen("nothing/*"), "matches no variable.*'dense/"),
    Case("position out of range", lambda: frozen(9), "'9' matches no variable"),
    Case("layer of another model", lambda: frozen(layers.Dense(2)), "matches no variable"),
    Case("pattern a float", lambda: frozen(0.5), "selects no variables.*received 0.5", TypeError),
    Case("row too many",
         lambda: frozen(Part("dense/kernel", rows=[6])), r"rows from 0 to 5.*\[6\]"),
    Case("row negative", lambda: frozen(Part("dense/kernel", rows=[-1])), "rows from 0 to 5"),
    Case(
        "mask of another shape",
        lambda: frozen(Part("dense/kernel", mask=np.ones((2, 2), bool))),
        r"broadcasts to \(6, 3\); received one of \(2, 2\)",
    ),
    Case("no part", lambda: Part("a"), "received neither", TypeError),
    Case("rows and mask", lambda: Part("a", rows=[0], mask=[True]), "received both", TypeError),
    Case("rows floats", lambda: Part("a", rows=[0.5]), "list of integers", TypeError),
    Case("rows ragged", lambda: Part("a", rows=[[0], [1, 2]]), "`rows` is not an array"),
    Case("epoch negative", lambda: Unfreeze({-1: "*"}), "`epoch`.*received -1"),
    Case("rows 0", lambda: SampleGrid("runs", rows=0), "`rows`.*at least 1; received 0"),
    Case("folder a number", lambda: SampleGrid(3), "`directory` is not a path.*3", TypeError),
)  # fmt: skip
def test_object_that_cannot_be_is_not_made(case):
    check(case)


@table(
    Case(
        "bytes cannot be mixed",
        lambda: processing.Mixup(0.1).train(images_of("uint8"), tf.constant([0, 1], tf.int64)),
        "Whole numbers cannot be mixed.*uint8.*Normalize",
    ),
    Case("flip of vectors",
         lambda: processing.Flip().infer(images_of(shape=(2, 4))), "needs images"),
    Case(
        "mean of three for one channel",
        lambda: processing.Normalize([1, 2, 3], 1).infer(images_of()),
        "`mean` does not fit the data.*received 3 numbers",
    ),
    Case(
        "one-hot of floats",
        lambda: processing.OneHot(3).infer(images_of()),
        "`OneHot` cannot encode.*float32",
    ),
    Case(
        "output without a name",
        lambda: processing.OneHot(3, output="a").infer(images_of()),
        "`OneHot` cannot tell.*'a' in it",
    ),
    Case("slerp of one point", lambda: latents.slerp([1.0], [2.0], 1), "`steps`.*at least 2"),
    Case("slerp of 0", lambda: latents.slerp([0.0, 0.0], [0.0, 1.0], 3), "no direction"),
    Case("slerp of words", lambda: latents.slerp(["a"], ["b"], 3), "cannot be joined.*<U1"),
    Case("vector as sheet", lambda: grids.contact_sheet(np.zeros(4)), r"not images.*\(4,\)"),
    Case("five channels", lambda: grids.contact_sheet(np.zeros((2, 4, 4, 5))), "not images.*5"),
    Case("no image", lambda: grids.contact_sheet(np.zeros((0, 4, 4, 1))), "at least one"),
    Case(
        "whole numbers",
        lambda: grids.contact_sheet(np.zeros((2, 4, 4, 1), int)),
        "float or uint8; received int64",
        TypeError,
    ),
    Case("ragged images", lambda: grids.contact_sheet([[[0.0]], [[0.0, 1.0]]]), "not an array"),
    Case("NaN", lambda: grids.contact_sheet(np.full((2, 4, 4, 1), NAN)), "finite.*32 NaN"),
    Case("out of range", lambda: grids.contact_sheet(np.full((2, 4, 4), 3.0)), "from 3 to 3"),
    Case("too few tiles",
         lambda: grids.contact_sheet(np.zeros((9, 4, 4)), 2, 2), "at most 2 x 2 = 4"),
    Case("no row", lambda: grids.contact_sheet(np.zeros((9, 4, 4)), 0), "`rows`.*received 0"),
    Case(
        "a million rows and columns",
        lambda: grids.contact_sheet(np.zeros((9, 4, 4)), 10**6, 10**6),
        "too large.*received 6,000,002 x 6,000,002. Lower",
    ),
    Case("scale of millions",
         lambda: grids.contact_sheet(np.zeros((9, 4, 4)), scale=10**7), "Lower"),
    Case("background 300", lambda: grids.contact_sheet(np.zeros((9, 4, 4)), background=300), "255"),
    Case("range of one",
         lambda: grids.contact_sheet(np.zeros((9, 4, 4)), image_range=(1,)), "range"),
    Case("labels too few",
         lambda: grids.class_sheet(np.zeros((9, 4, 4)), [1, 2]), r"received.*\(2,\)"),
    Case("no group", lambda: grids.side_by_side({}), "no groups"),
    Case(
        "references of another shape",
        lambda: grids.nearest_images(np.zeros((2, 4)), np.zeros((2, 5))),
        "cannot be compared",
    ),
    Case("sample -1", lambda: gan().sample(-1), "`n`.*at least 1; received -1"),
    Case("sample 0", lambda: gan().sample(0), "`n`.*received 0"),
    Case("sample 2.5", lambda: gan().sample(2.5), "`n`.*received 2.5"),
    Case("seed a str", lambda: gan().sample(2, seed="a"), "`seed`.*received 'a'"),
    Case("seed too large", lambda: gan().latents(2, seed=2**70), "`seed` is out of its range"),
    Case("labels without classes", lambda: gan().sample(2, labels=[0, 1]), "Expected None"),
    Case("label out of range", lambda: conditional(labels=[0, 3]), r"2 integers in \[0, 3\)"),
    Case("label negative", lambda: conditional(labels=[0, -1]), r"received array\(\[ 0, -1\]\)"),
    Case("label too few", lambda: conditional(labels=[0]), "2 integers"),
    Case("labels floats", lambda: conditional(labels=[0.5, 1.0]), "2 integers"),
    Case("labels words", lambda: conditional(labels=["a", "b"]), "2 integers"),
    Case("labels one-hot", lambda: conditional(labels=np.eye(2, dtype=int)), "2 integers"),
    Case("labels ragged", lambda: conditional(labels=[[0], [1, 2]]), "`labels` is not an array"),
    Case("inspect of no model", lambda: customstep.inspect("gan.keras", IMAGES), "'gan.keras'"),
    Case("inspect of a model not compiled", lambda: customstep.inspect(gan(), (IMAGES,)), "ompile"),
)  # fmt: skip
def test_call_that_makes_no_sense_is_refused(case):
    check(case)


def conditional(**arguments):
    return descriptors.conditional_gan().sample(2, **arguments)


# `compile`: a compiled model stays as it was.


def adversaries(**optimizers):
    return {"generator": Adam(), "discriminator": Adam(), **optimizers}


SHARED = Adam()
IN_OPTIMIZER = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)


@table(
    Case("one name for two updates", lambda c: c(optimizer="adam"), "cannot serve several.*'adam'"),
    Case("one missing",
         lambda c: c(optimizer={"generator": "adam"}), "'discriminator', 'generator'"),
    Case("one too many", lambda c: c(optimizer=adversaries(critic="adam")), "received .*'critic'"),
    Case("unknown name",
         lambda c: c(optimizer=adversaries(generator="adamm")), "'generator'.*'adamm'"),
    Case("a class", lambda c: c(optimizer=adversaries(generator=Adam)), "'generator'.*class"),
    Case("a number", lambda c: c(optimizer=adversaries(generator=42)), "'generator'.*received 42"),
    Case("None",
         lambda c: c(optimizer=adversaries(generator=None)), "'generator' has no optimizer"),
    Case("a list", lambda c: c(optimizer=[Adam(), Adam()]), "cannot serve several"),
    Case(
        "one object twice",
        lambda c: c(optimizer={"generator": SHARED, "discriminator": SHARED}),
        "same one twice. Create one optimizer for each",
    ),
    Case("compiled loss", lambda c: c(loss="mse"), "received {'loss': 'mse'}"),
    Case("metrics", lambda c: c(metrics=["mse"]), "received {'metrics'"),
    Case("loss weights", lambda c: c(loss_weights=[1.0]), "received {'loss_weights'"),
    Case("two mistakes", lambda c: c(loss="mse", optimizer="adam"), "received {'loss': 'mse'}"),
    Case(
        "schedule of no update",
        lambda c: c(schedule_lr={"critic": schedules.LinearDecay(0.1, 5)}),
        "`schedule_lr` names.*'critic'",
    ),
    Case("schedule a number", lambda c: c(schedule_lr=0.1), "cannot be called.*0.1", TypeError),
    Case(
        "schedule a class",
        lambda c: c(schedule_lr=schedules.LinearDecay),
        "cannot be called.*class",
        TypeError,
    ),
    Case("schedule of str", lambda c: c(schedule_lr=lambda s: "0.1"), "string", TypeError),
    Case("schedule of None", lambda c: c(schedule_lr=lambda s: None), "received None", TypeError),
    Case(
        "schedule of a vector",
        lambda c: c(schedule_lr=lambda s: tf.stack([s, s])),
        r"a scalar, float32; received float32 of shape \(2,\)",
        TypeError,
    ),
    Case("schedule of bool", lambda c: c(schedule_lr=lambda s: s > 5), "received bool", TypeError),
    Case("rate NaN", lambda c: c(schedule_lr=lambda s: s * NAN), "at step 0.*received nan"),
    Case("rate infinite", lambda c: c(schedule_lr=lambda s: 1 / s), "at step 0.*received inf"),
    Case(
        "rate negative",
        lambda c: c(schedule_lr={"generator": lambda s: -0.1}),
        r"schedule_lr\['generator'\] at step 0.*received -0.1",
    ),
    Case(
        "two schedules for one rate",
        lambda c: c(
            optimizer=adversaries(generator=Adam(IN_OPTIMIZER)),
            schedule_lr=schedules.LinearDecay(0.1, 5),
        ),
        "'generator' has a schedule already",
    ),
    Case("condition a number", lambda c: c(when=5), "`when`.*cannot be called", TypeError),
    Case("condition of a number", lambda c: c(when=lambda s: s), "bool; received float", TypeError),
    Case("condition of no update", lambda c: c(when={"a": conditions.Every(2)}), "`when` names"),
    Case("gradients a str", lambda c: c(gradients="pcgrad"), "received 'pcgrad'", TypeError),
    Case(
        "gradients a class",
        lambda c: c(gradients=gradients.SharpnessAware),
        r"such as `gradients.SharpnessAware\(\)`; received <class",
        TypeError,
    ),
    Case(
        "surgery after signs",
        lambda c: c(gradients=[gradients.SignDescent(), gradients.GradientSurgery()]),
        "out of place.*at place 2",
    ),
)  # fmt: skip
def test_refused_compile_leaves_the_model_as_it_was(case, compiled_gan):
    before = descriptors.state(compiled_gan)
    optimizers = dict(compiled_gan.optimizers)
    check(case, lambda **a: compiled_gan.compile(**{"optimizer": adversaries(), **a}))
    assert descriptors.equal(before, descriptors.state(compiled_gan))
    assert all(one is compiled_gan.optimizers[name] for name, one in optimizers.items())


@pytest.fixture(scope="module")
def compiled_gan():
    model = gan()
    model.compile(adversaries())
    model.fit(IMAGES, batch_size=12, verbose=0)
    return model


@table(
    Case("one loss for all", lambda c: c(loss="mse"), "not given by output.*received 'mse'"),
    Case("loss of no output", lambda c: c(loss={"classes": "mse", "b": "mse"}), "not exist.*'b'"),
    Case("no main loss", lambda c: c(loss={"sum": "mse"}), "main output has no loss"),
    Case("weight of no output", lambda c: c(loss_weights={"b": 1}), "'sum'.*received {'b': 1}"),
    Case("weights a list", lambda c: c(loss_weights=[1, 2]), r"received \[1, 2\]"),
    Case("weight negative", lambda c: c(loss_weights={"sum": -1}), r"loss_weights\['sum'\].*-1"),
    Case("weight NaN", lambda c: c(loss_weights={"sum": NAN}), "received nan"),
    Case("weight of str", lambda c: c(loss_weights={"sum": lambda s: "a"}), "string", TypeError),
    Case("weight falls below 0", lambda c: c(loss_weights={"sum": lambda s: s - 1}), "received -1"),
    Case(
        "weight of what was measured",
        lambda c: c(loss_weights={"sum": schedules.ReduceOnPlateau(0.1, patience=1)}),
        "depends on what was measured",
    ),
)  # fmt: skip
def test_auxiliary_loss_refuses_losses_and_weights_that_do_not_fit(case):
    model = descriptors.auxiliary_loss()
    compiled = descriptors.auxiliary_loss_compiled()
    check(case, lambda **a: model.compile(**{**compiled, **a}))
    assert not model.compiled


# `fit`: no weight moves.


def fitted(make):
    """Calls a model on data, and sees that a mistake changes none of its weights."""

    def call(*arguments, **keywords):
        model = make()
        before = [np.array(w) for w in model.get_weights()]
        try:
            model.fit(*arguments, **{"verbose": 0, "batch_size": 8, **keywords})
        finally:
            assert descriptors.equal(before, model.get_weights())

    return call


def compiled_as(make, compiled, **more):
    def made():
        model = make()
        model.compile(**{**compiled(), **more})
        return model

    return fitted(made)


fit_gan = compiled_as(gan, descriptors.gan_compiled)
fit_conditional = compiled_as(descriptors.conditional_gan, descriptors.gan_compiled)
fit_classifier = compiled_as(descriptors.functional_classifier, descriptors.classifier_compiled)
fit_heads = compiled_as(descriptors.auxiliary_loss, descriptors.auxiliary_loss_compiled)
fit_frozen = compiled_as(descriptors.partially_frozen, descriptors.partially_frozen_compiled)


def fit_monitor(monitor):
    schedule = schedules.ReduceOnPlateau(0.1, patience=1, monitor=monitor)
    compiled = descriptors.classifier_compiled
    return compiled_as(descriptors.functional_classifier, compiled, schedule_lr=schedule)


def batches(*arrays, size=8, **options):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0]).batch(
        size, **options
    )


def fit_terms(returned, terms=("a",), **compiled):
    """Fits a model with an objective that returns something wrong."""

    class Wrong(StepModel):
        def objective(self, batch, training):
            y_pred = self(batch.x, training=training)
            return returned(keras.ops.mean(y_pred**2), y_pred)

    Wrong.terms = terms
    call = compiled_as(lambda: graph(Wrong), lambda: {"optimizer": "adam", **compiled})
    return call(FEATURES, CLASSES)


@table(
    Case("no labels", lambda: fit_conditional(IMAGES), "needs labels.*images alone"),
    Case("label out of range", lambda: fit_conditional(IMAGES, CLASSES + 1), "from 1 to 3"),
    Case("label negative", lambda: fit_conditional(IMAGES, CLASSES - 1), "from -1 to 1"),
    Case(
        "labels floats",
        lambda: fit_conditional(IMAGES, CLASSES.astype("float32")),
        r"wrong kind.*float32.*astype\('int32'\)",
    ),
    Case("labels one-hot",
         lambda: fit_conditional(IMAGES, np.eye(3)[CLASSES]), r"wrong kind.*argmax"),
    Case(
        "labels of a data set floats",
        lambda: fit_conditional(batches(IMAGES, CLASSES / 2), batch_size=None, shuffle=False),
        "labels are of the wrong kind",
    ),
    Case("images of another size", lambda: fit_gan(np.zeros((24, 8, 8, 1))), r"4, 4, 1.*8, 8, 1"),
    Case("images without channels",
         lambda: fit_gan(IMAGES[..., 0]), r"received .*4, 4\). Resize.*None"),
    Case("images of three channels", lambda: fit_gan(np.zeros((24, 4, 4, 3))), "4, 4, 3"),
    Case("two inputs", lambda: fit_gan([IMAGES, IMAGES]), "do not fit this GAN"),
    Case("bytes", lambda: fit_gan(np.zeros((24, 4, 4, 1), "uint8")), "images are bytes.*uint8"),
    Case(
        "bytes of a data set",
        lambda: fit_gan(batches(np.zeros((24, 4, 4, 1), "uint8")), batch_size=None, shuffle=False),
        "images are bytes",
    ),
    Case("images to 255", lambda: fit_gan(IMAGES * 127 + 128), r"\[-1.0, 1.0\].*from 1.* to 25"),
    Case("images NaN", lambda: fit_gan(IMAGES * NAN), "from nan to nan"),
    Case("no image", lambda: fit_gan(IMAGES[:0]), "no data.*ndarray"),
    Case(
        "data set smaller than a batch",
        lambda: fit_gan(
            batches(IMAGES, size=32, drop_remainder=True), batch_size=None, shuffle=False
        ),
        "no data.*lower a batch size",
    ),
    Case("sample weights alone", lambda: fit_gan(IMAGES, sample_weight=np.ones(24)), "y=None"),
    Case("class weights alone",
         lambda: fit_gan(IMAGES, class_weight={0: 1.0}), "no classes to weigh"),
    Case(
        "class weights for a data set of images",
        lambda: fit_gan(batches(IMAGES), class_weight={0: 1.0}, batch_size=None, shuffle=False),
        "no classes to weigh",
    ),
    Case(
        "class weight NaN",
        lambda: fit_classifier(FEATURES, CLASSES, class_weight={0: 1.0, 1: NAN, 2: 1.0}),
        r"class_weight\[1\].*received nan",
    ),
    Case(
        "class weight negative",
        lambda: fit_classifier(FEATURES, CLASSES, class_weight={0: -1.0, 1: 1.0, 2: 1.0}),
        r"class_weight\[0\].*received -1.0",
    ),
    Case("plateau of nothing",
         lambda: fit_monitor("a")(FEATURES, CLASSES), r"\['loss'\]; received 'a'"),
    Case(
        "samples of a classifier",
        lambda: fit_classifier(FEATURES, CLASSES, callbacks=[SampleGrid("runs")]),
        "SampleGrid cannot draw",
        TypeError,
    ),
    Case(
        "unfreezing of what cannot freeze",
        lambda: fit_classifier(FEATURES, CLASSES, callbacks=[Unfreeze({1: "*"})]),
        "cannot unfreeze anything",
        TypeError,
    ),
    Case(
        "unfreezing of nothing",
        lambda: fit_frozen(FEATURES, CLASSES, callbacks=[Unfreeze({1: "head/krenel"})]),
        "matches no variable.*'head/kernel'",
    ),
    Case("targets not by output", lambda: fit_heads(FEATURES, CLASSES), "not given by output"),
    Case("target missing",
         lambda: fit_heads(FEATURES, {"classes": CLASSES}), "'sum' has a loss and no"),
    Case(
        "term that is not declared",
        lambda: fit_terms(lambda mean, y: Objective({"b": mean}, y)),
        r"does not declare.*'b'. Add.*terms = \('a', 'b'\)",
    ),
    Case("no term", lambda: fit_terms(lambda mean, y: Objective({}, y)), "has no terms"),
    Case("term of a vector",
         lambda: fit_terms(lambda mean, y: Objective({"a": y})), "not a scalar"),
    Case("no objective",
         lambda: fit_terms(lambda mean, y: mean), r"`Objective`; received", TypeError),
    Case(
        "term with the name of a metric",
        lambda: fit_terms(
            lambda mean, y: Objective({"accuracy": mean}, y), ("accuracy",), metrics=["accuracy"]
        ),
        "has the name of a term.*'accuracy' twice",
    ),
    Case(
        "terms a str",
        lambda: fit_terms(lambda mean, y: Objective({"a": mean}, y), "a"),
        r"not a tuple.*received 'a'. Write",
        TypeError,
    ),
)  # fmt: skip
def test_bad_data_move_no_weight(case):
    check(case)


def test_refused_freezing_and_unfreezing_change_nothing():
    model = descriptors.partially_frozen()
    before = set(model.frozen)
    for change in (model.freeze, model.unfreeze):
        with pytest.raises(ValueError) as caught:
            change("stem/*", "nothing/*")
        assert "'nothing/*'" in clear(caught.value)
    assert set(model.frozen) == before


def test_preprocess_may_make_good_data_of_bad_ones():
    class Scaled(GAN):
        def preprocess(self, batch, training):
            return batch._replace(x=tf.cast(batch.x, tf.float32) / 127.5 - 1, y=batch.y - 1)

    model = Scaled(generator(3), discriminator(3), 3, num_classes=3)
    model.compile(adversaries())
    model.fit(np.uint8(127 * IMAGES + 128), CLASSES + 1, batch_size=24, verbose=0)


def test_images_that_resizing_has_moved_a_little_are_in_range():
    model = gan()
    model.compile(adversaries())
    model.fit(IMAGES * 1.05, batch_size=24, verbose=0)


# Data sets and files.


def save(path, mode="L", size=(4, 4), value=7, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new(mode, size, value).save(path, **options)
    return path


def bomb(path, side):
    """A BMP file of few bytes that says it has `side` x `side` pixels."""
    save(path, "RGB", value=(1, 2, 3), format="BMP")
    data = bytearray(path.read_bytes())
    data[18:26] = side.to_bytes(4, "little") * 2
    path.write_bytes(data)


def write(path, data=b""):
    path.write_bytes(data)


def half(path):
    data = save(path, size=(64, 64)).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def deep(path):
    PIL.Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(path)


def floating(path):
    PIL.Image.fromarray(np.zeros((4, 4), np.float32)).save(path, format="TIFF")


def vector_graphics(path):
    PIL.Image.new("RGB", (4, 4)).save(path, format="EPS")


def two_sizes(path):
    save(path, size=(4, 4))
    save(path.with_name("b.png"), size=(6, 4))


@table(
    Case("empty", write, "bad.png'.*Replace or remove"),
    Case("text", lambda path: write(path, b"not an image"), "bad.png'.*cannot identify"),
    Case("half", half, "bad.png'.*truncated"),
    Case("too many pixels", lambda path: bomb(path, 10_000), "bad.png'.*decompression bomb"),
    Case("far too many pixels", lambda path: bomb(path, 60_000), "bad.png'.*decompression bomb"),
    Case("gray of 16 bits", deep, "bad.png'.*8 bits a channel; received .*more than 8"),
    Case("TIFF", floating, "bad.png'.*cannot identify"),
    Case("EPS, which runs a program", vector_graphics, "bad.png'.*cannot identify"),
    Case("link to nothing", lambda path: path.symlink_to("nowhere"), "bad.png'.*link to none"),
    Case("link to itself", lambda path: path.symlink_to(path), "bad.png'.*link to none"),
    Case("pipe", os.mkfifo, "bad.png'.*no file"),
    Case("two sizes", two_sizes, "differ in size.*'b.png': .4, 6.*image_size"),
    Case("folder in the place of a file", pathlib.Path.mkdir, "received neither"),
)  # fmt: skip
def test_image_that_cannot_be_read_is_named(case, tmp_path):
    def read(path):
        case.call(path)
        read_images(tmp_path)

    check(case._replace(call=read), tmp_path / "bad.png")


@pytest.mark.parametrize("place", ["bad.png", "."])
def test_image_that_may_not_be_read_is_named(nobody, place):
    save(nobody.folder / "cat" / "bad.png")
    (nobody.folder / "cat" / place).chmod(0)
    nobody()
    with pytest.raises(ValueError) as caught:
        read_images(nobody.folder)
    assert str(nobody.folder / "cat" / place) in clear(caught.value)


@pytest.mark.parametrize(
    "name, mode, value, options, pixels",
    [
        ("a.jpg", "CMYK", (0, 255, 255, 0), {"quality": 95}, [255, 0, 0]),
        ("a.png", "P", 0, {}, [0, 0, 0]),
        ("a.png", "1", 1, {}, [255]),
        ("a.png", "RGBA", (9, 8, 7, 0), {}, [9, 8, 7]),
        ("\u00fcber \u65e5\u672c \U0001f600.png", "L", 7, {}, [7]),
        ("A.WEBP", "RGB", (255, 0, 0), {"lossless": True}, [255, 0, 0]),
    ],
    ids=["cmyk", "palette", "one-bit", "transparent", "unicode", "webp"],
)
def test_unusual_image_is_read_as_bytes(tmp_path, name, mode, value, options, pixels):
    save(tmp_path / name, mode, value=value, **options)
    images = read_images(tmp_path).images
    assert images.shape == (1, 4, 4, len(pixels)) and images.dtype == np.uint8
    np.testing.assert_allclose(images[0, 0, 0], pixels, atol=2)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_animation_is_its_first_frame(tmp_path, name):
    frames = [PIL.Image.new("RGB", (4, 4), (gray, gray, gray)) for gray in (200, 100, 50)]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    images = read_images(tmp_path).images
    assert images.shape[:3] == (1, 4, 4) and (images == 200).all()


def test_links_and_folders_named_like_images_are_followed(tmp_path):
    save(tmp_path / "elsewhere" / "a.png", value=1)
    (tmp_path / "set" / "class.png").mkdir(parents=True)
    (tmp_path / "set" / "class.png" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    images, _, names = read_images(tmp_path / "set")
    assert images.ravel().tolist() == [1] * 16 and names == ("class.png",)


@table(
    Case("unknown set", lambda: load_images("cifar11", batch_size=8), "'cifar11'.*'cifar10'"),
    Case("nowhere", lambda: load_images("no/where", batch_size=8), "no data set 'no/where'"),
    Case("a file", lambda: load_images(__file__, batch_size=8), "path of a folder"),
    Case("a number", lambda: load_images(3, batch_size=8), "`source` is not a path", TypeError),
    Case("None", lambda: load_images(None, batch_size=8), "`source`.*received None", TypeError),
    Case("empty name", lambda: load_images("", batch_size=8), "`source` is not a path"),
    Case("zero byte", lambda: load_images("a\0b", batch_size=8), "`source` is not a path"),
    Case("endless name", lambda: load_images("a" * 5000, batch_size=8), "There is no data set"),
    Case("home of nobody", lambda: load_images("~nobody9/x", batch_size=8), "There is no data set"),
    Case(
        "data_dir a number",
        lambda: load_images("mnist", batch_size=8, data_dir=3),
        "`data_dir` is not a path",
        TypeError,
    ),
    Case("unknown split", lambda: load_images(split="a", batch_size=8), r"'train', 'test'.*'a'"),
    Case("split a number", lambda: load_images(split=3, batch_size=8), "received 3"),
    Case("empty split", lambda: load_images(split="test[:0]", batch_size=8), r"'test\[:0\]'"),
    Case("batch_size 0", lambda: load_images(split="test", batch_size=0), "`batch_size`.*0"),
    Case("batch above the set",
         lambda: load_images(split="test[:5]", batch_size=8), "`batch_size`.*8"),
    Case("size 0", lambda: load_images(batch_size=8, image_size=(0, 4)), r"image size.*\(0, 4\)"),
    Case("size of one", lambda: load_images(batch_size=8, image_size=4), "image size.*received 4"),
    Case("range empty",
         lambda: load_images(split="test", batch_size=8, image_range=(1, 1)), "range"),
    Case("range ragged", lambda: load_images(batch_size=8, image_range=([1], 0)), "`image_range`"),
)  # fmt: skip
def test_source_that_is_none_is_refused(case):
    check(case)


SHEET = np.zeros((4, 4), np.uint8)


@table(
    Case("folder", lambda p: pictures.save_png(p, SHEET), "is a folder", IsADirectoryError),
    Case("below a file", lambda p: pictures.save_png(p / "file" / "a.png", SHEET),
         "a part of its path is a file", NotADirectoryError),
    Case("two below a file", lambda p: pictures.save_png(p / "file" / "a" / "b.png", SHEET),
         "a part of its path is a file", NotADirectoryError),
    Case("a number", lambda p: pictures.save_png(3, SHEET), "`path`.*received 3", TypeError),
    Case("None", lambda p: pictures.save_png(None, SHEET), "`path`.*received None", TypeError),
    Case("zero byte", lambda p: pictures.save_png("a\0.png", SHEET), "`path` is not a path"),
    Case("floats", lambda p: pictures.save_png(p / "a.png", SHEET / 1.0), "not a sheet.*float64"),
    Case("empty sheet",
         lambda p: pictures.save_png(p / "a.png", SHEET[:0]), r"not a sheet.*\(0, 4\)"),
    Case("ragged sheet", lambda p: pictures.save_png(p / "a.png", [[1], [1, 2]]), "not an array"),
    Case("key empty", lambda p: pictures.save_png(p / "a.png", SHEET, {"": 1}), "metadata key"),
    Case("no keys",
         lambda p: pictures.save_png(p / "a.png", SHEET, [1]), "have no keys", TypeError),
    Case("no frames", lambda p: pictures.save_gif(p / "a.gif", []), "animation.*received 0"),
    Case("None as frames", lambda p: pictures.save_gif(p / "a.gif", None), "animation.*received 0"),
    Case("frames differ",
         lambda p: pictures.save_gif(p / "a.gif", [SHEET, SHEET[:2]]), "one shape"),
    Case("too fast", lambda p: pictures.save_gif(p / "a.gif", [SHEET], frame_ms=1), "`frame_ms`"),
    Case("gif in a folder's place",
         lambda p: pictures.save_gif(p, [SHEET]), "folder", IsADirectoryError),
    Case("metadata of nothing", lambda p: pictures.read_metadata(p / "a.png"),
         "cannot be opened: No such file", FileNotFoundError),
    Case("metadata of a folder", lambda p: pictures.read_metadata(p), "Is a directory",
         IsADirectoryError),
    Case("metadata of text", lambda p: pictures.read_metadata(p / "file"), "which is none"),
    Case("metadata of a number", lambda p: pictures.read_metadata(3), "`path`", TypeError),
    Case("no history", lambda p: plot_history({}, p / "a.png"), ""),
    Case("None as history", lambda p: plot_history(None, p / "a.png"), "", TypeError),
    Case("history of words", lambda p: plot_history({"loss": ["a"]}, p / "a.png"), ""),
    Case("curves to a folder",
         lambda p: plot_history({"loss": [1]}, p), "folder", IsADirectoryError),
    Case("curves to a number", lambda p: plot_history({"loss": [1]}, 3), "`path`", TypeError),
)  # fmt: skip
def test_refused_file_leaves_the_folder_as_it_was(case, tmp_path):
    (tmp_path / "file").write_text("text")
    check(case, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
    assert (tmp_path / "file").read_text() == "text"


# Models from files.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with gan.keras, and others that were made of it or look like it."""
    folder = tmp_path_factory.mktemp("models")
    model = gan()
    model.compile(adversaries())
    model.save(folder / "gan.keras")
    changes = {
        "argument": lambda config, metadata: config["config"].update(depth=3),
        "field": lambda config, metadata: config["config"]["loss"]["config"].update(slope=3),
        "class": lambda config, metadata: config.update(
            class_name="Consistency", registered_name="customstep>Consistency"
        ),
        "keras": lambda config, metadata: (
            metadata.update(keras_version="99.1.0"),
            config["config"].update(depth=3),
        ),
        "fine": lambda config, metadata: metadata.update(keras_version="99.1.0"),
    }
    for name, change in changes.items():
        rewrite(folder / "gan.keras", folder / f"{name}.keras", change)
    comment = b"customstep 99.2.0"
    rewrite(folder / "gan.keras", folder / "customstep.keras", changes["argument"], comment)
    code = keras.layers.Lambda(lambda x: print("this is code") or x)
    unsafe = keras.Sequential([keras.Input((3,)), code])
    unsafe.save(folder / "unsafe.keras")
    (folder / "zero.keras").touch()
    (folder / "text.keras").write_text("not a model")
    with zipfile.ZipFile(folder / "archive.keras", "w") as archive:
        archive.writestr("config.json", "[")
    (folder / "folder.keras").mkdir()
    return folder


def rewrite(source, target, change, comment=None):
    """A copy of a `.keras` file with another configuration or other metadata."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        new.comment = comment or old.comment
        parts = {name: old.read(name) for name in old.namelist()}
        config, metadata = (json.loads(parts[f"{name}.json"]) for name in ("config", "metadata"))
        change(config, metadata)
        parts["config.json"], parts["metadata.json"] = json.dumps(config), json.dumps(metadata)
        for name, data in parts.items():
            new.writestr(name, data)


def one_line(capsys, main, prog):
    """Calls a `main` that a user's mistake ends, and returns what it says."""
    with pytest.raises(SystemExit) as caught:
        main()
    output = capsys.readouterr()
    assert caught.value.code == 2 and output.out == ""
    assert "Traceback" not in output.err and output.err.endswith("\n")
    line = output.err.splitlines()[-1]  # `argparse` prints the usage first
    assert line.startswith(f"{prog}: error: "), output.err
    return line


@table(
    Case("damaged", "zero", "cannot be loaded.*BadZipFile|cannot be loaded.*ValueError"),
    Case("text", "text", "cannot be loaded"),
    Case("another archive", "archive", "cannot be loaded"),
    Case("folder", "folder", "received a folder"),
    Case("nothing", "nothing", "received a path that does not exist"),
    Case("code", "unsafe", "cannot be loaded.*(unsafe|safe_mode|arbitrary code|lambda)"),
    Case("argument of a newer class", "argument", "GAN has arguments.*here: depth"),
    Case("field of a newer loss", "field", "NonSaturating has arguments.*here: slope"),
    Case("newer class", "class", "cannot be loaded.*'Consistency'"),
    Case("newer Keras", "keras", "newer version.*received a file of keras 99.1.0.*depth"),
    Case("newer customstep", "customstep", "newer version.*customstep 99.2.0.*depth"),
)
@pytest.mark.parametrize("command", ["grid", "inspect"])
def test_file_that_is_no_model_here_is_one_line(
    case, command, models, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = models / f"{case.call}.keras"
    before = path.read_bytes() if path.is_file() else None
    line = one_line(
        capsys, lambda: cli.main([command, str(path)]), f"customstep {command}"
    )
    assert re.search(case.words, clear(line.partition("error: ")[2]))
    assert not list(tmp_path.iterdir()) and (before is None or path.read_bytes() == before)


def test_every_attempt_to_load_a_model_is_in_safe_mode(models, monkeypatch, capsys):
    modes = []

    def load_model(*arguments, safe_mode=None, **options):
        modes.append(safe_mode)
        raise ValueError("compiled with something unknown")

    monkeypatch.setattr(keras.models, "load_model", load_model)
    one_line(capsys, lambda: cli.main(["grid", str(models / "gan.keras")]), "customstep grid")
    assert modes == [True, True]


@pytest.mark.parametrize("name, words", [("argument", "GAN.*depth"), ("field", "NonSat.*slope")])
def test_keras_itself_names_what_a_newer_file_has(models, name, words):
    with pytest.raises(ValueError) as caught:
        keras.models.load_model(models / f"{name}.keras")
    assert re.search(words, clear(caught.value))


def test_file_of_a_newer_keras_that_can_be_loaded_is_loaded(models):
    assert keras.models.load_model(models / "fine.keras").latent_dim == 3


def test_saved_model_says_what_saved_it(models):
    assert customstep.saving.versions(models / "gan.keras") == {
        "keras": keras.__version__,
        "customstep": customstep.__version__,
    }
    assert customstep.saving.versions(models / "text.keras") == {}


# The command line.


@pytest.mark.parametrize(
    "argv, words",
    [
        (["grid", "gan.keras", "--rows", "-1"], "--rows.*at least 1; received '-1'"),
        (["grid", "gan.keras", "--rows", "1000000", "--cols", "1000000"], "too large.*Lower"),
        (["grid", "gan.keras", "--scale", "1e3"], "--scale.*received '1e3'"),
        (["grid", "gan.keras", "--labels", "0"], "takes no labels"),
        (["grid", "gan.keras", "--out", "."], "Expected a name that ends in .png"),
        (["grid", "gan.keras", "--out", "gan.keras/a.png"], "cannot be written"),
        (["inspect", "gan.keras", "--dataset", "nope"], "no data set 'nope'"),
        (["inspect", "gan.keras", "--dataset", "."], "is not a set of images"),
        (["inspect", "gan.keras", "--split", "nope"], "split 'nope'"),
        (["launch", "nope.py"], "no script to run"),
        (["launch", "--workers", "0", "nope.py"], "--workers.*at least 1"),
        (["paint"], "invalid choice: 'paint'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_on_the_command_line_is_one_line(argv, words, models, capsys, monkeypatch):
    monkeypatch.chdir(models)
    before = sorted(models.iterdir())
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert re.search(words, error)
    assert sorted(models.iterdir()) == before


def refuse(error):
    raise error


def in_numpy():
    np.zeros(3).reshape(2)


@pytest.mark.parametrize(
    "main, words",
    [
        (lambda: open("nowhere/at/all.txt"), "No such file .*nowhere/at/all.txt"),
        (lambda: os.listdir("nowhere"), "No such file .*nowhere"),
        (lambda: schedules.LinearDecay(0.1, steps=0), "`steps` is out of its range. Expected"),
        (lambda: pictures.save_png(3, SHEET), "`path` is not a path. Expected"),
        (lambda: pictures.save_png(".", SHEET), "is a folder"),
        (lambda: read_images("nope"), "There is no data set"),
        (lambda: refuse(MemoryError()), "MemoryError"),
    ],
)
def test_mistake_of_a_script_is_one_line(main, words, capsys):
    line = one_line(capsys, lambda: customstep.run(main, prog="train.py"), "train.py")
    assert re.search(words, line)


@pytest.mark.parametrize(
    "main, error",
    [
        (lambda: refuse(ValueError("of the script")), ValueError),
        (in_numpy, ValueError),
        (lambda: refuse(OSError("of the script")), OSError),
        (lambda: refuse(KeyError("a")), KeyError),
        (lambda: customstep.losses.hinge_generator_loss(None).shape, ValueError),
        (lambda: refuse(KeyboardInterrupt()), KeyboardInterrupt),
        (lambda: sys.exit(3), SystemExit),
    ],
    ids=["value", "numpy", "os", "key", "tensorflow", "interrupt", "exit"],
)
def test_bug_of_a_script_keeps_its_traceback(main, error, capsys):
    with pytest.raises(error) as caught:
        customstep.run(main)
    assert capsys.readouterr().err == ""
    assert caught.traceback[-1].path != scripts.__file__


def test_name_of_the_script_is_the_default(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["examples/dcgan.py", "--epochs", "0"])
    one_line(capsys, lambda: customstep.run(lambda: read_images("nope")), "dcgan.py")


def test_what_main_returns_is_dropped():
    assert customstep.run(lambda: "history") is None


@pytest.mark.parametrize("word", ["0", "-1", "1.5", "", "many"])
def test_option_that_is_no_whole_number_is_one_line(word, capsys):
    parser = scripts.Parser(prog="train.py")
    parser.add_argument("--epochs", type=scripts.whole(1))
    line = one_line(capsys, lambda: parser.parse_args(["--epochs", word]), "train.py")
    assert line.endswith(f"expected a whole number, at least 1; received '{word}'")


def test_option_within_its_limits_is_an_int():
    assert [scripts.whole(0, 5)(word) for word in ("0", "5")] == [0, 5]
    with pytest.raises(Exception, match="from 0 to 5; received '6'"):
        scripts.whole(0, 5)("6")


@pytest.mark.parametrize("word", ["file", "file/deeper/still", "a\0b"])
def test_option_that_is_no_folder_is_one_line(word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    parser = scripts.Parser(prog="train.py")
    parser.add_argument("--out", type=scripts.folder)
    line = one_line(capsys, lambda: parser.parse_args(["--out", word]), "train.py")
    assert "expected a folder that exists or can be made" in line and repr(word)[1:5] in repr(line)


@pytest.mark.parametrize("word", [".", "new", "new/and/deep", "/tmp"])
def test_option_that_is_a_folder_is_its_path_and_is_not_made(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert scripts.folder(word) == pathlib.Path(word)
    assert not list(tmp_path.iterdir())


def test_seed_is_what_numpy_takes():
    assert scripts.seed(str(2**32 - 1)) == 2**32 - 1
    for word in ("-1", str(2**32)):
        with pytest.raises(Exception, match=f"from 0 to 4294967295; received '{word}'"):
            scripts.seed(word)


def examples_with(option, *, runs=False):
    """The examples that have an option; those that use `customstep.run` if it is asked for."""
    sources = {path: path.read_text(encoding="utf-8") for path in EXAMPLES}
    return [
        path
        for path, source in sources.items()
        if f'"{option}"' in source and (not runs or "run(main)" in source)
    ]


@pytest.mark.parametrize(
    "path, argv",
    [
        *((path, ["--dataset", "nope"]) for path in examples_with("--dataset")),
        *((path, ["--epochs", "many"]) for path in examples_with("--epochs")),
        *((path, ["--seed", "1.5"]) for path in examples_with("--seed")),
        *((path, ["--nope"]) for path in EXAMPLES),
        *((path, ["--epochs", "0"]) for path in examples_with("--epochs", runs=True)),
        *((path, ["--epochs", "-1"]) for path in examples_with("--epochs", runs=True)),
        *((path, ["--seed", "-1"]) for path in examples_with("--seed", runs=True)),
        *((path, ["--seeds", "0"]) for path in examples_with("--seeds", runs=True)),
        *((path, ["--out", "file"]) for path in examples_with("--out", runs=True)),
    ],
    ids=lambda value: value.stem if isinstance(value, pathlib.Path) else " ".join(value),
)
def test_mistake_on_the_command_line_of_an_example_is_one_line(
    path, argv, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), *argv])
    (tmp_path / "file").touch()
    main = load(path).main
    one_line(capsys, lambda: customstep.run(lambda: main(argv)), path.name)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]


# Damage of all kinds.


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def whole_files():
    rng = np.random.default_rng(0)
    image = PIL.Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
    other = PIL.Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
    palette = image.quantize(16)
    animated = {"save_all": True, "append_images": [other]}
    return {
        "colour.png": encoded(image, "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=3),
        "bits.png": encoded(image.convert("1"), "PNG"),
        "animated.png": encoded(image, "PNG", **animated),
        "colour.jpg": encoded(image, "JPEG"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "progressive.jpeg": encoded(image, "JPEG", progressive=True),
        "colour.bmp": encoded(image, "BMP"),
        "palette.bmp": encoded(palette, "BMP"),
        "still.gif": encoded(palette, "GIF"),
        "animated.gif": encoded(palette, "GIF", **animated),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
        "lossy.webp": encoded(image, "WEBP"),
        "animated.webp": encoded(image, "WEBP", **animated),
    }


def damaged(data, rng):
    """Cut short, with other bytes anywhere or in the header, or with bytes put in."""
    data = bytearray(data)
    kind, place = rng.integers(4), rng.integers(len(data))
    if kind == 0:
        return data[:place]
    if kind == 3:
        return data[:place] + rng.bytes(rng.integers(1, 50)) + data[place:]
    end = len(data) if kind == 1 else min(64, len(data))
    for position in rng.integers(0, end, rng.integers(1, 20)):
        data[position] = rng.integers(256)
    return data


@pytest.mark.parametrize("name", whole_files())
def test_damaged_image_is_read_or_named(name, tmp_path):
    """Never another error, a warning, which would be one here, or pixels of a wrong shape."""
    data, path = whole_files()[name], tmp_path / name
    path.write_bytes(data)
    assert read_images(tmp_path).images.shape[:3] == (1, 24, 20)
    refused = 0
    for seed in range(360 if SOAK else 15):
        path.write_bytes(damaged(data, np.random.default_rng(seed)))
        try:
            images = read_images(tmp_path).images
        except ValueError as error:
            assert f"'{path}'" in clear(error)
            refused += 1
        else:
            assert images.dtype == np.uint8 and len(images) == 1 and images.size
            assert images.ndim == 4 and images.shape[-1] in (1, 3)
    assert refused
