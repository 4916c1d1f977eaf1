"""A GAN that draws ten kinds of clothes after two minutes on two cores (R1: two models together).

    python examples/dcgan.py             # the embedded Fashion-MNIST
    python examples/dcgan.py --smoke     # seconds: does it run at all?
    python examples/dcgan.py --dataset fashion_mnist --epochs 4 --out runs/full
    python examples/dcgan.py --dataset fashion_mnist --epochs 16 --width 4 --out runs/wide

In `runs/dcgan/` it leaves `grid.png` and `training.gif` to look at, sheets of the epochs,
`history.csv` and `history.png`, and the model, `gan.keras`. If killed, the same command resumes it.
Draw more from it, and measure how good it is:

    customstep grid runs/dcgan/gan.keras --rows 10 --cols 10 --seed 1
    customstep evaluate runs/dcgan/gan.keras

Measured on two shared cores that compute in bfloat16: 116 s in all. The losses end near 0.69
(discriminator) and 1.11 (generator); the picture is `assets/dcgan_grid.png`. On the whole of
Fashion-MNIST, 4 epochs took 136 s (`assets/dcgan_120s.png`), 20 took 681 s (`dcgan_600s.png`) and
16 of the wider networks, whose steps are 1.6 times as long, 1,034 s on a busy machine.

The networks are small DCGANs (Radford, Metz and Chintala 2016, arXiv:1511.06434) that are told the
class: the generator by scaling its noise, the discriminator by projection (Miyato and Koyama 2018,
arXiv:1802.05637). What else makes the minutes count is one line each below; the measurements are
in `tests/benchmarks/README.md`.
"""

import math

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
from customstep import grids, losses, pictures, scripts
from customstep.layers import FusedBatchNormalization, MinibatchDeviation
from customstep.schedules import LinearDecay
from keras import layers

LATENT_DIM = 64  # length of the noise vector that an image is made from
BATCH_SIZE = 32  # images in a step
EPOCHS = 24  # 312 steps each on the embedded data set
WIDTH = 3  # of both networks; 4 has four thirds of the channels, for longer runs
LEARNING_RATE = 1.2e-3  # of both networks at this width, falling to 0 over the second half
BETAS = dict(beta_1=0.0, beta_2=0.99)  # Adam's memories; the usual, longer ones make GANs swing
MODE_SEEKING = 0.5  # weight of the term that keeps the images of a class different
EMA_DECAY = 0.998  # memory of the averaged generator, about 500 steps
IMAGE_SIZE = (28, 28)  # height and width


def load_data(dataset, smoke):
    """Shuffled batches of `(images, labels)`, images in [-1, 1], and the names of the classes."""
    images = customstep.read_images(dataset, image_size=IMAGE_SIZE)
    data = images.batches(BATCH_SIZE)
    return (data.take(4) if smoke else data), images.class_names


def scaled(channels, width):
    """So many channels at this width, rounded up to a multiple of 8."""
    return 8 * math.ceil(channels * width / WIDTH / 8)


def build_generator(channels, num_classes, width):
    """Noise `(64,)` and a label to an image `(28, 28, channels)` in [-1, 1]; 0.7 M weights."""
    latents, label = keras.Input((LATENT_DIM,)), keras.Input((), dtype="int32")
    near_one = keras.initializers.RandomNormal(1.0, 0.5)
    scale = layers.Embedding(num_classes, LATENT_DIM, embeddings_initializer=near_one)(label)
    shift = layers.Embedding(num_classes, LATENT_DIM)(label)
    x = layers.Concatenate()([layers.Multiply()([latents, scale]), shift])
    x = layers.Dense(7 * 7 * scaled(96, width), use_bias=False)(x)
    x = layers.ReLU()(FusedBatchNormalization(momentum=0.9)(x))
    x = layers.Reshape((7, 7, scaled(96, width)))(x)
    for filters in (scaled(n, width) for n in (32, 16)):
        x = layers.Conv2DTranspose(filters, 4, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(FusedBatchNormalization(momentum=0.9)(x))
    x = layers.Conv2D(channels, 3, padding="same")(x)
    images = layers.Activation("tanh", dtype="float32")(x)
    return keras.Model([latents, label], images, name="generator")


def build_discriminator(channels, num_classes, width):
    """An image and a label to one logit, "how real is it, as one of these?"; 0.4 M weights."""
    images, label = keras.Input((*IMAGE_SIZE, channels)), keras.Input((), dtype="int32")
    x = images
    for filters in (scaled(n, width) for n in (24, 48, 96)):
        x = layers.LeakyReLU(0.2)(layers.Conv2D(filters, 4, strides=2, padding="same")(x))
    x = layers.Flatten()(x)
    x = layers.Concatenate()([x, MinibatchDeviation()(x)])
    x = layers.LeakyReLU(0.2)(layers.Dense(scaled(192, width))(x))
    of_class = layers.Embedding(num_classes, x.shape[-1], embeddings_initializer="zeros")(label)
    of_class = layers.Dot(1, dtype="float32")([x, of_class])
    logits = layers.Add(dtype="float32")([layers.Dense(1, dtype="float32")(x), of_class])
    return keras.Model([images, label], logits, name="discriminator")


def build_gan(channels, num_classes, steps, steps_per_execution, width=WIDTH):
    """The GAN, compiled for so many steps; it returns to Python after `steps_per_execution`."""
    gan = customstep.OnePassGAN(
        build_generator(channels, num_classes, width),
        build_discriminator(channels, num_classes, width),
        LATENT_DIM,
        loss=losses.Hinge(),
        penalties=[losses.ModeSeeking(MODE_SEEKING)],
        ema_decay=EMA_DECAY,
        num_classes=num_classes,
    )
    gan.compile(
        {who: keras.optimizers.Adam(**BETAS) for who in ("discriminator", "generator")},
        schedule_lr=LinearDecay(LEARNING_RATE * math.sqrt(WIDTH / width), steps=steps),
        steps_per_execution=steps_per_execution,
    )
    return gan


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=EPOCHS, out="runs/dcgan")
    parser.add_argument("--width", type=scripts.whole(1), default=WIDTH, help="of the networks")
    args = scripts.begin(parser, argv)
    args.resuming["configuration"]["width"] = args.width
    data, class_names = load_data(args.dataset, args.smoke)
    channels, num_classes = data.element_spec[0].shape[-1], len(class_names)
    steps = args.epochs * len(data)

    gan = build_gan(channels, num_classes, steps, math.gcd(len(data), 24), args.width)
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    history = gan.fit(
        data,
        epochs=args.epochs,
        shuffle=False,  # the data set shuffles itself
        callbacks=[
            resume,
            customstep.SampleGrid(args.out, cols=10, every=2, seed=args.seed),
            keras.callbacks.CSVLogger(args.out / "history.csv"),
        ],
    )
    gan.save(args.out / "gan.keras")
    customstep.plot_history(history, args.out / "history.png", title="DCGAN")
    labels = [n // 10 % num_classes for n in range(100)]  # a row is a class
    sheet = grids.contact_sheet(gan.sample(100, seed=args.seed, labels=labels), 10, 10, scale=3)
    pictures.save_png(
        args.out / "grid.png", sheet, {"model": "dcgan", "step": gan.steps, "seed": args.seed}
    )
    print(f"The samples are in {args.out / 'grid.png'}, the history in {args.out}.")
    return history


if __name__ == "__main__":
    customstep.run(main)
