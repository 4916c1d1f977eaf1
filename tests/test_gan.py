"""The GAN: who moves in which update, what is averaged, what is sampled."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from customstep import GAN, Batch, Objective, OnePassGAN, StepModel, Update, losses, variables
from customstep.conditions import Above
from tests.descriptors import (
    CLASSES,
    IMAGES,
    LATENTS,
    conditional_gan,
    discriminator,
    equal,
    gan,
    gan_compiled,
    generator,
    one_pass_gan,
    wgan_gp,
)


def compiled(model=None, **arguments):
    model = gan() if model is None else model
    model.compile(**{**gan_compiled(), **arguments})
    return model


def values(network):
    return [np.array(keras.ops.convert_to_numpy(v)) for v in network.variables]


# Who moves


@pytest.mark.parametrize("trained, other", [(0, "generator"), (1, "discriminator")])
@pytest.mark.parametrize("conditional", [False, True])
def test_an_update_leaves_every_variable_of_the_other_network_alone(trained, other, conditional):
    """Batch statistics and dropout seeds included; both networks here have them."""
    model = compiled(conditional_gan() if conditional else gan())
    batch = (IMAGES, CLASSES) if conditional else (IMAGES,)
    update = model.updates()[trained]
    mine = getattr(model, update.name)
    before, mine_before = values(getattr(model, other)), values(mine)

    @tf.function
    def descend(*batch):
        model.descend(update, Batch(*batch))

    descend(*map(tf.constant, batch))
    assert equal(values(getattr(model, other)), before)
    moved = [not np.array_equal(a, b) for a, b in zip(values(mine), mine_before)]
    assert all(moved)


def test_batch_statistics_of_the_generator_follow_its_training():
    """A `training=` that is not passed would leave the moving mean at 0."""
    model = compiled()
    model.fit(IMAGES, batch_size=8, epochs=2, verbose=0)
    [norm] = [layer for layer in model.generator.layers if "batch_norm" in layer.name]
    assert np.abs(norm.moving_mean.numpy()).max() > 0


def test_discriminator_steps_are_fresh_images_each():
    seen = []

    class Watching(GAN):
        def discriminator_objective(self, batch, training):
            seen.append(np.array(batch.x)[:, 0, 0, 0].tolist())
            return super().discriminator_objective(batch, training)

    model = Watching(generator(), discriminator(), 3, discriminator_steps=3)
    compiled(model, run_eagerly=True)
    model.train_on_batch(IMAGES)
    assert sum(seen, []) == IMAGES[:, 0, 0, 0].tolist()
    assert [len(part) for part in seen] == [8, 8, 8]
    assert int(model.optimizers["discriminator"].iterations) == 3
    assert int(model.optimizers["generator"].iterations) == 1
    assert model.steps == 1


# What is minimized


def constant_networks(logit=0.0):
    """A generator of zeros and a discriminator that says `logit` to everything."""
    z, x = keras.Input((3,)), keras.Input((4, 4, 1))
    images = layers.Reshape((4, 4, 1))(layers.Dense(16, kernel_initializer="zeros")(z))
    bias = keras.initializers.Constant(logit)
    logits = layers.Dense(1, kernel_initializer="zeros", bias_initializer=bias)(layers.Flatten()(x))
    return keras.Model(z, images), keras.Model(x, logits)


@pytest.mark.parametrize(
    "loss, discriminator_loss, generator_loss",
    [
        # softplus(-2) = 0.126928, softplus(2) = 2.126928
        (losses.NonSaturating(), 0.126928 + 2.126928, 0.126928),
        (losses.Saturating(), 0.126928 + 2.126928, -2.126928),
        (losses.Hinge(), 0 + 3, -2),
        (losses.LeastSquares(), 0.5 + 2, 0.5),
        (losses.Wasserstein(), 0, -2),
        (losses.Relativistic(), 0.693147, 0.693147),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "generator") else "",
)
def test_logged_losses_are_those_of_the_pair(loss, discriminator_loss, generator_loss):
    model = compiled(GAN(*constant_networks(logit=2.0), 3, loss=loss))
    logs = model.evaluate(IMAGES, verbose=0, return_dict=True)
    assert logs["discriminator_loss"] == pytest.approx(discriminator_loss, abs=1e-5)
    assert logs["generator_loss"] == pytest.approx(generator_loss, abs=1e-5)


def test_penalties_are_terms_of_their_own_names():
    penalties = [losses.R1(1.0), losses.R2(1.0), losses.GradientPenalty(10)]
    model = compiled(GAN(generator(), discriminator(normalized=False), 3, penalties=penalties))
    history = model.fit(IMAGES, batch_size=8, verbose=0).history
    assert {"r1", "r2", "gradient_penalty"} <= set(history)


def test_sample_weights_weigh_the_real_images():
    """D = sum of pixels: weight 0 for half of the images leaves the mean of the other half."""
    x = keras.Input((4, 4, 1))
    total = layers.Dense(1, kernel_initializer="ones", use_bias=False)(layers.Flatten()(x))
    model = GAN(constant_networks()[0], keras.Model(x, total), 3, loss=losses.Wasserstein())
    compiled(model)
    weights = np.repeat([2.0, 0.0], 12)
    # Keras passes weights on only where there are targets too.
    logs = model.evaluate(
        IMAGES, CLASSES, sample_weight=weights, batch_size=24, verbose=0, return_dict=True
    )
    expected = -IMAGES[:12].sum(axis=(1, 2, 3)).mean()
    assert logs["discriminator_loss"] == pytest.approx(expected, rel=1e-5)


def test_sample_weights_that_keras_would_drop_are_refused():
    with pytest.raises(ValueError, match="would be ignored.*received y=None.*Pass `y`"):
        compiled().fit(IMAGES, sample_weight=np.ones(24), verbose=0)


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_regularizers_of_a_network_count_in_its_loss(name):
    """The L2 penalty of a kernel of ones: 0.5 times the number of its weights."""

    def networks(regularizer):
        z, x = keras.Input((3,)), keras.Input((4, 4, 1))
        ones = dict(kernel_initializer="ones", kernel_regularizer=regularizer)
        images = layers.Reshape((4, 4, 1))(layers.Dense(16, **ones)(z))
        return keras.Model(z, images), keras.Model(x, layers.Dense(1, **ones)(layers.Flatten()(x)))

    losses_with, losses_without = (
        compiled(GAN(*networks(one), 3)).evaluate(IMAGES, verbose=0, return_dict=True)
        for one in (keras.regularizers.L2(0.5), None)
    )
    added = losses_with[f"{name}_loss"] - losses_without[f"{name}_loss"]
    assert added == pytest.approx(0.5 * {"generator": 48, "discriminator": 16}[name], rel=1e-4)


def test_label_decides_what_both_networks_see():
    model = compiled(conditional_gan())
    images = [model.predict([LATENTS, np.full(5, label)], verbose=0) for label in range(3)]
    assert not np.array_equal(images[0], images[1])
    batches = [Batch(tf.constant(IMAGES), tf.fill((24,), label)) for label in range(3)]
    losses_by_label = [float(model.discriminator_objective(one, False).total) for one in batches]
    assert len(set(losses_by_label)) == 3


# The average


def test_average_follows_its_formula():
    """After one step the decay is min(0.5, (1 + 1) / (10 + 1)), after two min(0.5, 3 / 12)."""
    model = compiled(gan(ema_decay=0.5))
    expected = np.concatenate([np.ravel(w) for w in model.generator.get_weights()])
    for decay in (2 / 11, 3 / 12):
        model.train_on_batch(IMAGES)
        now = np.concatenate([np.ravel(w) for w in model.generator.get_weights()])
        expected = decay * expected + (1 - decay) * now
        received = np.concatenate([np.ravel(w) for w in model.ema_generator.get_weights()])
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-7)


def test_decay_0_keeps_the_generator_of_the_last_step():
    model = compiled(gan(ema_decay=0))
    model.fit(IMAGES, batch_size=8, verbose=0)
    np.testing.assert_allclose(
        model.predict(LATENTS, verbose=0), model.generator(LATENTS), rtol=1e-5
    )


def test_average_is_not_trained():
    model = gan()
    assert model.ema_generator.trainable_variables == []
    assert len(model.trainable_variables) == len(
        model.generator.trainable_variables + model.discriminator.trainable_variables
    )


# Sampling


def test_samples_are_float32_images_in_the_declared_range():
    z = keras.Input((3,))
    wide = keras.Model(z, layers.Reshape((4, 4, 1))(layers.Dense(16)(z) * 100))
    model = GAN(wide, discriminator(), 3, image_range=(0, 1))
    images = model.sample(300, seed=0)
    assert images.shape == (300, 4, 4, 1) and images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)


def test_same_seed_gives_the_same_samples_and_more_begin_with_fewer():
    model = gan()
    assert np.array_equal(model.sample(4, seed=7), model.sample(4, seed=7))
    np.testing.assert_allclose(model.sample(9, seed=7)[:4], model.sample(4, seed=7), atol=1e-6)
    assert not np.array_equal(model.sample(4, seed=7), model.sample(4, seed=8))
    assert not np.array_equal(model.sample(4), model.sample(4))


def test_sampling_leaves_the_training_noise_alone():
    model = compiled()
    before = values(model)
    model.sample(3)
    model.evaluate(IMAGES, verbose=0)
    assert equal(values(model), before)


def test_conditional_samples_take_the_classes_in_turn():
    model = conditional_gan()
    images = model.sample(6, seed=0)
    assert np.array_equal(images, model.sample(6, seed=0, labels=[0, 1, 2, 0, 1, 2]))


def patch_gan():
    images = keras.Input((4, 4, 1))
    patches = keras.Model(images, layers.Conv2D(1, 3)(images), name="discriminator")
    return GAN(generator(), patches, 3)


@pytest.mark.parametrize("make", [gan, conditional_gan, patch_gan])
def test_best_of_several_are_those_with_the_highest_logits(make):
    model = make()
    latents, labels = model.latents(6, seed=3, temperature=2.0), model._sample_labels(2, None)
    repeated = None if labels is None else labels.repeat(3)
    logits = model.judge(model.generate(latents, repeated), repeated, training=False)
    best = np.mean(logits, axis=tuple(range(1, logits.ndim))).reshape(2, 3).argmax(axis=1)
    chosen = dict(seed=3, labels=labels, temperature=2.0, best_of=3)
    found = model.best_latents(2, **chosen)
    assert np.array_equal(found, latents[[best[0], 3 + best[1]]])
    images = model.sample(2, **chosen)
    np.testing.assert_allclose(images, model.generate(found, labels), atol=1e-6)


def test_an_image_that_is_not_a_number_to_the_discriminator_is_not_the_best(monkeypatch):
    model = gan()
    latents = model.latents(3, 7)
    monkeypatch.setattr(model, "judge", lambda *_, **__: tf.constant([[-2.0], [np.nan], [-1.0]]))
    np.testing.assert_array_equal(model.best_latents(1, 7, best_of=3), latents[[2]])


def test_best_of_one_is_any():
    model = gan()
    assert np.array_equal(model.best_latents(4, 7, best_of=1), model.latents(4, 7))
    with pytest.raises(ValueError, match="best_of"):
        model.sample(4, best_of=0)


# Whole runs


def test_wgan_gp_is_one_line():
    model = GAN(
        generator(),
        discriminator(normalized=False),
        3,
        loss=losses.Wasserstein(),
        penalties=[losses.GradientPenalty(10)],
        discriminator_steps=5,
    )
    history = compiled(model).fit(IMAGES, batch_size=20, verbose=0).history
    assert set(history) == {"discriminator_loss", "gradient_penalty", "generator_loss"}


def test_a_gan_learns_the_mean_of_its_data():
    """Images of one value: the generator's mean must come to it."""
    keras.utils.set_random_seed(0)
    model = GAN(generator(), discriminator(normalized=False), 3, ema_decay=0.9)
    optimizers = {
        "discriminator": keras.optimizers.Adam(5e-3, 0.5),
        "generator": keras.optimizers.Adam(5e-3, 0.5),
    }
    model.compile(optimizers)
    images = np.full((64, 4, 4, 1), 0.6, "float32")
    before = abs(model.sample(64, seed=0).mean() - 0.6)
    model.fit(images, batch_size=16, epochs=40, verbose=0)
    assert abs(model.sample(64, seed=0).mean() - 0.6) < 0.25 * before


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"latent_dim": 0}, "`latent_dim`.*at least 1; received 0"),
        ({"latent_dim": 4}, "The generator cannot be called.*(None, 4)"),
        ({"discriminator_steps": 0}, "`discriminator_steps`.*received 0"),
        ({"ema_decay": 1.0}, "`ema_decay`.*\\[0, 1\\).*received 1.0"),
        ({"image_range": (1, -1)}, "`image_range`.*low < high; received \\(1, -1\\)"),
        ({"num_classes": 3}, "The generator cannot be called"),
        ({"penalties": [losses.R1(), losses.R1()]}, "`penalties`.*different names"),
        ({"discriminator": keras.Sequential([keras.Input((5, 5, 1)), layers.Dense(1)])},
         "The discriminator cannot be called"),
        ({"discriminator": keras.Sequential([layers.Flatten(), layers.Dense(2)])}, "one logit"),
        ({"generator": keras.Sequential([layers.Dense(2)])}, "does not make images"),
    ],
)  # fmt: skip
def test_networks_and_arguments_that_do_not_fit_are_named(arguments, message):
    defaults = {"generator": generator(), "discriminator": discriminator(), "latent_dim": 3}
    with pytest.raises(ValueError, match=message):
        GAN(**{**defaults, **arguments})


