"""Processors against hand-made numbers, and the template that runs them."""

import dataclasses
import itertools
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image

from customstep import Batch, noise, processing
from customstep.processing import (
    CutMix,
    Flip,
    Mixup,
    Normalize,
    OneHot,
    Processor,
    RandomFlip,
    RandomShift,
    Shift,
    Softmax,
    StandardizeTargets,
)
from customstep.templates import AuxiliaryLoss, Processed
from tests.descriptors import CLASSES, IMAGES, equal, processed, processed_compiled, state
from tests.test_examples import load

SEED = tf.constant([7, 0], tf.int64)
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]
EVERY = (
    Processor(),
    Normalize([0.1, 0.2], np.array([1.0, 2.0])),
    RandomShift(2),
    RandomFlip(),
    Flip(),
    Shift(1, -2),
    Mixup(0.3),
    CutMix(0.3),
    OneHot(3),
    StandardizeTargets(1, 2),
    Softmax(2.0),
    OneHot(3, output="a"),
    StandardizeTargets(1, 2, output="a"),
    Softmax(output="a"),
)


def batch(x, y=None, sample_weight=None):
    arrays = (None if a is None else tf.convert_to_tensor(a) for a in (x, y, sample_weight))
    return Batch(*arrays)


def cross_entropy(y, p):
    return -(np.asarray(y, "float64") * np.log(np.asarray(p, "float64"))).sum(-1)


def numbered(n=6, height=3, width=5):
    """Float images in which every pixel of every image has a value of its own."""
    return np.arange(n * height * width, dtype="float32").reshape(n, height, width, 1)


# Noise for mixing: the moments and quantiles that the definitions have


@pytest.mark.parametrize("compiled", [None, False, True], ids=["eager", "graph", "xla"])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 4.0])
def test_symmetric_beta_has_the_moments_of_its_definition(alpha, compiled):
    def draw(seed):
        return noise.symmetric_beta(alpha, (100_000,), seed)

    if compiled is not None:
        draw = tf.function(draw, jit_compile=compiled)
    x = draw(SEED).numpy().astype("float64")
    assert 0 <= x.min() and x.max() <= 1
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)), fourth moment 3 / (16 (2a + 1) (2a + 3))
    variance, fourth = 1 / (4 * (2 * alpha + 1)), 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    error = 5 / 100_000**0.5
    assert abs(x.mean() - 1 / 2) < error * variance**0.5
    assert abs(((x - 0.5) ** 2).mean() - variance) < error * (fourth - variance**2) ** 0.5
    assert abs(((x - 0.5) ** 4).mean() - fourth) < error * fourth**0.5 / 4


def test_symmetric_beta_has_the_quantiles_of_the_arcsine_law():
    """Beta(1/2, 1/2) has the distribution function 2 / pi arcsin(sqrt(x))."""
    x = np.sort(noise.symmetric_beta(0.5, (100_000,), SEED).numpy().astype("float64"))
    expected = 2 / np.pi * np.arcsin(np.sqrt(x))
    empirical = (np.arange(100_000) + 0.5) / 100_000
    assert np.abs(expected - empirical).max() < 1.95 / 100_000**0.5  # Kolmogorov-Smirnov, 0.1 %


def test_symmetric_beta_of_extreme_alphas_is_finite():
    coin = noise.symmetric_beta(1e-3, (1000,), SEED).numpy()
    assert 0.9 < ((coin < 1e-3) | (coin > 1 - 1e-3)).mean() and 0.4 < coin.mean() < 0.6
    half = noise.symmetric_beta(1e9, (1000,), SEED).numpy()
    np.testing.assert_allclose(half, 0.5, atol=1e-3)


@pytest.mark.parametrize("compiled", [None, False, True], ids=["eager", "graph", "xla"])
def test_permutations_of_three_are_equally_likely(compiled):
    def draw(seed):
        return noise.permutation(3, seed)

    if compiled is not None:
        draw = tf.function(draw, jit_compile=compiled)
    rows = np.stack([draw(tf.constant([7, index], tf.int64)) for index in range(1200)])
    counts = [int((rows == order).all(axis=1).sum()) for order in itertools.permutations(range(3))]
    assert sum(counts) == 1200  # each row is one of the six
    statistic = sum((count - 200) ** 2 / 200 for count in counts)
    assert statistic < 20.5  # chi squared of 5 degrees of freedom, 0.1 % level


