"""A step that draws random numbers, and a model that makes images of them."""

import random

import keras
import numpy as np
import tensorflow as tf

from customstep import noise, replicas
from customstep.checks import as_array, check_integer, check_number
from customstep.step import StepModel

__all__ = ["ImageSampler", "NoiseToImage", "StochasticStep"]


@keras.saving.register_keras_serializable("customstep")
class StochasticStep(StepModel):
    """A `StepModel` whose objective draws noise: from `draw_seed`, which is part of the model.

    Training draws other noise in every step and on every replica, and a run that is resumed draws
    what it would have drawn. Evaluation of the same batches draws the same noise every time, by a
    batch's place in the data set, so that two evaluations differ by the weights alone, and leaves
    that of the training as it is.

    Example:

        class Denoiser(StochasticStep):
            terms = ("error",)

            def objective(self, batch, training):
                shift = noise.normal(tf.shape(batch.x), self.draw_seed(training))
                restored = self(batch.x + 0.1 * shift, training=training)
                return Objective({"error": tf.reduce_mean((restored - batch.x) ** 2)})
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seeds = keras.random.SeedGenerator()

    def draw_seed(self, training, use=0):
        """The seed of one draw of `customstep.noise`, or of several by `noise.split`.

        Args:
            training: as the objective is given it.
            use: int that tells apart the draws of one evaluation.

        Returns:
            int64 `(2,)`.
        """
        if training:
            return noise.draw_seed(self.seeds)
        return tf.stack([use + 2**32 * replicas.index(), tf.cast(self.examples, tf.int64)])


class ImageSampler:
    """What a model that makes images has, for `SampleGrid`, `Quality` and `customstep grid`.

    Attributes:
        latent_shape: of the noise that one image is made of.
        image_range: the `(low, high)` of images.
        num_classes: None, or the number of classes to choose from.
    """

    latent_shape: tuple
    image_range = (-1.0, 1.0)
    num_classes = None

    def generate(self, latents, labels=None):
        """The images that are made of some noise: by default what `predict` returns.

        Args:
            latents: float32 `(n, *latent_shape)`.
            labels: int32 `(n,)` where there are classes, else None.

        Returns:
            float32 numpy array `(n, height, width, channels)` in `image_range`.
        """
        inputs = latents if labels is None else [latents, labels]
        return self.predict(inputs, batch_size=256, verbose=0)

    def latents(self, n, seed=None, *, temperature=1.0):
        """Noise to make images of.

        Args:
            n: how many, at least 1.
            seed: int of at least 0; the same seed gives the same noise. None draws another one
                every time.
            temperature: the standard deviation of the noise, at least 0. Below 1 images are more
                typical and less varied (Kingma and Dhariwal 2018, arXiv:1807.03039, section 6).

        Returns:
            float32 numpy array `(n, *latent_shape)`, normal.

        Raises:
            ValueError: a number is out of its range.
        """
        check_integer("n", n, 1)
        check_number("temperature", temperature, "[0, inf)")
        seed = random.getrandbits(31) if seed is None else seed
        check_integer("seed", seed, 0, 2**63 - 1)
        return temperature * noise.normal((n, *self.latent_shape), (seed, 0)).numpy()

    def sample(self, n, *, seed=None, labels=None, temperature=1.0):
        """Generated images.

        Args:
            n: how many, at least 1.
            seed: int of at least 0; the same seed gives the same images. None draws others every
                time.
            labels: int `(n,)` in `[0, num_classes)`, where there are classes; None takes them in
                turn.
            temperature: as for `latents`.

        Returns:
            float32 numpy array `(n, height, width, channels)` in `image_range`.

        Raises:
            ValueError: `labels` do not fit, or a number is out of its range.
        """
        latents = self.latents(n, seed, temperature=temperature)
        return self.generate(latents, self._sample_labels(n, labels))

    def _sample_labels(self, n, labels):
        if self.num_classes is None and labels is None:
            return None
        if labels is None:
            return np.arange(n, dtype="int32") % self.num_classes
        labels = as_array("labels", labels)
        limit = self.num_classes or 0
        fits = labels.shape == (n,) and labels.dtype.kind in "iu"
        if not fits or not ((labels >= 0) & (labels < limit)).all():
            expected = f"{n} integers in [0, {limit})" if limit else "None, for it takes no labels"
            raise ValueError(
                f"The labels do not fit this {type(self).__name__}. Expected {expected}; received "
                f"{labels!r}. Correct the labels, or make the model with `num_classes`."
            )
        return labels.astype("int32")


class NoiseToImage(ImageSampler):
    """An `ImageSampler` whose `predict` takes noise, or `[noise, labels]`, and gives images."""

    def predict_step(self, data):
        latents, _, _ = keras.utils.unpack_x_y_sample_weight(data)  # `preprocess` is for images
        return self.postprocess(replicas.on_examples(self, latents))

    def postprocess(self, outputs):
        """Images as float32, held within `image_range`."""
        return tf.clip_by_value(tf.cast(outputs, tf.float32), *self.image_range)
