"""An encoder that learns by guessing the hidden patches of images."""

import keras
import numpy as np
import tensorflow as tf

from customstep import noise
from customstep.checks import check_integer, check_number
from customstep.losses import regularized, weighted_mean
from customstep.patches import from_patches, to_patches
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
        self.encoder, self.decoder, self.width = encoder, decoder, width
        self.patch_size, self.mask_ratio = patch_size, mask_ratio
        self._check_arguments()
        self.hidden_code = self.add_weight((width,), "normal", name="hidden_code")

    def guess(self, patches, seed, training=False):
        """All patches as the decoder guesses them, and which of them were hidden.

        Args:
            patches: float `(batch, n, size)`.
            seed: int64 `(2,)`, of the choice.
            training: as the objective is given it.

        Returns:
            float32 `(batch, n, size)`; float32 `(batch, n)`, 1 where it was hidden, else 0.
        """
        count = patches.shape[1]
        seen = min(count - 1, max(1, round(count * (1 - self.mask_ratio))))
        order = tf.argsort(noise.uniform((tf.shape(patches)[0], count), seed), axis=1)
        rank = tf.argsort(order, axis=1)  # of each patch in that order
        places = order[:, :seen]
        codes = self.encoder([tf.gather(patches, places, batch_dims=1), places], training=training)
        hidden = tf.cast(self.hidden_code, codes.dtype) + tf.zeros_like(codes[:, :1])
        codes = tf.gather(tf.concat([codes, hidden], axis=1), tf.minimum(rank, seen), batch_dims=1)
        guesses = self.decoder(codes, training=training)
        return tf.cast(guesses, tf.float32), tf.cast(rank >= seen, tf.float32)

    def objective(self, batch, training):
        patches = to_patches(tf.cast(batch.x, tf.float32), self.patch_size)
        guesses, is_hidden = self.guess(patches, self.draw_seed(training), training)
        errors = tf.reduce_mean((guesses - patches) ** 2, axis=2) * is_hidden
        errors = tf.reduce_sum(errors, axis=1) / tf.reduce_sum(is_hidden, axis=1)
        loss = weighted_mean(errors, batch.sample_weight)
        return Objective({"patch_loss": regularized(loss, self)})

    def call(self, x, training=False):
        patches = to_patches(x, self.patch_size)
        places = tf.range(patches.shape[1]) + tf.zeros_like(patches[:, :, 0], "int32")
        return tf.reduce_mean(self.encoder([patches, places], training=training), axis=1)

    def reconstruct(self, images, seed=0):
        """What is seen of images, the rest black, and the same with the hidden patches guessed.

        Args:
            images: float `(batch, height, width, channels)`.
            seed: int of at least 0, of the choice of patches.

        Returns:
            Two float32 numpy arrays of the images' shape.
        """
        images = np.asarray(images, "float32")
        patches = to_patches(tf.constant(images), self.patch_size)
        guesses, is_hidden = self.guess(patches, (seed, 0))
        is_hidden = is_hidden[..., None]
        black = tf.reduce_min(patches)
        shown = (is_hidden * there + (1 - is_hidden) * patches for there in (black, guesses))
        return tuple(from_patches(one, self.patch_size, images.shape[1:]).numpy() for one in shown)

    def _check_arguments(self):
        check_integer("width", self.width, 1)
        check_integer("patch_size", self.patch_size, 1)
        check_number("mask_ratio", self.mask_ratio, "(0, 1)")
