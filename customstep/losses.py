"""What adversaries minimize: pure functions of logits, the pairs made of them, and penalties.

Logits are the discriminator's outputs before any sigmoid, float `(batch,)` or `(batch, ...)`. Real
logits are D(x) of real images x, fake logits are D(G(z)) of generated ones. A pair has the loss of
both players; a penalty is one more term for one of them. All are objects to pass to a template,
saved with it:

    GAN(generator, discriminator, latent_dim, loss=Wasserstein(), penalties=[GradientPenalty(10)])
"""

import dataclasses

import keras
import tensorflow as tf

from customstep import noise
from customstep.checks import check_number
from customstep.saving import SavedDataclass

__all__ = [
    "DRAGAN",
    "R1",
    "R2",
    "AdversarialLoss",
    "FiniteDifferenceR1",
    "GeneratorPenalty",
    "GradientPenalty",
    "Hinge",
    "LeastSquares",
    "ModeSeeking",
    "NonSaturating",
    "Penalty",
    "Relativistic",
    "Saturating",
    "Wasserstein",
    "gradient_norms",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "least_squares_discriminator_loss",
    "least_squares_generator_loss",
    "non_saturating_discriminator_loss",
    "non_saturating_generator_loss",
    "regularized",
    "relativistic_discriminator_loss",
    "relativistic_generator_loss",
    "saturating_discriminator_loss",
    "saturating_generator_loss",
    "wasserstein_discriminator_loss",
    "wasserstein_generator_loss",
    "weighted_mean",
]


# -- The losses, one pair of functions each -------------------------------------------------


def non_saturating_discriminator_loss(
    real_logits, fake_logits, sample_weight=None, label_smoothing=0.0
):
    """-E[log s(D(x))] - E[log(1 - s(D(G(z))))], s the sigmoid.

    Goodfellow et al. 2014 (arXiv:1406.2661), equation 1. With one-sided label smoothing e
    (Salimans et al. 2016, arXiv:1606.03498, section 3.4) real images have the target 1 - e.

    Args:
        real_logits: float `(batch, ...)`.
        fake_logits: float `(batch, ...)`.
        sample_weight: float `(batch,)`, the weight of each real example, or None.
        label_smoothing: e, in `[0, 1)`.

    Returns:
        float32 scalar.
    """
    real_logits = tf.cast(real_logits, tf.float32)
    real = tf.nn.softplus(-real_logits) + label_smoothing * real_logits
    return weighted_mean(real, sample_weight) + weighted_mean(_softplus(fake_logits))


def non_saturating_generator_loss(fake_logits):
    """-E[log s(D(G(z)))]: Goodfellow et al. 2014, section 3, the loss that gives strong gradients.

    Args:
        fake_logits: float `(batch, ...)`.

    Returns:
        float32 scalar.
    """
    return weighted_mean(_softplus(-fake_logits))


saturating_discriminator_loss = non_saturating_discriminator_loss


def saturating_generator_loss(fake_logits):
    """E[log(1 - s(D(G(z))))]: the generator's side of the minimax game itself.

    Goodfellow et al. 2014, equation 1. It saturates where the discriminator wins.

    Args:
        fake_logits: float `(batch, ...)`.

    Returns:
        float32 scalar, at most 0.
    """
    return -weighted_mean(_softplus(fake_logits))


