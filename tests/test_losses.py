"""Adversarial losses and penalties, against arithmetic by hand and with numpy."""

import dataclasses
import json
import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from customstep import losses, noise

LN2 = math.log(2)
SEED = tf.constant([7, 0], tf.int64)

# The losses written out for one logit, in float64 and with no use of softplus.


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def bce(x, target):
    return -target * math.log(sigmoid(x)) - (1 - target) * math.log(1 - sigmoid(x))


# Object, loss of a real logit, loss of a fake logit, the generator's loss of a fake logit.
SEPARATE = {
    "non_saturating": (
        losses.NonSaturating(),
        lambda r: -math.log(sigmoid(r)),
        lambda f: -math.log(1 - sigmoid(f)),
        lambda f: -math.log(sigmoid(f)),
    ),
    "saturating": (
        losses.Saturating(),
        lambda r: -math.log(sigmoid(r)),
        lambda f: -math.log(1 - sigmoid(f)),
        lambda f: math.log(1 - sigmoid(f)),
    ),
    "hinge": (
        losses.Hinge(),
        lambda r: max(0, 1 - r),
        lambda f: max(0, 1 + f),
        lambda f: -f,
    ),
    "least_squares": (
        losses.LeastSquares(),
        lambda r: (r - 1) ** 2 / 2,
        lambda f: f**2 / 2,
        lambda f: (f - 1) ** 2 / 2,
    ),
    "wasserstein": (losses.Wasserstein(), lambda r: -r, lambda f: f, lambda f: -f),
}
OBJECTS = {name: row[0] for name, row in SEPARATE.items()} | {"relativistic": losses.Relativistic()}

separate = pytest.mark.parametrize("name", SEPARATE)
all_losses = pytest.mark.parametrize("name", OBJECTS)


def discriminator(name):
    return getattr(losses, f"{name}_discriminator_loss")


def generator(name):
    """The generator's loss as a function of real and fake logits."""
    function = getattr(losses, f"{name}_generator_loss")
    return function if name == "relativistic" else lambda real, fake: function(fake)


def column(*values, dtype=tf.float32):
    return tf.constant([[value] for value in values], dtype)


# Values


@pytest.mark.parametrize(
    "name, of_discriminator, of_generator",
    [
        # Real logits 0 and 2, fake logits -1 and 0.
        # ln 2, ln(1 + e^-2); ln(1 + e^-1), ln 2
        ("non_saturating", (LN2 + 0.126928) / 2 + (0.313262 + LN2) / 2, (1.313262 + LN2) / 2),
        ("saturating", (LN2 + 0.126928) / 2 + (0.313262 + LN2) / 2, -(0.313262 + LN2) / 2),
        ("hinge", (1 + 0) / 2 + (0 + 1) / 2, 0.5),
        ("least_squares", (1 + 1) / 4 + (1 + 0) / 4, (4 + 1) / 4),
        ("wasserstein", -0.5 - 1, 0.5),
        # The pairs differ by 0 - (-1) = 1 and 2 - 0 = 2.
        ("relativistic", (0.313262 + 0.126928) / 2, (1.313262 + 2.126928) / 2),
    ],
)
def test_values_equal_hand_arithmetic(name, of_discriminator, of_generator):
    real, fake = column(0, 2), column(-1, 0)
    np.testing.assert_allclose(discriminator(name)(real, fake), of_discriminator, rtol=2e-6)
    np.testing.assert_allclose(generator(name)(real, fake), of_generator, rtol=2e-6)


@separate
def test_values_equal_the_formula_written_out(name, rng):
    _, of_real, of_fake, of_generated = SEPARATE[name]
    # Numbers of images may differ: only the relativistic loss compares in pairs.
    real, fake = rng.normal(0, 3, (6, 1)), rng.normal(0, 3, (9, 1))
    expected = np.mean([*map(of_real, real[:, 0])]) + np.mean([*map(of_fake, fake[:, 0])])
    real32, fake32 = real.astype(np.float32), fake.astype(np.float32)
    np.testing.assert_allclose(discriminator(name)(real32, fake32), expected, rtol=1e-5)
    expected = np.mean([*map(of_generated, fake[:, 0])])
    np.testing.assert_allclose(generator(name)(None, fake32), expected, rtol=1e-5)


