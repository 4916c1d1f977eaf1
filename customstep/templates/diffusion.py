"""Images out of noise, in many small steps of denoising."""

import math

import keras
import tensorflow as tf

from customstep import noise
from customstep.adversaries import inputs_of
from customstep.averages import follow, frozen_copy
from customstep.checks import check_integer, check_number
from customstep.losses import regularized, weighted_mean
from customstep.step import Objective
from customstep.stochastic import NoiseToImage, StochasticStep

__all__ = ["Diffusion"]


@keras.saving.register_keras_serializable("customstep")
class Diffusion(NoiseToImage, StochasticStep):
    """A denoising diffusion model with the deterministic sampler of DDIM.

    An image x and noise e are mixed at an angle: cos(a) x + sin(a) e, from the image at 0 to the
    noise at pi/2. The network sees the mixture and the angle and predicts the velocity along the
    way, v = cos(a) e - sin(a) x. A step of the sampler turns the mixture back by an angle d, which
    takes it to cos(d) z - sin(d) v. `predict` and `sample` do so `sampling_steps` times, from noise
    to images, with a moving average of the network; `evaluate` is of the network itself.

    Song, Meng and Ermon 2021 (arXiv:2010.02502), equation 12, for the sampler without noise of its
    own; Salimans and Ho 2022 (arXiv:2202.00512), appendix D, for the velocity and the angle; Ho,
    Jain and Abbeel 2020 (arXiv:2006.11239) for the rest.

    Args:
        network: built network from `[mixtures (batch, height, width, channels), angles (batch,
            1)]`, and labels `(batch,)` as a third input where there are classes, to velocities of
            the shape of the mixtures.
        image_shape: `(height, width, channels)`.
        sampling_steps: of the sampler, at least 1.
        ema_decay: of the network's average, in `[0, 1)`.
        num_classes: None, or the number of classes. The data are then `(images, labels)`.
        **kw: `name` and `dtype`, as for any layer.

    Data are images in [-1, 1], best with a standard deviation near 1/2 or more.

    Raises:
        ValueError: an argument is out of its range.

    Example:

        diffusion = Diffusion(network, (28, 28, 1), num_classes=10)
        diffusion.compile(Adam(1e-3))
        diffusion.fit(images, labels, epochs=10)
        diffusion.sample(16, seed=0)
    """

    terms = ("velocity_loss",)

    def __init__(
        self, network, image_shape, *, sampling_steps=20, ema_decay=0.999, num_classes=None, **kw
    ):
        super().__init__(**kw)
        self.network, self.ema_network = network, frozen_copy(network)
        self.image_shape = self.latent_shape = tuple(image_shape)
        self.sampling_steps, self.ema_decay = sampling_steps, ema_decay
        self.num_classes = num_classes
        self._check_arguments()

    def velocity(self, network, mixture, angle, labels, training):
        angle = tf.broadcast_to(angle, (tf.shape(mixture)[0], 1))
        inputs = [mixture, angle] if labels is None else [mixture, angle, labels]
        return tf.cast(network(inputs, training=training), tf.float32)

    def objective(self, batch, training):
        x, labels = tf.cast(batch.x, tf.float32), batch.y if self.num_classes else None
        of_angle, of_noise = noise.split(self.draw_seed(training), 2)
        angle = noise.uniform((batch.size, 1), of_angle) * (math.pi / 2)
        cosine, sine = (f(angle)[:, :, None, None] for f in (tf.cos, tf.sin))
        e = noise.normal(tf.shape(x), of_noise)
        found = self.velocity(self.network, cosine * x + sine * e, angle, labels, training)
        error = (found - (cosine * e - sine * x)) ** 2
        loss = weighted_mean(error, batch.sample_weight)
        return Objective({"velocity_loss": regularized(loss, self.network)})

    def after_step(self, batch):
        follow(self.ema_network, self.network, self.ema_decay, self.step)

    def call(self, inputs, training=False):
        mixture, labels = inputs if self.num_classes else (inputs, None)
        turn = math.pi / 2 / self.sampling_steps

        def step(number, mixture):
            angle = math.pi / 2 - turn * tf.cast(number, tf.float32)
            velocity = self.velocity(self.ema_network, mixture, angle, labels, training)
            return math.cos(turn) * mixture - math.sin(turn) * velocity

        return keras.ops.fori_loop(0, self.sampling_steps, step, tf.cast(mixture, tf.float32))

    def _check_arguments(self):
        check_integer("sampling_steps", self.sampling_steps, 1)
        check_number("ema_decay", self.ema_decay, "[0, 1)")
        labels = None if self.num_classes is None else keras.KerasTensor((None,), "int32")
        self(inputs_of(keras.KerasTensor((None, *self.image_shape)), labels))