def hinge_discriminator_loss(real_logits, fake_logits, sample_weight=None):
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))].

    Lim and Ye 2017 (arXiv:1705.02894); Miyato et al. 2018 (arXiv:1802.05957), equation 16.

    Args:
        real_logits: float `(batch, ...)`.
        fake_logits: float `(batch, ...)`.
        sample_weight: float `(batch,)`, the weight of each real example, or None.

    Returns:
        float32 scalar.
    """
    real, fake = tf.cast(real_logits, tf.float32), tf.cast(fake_logits, tf.float32)
    return weighted_mean(tf.nn.relu(1 - real), sample_weight) + weighted_mean(tf.nn.relu(1 + fake))


def hinge_generator_loss(fake_logits):
    """-E[D(G(z))]: Miyato et al. 2018, equation 17. See `hinge_discriminator_loss`."""
    return -weighted_mean(fake_logits)


def least_squares_discriminator_loss(real_logits, fake_logits, sample_weight=None):
    """E[(D(x) - 1)^2] / 2 + E[D(G(z))^2] / 2.

    Mao et al. 2016 (arXiv:1611.04076), equation 9, the 0-1 coding.

    Args:
        real_logits: float `(batch, ...)`.
        fake_logits: float `(batch, ...)`.
        sample_weight: float `(batch,)`, the weight of each real example, or None.

    Returns:
        float32 scalar.
    """
    real, fake = tf.cast(real_logits, tf.float32), tf.cast(fake_logits, tf.float32)
    return weighted_mean((real - 1) ** 2, sample_weight) / 2 + weighted_mean(fake**2) / 2


def least_squares_generator_loss(fake_logits):
    """E[(D(G(z)) - 1)^2] / 2: Mao et al. 2016, equation 9. See its discriminator loss."""
    return weighted_mean((tf.cast(fake_logits, tf.float32) - 1) ** 2) / 2


def wasserstein_discriminator_loss(real_logits, fake_logits, sample_weight=None):
    """E[D(G(z))] - E[D(x)], the negated estimate of the Wasserstein-1 distance.

    Arjovsky, Chintala and Bottou 2017 (arXiv:1701.07875), equation 2 and algorithm 1. It wants a
    critic of bounded slope: add `GradientPenalty`.

    Args:
        real_logits: float `(batch, ...)`.
        fake_logits: float `(batch, ...)`.
        sample_weight: float `(batch,)`, the weight of each real example, or None.

    Returns:
        float32 scalar.
    """
    return weighted_mean(fake_logits) - weighted_mean(real_logits, sample_weight)


def wasserstein_generator_loss(fake_logits):
    """-E[D(G(z))]: Arjovsky, Chintala and Bottou 2017, algorithm 1. See the critic's loss."""
    return -weighted_mean(fake_logits)


def relativistic_discriminator_loss(real_logits, fake_logits, sample_weight=None):
    """E[log(1 + exp(D(G(z)) - D(x)))], over pairs of one real and one generated image.

    Jolicoeur-Martineau 2018 (arXiv:1807.00734), the paired standard form (RSGAN), taken up as
    RpGAN by Huang et al. 2024 (arXiv:2501.05441).

    Args:
        real_logits: float `(batch, ...)`.
        fake_logits: float, of the same shape.
        sample_weight: float `(batch,)`, the weight of each real example, or None.

    Returns:
        float32 scalar.
    """
    real, fake = tf.cast(real_logits, tf.float32), tf.cast(fake_logits, tf.float32)
    return weighted_mean(tf.nn.softplus(fake - real), sample_weight)


def relativistic_generator_loss(real_logits, fake_logits):
    """E[log(1 + exp(D(x) - D(G(z))))]: the generator's side of the relativistic game.

    Args:
        real_logits: float `(batch, ...)`.
        fake_logits: float, of the same shape.

    Returns:
        float32 scalar.
    """
    real, fake = tf.cast(real_logits, tf.float32), tf.cast(fake_logits, tf.float32)
    return weighted_mean(tf.nn.softplus(real - fake))


# -- The pairs, as templates take them ------------------------------------------------------


