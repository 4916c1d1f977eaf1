"""An autoencoder whose codes are distributions, and can be drawn from."""

import keras
import tensorflow as tf

from customstep import noise
from customstep.checks import check_integer
from customstep.divergences import bernoulli_nats, gaussian_kl
from customstep.losses import regularized, weighted_mean
from customstep.schedules import check_weight, weight_at
from customstep.step import Objective
from customstep.stochastic import ImageSampler, StochasticStep

__all__ = ["VAE"]


@keras.saving.register_keras_serializable("customstep")
class VAE(ImageSampler, StochasticStep):
    """A variational autoencoder: an encoder to distributions of codes, a decoder of their draws.

    It minimizes the negative evidence lower bound in nats an image: how badly the pixels are told
    from a code, as a cross-entropy, and the divergence of the codes from the standard normal times
    `kl_weight`. A weight that grows from 0 lets the decoder learn to use the codes first.
    `predict` restores images by way of their mean code; `sample` decodes noise.

    Kingma and Welling 2013 (arXiv:1312.6114), equation 10; Bowman et al. 2016 (arXiv:1511.06349),
    section 3.1, for the growing weight; Higgins et al. 2017 for one above 1.

    Args:
        encoder: built network from images `(batch, ...)` in [0, 1] to `(batch, 2 * latent_dim)`:
            the means and the logarithms of the variances.
        decoder: built network from codes `(batch, latent_dim)` to the logits of the images.
        latent_dim: how many numbers a code has.
        kl_weight: number of at least 0, or a callable of the step.
        **kwargs: `name` and `dtype`, as for any layer.

    Raises:
        ValueError: a number is out of its range; in the first step, that the networks do not fit.

    Example:

        vae = VAE(encoder, decoder, 16, kl_weight=PolynomialDecay(0.0, 1000, 1.0))
        vae.compile("adam")
        vae.fit(images, epochs=10)
        vae.sample(16, seed=0)
    """

    terms = ("reconstruction_loss", "weighted_kl", "kl")
    image_range = (0.0, 1.0)

    def __init__(self, encoder, decoder, latent_dim, *, kl_weight=1.0, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.decoder = encoder, decoder
        self.latent_dim, self.kl_weight = latent_dim, kl_weight
        self._check_arguments()

    def objective(self, batch, training):
        mean, log_variance = self.encode(batch.x, training)
        draw = tf.cast(noise.normal(tf.shape(mean), self.draw_seed(training)), mean.dtype)
        logits = self.decode(mean + tf.exp(log_variance / 2) * draw, batch.x.shape, training)
        nats = weighted_mean(bernoulli_nats(batch.x, logits), batch.sample_weight)
        kl = weighted_mean(gaussian_kl(mean, log_variance), batch.sample_weight)
        weighted_kl = weight_at(self.kl_weight, self.step) * kl
        terms = {"reconstruction_loss": regularized(nats, self), "weighted_kl": weighted_kl}
        return Objective(terms, logs={"kl": kl})

    @property
    def latent_shape(self):
        return (self.latent_dim,)

    def call(self, x, training=False):
        mean, _ = self.encode(x, training)
        return self.decode(mean, x.shape, training)

    def encode(self, x, training=False):
        """Means and logarithms of the variances of the codes, each `(batch, latent_dim)`."""
        numbers = self.encoder(x, training=training)
        self._check_fit("encoder", (2 * self.latent_dim,), numbers.shape[1:])
        return tf.split(numbers, 2, axis=-1)

    def decode(self, codes, shape, training=False):
        """The logits of images of shape `(batch, ...)`."""
        logits = self.decoder(codes, training=training)
        self._check_fit("decoder", shape[1:], logits.shape[1:])
        return logits

    def postprocess(self, outputs):
        return tf.sigmoid(tf.cast(outputs, tf.float32))

    def generate(self, latents, labels=None):
        logits = self.decoder.predict(latents, batch_size=256, verbose=0)
        return self.postprocess(logits).numpy()

    def _check_arguments(self):
        check_integer("latent_dim", self.latent_dim, 1)
        check_weight("kl_weight", self.kl_weight)

    def _check_fit(self, name, expected, received):
        if tuple(expected) != tuple(received):
            raise ValueError(
                f"The {name} does not fit. Expected outputs of shape {tuple(expected)}, for "
                f"`latent_dim={self.latent_dim}` and these images; received {tuple(received)}. "
                f"Change its last layer, or `latent_dim`."
            )