def test_relativistic_values_equal_the_formula_written_out(rng):
    real, fake = rng.normal(0, 3, (2, 9, 1))
    pairs = list(zip(real[:, 0], fake[:, 0], strict=True))
    real, fake = real.astype(np.float32), fake.astype(np.float32)
    expected = np.mean([-math.log(sigmoid(r - f)) for r, f in pairs])
    np.testing.assert_allclose(
        losses.relativistic_discriminator_loss(real, fake), expected, rtol=1e-5
    )
    expected = np.mean([-math.log(sigmoid(f - r)) for r, f in pairs])
    np.testing.assert_allclose(losses.relativistic_generator_loss(real, fake), expected, rtol=1e-5)


def test_relativistic_loss_ignores_a_shift_of_all_logits():
    real, fake = column(0.5, -2, 3), column(1, 0.25, -4)
    for loss in (losses.relativistic_discriminator_loss, losses.relativistic_generator_loss):
        np.testing.assert_allclose(loss(real + 16, fake + 16), loss(real, fake), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_cross_entropy_with_targets_1_minus_e(smoothing):
    real, fake = [-3.0, 0.0, 0.7, 4.0], [-1.0, 2.0]
    # One-sided: the target of fake images stays 0.
    expected = np.mean([bce(r, 1 - smoothing) for r in real]) + np.mean([bce(f, 0) for f in fake])
    for loss in (losses.NonSaturating(smoothing), losses.Saturating(smoothing)):
        result = loss.discriminator(column(*real), column(*fake))
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_label_smoothing_leaves_generator_loss_alone():
    fake = column(-1, 2)
    for cls in (losses.NonSaturating, losses.Saturating):
        assert cls(0.3).generator(None, fake) == cls().generator(None, fake)


def test_smoothed_loss_is_least_where_sigmoid_is_1_minus_e():
    real = tf.constant([math.log(0.9 / 0.1)])
    with tf.GradientTape() as tape:
        tape.watch(real)
        loss = losses.non_saturating_discriminator_loss(real, tf.zeros(1), label_smoothing=0.1)
    np.testing.assert_allclose(tape.gradient(loss, real), [0.0], atol=1e-7)


@all_losses
def test_objects_equal_functions(name):
    loss = OBJECTS[name]
    real, fake, weights = column(0.5, -2, 3), column(1, 0.25, -4), tf.constant([1.0, 0.5, 2.0])
    assert loss.discriminator(real, fake) == discriminator(name)(real, fake)
    assert loss.discriminator(real, fake, weights) == discriminator(name)(real, fake, weights)
    assert loss.generator(real, fake) == generator(name)(real, fake)


@separate
def test_generator_loss_needs_no_real_logits_unless_relativistic(name):
    assert not OBJECTS[name].relativistic
    assert OBJECTS[name].generator(None, column(1.0)).shape == ()


def test_relativistic_loss_says_so():
    assert losses.Relativistic().relativistic


# Sample weights


@all_losses
def test_weights_2_and_0_equal_listing_one_example_twice(name):
    loss = discriminator(name)
    weighted = loss(column(0.5, -2), column(1, 1), tf.constant([2.0, 0.0]))
    listed = loss(column(0.5, 0.5), column(1, 1))
    np.testing.assert_allclose(weighted, listed, rtol=1e-6)


@separate
def test_weighted_loss_is_sum_over_batch_size_of_real_examples_only(name):
    _, of_real, of_fake, _ = SEPARATE[name]
    result = discriminator(name)(column(0.5, -2, 3), column(1, -0.5), tf.constant([1.0, 0.5, 4.0]))
    real = (of_real(0.5) + 0.5 * of_real(-2) + 4 * of_real(3)) / 3  # by 3, not by the weights' sum
    np.testing.assert_allclose(result, real + (of_fake(1) + of_fake(-0.5)) / 2, rtol=1e-6)


def test_relativistic_weights_multiply_pairs():
    result = losses.relativistic_discriminator_loss(column(0, 2), column(-1, 0), [3.0, 0.5])
    expected = (3 * math.log(1 + math.exp(-1)) + 0.5 * math.log(1 + math.exp(-2))) / 2
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_weights_count_as_in_keras_cross_entropy(rng):
    real, fake = rng.normal(size=(2, 5, 1)).astype(np.float32)
    weights = np.array([1, 0, 2.5, 0.5, 1], np.float32)
    keras_loss = keras.losses.BinaryCrossentropy(from_logits=True)
    expected = keras_loss(np.ones((5, 1)), real, weights) + keras_loss(np.zeros((5, 1)), fake)
    result = losses.non_saturating_discriminator_loss(real, fake, weights)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@all_losses
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_weights_of_1_change_nothing(name, shape):
    real, fake = column(0.5, -2, 3), column(1, 0.25, -4)
    weighted = discriminator(name)(real, fake, tf.ones(shape))
    np.testing.assert_allclose(weighted, discriminator(name)(real, fake), rtol=1e-6)


# Shapes and types


@all_losses
def test_patch_logits_average_over_patches(name, rng):
    real, fake = rng.normal(size=(2, 4, 3, 2, 1)).astype(np.float32)  # (batch, h, w, 1)
    flat = discriminator(name)(real.reshape(24), fake.reshape(24))
    np.testing.assert_allclose(discriminator(name)(real, fake), flat, rtol=1e-6)
    flat = generator(name)(real.reshape(24), fake.reshape(24))
    np.testing.assert_allclose(generator(name)(real, fake), flat, rtol=1e-6)


@all_losses
def test_weight_of_a_patch_image_multiplies_all_its_patches(name, rng):
    real, fake = rng.normal(size=(2, 4, 3, 2, 1)).astype(np.float32)
    weights = np.array([0.5, 2, 0, 1], np.float32)
    flat = discriminator(name)(real.reshape(24), fake.reshape(24), np.repeat(weights, 6))
    np.testing.assert_allclose(discriminator(name)(real, fake, weights), flat, rtol=1e-6)


@all_losses
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_logits_give_float32_scalars(name, dtype):
    real, fake = column(0.5, -2, 3, dtype=dtype), column(1, 0.25, -4, dtype=dtype)
    weights = tf.constant([1, 0.5, 2], dtype)
    results = [
        discriminator(name)(real, fake),
        discriminator(name)(real, fake, weights),
        generator(name)(real, fake),
    ]
    assert {(result.dtype, result.shape) for result in results} == {(tf.float32, ())}


@pytest.mark.parametrize(
    "name",
    [
        "non_saturating",
        "saturating",
        "hinge",
        "least_squares",
        "wasserstein",
        "relativistic",
    ],
)
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_logits_are_widened_before_arithmetic(name, dtype):
    # 1/1024 is lost beside 1 in bfloat16; -6e4 and 6e4 are 12e4 apart, infinite in float16.
    real = column(1 / 1024, 6e4, -6e4, dtype=dtype)
    fake = column(-1, -6e4, 6e4, dtype=dtype)
    real32, fake32 = tf.cast(real, tf.float32), tf.cast(fake, tf.float32)
    assert discriminator(name)(real, fake) == discriminator(name)(real32, fake32)
    assert generator(name)(real, fake) == generator(name)(real32, fake32)
    first = slice(0, 1)
    assert discriminator(name)(real[first], fake[first]) == discriminator(name)(
        real32[first], fake32[first]
    )


@all_losses
@pytest.mark.parametrize("compiled", [{}, {"jit_compile": True}], ids=["graph", "xla"])
def test_losses_are_the_same_in_a_function(name, compiled):
    real, fake, weights = column(0.5, -2, 3), column(1, 0.25, -4), tf.constant([1.0, 0.5, 2.0])
    loss = OBJECTS[name]

    def both(real, fake, weights):
        return loss.discriminator(real, fake, weights), loss.generator(real, fake)

    np.testing.assert_allclose(
        tf.function(both, **compiled)(real, fake, weights), both(real, fake, weights), rtol=1e-6
    )


# Gradients


@all_losses
@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
def test_extreme_logits_give_finite_losses_and_gradients(name, dtype):
    real = column(1e4, -1e4, 1e4, -1e4, dtype=dtype)
    fake = column(1e4, -1e4, -1e4, 1e4, dtype=dtype)
    for loss in (discriminator(name), generator(name)):
        with tf.GradientTape() as tape:
            tape.watch([real, fake])
            value = loss(real, fake)
        gradients = tape.gradient(value, [real, fake], unconnected_gradients="zero")
        assert np.isfinite(value)
        for gradient in gradients:
            assert np.isfinite(tf.cast(gradient, tf.float32)).all()


@pytest.mark.parametrize(
    "name, slope",
    [
        ("non_saturating", lambda f: -sigmoid(-f)),
        ("saturating", lambda f: -sigmoid(f)),
        ("hinge", lambda f: -1),
        ("least_squares", lambda f: f - 1),
        ("wasserstein", lambda f: -1),
        ("relativistic", lambda f: -sigmoid(0.5 - f)),  # every real logit is 0.5
    ],
)
def test_generator_gradient_raises_fake_logits(name, slope):
    values = [-3.0, 0.0, 0.75]
    real, fake = column(0.5, 0.5, 0.5), column(*values)
    with tf.GradientTape() as tape:
        tape.watch(fake)
        loss = generator(name)(real, fake)
    gradient = tape.gradient(loss, fake).numpy()[:, 0]
    assert (gradient < 0).all()
    np.testing.assert_allclose(gradient, [slope(value) / 3 for value in values], rtol=1e-6)


@all_losses
def test_discriminator_gradient_parts_real_from_fake_logits(name):
    real, fake = column(0.5, -0.25), column(0.25, 0.75)
    with tf.GradientTape() as tape:
        tape.watch([real, fake])
        loss = discriminator(name)(real, fake)
    of_real, of_fake = tape.gradient(loss, [real, fake])
    assert (of_real.numpy() < 0).all() and (of_fake.numpy() > 0).all()


def test_saturating_gradient_vanishes_where_discriminator_wins_and_the_other_does_not():
    fake = column(-20)
    slopes = {}
    for name in ("saturating", "non_saturating"):
        with tf.GradientTape() as tape:
            tape.watch(fake)
            loss = generator(name)(None, fake)
        slopes[name] = tape.gradient(loss, fake).numpy().item()
    assert -1e-8 < slopes["saturating"] < 0
    np.testing.assert_allclose(slopes["non_saturating"], -1, rtol=1e-6)


def test_hinge_stops_at_the_margin():
    real, fake = column(1.5, 3), column(-1.5, -3)
    with tf.GradientTape() as tape:
        tape.watch([real, fake])
        loss = losses.hinge_discriminator_loss(real, fake)
    assert loss == 0
    for gradient in tape.gradient(loss, [real, fake]):
        np.testing.assert_array_equal(gradient, [[0], [0]])


# Saving and arguments

SAVED = [
    losses.NonSaturating(),
    losses.NonSaturating(label_smoothing=0.1),
    losses.Saturating(label_smoothing=0.25),
    losses.Hinge(),
    losses.LeastSquares(),
    losses.Wasserstein(),
    losses.Relativistic(),
    losses.GradientPenalty(),
    losses.GradientPenalty(weight=5.0, target=0.0),
    losses.R1(gamma=2.0),
    losses.R2(gamma=3.0),
    losses.DRAGAN(weight=1.0, target=2.0, deviation=0.25),
    losses.FiniteDifferenceR1(gamma=4.0, deviation=0.1),
]


@pytest.mark.parametrize("one", SAVED, ids=repr)
def test_objects_survive_saving(one):
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(one)))
    assert saved["registered_name"] == f"customstep>{type(one).__name__}"
    loaded = keras.saving.deserialize_keras_object(saved)
    assert type(loaded) is type(one)
    assert loaded == one
    assert hash(loaded) == hash(one)


