"""What does a training step do? A healthy one and three broken ones under `inspect` (R2).

    python examples/inspect_step.py             # the embedded Fashion-MNIST
    python examples/inspect_step.py --smoke     # fewer steps of training in between

It shows the report of a GAN, how its updates shrink against its weights as it trains, and what the
report says of three steps with common mistakes, all of which `fit` runs without a word. It leaves
no files and is soon over, so there is no `Resume` in it. Measured on two shared cores: 16 s; update
/ weight of the generator 1.6e-2 at first, 6.6e-3 after 600 steps.
"""

import argparse
import textwrap

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import tensorflow as tf
from customstep.inspection import inspect
from keras import layers
from keras.optimizers import Adam

LATENT_DIM = 16  # length of the noise vector that an image is made from
BATCH_SIZE = 32  # images in a step
STEPS = 300  # training between two reports
LEARNING_RATE = 1e-3  # of all networks


def load_data(dataset):
    """Shuffled batches of `(images, labels)`, images `(28, 28, 1)` in [-1, 1]."""
    size = None if dataset == "fashion_mini" else (28, 28)
    return customstep.load_images(dataset, batch_size=BATCH_SIZE, image_size=size)


def build_generator(channels):
    """Noise to images."""
    latents = keras.Input((LATENT_DIM,))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(128, use_bias=False)(latents)))
    x = layers.Dense(28 * 28 * channels, activation="tanh")(x)
    return keras.Model(latents, layers.Reshape((28, 28, channels))(x), name="generator")


def build_classifier(channels, outputs, name):
    """Images to logits, with dropout."""
    images = keras.Input((28, 28, channels))
    x = layers.LeakyReLU(0.2)(layers.Conv2D(16, 4, strides=4)(images))
    x = layers.Dropout(0.2)(layers.Flatten()(x))
    return keras.Model(images, layers.Dense(outputs)(x), name=name)


class TutorialGAN(keras.Model):
    """The step of many a tutorial: no `training=`, global noise, logs of the last batch."""

    def __init__(self, channels):
        super().__init__()
        self.generator = build_generator(channels)
        self.discriminator = build_classifier(channels, 1, "discriminator")
        self.d_optimizer = Adam(LEARNING_RATE)
        self.g_optimizer = Adam(LEARNING_RATE)

    def train_step(self, data):
        images = keras.utils.unpack_x_y_sample_weight(data)[0]
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        noise = tf.random.normal((tf.shape(images)[0], LATENT_DIM))
        with tf.GradientTape(persistent=True) as tape:
            fake = self.discriminator(self.generator(noise))
            real = self.discriminator(images)
            d_loss = loss(tf.ones_like(real), real) + loss(tf.zeros_like(fake), fake)
            g_loss = loss(tf.ones_like(fake), fake)
        ours, theirs = self.discriminator.trainable_weights, self.generator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, ours), ours))
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, theirs), theirs))
        return {"d_loss": d_loss, "g_loss": g_loss}


class FineTuning(keras.Model):
    """Freezes its features after it has listed what to train, and drops the sample weights."""

    def __init__(self, channels):
        super().__init__()
        self.features = build_classifier(channels, 32, "features")
        self.head = keras.Sequential([keras.Input((32,)), layers.Dense(10)])
        self.tuned = self.trainable_weights
        self.features.trainable = False
        self.tracker = keras.metrics.Mean(name="loss")

    def call(self, images, training=False):
        return self.head(self.features(images, training=training))

    def train_step(self, data):
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            logits = self(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.tuned), self.tuned))
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}


class CutGradient(customstep.StepModel):
    """Counts the wrong answers, which no weight can change by a little: argmax has no gradient."""

    terms = ("mistakes", "size")

    def objective(self, batch, training):
        logits = self(batch.x, training=training)
        wrong = tf.argmax(logits, axis=-1, output_type=tf.int32) != batch.y
        mistakes = tf.reduce_mean(tf.cast(wrong, tf.float32))
        return customstep.Objective({"mistakes": mistakes, "size": 0.1 * tf.reduce_mean(logits**2)})


def main(argv=None):
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--dataset", default="fashion_mini", help="a TFDS name or a folder")
    parser.add_argument("--seed", type=customstep.scripts.seed, default=0)
    parser.add_argument("--smoke", action="store_true", help="five steps of training")
    args = parser.parse_args(argv)
    steps = 5 if args.smoke else STEPS
    customstep.replicas.leave()  # a step is inspected on one device
    keras.utils.set_random_seed(args.seed)
    data = load_data(args.dataset)
    images, labels = next(iter(data))
    channels = images.shape[-1]
    discriminator = build_classifier(channels, 1, "discriminator")
    gan = customstep.GAN(build_generator(channels), discriminator, LATENT_DIM)
    gan.compile({"discriminator": Adam(LEARNING_RATE), "generator": Adam(LEARNING_RATE)})
    reports = {"GAN": inspect(gan, images)}
    print("\nUpdate / weight as it trains")
    for _ in range(2):
        gan.fit(data.take(steps), shuffle=False, verbose=0)
        ratios = (f"{u.name} {u.ratio:.1e}" for u in inspect(gan, images, verbose=False).updates)
        print(f"  after {gan.steps:4} steps: {', '.join(ratios)}")

    classifier = build_classifier(channels, 10, "classifier")
    weights = tf.linspace(0.0, 1.0, BATCH_SIZE)
    for model, batch in (
        (TutorialGAN(channels), images),
        (FineTuning(channels), (images, labels, weights)),
        (CutGradient(classifier.input, classifier.output), (images, labels)),
    ):
        model.compile()
        report = reports[type(model).__name__] = inspect(model, batch, verbose=False)
        print(f"\nWhat the report says of {report.model}")
        for finding in report.warnings:
            print(textwrap.indent(textwrap.fill(f"{finding.kind}: {finding}", 96), "  "))
    return reports


if __name__ == "__main__":
    customstep.run(main)
