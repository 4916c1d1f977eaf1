"""Two networks trained against each other (R1: several models trained together)."""

import random

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
from customstep.checks import as_array, check_integer, check_number, check_range
from customstep.losses import AdversarialLoss, GeneratorPenalty, NonSaturating, Penalty
from customstep.step import Objective, StepModel, Update

__all__ = ["GAN"]


@keras.saving.register_keras_serializable("customstep")
class GAN(StepModel):
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
        self.ema_generator = _frozen_copy(generator)
        self.seeds = keras.random.SeedGenerator()
        self(inputs_of(latents, labels))

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
        real_logits = self.discriminator(inputs_of(real, labels), training=training)
        fake_logits = self.discriminator(inputs_of(fake, labels), training=training)

        def critic(images):
            with variables.without_effects(self.discriminator.variables):
                return self.discriminator(inputs_of(images, labels), training=training)

        loss = self.loss.discriminator(real_logits, fake_logits, batch.sample_weight)
        terms = {"discriminator_loss": _regularized(loss, self.discriminator)}
        for number, penalty in enumerate(self._penalties(Penalty)):
            seed = self._draw_seed(training, use=2 + number)
            terms[penalty.name] = penalty(critic, real, fake, seed)
        return Objective(terms)

    def generator_objective(self, batch, training):
        """How well the generator deceives the discriminator."""
        labels = self._labels(batch)
        latents = self._draw_latents(batch.size, training, use=1)
        fake = self.generator(inputs_of(latents, labels), training=training)
        with variables.without_effects(self.discriminator.variables):  # so has it
            fake_logits = self.discriminator(inputs_of(fake, labels), training=training)
            real_logits = None
            if self.loss.relativistic:
                real = self._images(batch)
                real_logits = self.discriminator(inputs_of(real, labels), training=training)
        loss = self.loss.generator(real_logits, fake_logits)
        terms = {"generator_loss": _regularized(loss, self.generator)}
        for penalty in self._penalties(GeneratorPenalty):
            terms[penalty.name] = penalty(latents, fake, labels)
        return Objective(terms, made={"fake": fake})

    def after_step(self, batch):
        """Moves the average: w <- w - (1 - decay) (w - w'), with a shorter memory at the start.

        The decay at step t is at most (1 + t) / (10 + t), as in TensorFlow's moving averages, so
        that the first weights, which know nothing, are soon forgotten. t counts from `compile`
        on, and over saving and loading.
        """
        t = tf.cast(self.optimizers["generator"].iterations, tf.float32)
        rate = 1 - tf.minimum(self.ema_decay, (1 + t) / (10 + t))
        for average, weight in zip(self.ema_generator.weights, self.generator.weights):
            if tf.as_dtype(weight.dtype).is_floating:
                average.value.assign_sub(tf.cast(rate, weight.dtype) * (average - weight))
            else:  # a counter
                average.assign(weight)

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

    def predict_step(self, data):
        latents, _, _ = keras.utils.unpack_x_y_sample_weight(data)  # `preprocess` is for images
        return self.postprocess(self(latents, training=False))

    def postprocess(self, outputs):
        """Images as float32, held within `image_range`."""
        return tf.clip_by_value(tf.cast(outputs, tf.float32), *self.image_range)

    def latents(self, n, seed=None):
        """Latent vectors to make images of.

        Args:
            n: how many, at least 1.
            seed: int of at least 0; the same seed gives the same vectors. None draws others every
                time.

        Returns:
            float32 numpy array `(n, latent_dim)`, standard normal.

        Raises:
            ValueError: a number is out of its range.
        """
        check_integer("n", n, 1)
        seed = random.getrandbits(31) if seed is None else seed
        check_integer("seed", seed, 0, 2**63 - 1)
        return noise.normal((n, self.latent_dim), (seed, 0)).numpy()

    def sample(self, n, *, seed=None, labels=None):
        """Generated images.

        Args:
            n: how many, at least 1.
            seed: int of at least 0; the same seed gives the same images. None draws others every
                time.
            labels: int `(n,)` in `[0, num_classes)`, where the GAN is conditional; None takes the
                classes in turn.

        Returns:
            float32 numpy array `(n, height, width, channels)` in `image_range`.

        Raises:
            ValueError: `labels` do not fit, or a number is out of its range.
        """
        latents = self.latents(n, seed)
        return self.predict(inputs_of(latents, self._sample_labels(n, labels)), 256, verbose=0)

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
                f"The labels do not fit this GAN. Expected {expected}; received {labels!r}. "
                "Correct the labels, or make the GAN with `num_classes`."
            )
        return labels.astype("int32")

    def _penalties(self, kind):
        return [penalty for penalty in self.penalties if isinstance(penalty, kind)]

    def _draw_seed(self, training, use):
        if training:
            return noise.draw_seed(self.seeds)
        # Evaluation draws the same noise every time, by its place in the data set, and leaves
        # that of the training alone.
        return tf.stack([tf.constant(use, tf.int64), tf.cast(self.examples, tf.int64)])

    def _draw_latents(self, n, training, use):
        return noise.normal((n, self.latent_dim), self._draw_seed(training, use))

    def _images(self, batch):
        """The real images of a preprocessed batch, float32."""
        check_images(batch.x, self._image_shape, self.image_range)
        return tf.cast(batch.x, tf.float32)

    def _labels(self, batch):
        if self.num_classes is None:
            return None
        check_labels(batch.y, self.num_classes)
        return batch.y

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


def _regularized(loss, network):
    """The loss and what the network's own regularizers add, as in a compiled loss."""
    return loss + keras.ops.sum(network.losses) if network.losses else loss


def _frozen_copy(network):
    """A copy of a built network with the same weights, which no optimizer trains."""
    config = network.get_config()
    copy = type(network).from_config({**config, "name": f"{network.name}_ema"})
    if not copy.built:
        copy.build_from_config(network.get_build_config())
    copy.set_weights(network.get_weights())
    copy.trainable = False
    return copy