def test_objects_with_other_numbers_or_of_another_class_differ():
    assert losses.GradientPenalty(5) != losses.GradientPenalty(10)
    assert losses.R1(10) != losses.R2(10)
    assert losses.NonSaturating() != losses.Saturating()
    assert len(set(SAVED)) == len(SAVED)


@pytest.mark.parametrize("one", SAVED, ids=repr)
def test_objects_cannot_be_changed(one):
    field = next(iter(dataclasses.fields(one)), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, field.name if field else "anything", 1.0)


def test_names_of_penalties_differ():
    penalties = [one for one in SAVED if isinstance(one, losses.Penalty)]
    assert {(type(one).__name__, one.name) for one in penalties} == {
        ("GradientPenalty", "gradient_penalty"),
        ("R1", "r1"),
        ("R2", "r2"),
        ("DRAGAN", "dragan"),
        ("FiniteDifferenceR1", "finite_difference_r1"),
    }


@pytest.mark.parametrize(
    "cls, name, value",
    [
        (losses.NonSaturating, "label_smoothing", -0.1),
        (losses.NonSaturating, "label_smoothing", 1.0),
        (losses.NonSaturating, "label_smoothing", math.nan),
        (losses.Saturating, "label_smoothing", 1.5),
        (losses.GradientPenalty, "weight", -1.0),
        (losses.GradientPenalty, "weight", math.nan),
        (losses.R1, "gamma", -10),
        (losses.R2, "gamma", -0.5),
        (losses.DRAGAN, "weight", -2.0),
        (losses.DRAGAN, "deviation", 0.0),
        (losses.DRAGAN, "deviation", -0.5),
        (losses.FiniteDifferenceR1, "gamma", -3.0),
        (losses.FiniteDifferenceR1, "deviation", 0),
        (losses.FiniteDifferenceR1, "deviation", math.nan),
    ],
)
def test_number_out_of_range_is_refused(cls, name, value):
    expected = {"label_smoothing": "[0, 1)", "deviation": "(0, inf)"}.get(name, "[0, inf)")
    expected = re.escape(f"Expected a number in {expected}; received {value!r}. Correct")
    message = rf"`{name}` is out of its range\. {expected}"
    with pytest.raises(ValueError, match=message):
        cls(**{name: value})


