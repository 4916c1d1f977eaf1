"""Two networks trained against each other (R1: several models trained together)."""

import keras
import numpy as np
import tensorflow as tf

from customstep import noise, variables
from customstep.adversaries import (
    check_arrays,
    check_images,
    check_labels,
    check_networks,
    check_not_empty,
    inputs_of,
)
from customstep.averages import follow, frozen_copy
from customstep.checks import check_integer, check_number, check_range
from customstep.losses import (
    AdversarialLoss,
    GeneratorPenalty,
    NonSaturating,
    Penalty,
    regularized,
)
from customstep.step import Objective, StepModel, Update
from customstep.stochastic import NoiseToImage, StochasticStep

__all__ = ["GAN"]

_BLOCK = 256  # images that are judged at once


@keras.saving.register_keras_serializable("customstep")
class GAN(NoiseToImage, StochasticStep):
    """A generator and a discriminator that learn by turns.

    A step is `discriminator_steps` updates of the discriminator, then one of the generator, each
    under a tape of its own and with an optimizer of its own. An update changes nothing of the
    other network, moving statistics and random states included (a dropout layer therefore repeats
    its mask within a step). `predict` and `sample` use an
    exponential moving average of the generator, which makes better images than the generator of
    the last step. Networks that take `[input, labels]` make it label-conditional.

    Goodfellow et al. 2014 (arXiv:1406.2661), algorithm 1; Mirza and Osindero 2014
    (arXiv:1411.1784) for the labels; Yazici et al. 2018 (arXiv:1806.04498) for the average.

    Sample weights are those of the real images in the discriminator's loss; penalties and the
    generator's loss leave them out.

    Use another template where images are translated rather than made from noise.

    Args:
        generator: built network from latents `(batch, latent_dim)`, or `[latents, labels]`, to
            images `(batch, height, width, channels)`.
        discriminator: built network from images, or `[images, labels]`, to logits `(batch, 1)`
            or, where it judges patches, `(batch, height, width, 1)`. No sigmoid.
        latent_dim: the length of a latent vector, which is drawn from the standard normal.
        loss: a pair of losses, such as `losses.NonSaturating()`.
        penalties: terms added to the objectives, such as `[losses.R1(0.1), losses.ModeSeeking()]`:
            a `Penalty` to the discriminator's, a `GeneratorPenalty` to the generator's.
        discriminator_steps: updates of the discriminator for each one of the generator. The batch
            is cut into as many parts, so that each update sees images of its own (Arjovsky et al.
            2017, arXiv:1701.07875, algorithm 1): pass batches that many times as large.
        ema_decay: of the generator's average, in `[0, 1)`; 0 keeps the last step's generator.
        num_classes: None, or the number of classes of a label-conditional GAN. Its data are
            `(images, labels)` with integer labels `(batch,)` in `[0, num_classes)`.
        image_range: the `(low, high)` of the data set and of the generator's output.
        **kwargs: `name` and `dtype`, as for any layer.

    Raises:
        ValueError: the networks do not fit one another or the arguments.

    Example:

        gan = GAN(generator, discriminator, latent_dim=64)
        gan.compile({"discriminator": Adam(3e-4, 0.5), "generator": Adam(3e-4, 0.5)})
        gan.fit(images, batch_size=32, epochs=10)
        gan.sample(16, seed=0)  # float32 (16, height, width, channels)
    """

    def __init__(
        self,
        generator,
        discriminator,
        latent_dim,
        *,
        loss=None,
        penalties=(),
        discriminator_steps=1,
        ema_decay=0.999,
        num_classes=None,
        image_range=(-1.0, 1.0),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.generator = generator
        self.discriminator = discriminator
        self.latent_dim = latent_dim
        self.loss = NonSaturating() if loss is None else loss
        self.penalties = tuple(keras.tree.flatten(penalties))
        self.discriminator_steps = discriminator_steps
        self.ema_decay = ema_decay
        self.num_classes = num_classes
        self.image_range = image_range
        self._check_arguments()
        self.ema_decay, self.image_range = float(ema_decay), tuple(image_range)
        latents = keras.KerasTensor((None, latent_dim))
        labels = None if num_classes is None else keras.KerasTensor((None,), "int32")
        self._image_shape = check_networks(generator, discriminator, latents, labels)
        self.ema_generator = frozen_copy(generator)
        self(inputs_of(latents, labels))

    @property
    def latent_shape(self):
        return (self.latent_dim,)

    @property
    def terms(self):
        of_discriminator = (penalty.name for penalty in self._penalties(Penalty))
        of_generator = (penalty.name for penalty in self._penalties(GeneratorPenalty))
        return ("discriminator_loss", *of_discriminator, "generator_loss", *of_generator)

    def updates(self):
        slices = self.discriminator_steps
        return (
            Update(
                "discriminator",
                self.discriminator_objective,
                self.discriminator.trainable_variables,
                times=self.discriminator_steps,
                slices=slices,
            ),
            Update(
                "generator",
                self.generator_objective,
                self.generator.trainable_variables,
                slices=slices,
            ),
        )

    def discriminator_objective(self, batch, training):
        """How well the discriminator tells real images from generated ones, and its penalties."""
        real, labels = self._images(batch), self._labels(batch)
        if (fake := batch.made.get("fake")) is None:
            latents = self._draw_latents(batch.size, training, use=0)
            with variables.without_effects(self.generator.variables):  # it has its own update
                fake = self.generator(inputs_of(latents, labels), training=training)
        fake = tf.stop_gradient(tf.cast(fake, tf.float32))
        real_logits = self.judge(real, labels, training)
        fake_logits = self.judge(fake, labels, training)

        def critic(images):
            with variables.without_effects(self.discriminator.variables):
                return self.discriminator(inputs_of(images, labels), training=training)

        loss = self.loss.discriminator(real_logits, fake_logits, batch.sample_weight)
        terms = {"discriminator_loss": regularized(loss, self.discriminator)}
        for number, penalty in enumerate(self._penalties(Penalty)):
            seed = self.draw_seed(training, use=2 + number)
            terms[penalty.name] = penalty(critic, real, fake, seed)
        return Objective(terms, made={"real_logits": real_logits})

    def generator_objective(self, batch, training):
        """How well the generator deceives the discriminator."""
        labels = self._labels(batch)
        latents = self._draw_latents(batch.size, training, use=1)
        fake = self.generator(inputs_of(latents, labels), training=training)
        with variables.without_effects(self.discriminator.variables):  # so has it
            fake_logits = self.judge(fake, labels, training)
            real_logits = None
            if self.loss.relativistic:
                real_logits = self.judge(self._images(batch), labels, training)
        loss = self.loss.generator(real_logits, fake_logits)
        terms = {"generator_loss": regularized(loss, self.generator)}
        for penalty in self._penalties(GeneratorPenalty):
            terms[penalty.name] = penalty(latents, fake, labels)
        return Objective(terms, made={"fake": fake})

    def judge(self, images, labels, training):
        """The discriminator's logits of real or generated images.

        Override it for what is to happen to both, such as an augmentation. Penalties look at the
        discriminator itself.

        Args:
            images: float32 `(batch, height, width, channels)`.
            labels: int `(batch,)`, their classes, or None.
            training: as the objectives are given it.

        Returns:
            float `(batch, ...)`.
        """
        return self.discriminator(inputs_of(images, labels), training=training)

    def sample(self, n, *, seed=None, labels=None, temperature=1.0, best_of=1):
        """As in `ImageSampler`; every image may be the best of several.

        Args:
            best_of: how many images to make for each one that is returned; see `best_latents`.
            n, seed, labels, temperature: as there.
        """
        check_integer("n", n, 1)
        labels = self._sample_labels(n, labels)
        best = dict(labels=labels, temperature=temperature, best_of=best_of)
        return self.generate(self.best_latents(n, seed, **best), labels)

    def best_latents(self, n, seed=None, *, labels=None, temperature=1.0, best_of=4):
        """Noise whose images the discriminator finds the most real, each among several.

        Better images and a little less variety, at the price of making so many. Azadi et al. 2019
        (arXiv:1810.06758) accept an image with a probability that the discriminator gives it; here
        the one of `best_of` images is kept whose logit is the highest, or that of its patches on
        average.

        Args:
            n, seed, temperature: as for `latents`.
            labels: as for `sample`.
            best_of: how many to choose from, at least 1; 1 chooses nothing.

        Returns:
            float32 numpy array `(n, latent_dim)`.

        Raises:
            ValueError: `labels` do not fit, or a number is out of its range.
        """
        check_integer("n", n, 1)
        check_integer("best_of", best_of, 1)
        labels = self._sample_labels(n, labels)
        latents = self.latents(n * best_of, seed, temperature=temperature)
        if best_of == 1:
            return latents
        labels = None if labels is None else np.repeat(labels, best_of)
        logits = []
        for start in range(0, len(latents), _BLOCK):
            part = slice(start, start + _BLOCK)
            classes = None if labels is None else labels[part]
            scores = self.judge(self.generate(latents[part], classes), classes, training=False)
            logits.append(tf.reshape(tf.cast(scores, tf.float32), (len(scores), -1)))
        logits = tf.reduce_mean(tf.concat(logits, axis=0), axis=1).numpy().reshape(n, best_of)
        best = np.where(np.isnan(logits), -np.inf, logits).argmax(axis=1)
        return latents[np.arange(n) * best_of + best]

    def after_step(self, batch):
        """Moves the average; its step counts from `compile` on, and over saving and loading."""
        step = self.optimizers["generator"].iterations
        follow(self.ema_generator, self.generator, self.ema_decay, step)

    def compile(self, optimizer, loss=None, metrics=None, **kwargs):
        """As in `StepModel`, with an optimizer for "discriminator" and one for "generator".

        Raises:
            ValueError: a loss or metrics are passed; a GAN has no targets to compare with.
        """
        of_predictions = {"loss": loss, "metrics": metrics}
        for name in ("loss_weights", "weighted_metrics"):
            of_predictions[name] = kwargs.get(name)
        if received := {k: v for k, v in of_predictions.items() if v is not None}:
            raise ValueError(
                "A GAN has no predictions that a compiled loss or metric could judge. Expected "
                f"neither; received {received}. Pass the adversarial loss to the constructor: "
                "`GAN(..., loss=losses.Hinge())`."
            )
        super().compile(optimizer, **kwargs)

    def fit(self, x=None, y=None, *args, **kwargs):
        """As in `StepModel`.

        Raises:
            ValueError: there are no data; or arrays hold labels outside of `[0, num_classes)`, or
                images, of which the first are looked at, outside of `image_range`. These two are
                not looked at in a data set, or where a class has a `preprocess` of its own.
        """
        check_not_empty(x)
        if type(self).preprocess is StepModel.preprocess:  # else it may make good ones of them
            ignored = self._nonfinite is not None
            check_arrays(x, y, self.image_range, self.num_classes, nonfinite=ignored)
        return super().fit(x, y, *args, **kwargs)

    def call(self, inputs, training=False):
        return self.ema_generator(inputs, training=training)

    def _penalties(self, kind):
        return [penalty for penalty in self.penalties if isinstance(penalty, kind)]

    def _draw_latents(self, n, training, use):
        return noise.normal((n, self.latent_dim), self.draw_seed(training, use))

    def _images(self, batch):
        """The real images of a preprocessed batch, float32."""
        check_images(batch.x, self._image_shape, self.image_range)
        return tf.cast(batch.x, tf.float32)

    def _labels(self, batch):
        if self.num_classes is None:
            return None
        check_labels(batch.y, self.num_classes)
        return tf.reshape(batch.y, (-1,))  # a column, as Keras's own data sets have it, is alike

    def _check_arguments(self):
        check_integer("latent_dim", self.latent_dim, 1)
        check_integer("discriminator_steps", self.discriminator_steps, 1)
        check_number("ema_decay", self.ema_decay, "[0, 1)")
        check_range("image_range", self.image_range)
        if self.num_classes is not None:
            check_integer("num_classes", self.num_classes, 1)
        if not isinstance(self.loss, AdversarialLoss):
            raise TypeError(
                f"`loss` is not a pair of losses. Expected an object such as `losses.Hinge()`; "
                f"received {self.loss!r}. Make one, or derive your own from "
                "`losses.AdversarialLoss`."
            )
        for penalty in self.penalties:
            if not isinstance(penalty, Penalty | GeneratorPenalty):
                raise TypeError(
                    f"`penalties` holds something else. Expected objects such as `losses.R1()`; "
                    f"received {penalty!r}. Make an object of its class, or derive your own from "
                    "`losses.Penalty` or `losses.GeneratorPenalty`."
                )
        if len(set(self.terms)) < len(self.terms):
            raise ValueError(
                f"Two terms have the same name. Expected `penalties` of different names, none of "
                f"them that of a loss; received {self.terms}. Leave one out, or give your own "
                "another `name`."
            )
