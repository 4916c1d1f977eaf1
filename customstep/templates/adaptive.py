"""A GAN for few images: its discriminator is kept from learning them by heart."""

import keras
import tensorflow as tf

from customstep import noise, replicas
from customstep.checks import check_number
from customstep.processing import augmented, check_processors
from customstep.step import Batch
from customstep.templates.gan import GAN

__all__ = ["AdaptiveGAN"]


@keras.saving.register_keras_serializable("customstep")
class AdaptiveGAN(GAN):
    """A GAN whose discriminator sees images augmented, as often as it needs.

    Every image, real or generated, is augmented with a probability before it is judged. The
    probability rises while the discriminator is sure of the real images, which is how overfitting
    begins, and falls when it is not. As what is likely augmented still looks likely whole, the
    generator learns to make images that are not.

    Karras et al. 2020 (arXiv:2006.06676), section 3; the measure is their r_t, the mean sign of
    the logits of real images.

    Args:
        *args: as for `GAN`.
        augment: sequence of `processing.Processor`, whose `train` augments.
        target: of the measure, in `(-1, 1)`.
        ramp: how many images it takes the probability to go from 0 to 1, above 0.
        **kwargs: as for `GAN`.

    Raises:
        ValueError: as for `GAN`, or a number is out of its range.
        TypeError: something else than a processor is among `augment`.

    Attributes:
        probability: the variable, logged as `augmented`.

    Example:

        gan = AdaptiveGAN(generator, discriminator, 64, augment=[RandomShift(3), RandomFlip()])
    """

    def __init__(self, *args, augment, target=0.6, ramp=100_000, **kwargs):
        check_number("target", target, "(-1, 1)")
        check_number("ramp", ramp, "(0, inf)")
        super().__init__(*args, **kwargs)
        self.augment = check_processors("augment", augment)
        self.target, self.ramp = target, ramp

    def build(self, input_shape):
        if not self.built:
            fixed = dict(trainable=False, aggregation="only_first_replica", name="probability")
            self.probability = self.add_weight((), "zeros", **fixed)

    @property
    def terms(self):
        return (*super().terms, "augmented")

    def judge(self, images, labels, training):
        if training:
            chance, seed = noise.split(self.draw_seed(training), 2)
            chosen = noise.uniform((tf.shape(images)[0], 1, 1, 1), chance) < self.probability
            images = tf.where(chosen, augmented(Batch(images), self.augment, seed).x, images)
        return super().judge(images, labels, training)

    def discriminator_objective(self, batch, training):
        objective = super().discriminator_objective(batch, training)
        return objective._replace(logs={"augmented": tf.identity(self.probability.value)})

    def after_step(self, batch):
        super().after_step(batch)
        signs = tf.sign(tf.cast(batch.made["real_logits"], tf.float32))
        signs = tf.reduce_mean(tf.reshape(signs, (tf.shape(signs)[0], -1)), axis=1)
        total, count = replicas.total([tf.reduce_sum(signs), tf.cast(tf.size(signs), tf.float32)])
        seen = count * self.discriminator_steps  # `made` is of the last part of the batch
        step = tf.sign(total - self.target * count) * seen / self.ramp
        step = tf.where(tf.math.is_nan(step), 0.0, step)  # of a batch that `nonfinite` skips
        self.probability.assign(tf.clip_by_value(self.probability + step, 0.0, 1.0))