@pytest.mark.parametrize(
    "one",
    [
        losses.NonSaturating(0),
        losses.GradientPenalty(0),
        losses.R1(0),
        losses.R2(0),
        losses.DRAGAN(0),
        losses.FiniteDifferenceR1(0),
    ],
    ids=repr,
)
def test_0_is_in_range_where_it_switches_off(one):
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(one)) == one


def test_base_classes_have_no_loss_of_their_own():
    with pytest.raises(NotImplementedError):
        losses.AdversarialLoss().discriminator(column(0), column(0))
    with pytest.raises(NotImplementedError):
        losses.AdversarialLoss().generator(None, column(0))
    with pytest.raises(NotImplementedError):
        losses.Penalty()(None, None, None, None)


# Penalties: the linear critic D(x) = w . x, whose gradient is w at every image

W = [2.0, -1.0, 2.0, 0.0]  # of norm 3


class Linear:
    """D(x) = w . x for images `(batch, 2, 2, 1)`."""

    def __init__(self, w=W):
        self.w = tf.Variable(w)

    def __call__(self, images):
        return tf.linalg.matvec(tf.reshape(images, (-1, 4)), self.w)[:, None]


def quadratic(images):
    """D(x) = |x|^2 / 2, whose gradient is x."""
    return tf.reduce_sum(images**2, axis=[1, 2, 3])[:, None] / 2