def test_split_seeds_draw_unrelated_noise():
    a, b = noise.split(SEED, 2)
    x, y, whole = (noise.uniform((10_000,), seed).numpy() for seed in (a, b, SEED))
    assert a.dtype == tf.int64 and a.shape == (2,)
    for one, other in ((x, y), (x, whole), (y, whole)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / 100
    assert np.array_equal(noise.split([7, 0], 2), [a, b])
    assert not np.array_equal(noise.split([7, 1], 2), [a, b])
    assert noise.split(SEED, 0) == []


# Every processor


@pytest.mark.parametrize("processor", EVERY, ids=lambda one: type(one).__name__)
def test_processor_is_saved_and_loaded(processor):
    saved = keras.saving.serialize_keras_object(processor)
    assert keras.saving.deserialize_keras_object(saved) == processor


@pytest.mark.parametrize("processor", EVERY, ids=lambda one: type(one).__name__)
def test_processor_works_without_targets_as_in_predict(processor):
    images = tf.constant(IMAGES.repeat(2, axis=-1))
    assert processor.infer(Batch(images)).x.shape == images.shape
    assert processor.train(Batch(images), SEED).x.shape == images.shape


@pytest.mark.parametrize(
    "processor", [RandomShift(2), RandomFlip(), Mixup(), CutMix()], ids=lambda p: type(p).__name__
)
def test_random_processor_repeats_itself_and_touches_only_training(processor):
    given = batch(IMAGES, ONE_HOT)
    first, again = processor.train(given, SEED), processor.train(given, SEED)
    other = processor.train(given, tf.constant([7, 1], tf.int64))
    assert equal(first[:2], again[:2])
    assert not np.array_equal(first.x, other.x) and not np.array_equal(first.x, given.x)
    assert processor.infer(given) is given


@pytest.mark.parametrize("processor", [RandomShift(2), RandomFlip(), Mixup(), CutMix()])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_images_keep_their_type(processor, dtype):
    assert processor.train(batch(tf.cast(IMAGES, dtype), ONE_HOT), SEED).x.dtype == dtype


@pytest.mark.parametrize("processor", [RandomShift(1), RandomFlip(), CutMix()])
def test_moved_pixels_may_be_bytes(processor):
    images = np.arange(24, dtype="uint8").repeat(16).reshape(24, 4, 4, 1)
    assert processor.train(batch(images, ONE_HOT), SEED).x.dtype == tf.uint8


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize(
    "processor", [RandomShift(2), RandomFlip(), Mixup(), CutMix()], ids=lambda p: type(p).__name__
)
def test_random_processor_compiles_for_any_batch_size(processor, compiled):
    @tf.function(
        input_signature=[tf.TensorSpec((None, 4, 4, 1)), tf.TensorSpec((None, 3))],
        jit_compile=compiled,
    )
    def train(x, y):
        return processor.train(Batch(x, y), SEED)[:2]

    eager = processor.train(batch(IMAGES, ONE_HOT), SEED)
    for n in (24, 5):
        x, y = train(IMAGES[:n], ONE_HOT[:n])
        assert x.shape == (n, 4, 4, 1)
        np.testing.assert_allclose(np.sum(y, axis=1), 1, atol=1e-6)
        if n == 24 and not compiled:  # XLA draws other numbers
            np.testing.assert_allclose(x, eager.x, atol=1e-6)
            np.testing.assert_allclose(y, eager.y, atol=1e-6)


# Inputs


def test_normalize_takes_one_number_or_one_a_channel():
    x = np.array([[[[1.0, 10.0], [3.0, 30.0]]]], "float32")
    both = Normalize(1.0, 2.0).infer(batch(x)).x
    np.testing.assert_array_equal(both, [[[[0.0, 4.5], [1.0, 14.5]]]])
    each = Normalize((1, 10), (2, 5)).infer(batch(x)).x
    np.testing.assert_array_equal(each, [[[[0.0, 0.0], [1.0, 4.0]]]])


def test_normalize_turns_bytes_into_floats_and_leaves_other_floats_their_type():
    x = Normalize(127.5, 127.5).infer(batch(np.array([[0, 255]], "uint8"))).x
    assert x.dtype == tf.float32
    np.testing.assert_array_equal(x, [[-1.0, 1.0]])
    assert Normalize(0.5, 2).infer(batch(np.ones((2, 1), "float16"))).x.dtype == tf.float16


def test_normalize_takes_several_inputs():
    x = Normalize(1, 2).infer(Batch({"a": tf.constant([3.0]), "b": tf.constant([[5.0]])})).x
    assert (float(x["a"][0]), float(x["b"][0, 0])) == (1.0, 2.0)


def test_shift_moves_pixels_and_repeats_the_edge():
    x = np.array([[[[1], [2], [3]], [[4], [5], [6]]]] * 3)
    down, left, far = processing.shift(x, [1, 0, 0], [0, -1, 5])[..., 0].numpy().tolist()
    assert down == [[1, 2, 3], [1, 2, 3]]
    assert left == [[2, 3, 3], [5, 6, 6]]
    assert far == [[1, 1, 1], [4, 4, 4]]
    assert Shift(0, -1).infer(batch(x)).x[1, ..., 0].numpy().tolist() == left


def test_random_shift_moves_each_image_by_each_distance_equally_often():
    """A bright pixel in the middle tells where its image went."""
    images = np.zeros((900, 5, 5, 1), "float32")
    images[:, 2, 2] = 1
    moved = RandomShift(1).train(batch(images), SEED).x.numpy()[..., 0]
    assert (moved.sum(axis=(1, 2)) == 1).all()
    counts = moved.sum(axis=0)
    assert (counts[1:4, 1:4] > 60).all() and counts[1:4, 1:4].sum() == 900  # 100 each, +- 9.4


def test_random_flip_mirrors_half_of_the_images_whole():
    images = numbered(400)
    flipped = RandomFlip().train(batch(images), SEED).x.numpy()
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (flipped == images).all(axis=(1, 2, 3))).all()
    assert 150 < mirrored.sum() < 250  # 200 +- 10
    assert np.array_equal(Flip().infer(batch(images)).x, images[:, :, ::-1])