def test_unbuilt_networks_are_built():
    unbuilt = keras.Sequential([layers.Dense(16), layers.Reshape((4, 4, 1))])
    model = compiled(GAN(unbuilt, keras.Sequential([layers.Flatten(), layers.Dense(1)]), 3))
    model.fit(IMAGES, verbose=0)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 3], [0, -1, 1]])
def test_labels_that_do_not_fit_are_named(labels):
    with pytest.raises(ValueError, match="3 integers in \\[0, 3\\); received"):
        conditional_gan().sample(3, labels=labels)


def test_labels_for_a_gan_without_classes_are_refused():
    with pytest.raises(ValueError, match="Expected None.*`num_classes`"):
        gan().sample(2, labels=[0, 1])


def test_missing_labels_are_named():
    with pytest.raises(ValueError, match="needs labels.*images alone"):
        compiled(conditional_gan()).fit(IMAGES, verbose=0)


@pytest.mark.parametrize("argument", [{"loss": "mse"}, {"metrics": ["accuracy"]}])
def test_compiled_losses_and_metrics_are_refused(argument):
    with pytest.raises(ValueError, match="constructor"):
        compiled(**argument)


def test_a_penalty_may_not_take_the_name_of_a_loss():
    class Imposter(losses.R1):
        name = "discriminator_loss"

    with pytest.raises(ValueError, match="`penalties`.*different names"):
        gan(penalties=[Imposter(1.0)])