def pictures(rng, count=8):
    return tf.constant(rng.uniform(-1, 1, (count, 2, 2, 1)), tf.float32)


def squares(images):
    return np.sum(images.numpy().astype(np.float64) ** 2, axis=(1, 2, 3))


@pytest.mark.parametrize(
    "penalty, value, slope",
    [
        # Value, and its derivative with respect to w as a multiple of w; |w| = 3.
        (losses.GradientPenalty(10), 40, 2 * 10 * (3 - 1) / 3),
        (losses.GradientPenalty(2, target=0.0), 18, 2 * 2),
        (losses.GradientPenalty(1, target=5.0), 4, 2 * (3 - 5) / 3),
        (losses.GradientPenalty(1, target=3.0), 0, 0),
        (losses.R1(10), 45, 10),
        (losses.R2(10), 45, 10),
        (losses.DRAGAN(10), 40, 2 * 10 * (3 - 1) / 3),
        (losses.DRAGAN(1, target=2.5, deviation=2.0), 0.25, 2 * (3 - 2.5) / 3),
    ],
    ids=repr,
)
def test_linear_critic_has_the_closed_form_and_its_derivative(penalty, value, slope, rng):
    critic = Linear()
    with tf.GradientTape() as tape:
        result = penalty(critic, pictures(rng), pictures(rng), SEED)
    assert (result.dtype, result.shape) == (tf.float32, ())
    np.testing.assert_allclose(result, value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        tape.gradient(result, critic.w), slope * np.array(W), rtol=1e-5, atol=1e-5
    )


def test_finite_difference_has_the_expectation_of_r1_and_of_its_derivative(rng):
    count, deviations = 20_000, 5
    critic, real = Linear(), pictures(rng, count)
    with tf.GradientTape() as tape:
        result = losses.FiniteDifferenceR1(10, deviation=0.1)(critic, real, real, SEED)
    # gamma/2 (w.n)^2 = 45 chi^2, where chi^2 has the variance 2.
    np.testing.assert_allclose(result, 45, atol=deviations * 45 * (2 / count) ** 0.5)
    # gamma (w.n) n_i, the variance of which is gamma^2 (|w|^2 + w_i^2).
    error = deviations * 10 * ((9 + 4) / count) ** 0.5
    np.testing.assert_allclose(tape.gradient(result, critic.w), 10 * np.array(W), atol=error)


