"""Images without labels first, a few labels last: SimCLR (R1: several networks, R5: views).

    python examples/simclr.py             # the embedded Fashion-MNIST
    python examples/simclr.py --smoke     # seconds: does it run at all?

An encoder learns from 10,000 images without labels that two views of one image are alike. A linear
probe reads its codes, with the labels of 200 images; it is compared with the same two networks
trained from these labels alone. In `runs/simclr/` it leaves `views.png`, `history.png` and the
model, `simclr.keras`. If killed, the same command resumes it.

Measured on two busy cores in bfloat16: 141 s in all. 200 labels alone: 74.9 % of the test images
right; a linear probe of the codes with the same labels: 77.7 %.

Chen et al. 2020 (arXiv:2002.05709).
"""

import functools

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import numpy as np
import tensorflow as tf
from customstep import Batch, grids, pictures, processing, scripts
from customstep.schedules import LinearDecay
from keras import layers
from keras.optimizers import Adam

LABELS = 200  # images whose class is known
BATCH_SIZE = 250  # images in a step, two views of each
EPOCHS = 25  # 40 steps each on the embedded data set
LEARNING_RATE = 2e-3  # falling to 0 over the second half
TEMPERATURE = 0.2
CODES = 4 * 4 * 128  # numbers in a code
VIEW = [
    processing.RandomResizedCrop(0.4),
    processing.RandomFlip(),
    processing.RandomIntensity(0.5, 0.3),
]


def load_data(dataset, smoke):
    """`(images, labels)` to train on and to test with, images `(28, 28, channels)` in [0, 1]."""
    read = functools.partial(customstep.read_images, dataset, image_size=(28, 28))
    train, test = read(split="train"), read(split="test")
    count = 2 * BATCH_SIZE if smoke else None
    return [(one.images[:count] / np.float32(255), one.labels[:count]) for one in (train, test)]


def build_encoder(channels):
    x = images = keras.Input((28, 28, channels))
    for filters, strides in ((32, 2), (64, 2), (128, 2)):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(images, layers.Activation("linear", dtype="float32")(layers.Flatten()(x)))


def build_head(units, hidden=None):
    """Codes to some numbers."""
    x = codes = keras.Input((CODES,))
    if hidden:
        x = layers.Dense(hidden, activation="relu")(x)
    return keras.Model(codes, layers.Dense(units, dtype="float32")(x))


def build_classifier(channels):
    """The encoder and the probe as one network, to be trained from the labels alone."""
    encoder, probe = build_encoder(channels), build_head(10)
    return customstep.StepModel(inputs=encoder.input, outputs=probe(encoder.output))


def draw_views(images, path):
    """Images, and two views of each as the encoder is shown them."""
    shown = {"images": images}
    for seed in (1, 2):
        views = processing.augmented(Batch(tf.constant(images)), VIEW, (seed, 0)).x
        shown[f"view {seed}"] = np.clip(views, 0, 1)
    sheet = grids.side_by_side(shown, cols=1, scale=3, image_range=(0, 1))
    pictures.save_png(path, sheet, {"model": "simclr"})


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=EPOCHS, out="runs/simclr")
    args = scripts.begin(parser, argv)
    (x, y), test = load_data(args.dataset, args.smoke)
    is_known = np.arange(len(x)) < LABELS  # the data are in no order
    weights = np.where(is_known, len(x) / LABELS, 0).astype("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    schedule = LinearDecay(LEARNING_RATE, steps=args.epochs * -(-len(x) // BATCH_SIZE))

    classifier = build_classifier(x.shape[-1])
    epochs = 1 if args.smoke else 60
    classifier.compile("adam", loss, ["accuracy"])
    resume = customstep.Resume(args.out / "checkpoints/labels", **args.resuming)
    classifier.fit(x[:LABELS], y[:LABELS], 20, epochs, verbose=0, callbacks=[resume])
    alone = classifier.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
    print(f"{LABELS} labels alone: {alone:.1%} of the test images right", flush=True)

    model = customstep.SimCLR(
        build_encoder(x.shape[-1]),
        build_head(64, hidden=128),
        build_head(10),
        augment=VIEW,
        temperature=TEMPERATURE,
    )
    optimizers = {"contrastive": Adam(), "probe": Adam(5e-3)}
    model.compile(optimizers, loss, ["accuracy"], schedule_lr={"contrastive": schedule})
    history = model.fit(
        x,
        y,
        BATCH_SIZE,
        args.epochs,
        sample_weight=weights,
        validation_data=test,
        verbose=2,
        callbacks=[customstep.Resume(args.out / "checkpoints/simclr", **args.resuming)],
    )
    model.save(args.out / "simclr.keras")
    draw_views(x[:12], args.out / "views.png")
    customstep.plot_history(history, args.out / "history.png", title="SimCLR")
    probed = history.history["val_accuracy"][-1]
    print(f"{LABELS} labels on the codes: {probed:.1%}. The pictures are in {args.out}.")
    return alone, probed


if __name__ == "__main__":
    customstep.run(main)