class AdversarialLoss(SavedDataclass):
    """The losses of both players; one of your own has these two methods.

    Attributes:
        relativistic: whether `generator` needs the logits of real images too, which costs the
            generator's update one more pass of the discriminator.
    """

    relativistic = False

    def discriminator(self, real_logits, fake_logits, sample_weight=None):
        """The discriminator's loss, a float32 scalar.

        Args:
            real_logits: float `(batch, ...)`.
            fake_logits: float `(batch, ...)`.
            sample_weight: float `(batch,)`, the weight of each real example, or None.
        """
        raise NotImplementedError

    def generator(self, real_logits, fake_logits):
        """The generator's loss, a float32 scalar.

        Args:
            real_logits: float `(batch, ...)` where the loss is `relativistic`, else None.
            fake_logits: float `(batch, ...)`.
        """
        raise NotImplementedError


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class NonSaturating(AdversarialLoss):
    """The usual GAN loss, Goodfellow et al. 2014 (arXiv:1406.2661): a good first choice.

    Args:
        label_smoothing: one-sided, for real images, in `[0, 1)`; 0.1 is usual.
    """

    label_smoothing: float = 0.0

    def __post_init__(self):
        check_number("label_smoothing", self.label_smoothing, "[0, 1)")

    def discriminator(self, real_logits, fake_logits, sample_weight=None):
        return non_saturating_discriminator_loss(
            real_logits, fake_logits, sample_weight, self.label_smoothing
        )

    def generator(self, real_logits, fake_logits):
        return non_saturating_generator_loss(fake_logits)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Saturating(NonSaturating):
    """The minimax game itself, Goodfellow et al. 2014, equation 1: to study, seldom to use.

    Args:
        label_smoothing: one-sided, for real images, in `[0, 1)`.
    """

    def generator(self, real_logits, fake_logits):
        return saturating_generator_loss(fake_logits)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Hinge(AdversarialLoss):
    """Lim and Ye 2017 (arXiv:1705.02894): stops pushing logits that are right by a margin of 1."""

    def discriminator(self, real_logits, fake_logits, sample_weight=None):
        return hinge_discriminator_loss(real_logits, fake_logits, sample_weight)

    def generator(self, real_logits, fake_logits):
        return hinge_generator_loss(fake_logits)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class LeastSquares(AdversarialLoss):
    """Mao et al. 2016 (arXiv:1611.04076): logits regress to 1 for real and 0 for fake images."""

    def discriminator(self, real_logits, fake_logits, sample_weight=None):
        return least_squares_discriminator_loss(real_logits, fake_logits, sample_weight)

    def generator(self, real_logits, fake_logits):
        return least_squares_generator_loss(fake_logits)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Wasserstein(AdversarialLoss):
    """Arjovsky et al. 2017 (arXiv:1701.07875): add `GradientPenalty` and several critic steps."""

    def discriminator(self, real_logits, fake_logits, sample_weight=None):
        return wasserstein_discriminator_loss(real_logits, fake_logits, sample_weight)

    def generator(self, real_logits, fake_logits):
        return wasserstein_generator_loss(fake_logits)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Relativistic(AdversarialLoss):
    """Jolicoeur-Martineau 2018 (arXiv:1807.00734): is this one more real than that one?

    With `R1` and `R2` together it is the loss of R3GAN (Huang et al. 2024, arXiv:2501.05441).
    """

    relativistic = True

    def discriminator(self, real_logits, fake_logits, sample_weight=None):
        return relativistic_discriminator_loss(real_logits, fake_logits, sample_weight)

    def generator(self, real_logits, fake_logits):
        return relativistic_generator_loss(real_logits, fake_logits)


# -- Penalties on the discriminator ---------------------------------------------------------


def gradient_norms(critic, images):
    """||dD(x)/dx|| of every image; a zero gradient has the norm 0 and the derivative 0, not NaN.

    Args:
        critic: callable of images that returns logits `(batch, ...)`.
        images: float `(batch, height, width, channels)`, or any rank from 2.

    Returns:
        float32 `(batch,)`.
    """
    squares = squared_gradient_norms(critic, images)
    positive = squares > 0
    # The inner `where` keeps the infinite slope of the root at 0 out of the backward pass.
    return tf.where(positive, tf.sqrt(tf.where(positive, squares, 1.0)), 0.0)


def squared_gradient_norms(critic, images):
    """||dD(x)/dx||^2 of every image.

    Args:
        critic: callable of images that returns logits `(batch, ...)`; where it judges patches,
            D(x) is the sum of their logits.
        images: float `(batch, height, width, channels)`, or any rank from 2.

    Returns:
        float32 `(batch,)`.
    """
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = tf.reduce_sum(tf.cast(critic(images), tf.float32))
    gradients = tape.gradient(logits, images, unconnected_gradients="zero")
    gradients = tf.cast(gradients, tf.float32)
    return tf.reduce_sum(gradients**2, axis=list(range(1, gradients.shape.rank)))