@pytest.mark.parametrize("loss", ["hinge", losses.Hinge])
def test_loss_that_is_not_a_pair_is_named(loss):
    with pytest.raises(TypeError, match="Expected an object such as.*Hinge\\(\\)`; received"):
        gan(loss=loss)


def test_discriminator_may_have_no_layers():
    class Linear(keras.Model):
        def build(self, shape):
            self.kernel = self.add_weight((16, 1))

        def call(self, images):
            return keras.ops.matmul(keras.ops.reshape(images, (-1, 16)), self.kernel)

    assert GAN(generator(), Linear(), 3).sample(2).shape == (2, 4, 4, 1)


def test_probabilities_instead_of_logits_are_refused():
    network = keras.Sequential([layers.Flatten(), layers.Dense(1, activation="sigmoid")])
    with pytest.raises(ValueError, match="ends in a sigmoid.*logits"):
        GAN(generator(), network, 3)


def test_evaluation_draws_other_noise_for_every_batch():
    """D = the sum of pixels, G = noise: equal noise in both batches would give equal means."""
    z, x = keras.Input((16,)), keras.Input((4, 4, 1))
    total = layers.Dense(1, kernel_initializer="ones", use_bias=False)(layers.Flatten()(x))
    model = GAN(
        keras.Model(z, layers.Reshape((4, 4, 1))(z)), keras.Model(x, total), 16, loss=losses.Hinge()
    )
    model.compile({"discriminator": "sgd", "generator": "sgd"})
    means = [
        model.evaluate(IMAGES[:n], batch_size=8, verbose=0, return_dict=True)["generator_loss"]
        for n in (8, 16)
    ]
    assert means[0] != pytest.approx(means[1])


