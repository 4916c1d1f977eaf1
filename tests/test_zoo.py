"""The mathematics of the smaller templates, against arithmetic done by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.optimizers import SGD

from customstep import Batch, divergences, losses, noise, processing
from customstep.layers import GradientReversal
from customstep.patches import from_patches, to_patches
from customstep.templates import (
    VAE,
    AdaptiveGAN,
    CycleGAN,
    Diffusion,
    Distillation,
    MaskedAutoencoder,
    MeanTeacher,
    MetricLearning,
    SimCLR,
)
from tests.descriptors import (
    CLASSES,
    FEATURES,
    IMAGES,
    PICTURES,
    discriminator,
    generator,
    image_network,
    translator,
)



def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# -- Divergences ----------------------------------------------------------------------------


def test_gaussian_kl_is_the_integral(rng):
    mean, log_variance = rng.normal(size=(2, 3, 2)).astype("float32")
    found = divergences.gaussian_kl(mean, log_variance)
    z = np.linspace(-30, 30, 200_001)
    expected = np.zeros(3)
    for row, (ms, vs) in enumerate(zip(mean, log_variance)):
        for m, v in zip(ms, np.exp(vs)):
            p = np.exp(-((z - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
            log_ratio = -((z - m) ** 2) / (2 * v) - np.log(v) / 2 + z**2 / 2
            expected[row] += np.trapezoid(p * log_ratio, z)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_softened_kl_is_that_of_the_softened_answers_and_keeps_the_gradients_size(rng):
    t, z = rng.normal(size=(2, 4, 5)).astype("float32")
    p, q = softmax(t / 3), softmax(z / 3)
    expected = 9 * np.sum(p * np.log(p / q), axis=1)
    np.testing.assert_allclose(divergences.softened_kl(t, z, 3.0), expected, rtol=1e-4)
    assert np.allclose(divergences.softened_kl(t, t, 3.0), 0, atol=1e-5)
    # At a high temperature the gradient is that of half the squared distance of centred logits.
    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = divergences.softened_kl(t, z, 1000.0)
    centred = (z - np.mean(z, 1, keepdims=True)) - (t - np.mean(t, 1, keepdims=True))
    np.testing.assert_allclose(tape.gradient(loss, z), centred / 5, atol=2e-3)


@pytest.mark.parametrize("dynamic", [False, True])
def test_contrastive_is_the_papers_sum(dynamic, rng):
    z = rng.normal(size=(6, 3)).astype("float32")
    y = np.array([0, 1, 0, 2, 1, 0])
    compute = divergences.contrastive
    if dynamic:
        specs = [tf.TensorSpec((None, 3)), tf.TensorSpec((None,), tf.int64)]
        compute = tf.function(compute, autograph=False, input_signature=specs)
    found = compute(z, y)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    similar = np.exp(unit @ unit.T / 0.1)
    for i in range(6):
        others = [a for a in range(6) if a != i]
        positives = [p for p in others if y[p] == y[i]]
        terms = [-np.log(similar[i, p] / similar[i, others].sum()) for p in positives]
        assert float(found[i]) == pytest.approx(np.mean(terms) if terms else 0, rel=1e-4)


def test_contrastive_of_pairs_is_nt_xent(rng):
    """Chen et al. 2020, algorithm 1, where 2k - 1 and 2k are views of one image."""
    z = rng.normal(size=(8, 3)).astype("float32")
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    s = unit @ unit.T
    expected = [
        -np.log(np.exp(s[i, i ^ 1] / 0.5) / sum(np.exp(s[i, k] / 0.5) for k in range(8) if k != i))
        for i in range(8)
    ]
    found = divergences.contrastive(z, np.arange(8) // 2, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


# -- One network or two ---------------------------------------------------------------------


def vae():
    decoder = [keras.Input((3,)), layers.Dense(16, dtype="float32"), layers.Reshape((4, 4, 1))]
    return VAE(image_network(6), keras.Sequential(decoder), 3, kl_weight=lambda step: step / 10)


def test_vae_minimizes_the_negative_evidence_lower_bound(monkeypatch):
    """Without noise; with weights of the examples, and a weight of the divergence that grows."""
    monkeypatch.setattr(noise, "normal", lambda shape, seed: tf.zeros(shape))
    model = vae()
    model.compile(SGD(0.0))
    weights = np.linspace(0, 2, 24).astype("float32")
    data = (PICTURES, CLASSES)
    model.fit(*data, batch_size=8, epochs=1, verbose=0)
    logs = model.evaluate(*data, 24, sample_weight=weights, verbose=0, return_dict=True)
    mean, log_variance = np.split(np.array(model.encoder(PICTURES)), 2, axis=1)
    p = 1 / (1 + np.exp(-np.float64(model.decoder(mean))))
    nats = -np.sum(PICTURES * np.log(p) + (1 - PICTURES) * np.log(1 - p), axis=(1, 2, 3))
    kl = np.sum(mean**2 + np.exp(log_variance) - 1 - log_variance, axis=1) / 2
    assert logs["reconstruction_loss"] == pytest.approx(np.mean(weights * nats), rel=1e-5)
    assert logs["kl"] == pytest.approx(np.mean(weights * kl), rel=1e-4)
    assert logs["weighted_kl"] == pytest.approx(0.3 * logs["kl"], rel=1e-5)  # three steps are done
    assert logs["loss"] == pytest.approx(logs["reconstruction_loss"] + logs["weighted_kl"])
    restored = model.predict(PICTURES, verbose=0)
    np.testing.assert_allclose(restored, p, rtol=1e-4)


def test_vae_draws_the_code_from_its_distribution():
    draws = []

    class Recording(layers.Reshape):
        def call(self, z):
            draws.append(z)
            return super().call(z)

    decoder = keras.Sequential([keras.Input((16,)), Recording((4, 4, 1))])
    model = VAE(image_network(32), decoder, 16)
    draws.clear()
    for _ in range(200):
        model.objective(Batch(tf.constant(PICTURES)), training=True)
    mean, log_variance = np.split(np.array(model.encoder(PICTURES, training=True)), 2, axis=1)
    z = (np.stack(draws) - mean) / np.exp(log_variance / 2)
    assert np.abs(z.mean(axis=0)).max() < 4.5 / np.sqrt(200)
    assert z.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "latent_dim, size, message",
    [(4, 4, r"The encoder.*\(8,\), for `latent_dim=4`.*received \(6,\)"), (3, 5, "The decoder")],
)
def test_vae_networks_have_to_fit(latent_dim, size, message):
    decoder = [keras.Input((3,)), layers.Dense(size**2), layers.Reshape((size, size, 1))]
    model = VAE(image_network(6), keras.Sequential(decoder), latent_dim)
    model.compile("adam")
    with pytest.raises(ValueError, match=message + ".*or `latent_dim`"):
        model.fit(PICTURES, verbose=0)


def test_distillation_weighs_its_terms_and_leaves_the_teacher_alone():
    student, teacher = image_network(3), image_network(3)
    model = Distillation(student, teacher, temperature=2.0, hard_weight=0.25)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, ["accuracy"])
    before = teacher.get_weights()
    model.fit(IMAGES, CLASSES, batch_size=8, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights()))
    weights = np.linspace(0, 2, 24).astype("float32")
    logs = model.evaluate(IMAGES, CLASSES, 24, verbose=0, sample_weight=weights, return_dict=True)
    z, t = (np.float64(network(IMAGES)) for network in (student, teacher))
    p, q = softmax(t / 2), softmax(z / 2)
    soft = 4 * np.sum(p * np.log(p / q), axis=1)
    hard = -np.log(softmax(z)[np.arange(24), CLASSES])
    assert logs["soft_loss"] == pytest.approx(0.75 * np.mean(weights * soft), rel=1e-4)
    assert logs["hard_loss"] == pytest.approx(0.25 * np.mean(weights * hard), rel=1e-4)
    predicted = [network.predict(IMAGES, verbose=0) for network in (model, student)]
    np.testing.assert_array_equal(*predicted)


def test_mean_teacher_averages_and_learns_from_the_unlabelled():
    student = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model = MeanTeacher(student, consistency_weight=10.0, ema_decay=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SGD(0.5), loss, ["accuracy"])
    kernel = model.teacher.get_weights()[0]
    for step in range(3):
        model.train_on_batch(FEATURES, CLASSES)
        rate = 1 - min(0.9, (1 + step) / (10 + step))
        kernel = kernel - rate * (kernel - student.get_weights()[0])
        np.testing.assert_allclose(model.teacher.get_weights()[0], kernel, rtol=1e-5)
    # Without a label an example counts in the second term alone.
    unlabelled = dict(sample_weight=np.zeros(24), return_dict=True)
    logs = model.evaluate(FEATURES, CLASSES, 24, verbose=0, **unlabelled)
    assert logs["supervised_loss"] == 0 and logs["consistency_loss"] == 0  # teacher with teacher
    model.reset_metrics()
    student.set_weights([kernel + 0.3, np.zeros(3)])
    p = softmax(np.float64(student(FEATURES)))
    q = softmax(np.float64(model.teacher(FEATURES)))
    logs = model.train_on_batch(FEATURES, CLASSES, **unlabelled)
    assert logs["consistency_loss"] == pytest.approx(10 * np.mean((p - q) ** 2), rel=1e-3)


def test_metric_learning_is_the_contrastive_loss_of_its_outputs():
    inputs = keras.Input((6,))
    model = MetricLearning(inputs=inputs, outputs=layers.Dense(3)(inputs), temperature=0.3)
    model.compile("adam")
    logs = model.evaluate(FEATURES, CLASSES, 24, verbose=0, return_dict=True)
    expected = divergences.contrastive(model.predict(FEATURES, verbose=0), CLASSES, 0.3)
    assert logs["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    kept = type(model).from_config(model.get_config())
    assert kept.temperature == 0.3


def test_simclr_probe_leaves_the_encoder_alone_and_pairs_are_views(monkeypatch):
    encoder = image_network(5)
    head = lambda n: keras.Sequential([keras.Input((5,)), layers.Dense(n)])  # noqa: E731
    model = SimCLR(encoder, head(4), head(3), augment=[processing.RandomShift(1)], temperature=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile({"contrastive": SGD(0.0), "probe": SGD(0.1)}, loss, ["accuracy"])
    trained = encoder.trainable_variables
    before = [np.array(v) for v in trained]
    model.fit(IMAGES, CLASSES, batch_size=8, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, trained))
    monkeypatch.setattr(noise, "uniform", lambda shape, seed: tf.fill(shape, 0.5))  # no shift
    z = np.array(model.projector(encoder(np.tile(IMAGES, (2, 1, 1, 1)), training=False)))
    expected = np.mean(divergences.contrastive(z, np.tile(np.arange(24), 2), 0.5))
    logs = model.evaluate(IMAGES, CLASSES, 24, verbose=0, return_dict=True)
    assert logs["contrastive_loss"] == pytest.approx(expected, rel=1e-4)


# -- Patches --------------------------------------------------------------------------------


def masked_autoencoder(size=8, ratio=0.75):
    patches, places = keras.Input((None, 4)), keras.Input((None,), dtype="int32")
    count = size * size // 4
    x = layers.Add()([layers.Dense(4, kernel_initializer="identity")(patches), 0 * patches])
    encoder = keras.Model([patches, places], x)
    decoder = keras.Sequential([keras.Input((count, 4)), layers.Activation("linear")])
    return MaskedAutoencoder(encoder, decoder, 4, patch_size=2, mask_ratio=ratio)


def test_patches_go_there_and_back(rng):
    images = rng.normal(size=(3, 8, 8, 1)).astype("float32")
    patches = to_patches(images, 2)
    assert patches.shape == (3, 16, 4)
    np.testing.assert_array_equal(patches[1, 6], images[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(from_patches(patches, 2, (8, 8, 1)), images)
    with pytest.raises(ValueError, match="multiples of 3; received 8 x 8"):
        to_patches(images, 3)


def test_what_is_seen_returns_to_its_place_and_the_rest_is_the_hidden_code(rng):
    """With networks that change nothing, a guess is the patch itself or the hidden code."""
    model = masked_autoencoder()
    model.hidden_code.assign([1.0, 2.0, 3.0, 4.0])
    patches = rng.normal(size=(5, 16, 4)).astype("float32")
    guesses, is_hidden = (np.array(found) for found in model.guess(tf.constant(patches), (7, 0)))
    assert (is_hidden.sum(axis=1) == 12).all()
    expected = np.where(is_hidden[..., None] == 1, [1.0, 2.0, 3.0, 4.0], patches)
    np.testing.assert_allclose(guesses, expected, rtol=1e-6)
    assert len(np.unique(is_hidden, axis=0)) == 5  # other patches in each image


def test_error_is_that_of_the_hidden_patches(rng):
    model = masked_autoencoder()
    model.compile("sgd")
    images = rng.normal(size=(4, 8, 8, 1)).astype("float32")
    objective = model.objective(Batch(tf.constant(images)), training=False)
    patches = to_patches(images, 2)
    guesses, is_hidden = model.guess(patches, model.draw_seed(False))
    errors = np.mean((guesses - patches) ** 2, axis=2)[np.array(is_hidden) == 1]
    assert float(objective.total) == pytest.approx(errors.mean(), rel=1e-5)
    seen, guessed = model.reconstruct(images)
    assert seen.shape == guessed.shape == images.shape
    assert (np.abs(seen - images) < 1e-6).mean() == pytest.approx(0.25, abs=0.02)


# -- Generators -----------------------------------------------------------------------------


def test_cycle_gan_terms_are_those_of_the_paper():
    model = CycleGAN(
        translator("to_b"), translator("to_a"), image_network(1), image_network(1), cycle_weight=3.0
    )
    adam = {name: keras.optimizers.Adam() for name in ("generators", "discriminators")}
    model.compile(adam)
    a, b = IMAGES, -IMAGES[::-1]
    weights = np.linspace(0, 2, 24).astype("float32")
    logs = model.evaluate(a, b, 24, sample_weight=weights, verbose=0, return_dict=True)
    f, g = (lambda x, n=n: np.array(n(x), "float64") for n in (model.to_b, model.to_a))
    judge_b, judge_a = (lambda x, n=n: np.array(n(x))[:, 0] for n in (model.judge_b, model.judge_a))

    def distance(x, y):
        return np.mean(weights * np.mean(np.abs(x - y), axis=(1, 2, 3)))

    assert logs["cycle_loss"] == pytest.approx(
        3 * (distance(g(f(a)), a) + distance(f(g(b)), b)), rel=1e-4
    )
    assert logs["identity_loss"] == pytest.approx(
        5 * (distance(f(b), b) + distance(g(a), a)), rel=1e-4
    )
    deceived = np.mean((judge_b(f(a)) - 1) ** 2) / 2 + np.mean((judge_a(g(b)) - 1) ** 2) / 2
    assert logs["generator_loss"] == pytest.approx(deceived, rel=1e-4)
    judged = sum(
        np.mean(weights * (judge(real) - 1) ** 2) / 2 + np.mean(judge(fake) ** 2) / 2
        for judge, real, fake in ((judge_b, b, f(a)), (judge_a, a, g(b)))
    )
    assert logs["discriminator_loss"] == pytest.approx(judged, rel=1e-4)
    np.testing.assert_allclose(model.predict(a, verbose=0), f(a), atol=1e-5)


class Perfect(keras.Model):
    """The velocity of a data set of one image, from the mixture and the angle."""

    image = IMAGES[0]

    def call(self, inputs):
        z, angle = inputs
        angle = angle[:, :, None, None]
        e = (z - tf.cos(angle) * self.image) / tf.maximum(tf.sin(angle), 1e-6)
        return tf.cos(angle) * e - tf.sin(angle) * self.image


def simple_diffusion(**arguments):
    z, angle = keras.Input((4, 4, 1)), keras.Input((1,))
    x = layers.Concatenate()([layers.Flatten()(z), angle])
    network = keras.Model([z, angle], layers.Reshape((4, 4, 1))(layers.Dense(16)(x)))
    return Diffusion(network, (4, 4, 1), **arguments)


def test_sampler_leads_exactly_to_the_image_that_the_velocity_comes_from():
    model = simple_diffusion(sampling_steps=7)
    perfect = Perfect()
    model.ema_network.call = lambda inputs, training=None, mask=None: perfect.call(inputs)
    images = np.array(model(model.latents(3, seed=0)))
    np.testing.assert_allclose(images, np.tile(IMAGES[0], (3, 1, 1, 1)), atol=1e-4)


def test_diffusion_learns_the_velocity_at_all_angles():
    model = simple_diffusion()
    seen = []
    model.network.call = lambda inputs, training=None, mask=None: seen.append(inputs) or inputs[0]
    x = np.tile(IMAGES[:1], (4000, 1, 1, 1))
    loss = model.objective(Batch(tf.constant(x)), training=True).total
    [(z, angle)] = [[np.array(part) for part in pair] for pair in seen]
    assert 0 < angle.min() < 0.01 and np.pi / 2 - 0.01 < angle.max() < np.pi / 2
    c, s = np.cos(angle)[:, :, None, None], np.sin(angle)[:, :, None, None]
    e = (z - c * x) / s
    assert e[s.ravel() > 0.1].std() == pytest.approx(1, abs=0.02)
    expected = np.mean((z - (c * e - s * x)) ** 2)
    assert float(loss) == pytest.approx(expected, rel=1e-3)


def adaptive_gan(**arguments):
    model = AdaptiveGAN(
        generator(), discriminator(), 3, augment=[processing.RandomFlip()], ramp=100, **arguments
    )
    model.compile({"discriminator": SGD(0.0), "generator": SGD(0.0)})
    return model


@pytest.mark.parametrize("logit, expected", [(1.0, 0.24), (-1.0, 0.0)])
def test_probability_rises_where_real_images_are_surely_real(logit, expected):
    model = adaptive_gan()
    *_, last = model.discriminator.layers
    last.set_weights([0 * last.kernel.numpy(), np.array([logit])])
    model.fit(IMAGES, batch_size=8, verbose=0)
    assert float(model.probability) == pytest.approx(expected)


def test_images_are_augmented_with_the_probability_and_in_training_alone(monkeypatch):
    model = adaptive_gan()
    model.probability.assign(0.3)
    seen = []
    judge = model.discriminator.call
    monkeypatch.setattr(
        model.discriminator,
        "call",
        lambda x, **kwargs: seen.append(np.array(x)) or judge(x, **kwargs),
    )
    images = tf.constant(np.tile(IMAGES[:1], (2000, 1, 1, 1)))
    model.judge(images, None, training=True)
    changed = np.mean(np.any(seen[0] != images, axis=(1, 2, 3)))
    assert changed == pytest.approx(0.15, abs=0.03)  # half of the flips are none
    model.judge(images, None, training=False)
    np.testing.assert_array_equal(seen[1], images)


# -- Layers and processors ------------------------------------------------------------------


def test_gradient_reversal_turns_the_gradient_and_nothing_else():
    x = tf.constant([[1.0, -2.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = GradientReversal(0.3)(x)
        loss = tf.reduce_sum(y * [2.0, 5.0])
    np.testing.assert_allclose(y, x, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, x), [[-0.6, -1.5]], rtol=1e-6)
    with pytest.raises(ValueError, match="`weight` is out of its range"):
        GradientReversal(-1)


def test_crop_of_everything_is_the_image_and_of_a_half_is_enlarged(rng):
    images = rng.normal(size=(2, 8, 6, 1)).astype("float32")
    ones, halves = np.ones(2, "float32"), np.full(2, 0.5, "float32")
    np.testing.assert_allclose(processing.crop(images, ones, halves, halves), images, rtol=1e-6)
    ramp = np.broadcast_to(np.arange(8, dtype="float32")[:, None, None], (2, 8, 6, 1))
    found = np.array(processing.crop(ramp, halves, 0 * ones, 0 * ones))[0, :, 0, 0]
    np.testing.assert_allclose(found, np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 7), rtol=1e-6)
    found = np.array(processing.crop(ramp, halves, ones, 0 * ones))[0, :, 0, 0]
    np.testing.assert_allclose(found, np.clip((np.arange(8) + 0.5) / 2 + 3.5, 0, 7), rtol=1e-6)


def test_random_crops_and_intensities_differ_from_image_to_image():
    images = np.tile(IMAGES[:1], (200, 1, 1, 1))
    for processor in (processing.RandomResizedCrop(0.25), processing.RandomIntensity(0.4, 0.2)):
        seen = np.array(processor.train(Batch(tf.constant(images)), (0, 0)).x)
        assert len(np.unique(seen.round(5), axis=0)) > 190
        assert processor.infer(Batch(images)).x is images
    centred = seen - seen.mean(axis=(1, 2, 3), keepdims=True)
    contrast = centred.std(axis=(1, 2, 3)) / IMAGES[0].std()
    assert 0.6 <= contrast.min() < 0.65 and 1.35 < contrast.max() <= 1.4 + 1e-5
    shift = seen.mean(axis=(1, 2, 3)) - IMAGES[0].mean()
    assert -0.2 <= shift.min() < -0.18 and 0.18 < shift.max() <= 0.2 + 1e-5


def test_augmented_runs_the_processors_in_order_with_seeds_of_their_own():
    batch = Batch(tf.constant(IMAGES))
    processors = [processing.RandomShift(1), processing.RandomFlip()]
    expected = batch
    for processor, seed in zip(processors, noise.split((5, 0), 2)):
        expected = processor.train(expected, seed)
    found = processing.augmented(batch, processors, (5, 0))
    np.testing.assert_array_equal(found.x, expected.x)
    assert processing.augmented(batch, [], (5, 0)) is batch


def test_regularized_adds_what_the_networks_add():
    network = image_network(3, "l2")
    network(IMAGES)
    expected = 1.0 + 0.01 * np.sum(network.layers[0].kernel.numpy() ** 2)
    assert float(losses.regularized(tf.constant(1.0), network)) == pytest.approx(expected, rel=1e-5)