def test_box_mask_is_cut_off_at_the_edge():
    y, x = [0.5, 0.0, 0.5, 0.5], [0.5, 1.0, 0.5, 0.5]
    boxes = processing.box_mask(4, 6, side=[0.5, 0.5, 0.0, 1.0], centre_y=y, centre_x=x)
    inside, corner, nothing, all_of_it = boxes.numpy()
    assert np.argwhere(inside).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert np.argwhere(corner).tolist() == [[0, 5]]  # a pixel's centre on the border is outside
    assert not nothing.any() and all_of_it.all()


# Mixing


def test_mixup_blends_every_example_with_one_partner_and_the_targets_alike():
    """Images that are constant and targets that are the same number betray lam and partner."""
    values = np.float32([1, 10, 100, 1000])
    x, y = values.reshape(4, 1, 1, 1) * np.ones((4, 2, 2, 1), "float32"), values[:, None]
    mixed = Mixup(1.0).train(batch(x, y), SEED)
    pairing, mixing = noise.split(SEED, 2)
    partner = noise.permutation(4, pairing).numpy()
    lam = noise.symmetric_beta(1.0, (4,), mixing).numpy()
    expected = lam * values + (1 - lam) * values[partner]
    assert sorted(partner) == [0, 1, 2, 3] and (partner != np.arange(4)).any()
    np.testing.assert_allclose(mixed.y[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(mixed.x, x * (expected / values).reshape(4, 1, 1, 1), rtol=1e-6)
    assert mixed.sample_weight is None


def test_cutmix_labels_are_the_shares_of_the_pixels():
    """Each image is one color, its number, so that its pixels can be counted afterwards."""
    n = 24
    images = np.arange(n, dtype="float32").reshape(n, 1, 1, 1) * np.ones((n, 7, 9, 1), "float32")
    mixed = CutMix(1.0).train(batch(images, np.eye(n, dtype="float32")), SEED)
    counted = np.stack([(mixed.x.numpy() == color).mean(axis=(1, 2, 3)) for color in range(n)], 1)
    np.testing.assert_allclose(mixed.y, counted, atol=1e-6)
    assert ((counted > 0).sum(axis=1) == 2).sum() > n / 2  # most are made of two


def test_cutmix_pastes_the_same_place_of_its_partner():
    images = numbered(8, 6, 6)
    mixed = CutMix(1.0).train(batch(images), SEED).x.numpy()
    places = np.arange(36).reshape(6, 6, 1)
    assert (mixed % 36 == places).all() and not np.array_equal(mixed, images)


def test_cutmix_boxes_that_lie_inside_cover_one_minus_lam():
    n = 100
    given = batch(np.zeros((n, 40, 40, 1), "float32"), np.eye(n, dtype="float32"))
    kept = np.diag(CutMix(1.0).train(given, SEED).y)
    pairing, cutting, placing = noise.split(SEED, 3)
    lam = noise.symmetric_beta(1.0, (n,), cutting).numpy()
    centre = noise.uniform((2, n), placing).numpy()
    inside = (np.abs(centre - 0.5).max(axis=0) < 0.5 - np.sqrt(1 - lam) / 2).nonzero()[0]
    inside = inside[noise.permutation(n, pairing).numpy()[inside] != inside]
    assert len(inside) >= 10
    # Whole pixels: a side is at most one of 40 longer or shorter.
    np.testing.assert_allclose(kept[inside], lam[inside], atol=2 / 40)


def test_mixing_with_sample_weights_equals_the_two_weighted_cross_entropies():
    rng = np.random.default_rng(3)
    y, p = np.eye(3)[[0, 2, 1, 2]], rng.dirichlet(np.ones(3), 4)
    w, lam = np.array([0.5, 2.0, 0.0, 3.0]), np.array([0.3, 0.9, 0.4, 0.0])
    partner = np.array([1, 2, 0, 2])
    mixed = processing.mix_targets(
        batch(p, np.float32(y), np.float32(w)), partner, tf.constant(lam, tf.float32)
    )
    # By hand: W of the first two is 0.3 * 0.5 + 0.7 * 2 = 1.55 and 0.9 * 2 + 0.1 * 0 = 1.8.
    np.testing.assert_allclose(mixed.sample_weight, [1.55, 1.8, 0.6 * 0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(mixed.y[0], [0.15 / 1.55, 0, 1.4 / 1.55], rtol=1e-6)
    both = lam * w * cross_entropy(y, p) + (1 - lam) * w[partner] * cross_entropy(y[partner], p)
    np.testing.assert_allclose(mixed.sample_weight * cross_entropy(mixed.y, p), both, rtol=1e-6)


def test_weight_zero_of_both_gives_a_finite_target_and_no_weight():
    y = np.float32([[1, 0], [0, 1]])
    mixed = processing.mix_targets(
        batch(y, y, np.zeros(2, "float32")), [1, 0], tf.constant([0.3, 0.5])
    )
    assert np.isfinite(mixed.y).all() and np.array_equal(mixed.sample_weight, [0, 0])
    np.testing.assert_allclose(np.sum(mixed.y, axis=1), 1)


def test_mixing_takes_several_targets():
    targets = {"a": tf.constant([1.0, 3.0]), "b": tf.constant([[2.0], [6.0]])}
    mixed = processing.mix_targets(Batch(None, targets), [1, 0], tf.constant([0.25, 1.0]))
    assert mixed.y["a"].numpy().tolist() == [2.5, 3.0]
    assert mixed.y["b"].numpy().tolist() == [[5.0], [6.0]]


# Targets and outputs


@pytest.mark.parametrize("labels", [[0, 2, 1], [[0], [2], [1]]], ids=["flat", "column"])
def test_one_hot_encodes_labels(labels):
    given = batch(np.ones((3, 1)), np.array(labels, "uint8"))
    expected = [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    for encoded in (OneHot(3).infer(given), OneHot(3).train(given, SEED)):
        assert encoded.y.dtype == tf.float32 and encoded.y.numpy().tolist() == expected


def test_bytes_may_be_labels_of_many_classes():
    row = OneHot(300).infer(batch(np.ones(1), np.array([255], "uint8"))).y
    assert row.shape == (1, 300) and row[0, 255] == 1


def test_one_hot_of_an_unknown_label_is_not_a_number():
    rows = OneHot(2).infer(batch(np.ones(3), np.array([1, 2, -1]))).y.numpy()
    assert rows[0].tolist() == [0, 1] and np.isnan(rows[1:]).all()


def test_standardized_targets_come_back_in_their_units():
    processor = StandardizeTargets((10, 0), (2, 4))
    y = np.float32([[12, 4], [10, -4]])
    inside = processor.infer(batch(y, y)).y
    np.testing.assert_array_equal(inside, [[1, 1], [0, -1]])
    np.testing.assert_array_equal(processor.outputs(inside), y)


def test_softmax_divides_by_the_temperature_and_gives_float32():
    logits = tf.constant([[0, 2 * np.log(3)]], tf.float16)
    probabilities = Softmax(temperature=2.0).outputs(logits)
    assert probabilities.dtype == tf.float32
    np.testing.assert_allclose(probabilities, [[0.25, 0.75]], atol=1e-3)


def test_processors_of_one_output_leave_the_others_as_they_are():
    y = {"classes": tf.constant([2, 0]), "angle": tf.constant([[12.0], [8.0]])}
    given = OneHot(3, output="classes").infer(Batch(None, y))
    given = StandardizeTargets(10, 2, output="angle").infer(given)
    assert given.y["classes"].numpy().tolist() == [[0, 0, 1], [1, 0, 0]]
    assert given.y["angle"].numpy().tolist() == [[1], [-1]]
    logits = {"classes": tf.zeros((2, 4)), "angle": given.y["angle"]}
    outputs = Softmax(output="classes").outputs(logits)
    assert outputs["angle"] is logits["angle"]
    outputs = StandardizeTargets(10, 2, output="angle").outputs(outputs)
    assert outputs["classes"].numpy().tolist() == [[0.25] * 4] * 2
    assert np.array_equal(outputs["angle"], y["angle"])


# Errors name what to do


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Mixup(0), "`alpha`.*received 0"),
        (lambda: CutMix(float("inf")), "`alpha`.*received inf"),
        (lambda: RandomShift(0.5), "`pixels`.*received 0.5"),
        (lambda: OneHot(0), "`num_classes`.*received 0"),
        (lambda: Normalize(0, (1, 0)), r"`std`.*above 0; received \(1, 0\).*Normalize"),
        (lambda: StandardizeTargets(float("nan"), 1), "`mean`.*received nan"),
        (lambda: Softmax(-1), "`temperature`.*received -1"),
    ],
)
def test_argument_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "processor, given, message",
    [
        (Mixup(), batch(IMAGES, CLASSES), "`y` of floats; received int32.*`OneHot"),
        (CutMix(), batch(IMAGES, CLASSES), "`y` of floats; received int32.*`OneHot"),
        (Mixup(), batch(IMAGES.astype("uint8")), "`x` of floats; received uint8.*`Normalize"),
        (CutMix(), batch(IMAGES[..., 0], ONE_HOT), r"`CutMix` needs images.*\(24, 4, 4\)"),
        (RandomShift(1), batch(IMAGES[..., 0]), r"`RandomShift` needs images.*\(24, 4, 4\)"),
        (RandomFlip(), Batch([tf.constant(IMAGES)] * 2), "`RandomFlip` needs images"),
        (Flip(), batch(IMAGES[0]), r"`Flip` needs images.*\(4, 4, 1\)"),
        (Normalize((1, 2, 3), 1), batch(IMAGES), r"`mean`.*\(24, 4, 4, 1\).*3 numbers"),
        (OneHot(3), batch(IMAGES, ONE_HOT), r"`OneHot`.*float32 \(24, 3\)"),
        (Mixup(), batch(IMAGES, ONE_HOT, np.ones((24, 1))), r"weights.*\(24, 1\)"),
    ],
)
def test_batch_that_does_not_fit_is_refused(processor, given, message):
    with pytest.raises(ValueError, match=message):
        processor.train(given, SEED)


@pytest.mark.parametrize("make", [lambda o: OneHot(3, o), lambda o: StandardizeTargets(0, 1, o)])
@pytest.mark.parametrize(
    "output, y, message",
    [
        (None, {"a": CLASSES}, r"Expected one tensor; received {'a': 'int32 \(24,\)'}.*`output="),
        ("b", {"a": CLASSES}, "Expected a dict with 'b' in it; received {'a'"),
        ("b", CLASSES, r"Expected a dict with 'b' in it; received int32 \(24,\)"),
        (None, [CLASSES], r"Expected one tensor; received \['int32"),
    ],
    ids=["unnamed", "unknown", "tensor", "list"],
)
def test_output_that_does_not_fit_is_refused(make, output, y, message):
    y = keras.tree.map_structure(tf.constant, y)
    with pytest.raises(ValueError, match=message):
        make(output).infer(Batch(None, y))
    with pytest.raises(ValueError, match="`Softmax` cannot tell.*" + message):
        Softmax(output=output).outputs(y)


def test_template_refuses_what_is_no_processor():
    with pytest.raises(TypeError, match="`views`.*received <class.*Flip"):
        Processed(views=[Flip])


# The template


def compiled(model, **arguments):
    model.compile(**{**processed_compiled(), **arguments})
    return model


def plain_twin(model):
    """A `keras.Model` of the same weights."""
    twin = keras.Model.from_config(keras.Model(model.input, model.output).get_config())
    twin.set_weights(model.get_weights())
    return twin


@dataclasses.dataclass(frozen=True)
class Recorder(Processor):
    """Writes down which of its hooks ran."""

    name: str
    log: list

    def train(self, batch, seed):
        self.log.append(f"{self.name} train")
        return batch

    def infer(self, batch):
        self.log.append(f"{self.name} infer")
        return batch

    def outputs(self, outputs):
        self.log.append(f"{self.name} outputs")
        return outputs


def test_processors_run_in_order_and_their_outputs_in_reverse():
    log = []
    inputs = keras.Input((2,))
    recorders = [Recorder("a", log), Recorder("b", log)]
    model = Processed(
        inputs, layers.Dense(1)(inputs), processors=recorders, views=[Recorder("v", log)]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    x, y = np.ones((4, 2)), np.ones(4)
    log.clear()
    model.train_on_batch(x, y)
    assert log == ["a train", "b train"]
    log.clear()
    model.test_on_batch(x, y)
    assert log == ["a infer", "b infer"]
    log.clear()
    model.predict_on_batch(x)
    assert log == ["a infer", "b infer", "v infer", "v outputs", "b outputs", "a outputs"]


def test_every_processor_and_step_is_given_a_seed_of_its_own():
    seen = []

    class Watching(Processor):
        def train(self, batch, seed):
            seen.append(tuple(seed.numpy().tolist()))
            return batch

    inputs = keras.Input((2,))
    model = Processed(inputs, layers.Dense(1)(inputs), processors=[Watching(), Watching()])
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(np.ones((6, 2)), np.ones(6), batch_size=2, verbose=0)
    assert len(seen) == len(set(seen)) == 6


def test_evaluate_equals_keras_on_data_processed_by_hand():
    model = compiled(processed())
    twin = compiled(plain_twin(model))
    normalized = (IMAGES - np.float32(0.1)) / np.float32(0.5)
    expected = twin.evaluate(normalized, ONE_HOT, batch_size=9, verbose=0, return_dict=True)
    got = model.evaluate(IMAGES, CLASSES, batch_size=9, verbose=0, return_dict=True)
    assert got == expected


def test_predict_without_views_equals_keras():
    inputs = keras.Input((4, 4, 1))
    model = Processed(inputs, layers.Dense(3)(layers.Flatten()(inputs)))
    expected = plain_twin(model).predict(IMAGES, verbose=0)
    assert np.array_equal(model.predict(IMAGES, verbose=0), expected)


def test_training_without_randomness_equals_keras_bit_for_bit():
    inputs = keras.Input((4, 4, 1))
    outputs = layers.Dense(3)(layers.Flatten()(inputs))
    model = Processed(inputs, outputs, processors=[OneHot(3)])
    twin = plain_twin(model)
    for one, y in ((model, CLASSES), (twin, ONE_HOT)):
        compiled(one).fit(IMAGES, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert equal(model.get_weights(), twin.get_weights())


def test_predict_averages_logits_over_the_image_and_its_views():
    model = processed()
    twin = plain_twin(model)
    x = (IMAGES - np.float32(0.1)) / np.float32(0.5)
    expected = (twin.predict(x, verbose=0) + twin.predict(x[:, :, ::-1], verbose=0)) / 2
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), expected, atol=1e-6)


def test_view_maps_an_image_output_back_before_it_is_averaged():
    """A network that does nothing gives the image itself under every view that is undone."""

    class FlipAndBack(Flip):
        def outputs(self, outputs):
            return tf.reverse(outputs, [2])

    inputs = keras.Input((4, 4, 1))
    outputs = layers.Identity()(inputs)
    undone = Processed(inputs, outputs, views=[FlipAndBack()]).predict(IMAGES, verbose=0)
    np.testing.assert_array_equal(undone, IMAGES)
    averaged = Processed(inputs, outputs, views=[Flip()]).predict(IMAGES, verbose=0)
    np.testing.assert_array_equal(averaged, (IMAGES + IMAGES[:, :, ::-1]) / 2)


def test_outputs_follow_the_average_of_views():
    inputs = keras.Input((4, 4, 1))
    outputs = layers.Dense(3)(layers.Flatten()(inputs))
    model = Processed(inputs, outputs, processors=[Softmax()], views=[Flip()])
    both = [model(IMAGES), model(IMAGES[:, :, ::-1].copy())]
    expected = tf.nn.softmax((both[0] + both[1]) / 2)
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), expected, atol=1e-6)