@pytest.mark.parametrize("deviation", [0.01, 1.0])
def test_finite_difference_differs_from_r1_by_the_square_of_its_deviation(deviation):
    real = tf.ones((40_000, 2, 2, 1))
    result = losses.FiniteDifferenceR1(2, deviation)(quadratic, real, real, SEED)
    # The slope is x.n + d|n|^2/2: E[.^2] = |x|^2 + d^2 E[|n|^4]/4 = 4 + 6 d^2 in 4 dimensions.
    expected = 4 + 6 * deviation**2
    # Its spread is below 17 at d = 1, and 4 sqrt(2) at d = 0: five deviations of the mean.
    np.testing.assert_allclose(result, expected, atol=5 * 17 / 200 if deviation == 1 else 0.15)


def test_finite_difference_draws_other_noise_for_another_seed(rng):
    real = pictures(rng)
    penalty = losses.FiniteDifferenceR1(10)
    results = {
        float(penalty(Linear(), real, real, tf.constant(seed, tf.int64)))
        for seed in ([7, 0], [7, 0], [7, 1], [8, 0])
    }
    assert len(results) == 3


def test_r1_looks_at_real_and_r2_at_fake_images(rng):
    real, fake = pictures(rng), 2 * pictures(rng)
    of_real, of_fake = 5 * squares(real).mean(), 5 * squares(fake).mean()
    assert abs(of_real - of_fake) > 1
    np.testing.assert_allclose(losses.R1(10)(quadratic, real, fake, SEED), of_real, rtol=1e-6)
    np.testing.assert_allclose(losses.R2(10)(quadratic, real, fake, SEED), of_fake, rtol=1e-6)


@pytest.mark.parametrize(
    "penalty, looks_at_real, looks_at_fake",
    [
        (losses.R1(), True, False),
        (losses.FiniteDifferenceR1(), True, False),
        (losses.DRAGAN(), True, False),
        (losses.R2(), False, True),
        (losses.GradientPenalty(), True, True),
    ],
    ids=repr,
)
def test_penalty_looks_only_where_it_says(penalty, looks_at_real, looks_at_fake, rng):
    real, fake = pictures(rng), pictures(rng)
    with tf.GradientTape() as tape:
        tape.watch([real, fake])
        result = penalty(quadratic, real, fake, SEED)
    gradients = tape.gradient(result, [real, fake], unconnected_gradients="zero")
    assert [bool(np.any(g)) for g in gradients] == [looks_at_real, looks_at_fake]


def test_dragan_noise_is_a_fraction_of_the_batch_deviation():
    # Half the pixels at 3, half at -3: deviation 3. The critic's gradient is the noisy image,
    # so its squared norm without a target is |x|^2 + 4 (0.5 * 3)^2 = 36 + 9 on average.
    count = 20_000
    real = np.full((count, 2, 2, 1), 3, np.float32)
    real[::2] = -3
    result = losses.DRAGAN(1, target=0.0)(quadratic, tf.constant(real), None, SEED)
    # (3 + 1.5 n)^2 has the variance 4 * 9 * 2.25 + 2 * 2.25^2 = 91.125; an image has four.
    np.testing.assert_allclose(result, 45, atol=5 * (4 * 91.125 / count) ** 0.5)


# Penalties: gradients that vanish

DEAD = keras.initializers.Constant(-99)


@pytest.mark.parametrize(
    "penalty, value",
    [
        (losses.GradientPenalty(10), 10),  # (0 - 1)^2
        (losses.DRAGAN(10, target=2.0), 40),
        (losses.R1(10), 0),
        (losses.R2(10), 0),
        (losses.FiniteDifferenceR1(10), 0),
    ],
    ids=repr,
)
def test_zero_gradient_gives_no_nan(penalty, value, rng):
    critic = Linear([0.0] * 4)
    with tf.GradientTape() as tape:
        result = penalty(critic, pictures(rng), pictures(rng), SEED)
    np.testing.assert_allclose(result, value, rtol=1e-6)
    np.testing.assert_array_equal(tape.gradient(result, critic.w), [0.0] * 4)


