"""What a step of `StepModel` costs beside a hand-written `train_step` of the same algorithm.

    python -m tests.benchmarks.step

Both train the same networks on the same batches; the two take turns in one process. A ratio below
1 means that ours is the faster one.
"""

import time

from customstep import GAN, StepModel  # isort: skip  (first: it keeps TensorFlow quiet)

import keras
import numpy as np
import tensorflow as tf

from tests.benchmarks import timing


class HandWrittenGAN(keras.Model):
    """The algorithm of `customstep.GAN`, as one writes it by hand for a single purpose."""

    def __init__(self, generator, discriminator, latent_dim, ema_decay=0.999):
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.latent_dim = latent_dim
        self.ema_decay = ema_decay
        self.ema_generator = keras.models.clone_model(generator)
        self.ema_generator.set_weights(generator.get_weights())
        self.noise = keras.random.SeedGenerator()
        self.discriminator_loss = keras.metrics.Mean(name="discriminator_loss")
        self.generator_loss = keras.metrics.Mean(name="generator_loss")

    def compile(self, discriminator_optimizer, generator_optimizer):
        super().compile()
        self.discriminator_optimizer = discriminator_optimizer
        self.generator_optimizer = generator_optimizer

    @property
    def metrics(self):
        return [self.discriminator_loss, self.generator_loss]

    def train_step(self, images):
        size = tf.shape(images)[0]
        latents = keras.random.normal((size, self.latent_dim), seed=self.noise)
        with tf.GradientTape() as tape:
            fake = self.generator(latents, training=True)
            real_logits = self.discriminator(images, training=True)
            fake_logits = self.discriminator(fake, training=True)
            loss = tf.reduce_mean(tf.nn.softplus(-real_logits))
            loss += tf.reduce_mean(tf.nn.softplus(fake_logits))
        variables = self.discriminator.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.discriminator_optimizer.apply_gradients(zip(gradients, variables))
        self.discriminator_loss.update_state(loss, sample_weight=size)

        latents = keras.random.normal((size, self.latent_dim), seed=self.noise)
        with tf.GradientTape() as tape:
            fake = self.generator(latents, training=True)
            loss = tf.reduce_mean(tf.nn.softplus(-self.discriminator(fake, training=True)))
        variables = self.generator.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.generator_optimizer.apply_gradients(zip(gradients, variables))
        self.generator_loss.update_state(loss, sample_weight=size)

        for average, weight in zip(self.ema_generator.weights, self.generator.weights):
            average.assign(self.ema_decay * average + (1 - self.ema_decay) * weight)
        return {metric.name: metric.result() for metric in self.metrics}


def tiny_networks():
    layers = keras.layers
    generator = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, activation="relu"),
            layers.Dense(4),
            layers.Reshape((2, 2, 1)),
        ]
    )
    discriminator = keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            layers.Flatten(),
            layers.Dense(8, activation="relu"),
            layers.Dense(1),
        ]
    )
    return generator, discriminator, 4, (2, 2, 1)


def dcgan_networks():
    layers = keras.layers
    generator = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(7 * 7 * 128, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Reshape((7, 7, 128)),
            layers.Conv2DTranspose(64, 4, 2, "same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2DTranspose(1, 4, 2, "same", activation="tanh"),
        ]
    )
    discriminator = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(48, 4, 2, "same"),
            layers.LeakyReLU(0.2),
            layers.Conv2D(96, 4, 2, "same"),
            layers.LeakyReLU(0.2),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    return generator, discriminator, 64, (28, 28, 1)


def gan_pair(networks):
    generator, discriminator, latent_dim, shape = networks()
    ours = GAN(generator, discriminator, latent_dim)
    ours.compile({"discriminator": _adam(), "generator": _adam()})
    generator, discriminator, latent_dim, shape = networks()
    theirs = HandWrittenGAN(generator, discriminator, latent_dim)
    theirs.compile(_adam(), _adam())
    return ours, theirs, shape


def classifier_pair():
    def model(cls):
        inputs = keras.Input((8,))
        x = keras.layers.Dense(16, activation="relu")(inputs)
        model = cls(inputs=inputs, outputs=keras.layers.Dense(1)(x))
        model.compile(_adam(), "mse", metrics=["mae"])
        return model

    return model(StepModel), model(keras.Model)


def _adam():
    return keras.optimizers.Adam(3e-4, beta_1=0.5)


def compare(name, ours, theirs, data, rounds):
    def run(model):
        return timing.seconds(
            lambda callbacks: model.fit(data, verbose=0, shuffle=False, callbacks=callbacks)
        )

    for model in (ours, theirs):
        model.fit(data.take(3), verbose=0, shuffle=False)  # trace
    started = time.perf_counter()
    middle, low, high = timing.ratios(lambda: run(ours), lambda: run(theirs), rounds)
    steps = int(data.cardinality())
    print(
        f"{name}: {middle:.3f} of the hand-written step (quartiles {low:.3f} to {high:.3f}; "
        f"{rounds} x 2 x {steps} steps in {time.perf_counter() - started:.0f} s)",
        flush=True,
    )


def images(shape, batch_size, steps):
    data = np.random.default_rng(0).uniform(-1, 1, (batch_size, *shape)).astype("float32")
    return tf.data.Dataset.from_tensors(data).repeat(steps)


def main():
    x = tf.random.stateless_normal((32, 8), (0, 0))
    pairs = tf.data.Dataset.from_tensors((x, x[:, :1])).repeat(300)
    compare("classifier, 161 weights, batch 32", *classifier_pair(), pairs, rounds=20)
    ours, theirs, shape = gan_pair(tiny_networks)
    compare("GAN, tiny, batch 16", ours, theirs, images(shape, 16, 300), rounds=20)
    ours, theirs, shape = gan_pair(dcgan_networks)
    compare("GAN, DCGAN 28x28, batch 32", ours, theirs, images(shape, 32, 60), rounds=12)


if __name__ == "__main__":
    main()