def test_views_of_half_precision_outputs_are_averaged_in_float32():
    inputs = keras.Input((1,))
    doubled = Processed(inputs, layers.Rescaling(1.0, dtype="float16")(inputs), views=[Processor()])
    predicted = doubled.predict(np.float32([[60000.0]]), verbose=0)
    assert predicted.dtype == np.float32 and predicted[0, 0] == 60000  # their sum overflows


def test_several_outputs_are_averaged_one_by_one():
    inputs = keras.Input((4, 4, 1))
    flat = layers.Flatten()(inputs)
    outputs = {"a": layers.Identity()(inputs), "b": layers.Dense(2)(flat)}
    model = Processed(inputs=inputs, outputs=outputs, views=[Flip()])
    predicted = model.predict(IMAGES, verbose=0)
    np.testing.assert_array_equal(predicted["a"], (IMAGES + IMAGES[:, :, ::-1]) / 2)
    assert predicted["b"].shape == (24, 2)


def test_regression_predicts_in_the_units_of_its_targets():
    """A network that gives 0 predicts the mean, and one that gives 1 a standard deviation more."""
    inputs = keras.Input((1,))
    processors = [StandardizeTargets(mean=50, std=10)]
    model = Processed(inputs, layers.Identity()(inputs), processors=processors)
    model.compile("sgd", "mse")
    x, y = np.float32([[0.0], [1.0]]), np.float32([[50.0], [65.0]])
    assert model.predict(x, verbose=0).tolist() == [[50.0], [60.0]]
    assert model.evaluate(x, y, verbose=0) == pytest.approx(0.5**2 / 2)  # (65 - 50) / 10 - 1


