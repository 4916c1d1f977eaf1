"""An encoder that learns by guessing the hidden patches of images."""

import keras
import numpy as np
import tensorflow as tf

from customstep import noise
from customstep.checks import check_integer, check_number
from customstep.losses import regularized, weighted_mean
from customstep.step import Objective
from customstep.stochastic import StochasticStep

__all__ = ["MaskedAutoencoder"]


@keras.saving.register_keras_serializable("customstep")
class MaskedAutoencoder(StochasticStep):
    """An encoder that sees some patches of an image, and a decoder that guesses the others.

    The objective is the squared error of the hidden patches. As the encoder works on what is seen
    alone, a step costs it a quarter of the whole image. `predict` returns the mean of the codes of
    all patches, as features of the image; `reconstruct` shows what is guessed.

    He et al. 2022 (arXiv:2111.06377), section 3.

    Args:
        encoder: built network from `[patches (batch, n, patch_size ** 2 * channels), places
            (batch, n)]` of any n to codes `(batch, n, width)`. Places are int32, row by row.
        decoder: built network from codes of all patches in their order, `(batch, patches,
            width)`, of which those of the hidden ones are a learned vector, to patches.
        width: how many numbers the code of a patch has.
        patch_size: height and width of a patch in pixels; it divides those of the images.
        mask_ratio: the share of the patches that is hidden, in `(0, 1)`.
        **kwargs: `name` and `dtype`, as for any layer.

    Raises:
        ValueError: an argument is out of its range.

    Example:

        model = MaskedAutoencoder(encoder, decoder, 64, patch_size=4)
        model.compile("adam")
        model.fit(images, epochs=10)
        features = model.predict(images)
    """

    terms = ("patch_loss",)

    def __init__(self, encoder, decoder, width, *, patch_size, mask_ratio=0.75, **kwargs):
        super().__init__(**kwargs)
        check_integer("width", width, 1)
        check_integer("patch_size", patch_size, 1)
        check_number("mask_ratio", mask_ratio, "(0, 1)")
        self.encoder, self.decoder, self.width = encoder, decoder, width
        self.patch_size, self.mask_ratio = patch_size, mask_ratio
        self.hidden_code = self.add_weight(name="hidden_code", shape=(width,), initializer="normal")

    def call(self, x, training=False):
        patches = self.patches(x)
        places = tf.range(patches.shape[1]) + tf.zeros_like(patches[:, :, 0], "int32")
        return tf.reduce_mean(self.encoder([patches, places], training=training), axis=1)

    def objective(self, batch, training):
        patches = tf.cast(self.patches(batch.x), tf.float32)
        guesses, is_hidden = self.guess(patches, self.draw_seed(training), training)
        errors = tf.reduce_mean((guesses - patches) ** 2, axis=2) * is_hidden
        errors = tf.reduce_sum(errors, axis=1) / tf.reduce_sum(is_hidden, axis=1)
        loss = weighted_mean(errors, batch.sample_weight)
        return Objective({"patch_loss": regularized(loss, self)})

    def patches(self, images):
        """The patches of images, row by row: `(batch, n, patch_size ** 2 * channels)`."""
        p, (_, height, width, channels) = self.patch_size, images.shape
        x = tf.reshape(images, (-1, height // p, p, width // p, p, channels))
        shape = (-1, height * width // p**2, p**2 * channels)
        return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), shape)

    def images(self, patches, shape):
        """The images of shape `(height, width, channels)` that `patches` were made of."""
        p, (height, width, channels) = self.patch_size, shape
        x = tf.reshape(patches, (-1, height // p, width // p, p, p, channels))
        return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, *shape))

    def guess(self, patches, seed, training=False):
        """All patches as the decoder guesses them, and which of them were hidden.

        Args:
            patches: float32 `(batch, n, size)`.
            seed: int64 `(2,)`, of the choice.
            training: as the objective is given it.

        Returns:
            float32 `(batch, n, size)`; float32 `(batch, n)`, 1 where it was hidden, else 0.
        """
        count = patches.shape[1]
        seen = max(1, round(count * (1 - self.mask_ratio)))
        order = tf.argsort(noise.uniform((tf.shape(patches)[0], count), seed), axis=1)
        rank = tf.argsort(order, axis=1)  # of each patch in that order
        places = order[:, :seen]
        codes = self.encoder([tf.gather(patches, places, batch_dims=1), places], training=training)
        hidden = tf.cast(self.hidden_code, codes.dtype) + tf.zeros_like(codes[:, :1])
        codes = tf.gather(tf.concat([codes, hidden], axis=1), tf.minimum(rank, seen), batch_dims=1)
        guesses = tf.cast(self.decoder(codes, training=training), tf.float32)
        return guesses, tf.cast(rank >= seen, tf.float32)

    def reconstruct(self, images, seed=0):
        """What is seen of images, the rest black, and the same with the hidden patches guessed.

        Args:
            images: float `(batch, height, width, channels)`.
            seed: int of at least 0, of the choice of patches.

        Returns:
            Two float32 numpy arrays of the images' shape.
        """
        images = np.asarray(images, "float32")
        patches = self.patches(tf.constant(images))
        guesses, is_hidden = self.guess(patches, (seed, 0))
        is_hidden = is_hidden[..., None]
        black = tf.reduce_min(patches)
        return tuple(
            self.images(is_hidden * there + (1 - is_hidden) * patches, images.shape[1:]).numpy()
            for there in (black, guesses)
        )