class Penalty(SavedDataclass):
    """One more term of the discriminator's objective.

    A penalty of your own has a `name` to be logged by and, to be saved, is a dataclass that is
    registered with Keras, as the ones below are.
    """

    name = "penalty"

    def __call__(self, critic, real, fake, seed):
        """The weighted penalty, a float32 scalar.

        Args:
            critic: callable of images that returns the discriminator's logits `(batch, ...)`.
            real: float32 `(batch, height, width, channels)`, images of the data set.
            fake: float32 of the same shape, generated ones.
            seed: int64 `(2,)`, for `noise.normal` and `noise.uniform`.
        """
        raise NotImplementedError


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class GradientPenalty(Penalty):
    """w E[(||dD(x')/dx'|| - k)^2] on lines between real and generated images: WGAN-GP.

    Gulrajani et al. 2017 (arXiv:1704.00028), equation 3: x' = e x + (1 - e) G(z), with one
    uniform e in `[0, 1)` for each image.

    Args:
        weight: w, at least 0.
        target: k, the norm that is not penalized, at least 0.
    """

    name = "gradient_penalty"
    weight: float = 10.0
    target: float = 1.0

    def __post_init__(self):
        check_number("weight", self.weight, "[0, inf)")
        check_number("target", self.target, "[0, inf)")

    def __call__(self, critic, real, fake, seed):
        norms = gradient_norms(critic, interpolate(real, fake, seed))
        return self.weight * tf.reduce_mean((norms - self.target) ** 2)


def interpolate(real, fake, seed):
    """e x + (1 - e) G(z), with one uniform e in `[0, 1)` for each image.

    Args:
        real: float32 `(batch, ...)`.
        fake: float32 of the same shape.
        seed: int64 `(2,)`.

    Returns:
        float32 `(batch, ...)`.
    """
    shape = tf.concat([tf.shape(real)[:1], tf.ones(real.shape.rank - 1, tf.int32)], axis=0)
    e = noise.uniform(shape, seed)
    return e * real + (1 - e) * fake


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class R1(Penalty):
    """g/2 E[||dD(x)/dx||^2] on real images: Mescheder et al. 2018 (arXiv:1801.04406), equation 9.

    Args:
        gamma: g, at least 0.
    """

    name = "r1"
    gamma: float = 10.0

    def __post_init__(self):
        check_number("gamma", self.gamma, "[0, inf)")

    def __call__(self, critic, real, fake, seed):
        return self.gamma / 2 * tf.reduce_mean(squared_gradient_norms(critic, real))


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class R2(R1):
    """g/2 E[||dD(x)/dx||^2] on generated images: Mescheder et al. 2018, equation 10.

    Args:
        gamma: g, at least 0.
    """

    name = "r2"

    def __call__(self, critic, real, fake, seed):
        return self.gamma / 2 * tf.reduce_mean(squared_gradient_norms(critic, fake))


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class DRAGAN(Penalty):
    """w E[(||dD(x + d)/dx|| - k)^2] around real images: Kodali et al. 2017 (arXiv:1705.07215).

    The noise d is normal, as in the paper. Its deviation there is a constant; here, as in the
    authors' code, it is a fraction of the batch's own, so that it fits images of any range.

    Args:
        weight: w, at least 0.
        target: k, the norm that is not penalized, at least 0.
        deviation: the noise's standard deviation, in standard deviations of the batch.
    """

    name = "dragan"
    weight: float = 10.0
    target: float = 1.0
    deviation: float = 0.5

    def __post_init__(self):
        check_number("weight", self.weight, "[0, inf)")
        check_number("target", self.target, "[0, inf)")
        check_number("deviation", self.deviation, "(0, inf)")

    def __call__(self, critic, real, fake, seed):
        shift = noise.normal(tf.shape(real), seed)
        noisy = real + self.deviation * tf.math.reduce_std(real) * shift
        return self.weight * tf.reduce_mean((gradient_norms(critic, noisy) - self.target) ** 2)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class FiniteDifferenceR1(R1):
    """g/2 E[((D(x + d n) - D(x)) / d)^2], n standard normal: `R1` without a second derivative.

    Lin et al. 2025 (arXiv:2501.08316), the approximated R1, here divided by d^2 so that its
    expectation tends to that of `R1` with the same gamma as d tends to 0. It costs two forward
    passes where `R1` costs a forward and two backward ones. In bfloat16 use a deviation of at
    least 0.1: a smaller difference is lost in the rounding.

    Args:
        gamma: g, at least 0.
        deviation: d, the noise's standard deviation in units of the images.
    """

    name = "finite_difference_r1"
    deviation: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        check_number("deviation", self.deviation, "(0, inf)")

    def __call__(self, critic, real, fake, seed):
        shift = noise.normal(tf.shape(real), seed)
        shifted = tf.cast(critic(real + self.deviation * shift), tf.float32)
        slopes = (shifted - tf.cast(critic(real), tf.float32)) / self.deviation
        slopes = tf.reduce_sum(tf.reshape(slopes, (tf.shape(slopes)[0], -1)), axis=1)
        return self.gamma / 2 * tf.reduce_mean(slopes**2)


