"""Clothes out of noise: a diffusion model that is told the class (R1, R6: steps of one's own).

    python examples/diffusion.py             # the embedded Fashion-MNIST
    python examples/diffusion.py --smoke     # seconds: does it run at all?

In `runs/diffusion/` it leaves `grid.png`, one class a row, and the model, `diffusion.keras`. If
killed, the same command resumes it. Draw more images from the model, and measure them:

    customstep grid runs/diffusion/diffusion.keras --rows 10 --cols 10 --seed 1
    customstep evaluate runs/diffusion/diffusion.keras

Measured on two cores in bfloat16: 317 s in all. Frechet distance 6.1, precision .88, recall
.56 to the test images; 85 % of the images are recognized as the class asked for. The sheet is
`assets/diffusion_grid.png`.
"""

import math

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import numpy as np
from customstep import grids, pictures, scripts
from customstep.schedules import LinearDecay
from keras import layers, ops

BATCH_SIZE = 64  # images in a step
EPOCHS = 40  # 157 steps each on the embedded data set
LEARNING_RATE = 2e-3  # falling to 0 over the second half
WIDTHS = (32, 64)  # channels at 14 and at 7 pixels
SAMPLING_STEPS = 20  # from noise to an image
EMA_DECAY = 0.998  # memory of the averaged network, about 500 steps


def load_data(dataset, smoke):
    """Shuffled batches of `(images, labels)`, images in [-1, 1], and the names of the classes."""
    images = customstep.read_images(dataset, image_size=(28, 28))
    data = images.batches(BATCH_SIZE)
    return (data.take(4) if smoke else data), images.class_names


def block(x, condition, filters):
    """Two convolutions around a normalization that the angle and the class scale and shift."""
    skip = x if x.shape[-1] == filters else layers.Conv2D(filters, 1)(x)
    x = layers.Conv2D(filters, 3, padding="same")(x)
    x = layers.GroupNormalization(8)(x)
    scale, shift = (layers.Reshape((1, 1, filters))(layers.Dense(filters)(condition)) for _ in "ab")
    x = layers.Add()([x, layers.Multiply()([x, scale]), shift])
    x = layers.Conv2D(filters, 3, padding="same")(layers.Activation("swish")(x))
    return layers.Add()([x, skip])


def build_network(channels, num_classes):
    """A U-Net: `[mixtures, angles, labels]` to velocities."""
    mixture, angle = keras.Input((28, 28, channels)), keras.Input((1,))
    label = keras.Input((), dtype="int32")
    waves = [wave(k * angle) for wave in (ops.sin, ops.cos) for k in (1.0, 2.0, 4.0, 8.0)]
    condition = layers.Concatenate()([*waves, layers.Embedding(num_classes, 16)(label)])
    condition = layers.Dense(64, activation="swish")(condition)
    fine, coarse = WIDTHS
    outer = layers.Conv2D(fine, 4, strides=2, padding="same")(mixture)
    above = block(outer, condition, fine)
    x = layers.Conv2D(coarse, 3, strides=2, padding="same")(above)
    for _ in range(3):
        x = block(x, condition, coarse)
    x = layers.Conv2DTranspose(fine, 4, strides=2, padding="same")(x)
    x = block(layers.Concatenate()([x, above]), condition, fine)
    x = layers.Conv2DTranspose(16, 4, strides=2, padding="same", activation="swish")(x)
    x = layers.Conv2D(channels, 3, padding="same")(layers.Concatenate()([x, mixture]))
    return keras.Model([mixture, angle, label], layers.Activation("linear", dtype="float32")(x))


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=EPOCHS, out="runs/diffusion")
    args = scripts.begin(parser, argv)
    data, class_names = load_data(args.dataset, args.smoke)
    channels, num_classes = data.element_spec[0].shape[-1], len(class_names)

    diffusion = customstep.Diffusion(
        build_network(channels, num_classes),
        (28, 28, channels),
        sampling_steps=SAMPLING_STEPS,
        ema_decay=EMA_DECAY,
        num_classes=num_classes,
    )
    schedule = LinearDecay(LEARNING_RATE, steps=args.epochs * len(data))
    diffusion.compile("adam", schedule_lr=schedule, steps_per_execution=math.gcd(len(data), 20))
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    training = dict(epochs=args.epochs, shuffle=False, verbose=2, callbacks=[resume])
    history = diffusion.fit(data, **training)
    diffusion.save(args.out / "diffusion.keras")

    labels = np.repeat(np.arange(10) % num_classes, 10)
    images = diffusion.sample(100, seed=args.seed, labels=labels)
    sheet = grids.contact_sheet(images, 10, 10, scale=3)
    pictures.save_png(args.out / "grid.png", sheet, {"model": "diffusion", "seed": args.seed})
    print(f"The samples are in {args.out / 'grid.png'}.")
    return history


if __name__ == "__main__":
    customstep.run(main)
