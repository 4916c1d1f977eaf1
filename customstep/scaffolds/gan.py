"""A GAN of my own.

    python my_model.py --smoke     # a few steps: does it run at all?
    python my_model.py             # the whole training; pictures are in runs/my_model
"""

import customstep
import keras
from customstep import losses, scripts
from keras import layers
from keras.optimizers import Adam

LATENT_DIM = 64  # length of the noise vector that an image is made from


def load_data(dataset, smoke):
    """Batches of images in [-1, 1], of a TFDS data set or a folder of images."""
    data = customstep.load_images(dataset, batch_size=32, image_size=(28, 28))
    return data.take(4) if smoke else data


def build_generator(channels):
    """Noise to an image in [-1, 1]. Change it, and what it makes has to fit the discriminator."""
    latents = keras.Input((LATENT_DIM,))
    x = layers.Reshape((7, 7, 64))(layers.Dense(7 * 7 * 64, activation="relu")(latents))
    x = layers.Conv2DTranspose(32, 4, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(channels, 4, strides=2, padding="same", activation="tanh")(x)
    return keras.Model(latents, x, name="generator")


def build_discriminator(channels):
    """An image to one number, a logit: no sigmoid at the end."""
    x = images = keras.Input((28, 28, channels))
    for filters in (32, 64):
        x = layers.LeakyReLU(0.2)(layers.Conv2D(filters, 4, strides=2, padding="same")(x))
    logit = layers.Dense(1, dtype="float32")(layers.Flatten()(x))
    return keras.Model(images, logit, name="discriminator")


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=10, out="runs/my_model")
    args = scripts.begin(parser, argv)
    data = load_data(args.dataset, args.smoke)
    channels = data.element_spec[0].shape[-1]
    networks = build_generator(channels), build_discriminator(channels)
    # `losses` has others; `penalties=[losses.R1(0.1)]` steadies a game that swings.
    model = customstep.GAN(*networks, LATENT_DIM, loss=losses.Hinge())
    model.compile({"discriminator": Adam(3e-4, 0.5), "generator": Adam(3e-4, 0.5)})
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    sheets = customstep.SampleGrid(args.out, seed=args.seed)
    history = model.fit(data, epochs=args.epochs, shuffle=False, callbacks=[resume, sheets])
    model.save(args.out / "model.keras")
    return history


if __name__ == "__main__":
    customstep.run(main)
