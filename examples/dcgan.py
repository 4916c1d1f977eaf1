"""A GAN that draws clothes after two minutes on two cores (R1: two models trained together).

    python examples/dcgan.py             # the embedded Fashion-MNIST
    python examples/dcgan.py --smoke     # seconds: does it run at all?
    python examples/dcgan.py --dataset mnist --epochs 4 --out runs/mnist

In `runs/dcgan/` it leaves `grid.png` and `training.gif` to look at, a sheet of every epoch,
`history.csv` and `history.png`, and the model, `gan.keras`. If killed, the same command resumes it.
Draw more from it:

    customstep grid runs/dcgan/gan.keras --rows 10 --cols 10 --seed 1

Measured on two shared cores that compute in bfloat16: 117 s in all, 18 ms a step. The losses end
near 1.17 (discriminator) and 1.07 (generator); the picture is `assets/dcgan_grid.png`.

The networks are small DCGANs (Radford, Metz and Chintala 2016, arXiv:1511.06434). At this budget
many small steps beat few large ones, hence the batch of 16.
"""

import argparse
import pathlib

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import tensorflow as tf
from customstep import grids, losses, pictures, precision, scripts
from customstep.schedules import LinearDecay
from keras import layers

LATENT_DIM = 64  # length of the noise vector that an image is made from
BATCH_SIZE = 16  # images in a step
EPOCHS = 8  # 625 steps each on the embedded data set
LEARNING_RATE = 5e-4  # of both networks, falling to 0 over the second half
BETAS = dict(beta_1=0.5, beta_2=0.99)  # Adam's memories; the usual, longer ones make GANs swing
LABEL_SMOOTHING = 0.1  # real images are to be called 90 % real, which keeps D modest
EMA_DECAY = 0.998  # memory of the averaged generator, about 500 steps
IMAGE_SIZE = (28, 28)  # height and width


def load_data(dataset, smoke):
    """Shuffled batches of `(images, labels)`, images in [-1, 1]."""
    data = customstep.load_images(dataset, batch_size=BATCH_SIZE, image_size=IMAGE_SIZE)
    return data.take(4) if smoke else data


def build_generator(channels):
    """Noise `(64,)` to images `(28, 28, channels)` in [-1, 1]; 0.5 M weights."""
    return keras.Sequential(
        [
            keras.Input((LATENT_DIM,)),
            layers.Dense(7 * 7 * 128, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Reshape((7, 7, 128)),
            layers.Conv2DTranspose(48, 4, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2DTranspose(16, 4, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(channels, 3, padding="same"),
            layers.Activation("tanh", dtype="float32"),
        ],
        name="generator",
    )


def build_discriminator(channels):
    """Images to one logit, "how real is it?"; 0.2 M weights."""
    return keras.Sequential(
        [
            keras.Input((*IMAGE_SIZE, channels)),
            layers.Conv2D(32, 4, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Conv2D(64, 4, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Conv2D(128, 4, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Flatten(),
            layers.Dense(1, dtype="float32"),
        ],
        name="discriminator",
    )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="fashion_mini", help="a TFDS name or a folder")
    parser.add_argument("--epochs", type=scripts.whole(1), default=EPOCHS)
    parser.add_argument("--out", type=scripts.folder, help="default: runs/dcgan")
    parser.add_argument("--seed", type=scripts.seed, default=0)
    parser.add_argument("--fresh", action="store_true", help="start over, rather than go on")
    parser.add_argument("--smoke", action="store_true", help="two epochs of four steps")
    args = parser.parse_args(argv)
    args.out = args.out or pathlib.Path("runs/dcgan" + "_smoke" * args.smoke)
    epochs = 2 if args.smoke else args.epochs

    keras.utils.set_random_seed(args.seed)
    policy = "mixed_bfloat16" if precision.has_fast_bfloat16() else "float32"
    keras.mixed_precision.set_global_policy(policy)
    data = load_data(args.dataset, args.smoke)
    images, _ = next(iter(data))
    channels = images.shape[-1]

    gan = customstep.GAN(
        build_generator(channels),
        build_discriminator(channels),
        LATENT_DIM,
        loss=losses.NonSaturating(LABEL_SMOOTHING),
        ema_decay=EMA_DECAY,
    )
    gan.compile(
        {
            "discriminator": keras.optimizers.Adam(LEARNING_RATE, **BETAS),
            "generator": keras.optimizers.Adam(LEARNING_RATE, **BETAS),
        },
        schedule_lr=LinearDecay(LEARNING_RATE, steps=epochs * len(data)),
    )
    resuming = dict(fresh=args.fresh, configuration={"dataset": args.dataset, "seed": args.seed})
    resume = customstep.Resume(args.out / "checkpoints", **resuming)
    history = gan.fit(
        data,
        epochs=epochs,
        shuffle=False,  # the data set shuffles itself
        callbacks=[
            resume,
            customstep.SampleGrid(args.out, seed=args.seed),
            keras.callbacks.CSVLogger(args.out / "history.csv"),
        ],
    )
    gan.save(args.out / "gan.keras")
    customstep.plot_history(history, args.out / "history.png", title="DCGAN")
    sheet = grids.contact_sheet(gan.sample(64, seed=args.seed), 8, 8, scale=3)
    pictures.save_png(
        args.out / "grid.png", sheet, {"model": "dcgan", "step": gan.steps, "seed": args.seed}
    )
    print(f"The samples are in {args.out / 'grid.png'}, the history in {args.out}.")
    return history


if __name__ == "__main__":
    customstep.run(main)