@pytest.mark.parametrize(
    "penalty", [losses.GradientPenalty(), losses.DRAGAN(), losses.R1(), losses.R2()], ids=repr
)
def test_dead_network_gives_no_nan(penalty, rng):
    critic = keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="relu", bias_initializer=DEAD),
            keras.layers.Dense(1),
        ]
    )
    with tf.GradientTape() as tape:
        result = penalty(critic, pictures(rng), pictures(rng), SEED)
    weights = [weight.value for weight in critic.trainable_variables]
    gradients = tape.gradient(result, weights, unconnected_gradients="zero")
    assert np.isfinite(result)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_image_with_zero_gradient_leaves_the_others_alone():
    # D(x) = v |x|^2 / 2 has the norm v|x|: here 0 and 2v, with real and fake images the same.
    v = tf.Variable(1.5)
    images = tf.constant([[0.0, 0.0], [0.0, 2.0]])
    with tf.GradientTape() as tape:
        result = losses.GradientPenalty(1)(
            lambda x: v * tf.reduce_sum(x**2, axis=1) / 2, images, images, SEED
        )
    np.testing.assert_allclose(result, ((0 - 1) ** 2 + (3 - 1) ** 2) / 2, rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(result, v), 2 * (3 - 1) * 2 / 2, rtol=1e-5)


# Gradient norms


def test_gradient_norms_equal_the_chain_rule_in_numpy(rng):
    a, v, x = rng.normal(size=(5, 7)), rng.normal(size=7), rng.normal(size=(6, 5))
    norms = losses.gradient_norms(
        lambda images: tf.linalg.matvec(tf.tanh(images @ a.astype(np.float32)), v.astype("f4")),
        tf.constant(x, tf.float32),
    )
    expected = np.linalg.norm((v * (1 - np.tanh(x @ a) ** 2)) @ a.T, axis=1)
    assert norms.dtype == tf.float32
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_every_image_has_its_own_norm():
    images = np.zeros((3, 2, 2, 1), np.float32)
    images[1, 0, 0], images[2, :, 1, 0] = -5, (3, 4)
    np.testing.assert_allclose(losses.gradient_norms(quadratic, tf.constant(images)), [0, 5, 5])


def test_patch_logits_are_summed_before_the_norm(rng):
    images = pictures(rng)
    # One logit for every pixel, which is twice the pixel: the sum has the gradient (2, 2, 2, 2).
    np.testing.assert_allclose(losses.gradient_norms(lambda x: 2 * x, images), [4.0] * 8)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_critic_in_half_precision_gives_float32_penalties(dtype, rng):
    result = losses.GradientPenalty(10)(
        lambda images: tf.cast(Linear()(images), dtype), pictures(rng), pictures(rng), SEED
    )
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, 40, rtol=1e-6)


# Interpolation


def factors(count, shape=(2, 2, 1), seed=SEED):
    """The factors e of `interpolate`, seen on black fake and white real images."""
    return losses.interpolate(tf.ones((count, *shape)), tf.zeros((count, *shape)), seed).numpy()


def test_interpolation_has_one_factor_for_an_image():
    e = factors(100).reshape(100, 4)
    np.testing.assert_array_equal(e, np.repeat(e[:, :1], 4, axis=1))


def test_interpolation_factors_differ_between_images():
    assert len(np.unique(factors(100))) == 100


def test_interpolation_lies_on_the_segment(rng):
    real, fake = pictures(rng, 50), pictures(rng, 50)
    between = losses.interpolate(real, fake, SEED)
    whole = (real - fake).numpy().reshape(50, 4)
    part = (between - fake).numpy().reshape(50, 4)
    e = (part * whole).sum(axis=1) / (whole**2).sum(axis=1)
    np.testing.assert_allclose(part, e[:, None] * whole, atol=1e-6)  # no way off the line
    # The factor belongs to the real images, as in the paper.
    np.testing.assert_allclose(e, noise.uniform((50,), SEED), atol=1e-6)


def test_interpolation_between_equal_images_is_that_image(rng):
    images = pictures(rng)
    np.testing.assert_allclose(losses.interpolate(images, images, SEED), images, rtol=1e-6)


def test_interpolation_factors_are_uniform():
    count = 20_000
    e = np.sort(factors(count, (1,)).ravel().astype(np.float64))
    assert 0 <= e[0] and e[-1] < 1
    steps = np.arange(count + 1) / count
    statistic = max(np.max(steps[1:] - e), np.max(e - steps[:-1]))
    assert statistic < 1.628 / count**0.5  # Kolmogorov-Smirnov, 1 % level