def test_gradients_elsewhere_include_those_of_the_penalty():
    """At the very same weights they are the same, the noise included."""
    gan = wgan_gp()
    gan.compile(**gan_compiled())
    update, batch = gan.updates()[0], Batch(tf.constant(IMAGES[:8]))
    state = variables.snapshot(gan.variables)
    here, _ = gan.differentiate(update, batch, by_term=True)
    at = [tf.identity(variable.value) for variable in update.variables]
    there, _ = gan.differentiate(update, batch, at=at, by_term=True, state=state)
    assert any(g is not None and np.any(g != 0) for g in here["gradient_penalty"])
    for name, gradients in here.items():
        for a, b in zip(gradients, there[name]):
            assert (a is None) == (b is None)  # the last bias has none of the penalty
            if a is not None:
                np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)


# One pass


def test_one_pass_generates_once_for_both_networks():
    made, judged = [], []

    @keras.saving.register_keras_serializable("tests")
    class Watching(OnePassGAN):
        def generator_objective(self, batch, training):
            objective = super().generator_objective(batch, training)
            made.append(np.array(objective.made["fake"]))
            return objective

        def discriminator_objective(self, batch, training):
            judged.append(np.array(batch.made["fake"]))
            return super().discriminator_objective(batch, training)

    passes = []
    networks = generator(), discriminator()
    model = compiled(Watching(*networks, 3), run_eagerly=True)
    call = networks[0].call
    networks[0].call = lambda *args, **how: passes.append(1) or call(*args, **how)
    model.train_on_batch(IMAGES)
    model.test_on_batch(IMAGES)
    assert len(passes) == 2  # one in the training step, one in the evaluation
    assert equal(made, judged) and len(made) == 2