class GeneratorPenalty(SavedDataclass):
    """One more term of the generator's objective; otherwise as a `Penalty`."""

    name = "generator_penalty"

    def __call__(self, latents, fake, labels):
        """The weighted penalty, a float32 scalar.

        Args:
            latents: float32 `(batch, latent_dim)`.
            fake: `(batch, height, width, channels)`, the images that are made of them.
            labels: int `(batch,)`, their classes, or None.
        """
        raise NotImplementedError


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class ModeSeeking(GeneratorPenalty):
    """w E[|z - z'| / (|G(z) - G(z')| + 0.01)]: unlike latents are to make unlike images.

    Mao et al. 2019 (arXiv:1903.05628), equation 4, as the reciprocal that its authors minimize,
    here for each pair rather than for the means of a batch. |.| is the mean of absolute
    differences. Each image is paired with the next one of its class in the batch, whatever its
    class where there are no labels; one that is alone of its class is left out. On several replicas
    the batch is the part that each of them sees.

    Args:
        weight: w, at least 0, for images in [-1, 1].
    """

    name = "mode_seeking"
    weight: float = 0.5

    def __post_init__(self):
        check_number("weight", self.weight, "[0, inf)")

    def __call__(self, latents, fake, labels):
        n = tf.shape(latents)[0]
        index = tf.range(n)
        steps = tf.math.floormod(index[None, :] - index[:, None] - 1, n) + 1  # n to itself
        if labels is not None:
            steps = tf.where(labels[None, :] == labels[:, None], steps, n)
        partner = tf.math.floormod(index + tf.reduce_min(steps, axis=1), n)
        is_paired = tf.cast(tf.not_equal(partner, index), tf.float32)

        def distances(values):
            values = tf.cast(values, tf.float32)
            apart = tf.abs(values - tf.gather(values, partner))
            return tf.reduce_mean(tf.reshape(apart, (n, -1)), axis=1)

        ratios = distances(latents) / (distances(fake) + 0.01)
        return self.weight * tf.math.divide_no_nan(
            tf.reduce_sum(ratios), tf.reduce_sum(is_paired)
        )


# -- Means over a batch ---------------------------------------------------------------------


def regularized(loss, *networks):
    """The loss and what the regularizers of networks add, as in a compiled loss.

    Args:
        loss: float scalar.
        *networks: `keras.Model` or layers, called just now.

    Returns:
        Float scalar.
    """
    for network in networks:
        for term in network.losses:
            loss += tf.cast(term, loss.dtype)
    return loss


def weighted_mean(values, sample_weight=None):
    """The mean over a batch, each example times its weight, as Keras's losses have it.

    Args:
        values: float `(batch, ...)`.
        sample_weight: float `(batch,)` or `(batch, 1)`, or None.

    Returns:
        float32 scalar.
    """
    values = tf.cast(values, tf.float32)
    values = tf.reduce_mean(tf.reshape(values, (tf.shape(values)[0], -1)), axis=1)
    if sample_weight is not None:
        values *= tf.reshape(tf.cast(sample_weight, tf.float32), (-1,))
    return tf.reduce_mean(values)


def _softplus(logits):
    return tf.nn.softplus(tf.cast(logits, tf.float32))