def test_interpolation_factors_follow_the_seed():
    np.testing.assert_array_equal(factors(9), factors(9))
    assert (factors(9) != factors(9, seed=tf.constant([7, 1], tf.int64))).all()


# Graphs

PENALTIES = [
    losses.GradientPenalty(),
    losses.R1(),
    losses.R2(),
    losses.DRAGAN(),
    losses.FiniteDifferenceR1(deviation=0.5),
]


def penalty_and_slope(penalty, critic_weight, real, fake, seed):
    with tf.GradientTape() as tape:
        tape.watch(critic_weight)
        result = penalty(lambda x: critic_weight * quadratic(x), real, fake, seed)
    return result, tape.gradient(result, critic_weight)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_penalties_work_in_a_function_of_any_batch_size(penalty, rng):
    images = tf.TensorSpec((None, 2, 2, 1))
    signature = [tf.TensorSpec(()), images, images, tf.TensorSpec((2,), tf.int64)]
    function = tf.function(
        lambda *arguments: penalty_and_slope(penalty, *arguments), input_signature=signature
    )
    for count in (3, 8):
        arguments = tf.constant(1.5), pictures(rng, count), pictures(rng, count), SEED
        np.testing.assert_allclose(
            function(*arguments), penalty_and_slope(penalty, *arguments), rtol=1e-5
        )


@pytest.mark.parametrize("penalty", PENALTIES[:4], ids=repr)
def test_penalties_of_a_linear_critic_are_the_same_under_xla(penalty, rng):
    critic = Linear()

    def both(real, fake):
        with tf.GradientTape() as tape:
            result = penalty(critic, real, fake, SEED)
        return result, tape.gradient(result, critic.w)

    arguments = pictures(rng), pictures(rng)
    for compiled, eager in zip(
        tf.function(both, jit_compile=True)(*arguments), both(*arguments), strict=True
    ):
        np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("penalty", [losses.R1(), losses.R2()], ids=repr)
def test_penalties_without_noise_are_the_same_under_xla(penalty, rng):
    arguments = tf.constant(1.5), pictures(rng), pictures(rng), SEED
    function = tf.function(
        lambda *arguments: penalty_and_slope(penalty, *arguments), jit_compile=True
    )
    np.testing.assert_allclose(
        function(*arguments), penalty_and_slope(penalty, *arguments), rtol=1e-4
    )


# Mode seeking


def test_mode_seeking_by_hand():
    """Neighbours in a ring: latents 1, 2 and 3 apart, images 0.49, 0.99 and 1.49."""
    latents = tf.constant([[0.0], [1.0], [3.0]])
    fake = tf.reshape(tf.constant([0.0, 0.49, 1.48]), (3, 1, 1, 1))
    fake += tf.constant([0.0, 0.0, 0.01])[:, None, None, None]
    expected = 2.0 * (1 / 0.5 + 2 / 1.01 + 3 / 1.5) / 3
    found = losses.ModeSeeking(2.0)(latents, fake, None)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mode_seeking_pairs_the_images_of_a_class():
    latents = tf.constant([[0.0], [5.0], [1.0], [9.0], [3.0]])
    fake = tf.reshape(tf.constant([0.0, 7.0, 0.49, 9.0, 1.49]), (5, 1, 1, 1))
    labels = tf.constant([2, 0, 2, 1, 2])  # two are alone
    expected = (1 / 0.5 + 2 / 1.01 + 3 / 1.5) / 3
    found = losses.ModeSeeking(1.0)(latents, fake, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mode_seeking_without_a_pair_is_zero_with_a_finite_gradient():
    fake = tf.ones((2, 2, 2, 1))
    with tf.GradientTape() as tape:
        tape.watch(fake)
        term = losses.ModeSeeking()(tf.ones((2, 3)), fake, tf.constant([0, 1]))
    assert term == 0
    assert np.isfinite(tape.gradient(term, fake)).all()


def test_mode_seeking_drives_equal_images_of_different_latents_apart():
    fake = tf.constant([[[[0.1]]], [[[0.0]]]])
    with tf.GradientTape() as tape:
        tape.watch(fake)
        term = losses.ModeSeeking()(tf.constant([[0.0], [1.0]]), fake, None)
    above, below = tape.gradient(term, fake)[:, 0, 0, 0].numpy()
    assert above < 0 < below  # descent moves them apart