def test_one_pass_is_two_descents_by_hand():
    """The generator's against the discriminator as it was, then the discriminator's."""
    model, hand = (compiled(OnePassGAN(*networks(), 3, ema_decay=0)) for _ in range(2))
    hand.set_weights(model.get_weights())
    model.train_on_batch(IMAGES)

    latents = hand._draw_latents(len(IMAGES), True, 1)
    with tf.GradientTape(persistent=True) as tape:
        fake = hand.generator(latents, training=True)
        generator_loss = losses.non_saturating_generator_loss(hand.discriminator(fake))
        logits = hand.discriminator(IMAGES), hand.discriminator(tf.stop_gradient(fake))
        discriminator_loss = losses.non_saturating_discriminator_loss(*logits)
    for name, loss in (("generator", generator_loss), ("discriminator", discriminator_loss)):
        weights = getattr(hand, name).trainable_variables
        sources = [weight.value for weight in weights]
        hand.optimizers[name].apply(tape.gradient(loss, sources), weights)
    for name in ("generator", "discriminator"):
        for one, other in zip(values(getattr(model, name)), values(getattr(hand, name))):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def networks():
    """Without anything random, and the same each time."""
    keras.utils.set_random_seed(1)
    made = keras.Sequential([keras.Input((3,)), layers.Dense(16), layers.Reshape((4, 4, 1))])
    judge = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(1)])
    return made, judge


def test_one_pass_has_one_discriminator_step():
    with pytest.raises(ValueError, match="`discriminator_steps=1`; received 2"):
        OnePassGAN(generator(), discriminator(), 3, discriminator_steps=2)


def test_a_penalty_of_the_generator_is_a_term_of_its_own():
    penalties = [losses.ModeSeeking(0.5), losses.R1(0.1)]
    model = compiled(gan(penalties=penalties))
    assert model.terms == ("discriminator_loss", "r1", "generator_loss", "mode_seeking")
    plain = compiled(gan())
    plain.set_weights(model.get_weights())
    batch = Batch(tf.constant(IMAGES))
    terms = model.generator_objective(batch, False).terms
    alone = plain.generator_objective(batch, False).terms
    assert terms["mode_seeking"] > 0
    np.testing.assert_allclose(terms["generator_loss"], alone["generator_loss"], rtol=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_labels_in_a_column_are_alike(number):
    penalties = [losses.ModeSeeking(0.5), losses.R1(0.1)]
    model = GAN(generator(3), discriminator(3), 3, penalties=penalties, num_classes=3)
    compiled(model)

    def terms(labels):
        return model.updates()[number].objective(Batch(tf.constant(IMAGES), labels), False).terms

    labels = tf.constant(CLASSES)
    assert equal(terms(labels).values(), terms(labels[:, None]).values())


# What is made for the updates that follow


@keras.saving.register_keras_serializable("tests")
class Relay(StepModel):
    """The second update learns from what the first has made."""

    terms = ("first", "second")

    def updates(self):
        kernel, bias = self.trainable_variables
        return Update("one", self.first, [kernel]), Update("two", self.second, [bias])

    def first(self, batch, training):
        made = self(batch.x, training=training)
        return Objective({"first": tf.reduce_mean(made**2)}, made={"outputs": made})

    def second(self, batch, training):
        bias = self.trainable_variables[1]
        error = batch.made["outputs"] + bias - batch.y
        return Objective({"second": tf.reduce_mean(error**2)})


@pytest.mark.parametrize("condition", [None, Above("first", 1e9)])
def test_what_is_made_passes_a_condition_and_ends_with_the_step(condition):
    inputs = keras.Input((2,))
    model = Relay(inputs, layers.Dense(1, kernel_initializer="ones")(inputs))
    when = {} if condition is None else {"when": {"one": condition}}
    model.compile({"one": keras.optimizers.SGD(0.0), "two": keras.optimizers.SGD(0.0)}, **when)
    x, y = np.ones((4, 2), "float32"), np.zeros((4, 1), "float32")
    history = model.fit(x, y, batch_size=2, epochs=2, shuffle=False, verbose=0).history
    assert history["second"] == history["first"] == [4.0, 4.0]
    assert model.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)["second"] == 4.0
