"""The measures against closed forms, brute force and other implementations."""

import math
import random

import keras
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from keras import layers

from customstep import evaluation
from customstep.evaluation import evaluate
from customstep.features import Features, extract, fashion_network
from tests.soak import SOAK

REPETITIONS = 400 if SOAK else 100


def normal(n, d, seed, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * scale + shift


def mixed(n, d, seed):
    """Correlated normal features."""
    mixing = np.random.default_rng(99).normal(size=(d, d))
    return normal(n, d, seed) @ mixing


# Frechet distance


def test_frechet_distance_is_that_of_scipys_matrix_root():
    real, generated = mixed(300, 7, 0), normal(400, 7, 1, 2.0, 0.5)
    covariances = np.cov(real.T), np.cov(generated.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    shift = real.mean(0) - generated.mean(0)
    expected = shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert evaluation.frechet_distance(real, generated).value == pytest.approx(expected)


def test_frechet_distance_of_normal_distributions_is_the_closed_form():
    """Of independent components: the sum of (m - m')^2 + (s - s')^2."""
    scales = np.array([0.5, 1.0, 3.0])
    real, generated = normal(200_000, 3, 0), normal(200_000, 3, 1, scales, 1.0)
    measured = evaluation.frechet_distance(real, generated)
    expected = 3 * 1.0 + 0.25 + 0 + 4
    assert abs(measured.value - expected) < 4 * measured.error
    assert measured.error < 0.05


def test_frechet_distance_of_equal_features_is_zero_even_where_they_do_not_vary():
    features = mixed(50, 4, 0)
    features[:, 2] = 1.0
    assert evaluation.frechet_distance(features, features).value == pytest.approx(0, abs=1e-9)
    few = mixed(3, 8, 0)  # fewer images than features
    measured = evaluation.frechet_distance(few, few[::-1])
    assert measured.value == pytest.approx(0, abs=1e-9)
    assert math.isfinite(measured.error)
    assert all(map(math.isnan, measured.interval))


@pytest.mark.parametrize("shift, counts", [(0, (600, 1200)), (1.5, (600, 1200)), (1.5, (900, 600))])
def test_interval_of_the_frechet_distance_holds_that_of_the_distributions(shift, counts):
    """The value does not: of 64 features, its bias is many times its error."""
    repetitions, held = REPETITIONS // 4, 0
    for seed in range(repetitions):
        real, generated = (normal(n, 64, 2 * seed + i) for i, n in enumerate(counts))
        generated[:, 0] += math.sqrt(shift)
        low, high = (measured := evaluation.frechet_distance(real, generated)).interval
        assert measured.value - shift > 3 * measured.error
        held += low <= shift <= high
    assert held > 0.8 * repetitions


def spreads(measure):
    """The spread of repeated measurements, and the standard error that they claim."""
    measured = [
        measure(normal(250, 3, 2 * seed), normal(200, 3, 2 * seed + 1, 1.5, 0.7))
        for seed in range(REPETITIONS)
    ]
    errors = [estimate.error**2 for estimate in measured]
    return np.std([estimate.value for estimate in measured]), np.sqrt(np.mean(errors))


@pytest.mark.parametrize(
    "measure", [evaluation.frechet_distance, evaluation.kernel_distance], ids=lambda m: m.__name__
)
def test_standard_error_is_the_spread_of_repeated_measurements(measure):
    spread, claimed = spreads(measure)
    assert claimed == pytest.approx(spread, rel=4 / math.sqrt(2 * REPETITIONS))


@pytest.mark.parametrize("name", ["precision", "recall", "density", "coverage"])
def test_standard_error_of_shares_is_rather_too_large(name):
    """The radii, which would make up for some of an image that is left out, are taken as fixed."""
    spread, claimed = spreads(getattr(evaluation, name))
    assert 0.95 < claimed / spread < 3


# Kernel distance


def test_kernel_distance_is_the_double_sum():
    real, generated = mixed(13, 5, 0), normal(9, 5, 1)

    def kernel(a, b):
        return (np.dot(a, b) / 5 + 1) ** 3

    def average(pairs):
        return np.mean([kernel(a, b) for a, b in pairs])

    within = [
        average([(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
        for x in (real, generated)
    ]
    across = average([(a, b) for a in real for b in generated])
    measured = evaluation.kernel_distance(real, generated)
    assert measured.value == pytest.approx(sum(within) - 2 * across)


def test_kernel_distance_of_one_distribution_averages_zero():
    measured = [
        evaluation.kernel_distance(normal(60, 4, 2 * seed), normal(50, 4, 2 * seed + 1)).value
        for seed in range(200)
    ]
    assert abs(np.mean(measured)) < 3 * np.std(measured) / math.sqrt(200)


def test_jackknife_leaves_out_each_image_once():
    real, generated = mixed(11, 3, 0), mixed(8, 3, 5) + 1
    measured = evaluation.kernel_distance(real, generated)

    def value(a, b):
        return evaluation.kernel_distance(a, b).value

    parts = [
        [value(np.delete(real, i, 0), generated) for i in range(11)],
        [value(real, np.delete(generated, i, 0)) for i in range(8)],
    ]
    variance = sum((len(part) - 1) * np.var(part) for part in parts)
    assert measured.error == pytest.approx(math.sqrt(variance))


# Precision and the like


def by_hand(real, generated, k):
    """The four measures by loops over pairs."""

    def distance(a, b):
        return math.dist(a, b)

    def radius(x, i):
        return sorted(distance(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    fake_radii = [radius(generated, i) for i in range(len(generated))]
    inside = [[distance(f, r) <= s for r, s in zip(real, real_radii)] for f in generated]
    outside = [[distance(f, r) <= s for f, s in zip(generated, fake_radii)] for r in real]
    near = [min(distance(r, f) for f in generated) <= s for r, s in zip(real, real_radii)]
    return {
        "precision": np.mean([any(row) for row in inside]),
        "recall": np.mean([any(row) for row in outside]),
        "density": np.mean([sum(row) / k for row in inside]),
        "coverage": np.mean(near),
    }


@pytest.mark.parametrize("k", [1, 3])
def test_neighbour_measures_are_their_definitions(k):
    real, generated = mixed(40, 3, 0), mixed(30, 3, 1) * 0.8 + 0.3
    for name, expected in by_hand(real, generated, k).items():
        measured = getattr(evaluation, name)(real, generated, k=k)
        assert measured.value == pytest.approx(expected), name
        assert 0 < expected


def test_more_images_than_a_block_are_measured_alike(monkeypatch):
    real, generated = mixed(50, 3, 0), mixed(40, 3, 1)
    measures = evaluation.kernel_distance, evaluation.density, evaluation.coverage
    whole = [measure(real, generated) for measure in measures]
    monkeypatch.setattr(evaluation, "_TABLE", 7 * 40)
    np.testing.assert_allclose([measure(real, generated) for measure in measures], whole)


def test_one_mode_of_two_has_precision_and_half_the_recall():
    real = np.concatenate([normal(500, 4, 0), normal(500, 4, 1, shift=50.0)])
    generated = normal(1000, 4, 2)
    assert evaluation.precision(real, generated).value > 0.9
    assert evaluation.recall(real, generated).value == pytest.approx(0.5, abs=0.05)
    assert evaluation.coverage(real, generated).value == pytest.approx(0.5, abs=0.05)


def test_distant_images_have_neither():
    real, generated = normal(100, 4, 0), normal(100, 4, 1, shift=1000.0)
    assert evaluation.density(real, generated) == (0.0, 0.0, 0.0, 0.0)
    for name in ("precision", "recall", "coverage"):
        measured = getattr(evaluation, name)(real, generated)
        assert measured[:3] == (0.0, 0.0, 0.0)
        exact = 1 - 0.025 ** (1 / 100)  # of a share that leaves 100 draws empty once in 40 times
        assert measured.high == pytest.approx(exact, abs=0.002)


def test_copies_of_the_training_images_are_seen():
    train, test, others = (normal(400, 4, seed) for seed in range(3))
    assert evaluation.memorization(train, test, train[:200] + 1e-4).value > 0.99
    fair = evaluation.memorization(train, test, others)
    assert fair.interval[0] < 0.5 < fair.interval[1]
    assert evaluation.memorization(train, test, others * 10).value < 0.1


def test_memorization_is_the_mann_whitney_statistic():
    train, test, generated = normal(40, 3, 0), normal(20, 3, 1), normal(30, 3, 2, 0.8)

    def nearest(x):
        return [min(math.dist(a, b) for b in train) for a in x]

    statistic = scipy.stats.mannwhitneyu(nearest(test), nearest(generated)).statistic
    measured = evaluation.memorization(train, test, generated)
    assert measured.value == pytest.approx(statistic / (20 * 30))


def test_intervals_of_shares_stay_between_0_and_1():
    few = normal(6, 2, 0), normal(6, 2, 1)
    alike = evaluation.precision(few[0], few[0])
    assert alike.value == alike.high == 1 and 0.5 < alike.low < 0.7
    for name in ("precision", "recall", "coverage"):
        low, high = getattr(evaluation, name)(*few).interval
        assert 0 <= low < high <= 1


def test_symmetric_measures_do_not_see_an_exchange():
    a, b = Features(mixed(40, 3, 0)), Features(mixed(30, 3, 1) + 0.2)
    for measure in (evaluation.frechet_distance, evaluation.kernel_distance):
        np.testing.assert_allclose(measure(a, b), measure(b, a))
    assert evaluation.precision(a, b) == evaluation.recall(b, a)


# Classes, the table


def test_shares_and_accuracy_are_counts():
    labels = np.array([0] * 10 + [1] * 30)
    generated = Features(normal(40, 2, 0), labels, num_classes=3)
    asked = np.array([0] * 20 + [1] * 20)
    result = evaluate(generated, normal(50, 2, 1), labels=asked)
    assert result.class_shares.tolist() == [0.25, 0.75, 0.0]
    assert result.real_class_shares is None
    accuracy = result.estimates["class_accuracy"]
    assert accuracy[:2] == pytest.approx((0.75, math.sqrt(0.25 * 0.75 / 40)))
    wilson = scipy.stats.binomtest(30, 40).proportion_ci(method="wilson")
    assert accuracy.interval == pytest.approx(tuple(wilson), abs=1e-4)
    assert result.logs()["smallest_class"] == 0.0
    assert result.logs()["largest_class"] == 0.75


def test_table_names_every_measure_and_how_many_images_it_is_of():
    generated = Features(normal(40, 2, 0), np.zeros(40, int), num_classes=2)
    table = str(evaluate(generated, normal(50, 2, 1), train=normal(60, 2, 3)))
    for name in ("frechet distance", "coverage", "memorization", "largest class"):
        assert table.count(name) == 1
    assert table.endswith("of 40 generated, 50 real, 60 training images")


def test_few_images_are_a_warning():
    with pytest.warns(UserWarning, match="Expected at least 40, .*; received 30"):
        evaluate(normal(50, 4, 0), normal(30, 4, 1))


# Networks and their features


def constant(n=4, value=128, channels=1):
    return np.full((n, 28, 28, channels), value, np.uint8)


def test_images_are_rounded_to_eight_bits_as_in_a_file():
    network = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten()])
    images = np.array([-1.0, -0.999, 0.0, 1.0], np.float32).reshape(1, 2, 2, 1).repeat(2, 0)
    features = extract(images, network, image_range=(-1, 1))
    assert features.values[0].tolist() == [0, 0, 128, 255]


def test_bundled_network_knows_classes_and_puts_noise_far_away():
    from customstep import read_images

    images, labels, _ = read_images("fashion_mini", "test")
    features = extract(images)
    assert features.values.shape == (2000, 128)
    assert (features.labels == labels).mean() > 0.9
    halves = features.values[::2], features.values[1::2]
    noise = np.random.default_rng(0).integers(0, 256, (1000, 28, 28, 1)).astype("uint8")
    apart = evaluation.frechet_distance(halves[0], extract(noise)).value
    assert apart > 30 * evaluation.frechet_distance(*halves).value
    assert not fashion_network().trainable_weights


def test_loading_the_bundled_network_draws_no_random_number():
    before = random.getstate()
    fashion_network.__wrapped__()
    assert random.getstate() == before


def test_features_of_the_same_images_and_network_are_read_from_the_cache(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1)).astype("uint8")
    first = extract(images, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = extract(images, cache=tmp_path)
    np.testing.assert_array_equal(again.values, first.values)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert again.num_classes == 10
    assert file.stat().st_mtime_ns == written
    extract(images[1:], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_cached_features_of_other_weights_are_not_used(tmp_path):
    network = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(2)])
    first = extract(constant(), network, cache=tmp_path)
    network.set_weights([2 * weight for weight in network.get_weights()])
    np.testing.assert_allclose(
        extract(constant(), network, cache=tmp_path).values, 2 * first.values
    )


def test_damaged_cache_is_made_again(tmp_path):
    first = extract(constant(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    for content in (file.read_bytes()[:100], b"", b"no archive"):
        file.write_bytes(content)
        np.testing.assert_array_equal(extract(constant(), cache=tmp_path).values, first.values)


@pytest.mark.parametrize(
    "arguments",
    [
        ((constant().astype("float32"),), {}),
        ((constant().astype("float32"),), {"image_range": (-1, 1)}),
        ((np.full((3, 28, 28, 1), np.nan),), {"image_range": (-1, 1)}),
        ((constant()[:1],), {}),
        ((constant()[0],), {}),
        ((constant(channels=3),), {}),
        ((constant(), keras.Sequential([keras.Input((28, 28, 1)), layers.ReLU()])), {}),
    ],
    ids=["no_range", "out_of_range", "nan", "one", "rank", "channels", "no_features"],
)
def test_bad_images_and_networks_are_told(arguments):
    positional, named = arguments
    with pytest.raises(ValueError, match="(?s)Expected .*; received"):
        extract(*positional, **named)


@pytest.mark.parametrize(
    "values",
    [np.zeros(4), np.zeros((1, 3)), np.zeros((4, 0)), [[np.nan], [0.0]], [["a"], ["b"]]],
    ids=["rank", "one", "none", "nan", "text"],
)
def test_bad_features_are_told(values):
    with pytest.raises(ValueError, match="(?s)Expected .*; received"):
        Features(values)


@pytest.mark.parametrize(
    "labels, num_classes",
    [([0] * 5, 2), ([0, 1, 2, 0], 2), ([0.5] * 4, 2), ([-1, 0, 0, 0], 2), ([0] * 4, None)],
    ids=["count", "above", "kind", "below", "classes"],
)
def test_bad_labels_are_told(labels, num_classes):
    with pytest.raises(ValueError, match="(?s)Expected .*; received"):
        Features(normal(4, 2, 0), labels, num_classes)


def test_network_that_names_its_outputs_is_refused():
    images = keras.Input((28, 28, 1))
    flat = layers.Flatten()(images)
    outputs = {"pooled": layers.Dense(5)(flat), "logits": layers.Dense(3)(flat)}
    network = keras.Model(images, outputs)
    with pytest.raises(ValueError, match="returns no features"):
        extract(constant(), network)


def test_network_that_is_not_built_has_a_cache_of_its_weights(tmp_path):
    networks = []
    for seed in range(2):
        keras.utils.set_random_seed(seed)
        named = [layers.Flatten(name="flat"), layers.Dense(2, name="dense")]
        networks.append(keras.Sequential(named, name="network"))
    features = [extract(constant(), network, cache=tmp_path).values for network in networks]
    assert not np.array_equal(*features)
    np.testing.assert_array_equal(
        extract(constant(), networks[1], cache=tmp_path).values, features[1]
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_cache_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="not kept .*Expected .*; received .*Pass another"):
        features = extract(constant(), cache=tmp_path / "file" / "cache")
    np.testing.assert_array_equal(features.values, extract(constant()).values)


def test_bad_pairs_are_told():
    with pytest.raises(ValueError, match="received 2 and 3"):
        evaluation.frechet_distance(normal(9, 2, 0), normal(9, 3, 0))
    with pytest.raises(ValueError, match="more than k = 5; received 5"):
        evaluation.coverage(normal(5, 2, 0), normal(9, 2, 0))
    with pytest.raises(ValueError, match="labels"):
        evaluate(normal(90, 2, 0), normal(90, 2, 0), labels=np.zeros(90, int))