def test_class_and_sample_weights_meet_the_labels_before_they_are_mixed():
    """Class 0 weighs nothing, so training on nothing but class 0 changes nothing."""
    model = compiled(processed(), optimizer="sgd")
    before = model.get_weights()
    zeros = np.zeros(24, "int32")
    for weights in ({"class_weight": {0: 0.0}}, {"sample_weight": np.zeros(24, "float32")}):
        logs = model.fit(IMAGES, zeros, verbose=0, **weights).history
        assert logs["loss"] == [0.0] and equal(model.get_weights(), before)


@keras.saving.register_keras_serializable("tests")
class WithCall(Processed):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(layers.Flatten()(x))


def test_subclass_with_a_call_is_saved_with_its_processors(tmp_path):
    processors = [Normalize((0.5,), (2.0,)), OneHot(3), CutMix(0.5)]
    model = compiled(WithCall(3, processors=processors, views=[Shift(0, 1)]))
    model.fit(IMAGES, CLASSES, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert restored.processors == tuple(processors) and restored.views == (Shift(0, 1),)
    for one in (model, restored):
        one.fit(IMAGES, CLASSES, batch_size=8, shuffle=False, verbose=0)
    assert equal(state(model), state(restored))


def test_template_is_inherited_together_with_another():
    class Doubling(Processed.__mro__[1]):
        def preprocess(self, batch, training):
            return batch._replace(x=2 * batch.x)

        def postprocess(self, outputs):
            return outputs + 1

    class Both(Processed, Doubling):
        pass

    inputs = keras.Input((1,))
    model = Both(inputs, layers.Identity()(inputs), processors=[Normalize(1, 1)])
    assert model.predict(np.float32([[3.0]]), verbose=0).tolist() == [[6.0]]  # 2 * 3 - 1 + 1


def test_processors_of_single_outputs_meet_auxiliary_losses():
    """By hand: logits 0 of two classes cost log 2; the angle 0 is one standard deviation off."""

    class Both(Processed, AuxiliaryLoss):
        pass

    inputs = keras.Input((2,))
    outputs = {n: layers.Dense(2, kernel_initializer="zeros")(inputs) for n in ("classes", "angle")}
    processors = [OneHot(2, "classes"), StandardizeTargets(50, 10, "angle"), Softmax(1, "classes")]
    model = Both(inputs=inputs, outputs=outputs, main="classes", processors=processors)
    cross_entropy = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss={"classes": cross_entropy, "angle": "mse"})
    model.optimizer.learning_rate = 0.0
    x, y = np.ones((4, 2)), {"classes": np.array([0, 1, 1, 0]), "angle": np.full((4, 2), 60.0)}
    history = model.fit(x, y, verbose=0).history
    assert history["classes_loss"] == pytest.approx([np.log(2)])
    assert history["angle_loss"] == pytest.approx([1])
    predicted = model.predict(x, verbose=0)
    assert (predicted["classes"] == 0.5).all() and (predicted["angle"] == 50).all()


def test_copy_from_the_configuration_keeps_the_processors():
    model = processed()
    copied = type(model).from_config(model.get_config())
    assert isinstance(copied, Processed) and copied.processors == model.processors


# The example


def test_example_compares_recipes_and_leaves_its_picture(tmp_path, capsys):
    example = load(pathlib.Path(__file__).parent.parent / "examples" / "mixup.py")
    results = example.main(["--smoke", "--out", str(tmp_path)])
    [(name, accuracies)] = results.items()
    assert accuracies.shape == (2, 2)  # two seeds; clean, and averaged over the views
    assert ((accuracies >= 0) & (accuracies <= 100)).all()
    printed = capsys.readouterr().out
    assert name in printed and "mixup.png" in printed
    with Image.open(tmp_path / "mixup.png") as image:
        assert image.size == (1040, 440)
