"""Sample and class weights and short last batches count in every template as arithmetic says."""

import functools

import keras
import numpy as np
import pytest

from tests.descriptors import CLASSES, DESCRIPTORS, FEATURES, IMAGES, equal, fit, state

WEIGHTS = np.random.default_rng(1).uniform(0.2, 3, 24).astype("float32")
CLASS_WEIGHTS = {0: 0.5, 1: 2.0, 2: 1.25}

# What the layers of `tests/descriptors.py` are regularized with, as Keras has it for "l2".
L2 = 0.01

named = {descriptor.name: descriptor for descriptor in DESCRIPTORS}
# Two models of tests/descriptors.py have objectives that leave the weights out.
weighted = [d for d in DESCRIPTORS if not d.name.startswith("Two")]
# Of these, classifiers whose loss is the compiled one.
others = ("CycleGAN", "Distillation", "MeanTeacher")
exact = [d for d in weighted if d.alone and d.name not in others]


def over(descriptors):
    return pytest.mark.parametrize("descriptor", descriptors, ids=lambda one: one.name)


def targets(descriptor):
    """Those of the descriptor; without targets Keras would drop the weights."""
    return CLASSES if descriptor.batch.y is None else descriptor.batch.y


def trained(descriptor, **weights):
    """Its state and history. Eager, for TensorFlow may round otherwise in each graph it makes."""
    model = descriptor.make(run_eagerly=True)
    quiet = dict(batch_size=8, epochs=2, shuffle=False, verbose=0)
    history = model.fit(descriptor.batch.x, targets(descriptor), **quiet, **weights).history
    return state(model), history


@functools.cache
def without_weights(name):
    return trained(named[name])


def test_weights_of_one_change_no_bit(descriptor):
    weights, history = trained(descriptor, sample_weight=np.ones(24, "float32"))
    assert equal(weights, without_weights(descriptor.name)[0])
    assert history == without_weights(descriptor.name)[1]


@over(weighted)
def test_weights_change_what_is_learned(descriptor):
    weights, _ = trained(descriptor, sample_weight=WEIGHTS)
    assert not equal(weights, without_weights(descriptor.name)[0])


def test_class_weights_are_the_sample_weights_of_the_classes(descriptor):
    if isinstance(targets(descriptor), dict):
        with pytest.raises(ValueError, match="only supported for Models with a single output"):
            trained(descriptor, class_weight=CLASS_WEIGHTS)
        return
    if targets(descriptor).ndim > 1:  # images have no class
        return
    of_examples = np.array([CLASS_WEIGHTS[label] for label in CLASSES], "float32")
    by_class = trained(descriptor, class_weight=CLASS_WEIGHTS)
    by_example = trained(descriptor, sample_weight=of_examples)
    assert equal(by_class[0], by_example[0])
    assert by_class[1] == by_example[1]


def regularization(model):
    """0.01 times the sum of the squares of every kernel that is regularized."""
    kernels = [k.kernel for k in model.layers if getattr(k, "kernel_regularizer", None) is not None]
    return sum(L2 * np.sum(np.square(np.float64(kernel))) for kernel in kernels)


def logits(model, descriptor):
    """Of each example, without what `predict` adds."""
    if descriptor.name == "Processed":
        return np.array(model((IMAGES - 0.1) / 0.5, training=False))
    outputs = model(FEATURES, training=False)
    return np.array(outputs["classes"] if isinstance(outputs, dict) else outputs)


@over(exact)
@pytest.mark.parametrize("batch_size", [10, 24])
def test_evaluation_is_the_weighted_mean_over_the_examples(descriptor, batch_size):
    model = descriptor.make()
    fit(model, descriptor, epochs=1)
    x, y, *_ = descriptor.batch
    logs = model.evaluate(
        x, y, batch_size=batch_size, sample_weight=WEIGHTS, verbose=0, return_dict=True
    )
    examples = [keras.tree.map_structure(lambda a: a[i : i + 1], (x, y)) for i in range(24)]
    alone = [model.test_on_batch(*example, return_dict=True) for example in examples]
    for name in {"loss", *model.terms} & set(logs):
        extra = regularization(model) if name in ("loss", "weighted_classes_loss") else 0
        losses = np.array([log[name] for log in alone], "float64") - extra
        assert logs[name] == pytest.approx(np.mean(WEIGHTS * losses) + extra, rel=1e-5), name
    right = np.argmax(logits(model, descriptor), axis=1) == CLASSES
    expected = {
        "accuracy": np.mean(right),
        "classes_accuracy": np.mean(right),
        "weighted_accuracy": np.sum(WEIGHTS * right) / np.sum(WEIGHTS),
    }
    measured = set(logs) & set(expected)
    assert measured
    for name in measured:
        assert logs[name] == pytest.approx(expected[name], rel=1e-6), name


@over(exact)
def test_weighted_loss_is_the_cross_entropy_of_the_predictions(descriptor):
    model = descriptor.make()
    fit(model, descriptor, epochs=1)
    x, y, *_ = descriptor.batch
    logs = model.evaluate(x, y, batch_size=10, sample_weight=WEIGHTS, verbose=0, return_dict=True)
    outputs = np.float64(logits(model, descriptor))
    entropies = np.log(np.exp(outputs).sum(1)) - outputs[np.arange(24), CLASSES]
    name = "weighted_classes_loss" if "classes_loss" in model.terms else "loss"
    expected = np.sum(WEIGHTS * entropies) / 24 + regularization(model)
    assert logs[name] == pytest.approx(expected, rel=1e-5)


def test_each_output_has_weights_of_its_own():
    descriptor = named["AuxiliaryLoss"]
    model = descriptor.make()
    x, y, *_ = descriptor.batch
    logs = [
        model.evaluate(x, y, batch_size=10, sample_weight=w, verbose=0, return_dict=True)
        for w in (None, WEIGHTS, {"classes": np.ones(24), "sum": WEIGHTS})
    ]
    plain, both, one = logs
    assert one["classes_loss"] == plain["classes_loss"] != both["classes_loss"]
    assert one["sum_loss"] == both["sum_loss"] != plain["sum_loss"]


def test_weight_zero_hides_what_a_real_image_shows():
    """To the discriminator, that is; the generator is never shown one."""
    descriptor = named["GAN-conditions"]
    weights = np.repeat([2.0, 0.0], 4).astype("float32")
    other = np.concatenate([IMAGES[:4], IMAGES[4:8][::-1]])
    logs = []
    for images in (IMAGES[:8], other):
        model = descriptor.make()
        logs.append(
            model.test_on_batch(images, CLASSES[:8], sample_weight=weights, return_dict=True)
        )
    assert logs[0] == logs[1]
