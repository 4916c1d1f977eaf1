"""Photographs into negatives and back, learned without a pair (R1: several models together).

    python examples/cycle_gan.py             # the embedded Fashion-MNIST
    python examples/cycle_gan.py --smoke     # seconds: does it run at all?

Domain A are clothes as they are, domain B the negatives of other clothes. CycleGAN is told which
images are of which domain and no more. As the true way from one to the
other is known here, its error can be measured. In `runs/cycle_gan/` it leaves `grid.png` and the
model, `cycle_gan.keras`. If killed, the same command resumes it.

Measured on two busy cores in bfloat16: 249 s in all. A to B is wrong by 5.7 % of the range on
average; B to A 88.6 % of the images are recognized as what they were: `assets/cycle_gan.png`.

Zhu et al. 2017 (arXiv:1703.10593).
"""

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import numpy as np
import tensorflow as tf
from customstep import features, grids, pictures, scripts
from customstep.layers import FusedBatchNormalization
from customstep.schedules import LinearDecay
from keras import layers
from keras.optimizers import Adam

BATCH_SIZE = 32  # images of each domain in a step
EPOCHS = 15  # 156 steps each on the embedded data set
LEARNING_RATE = 1e-3  # falling to 0 over the second half
IDENTITY_WEIGHT = 0.0  # what is in the domain already looks like nothing in the other one


def translated(images):
    """The true way from A to B: black for white."""
    return -images


def load_data(dataset, smoke):
    """Batches `(images of A, images of B)` in [-1, 1], no clothes in both; and test images of A."""
    train, test = (
        customstep.read_images(dataset, split, image_size=(28, 28)).images / np.float32(127.5) - 1
        for split in ("train", "test")
    )
    half = BATCH_SIZE * 4 if smoke else len(train) // 2
    data = tf.data.Dataset.from_tensor_slices((train[:half], translated(train[half : 2 * half])))
    data = data.shuffle(half, seed=0, reshuffle_each_iteration=True)
    return data.batch(BATCH_SIZE, drop_remainder=True), test


def build_generator(channels, name):
    """Images to images, convolutions all the way: what is near stays near."""
    x = images = keras.Input((28, 28, channels))
    for filters in (32, 64):
        x = layers.Conv2D(filters, 4, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(FusedBatchNormalization(momentum=0.9)(x))
    for _ in range(2):
        y = layers.Conv2D(64, 3, padding="same", use_bias=False)(x)
        x = layers.Add()([x, layers.ReLU()(FusedBatchNormalization(momentum=0.9)(y))])
    for filters in (32, 16):
        x = layers.Conv2DTranspose(filters, 4, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(FusedBatchNormalization(momentum=0.9)(x))
    x = layers.Conv2D(channels, 3, padding="same")(x)
    return keras.Model(images, layers.Activation("tanh", dtype="float32")(x), name=name)


def build_judge(channels):
    """Images to logits of patches."""
    x = images = keras.Input((28, 28, channels))
    for filters in (32, 64):
        x = layers.LeakyReLU(0.2)(layers.Conv2D(filters, 4, strides=2, padding="same")(x))
    return keras.Model(images, layers.Conv2D(1, 4, padding="same", dtype="float32")(x))


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=EPOCHS, out="runs/cycle_gan")
    args = scripts.begin(parser, argv)
    data, test = load_data(args.dataset, args.smoke)
    channels = test.shape[-1]

    model = customstep.CycleGAN(
        *(build_generator(channels, name) for name in ("to_b", "to_a")),
        *(build_judge(channels) for _ in "ba"),
        identity_weight=IDENTITY_WEIGHT,
    )
    adams = {name: Adam(beta_1=0.5) for name in ("generators", "discriminators")}
    model.compile(adams, schedule_lr=LinearDecay(LEARNING_RATE, steps=args.epochs * len(data)))
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    history = model.fit(data, epochs=args.epochs, shuffle=False, verbose=2, callbacks=[resume])
    model.save(args.out / "cycle_gan.keras")

    wanted = translated(test)
    found = model.predict(test, batch_size=500, verbose=0)
    back = model.to_a.predict(wanted, batch_size=500, verbose=0)
    error = np.mean(np.abs(found - wanted)) / 2
    seen = [features.extract(images, image_range=(-1, 1)).labels for images in (back, test)]
    kept = np.mean(seen[0] == seen[1])
    print(
        f"A to B: wrong by {error:.1%} of the range on average. B to A: {kept:.1%} of the images "
        f"are recognized as what they were."
    )
    columns = {"A": test, "A to B": found, "true": wanted, "B to A": back}
    sheet = grids.side_by_side({k: v[:12] for k, v in columns.items()}, cols=1, scale=3)
    pictures.save_png(args.out / "grid.png", sheet, {"model": "cycle_gan", "seed": args.seed})
    print(f"The picture is {args.out / 'grid.png'}.")
    return history


if __name__ == "__main__":
    customstep.run(main)
