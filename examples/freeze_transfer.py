"""Five new classes from 50 images: what to freeze, and what it saves (R7: partial freezing).

    python examples/freeze_transfer.py             # the embedded Fashion-MNIST
    python examples/freeze_transfer.py --smoke     # seconds: does it run at all?

A small convolutional net learns the classes 0 to 4, then 5 to 9 from ten images each in four ways:
with its stem frozen, unfrozen from the top down, trained in full, or from scratch. It prints which
variables stayed bit-equal, what a step costs with the stem frozen, and how well each way does;
`runs/freeze_transfer/movement.png` is how far layers moved. If killed, the same command resumes it.

Measured on two busy cores, in under four minutes: a step with the stem frozen takes 0.33 of a full
one. Mean accuracies of three draws: frozen 0.71, gradual 0.74, full 0.74, from scratch 0.70.
"""

import argparse
import pathlib
import timeit

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import numpy as np
import tensorflow as tf
from customstep import Unfreeze, scripts
from customstep.selection import paths
from customstep.templates import PartiallyFrozen
from keras import layers
from matplotlib.figure import Figure

FILTERS = (32, 64, 128)  # of the stem's three blocks, each of half the size of the one before
OLD_CLASSES, NEW_CLASSES = range(5), range(5, 10)
LABELS = 10  # labelled images of each new class
BATCH_SIZE = 25  # images in a step
PRETRAIN_EPOCHS = 5  # 200 steps each on the embedded data set
EPOCHS = 150  # two steps each, for 50 images
LEARNING_RATE = 2e-3  # of Adam
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
GRADUAL = {75: "stem/block3*", 100: "stem/block2*", 125: "stem/*"}  # epoch: what wakes
FREEZE = {"frozen": ["stem/*"], "gradual": ["stem/*"], "full": [], "scratch": []}


def load_data(dataset, split, classes, per_class=None, seed=0):
    """Images of some classes in [-1, 1], all or so many of each, and labels from 0 on."""
    data, rng = customstep.read_images(dataset, split), np.random.default_rng(seed)
    places = [rng.permutation(np.flatnonzero(data.labels == c))[:per_class] for c in classes]
    labels = np.repeat(np.arange(len(places)), [len(of_class) for of_class in places])
    order = rng.permutation(len(labels))
    return data.images[np.concatenate(places)[order]] / np.float32(127.5) - 1, labels[order]


def build_stem(shape):
    """Images to 128 features; 0.1 M weights."""
    stem = keras.Sequential([keras.Input(shape)], name="stem")
    for number, filters in enumerate(FILTERS, start=1):
        stem.add(layers.Conv2D(filters, 3, 2, "same", name=f"block{number}_conv"))
        stem.add(layers.BatchNormalization(momentum=0.9, name=f"block{number}_norm"))
        stem.add(layers.ReLU())
    stem.add(layers.GlobalAveragePooling2D())
    return stem


def build_classifier(shape, freeze, stem_weights=None):
    """A stem, as it was trained before, and a new head."""
    inputs, stem = keras.Input(shape), build_stem(shape)
    stem.set_weights(stem_weights or stem.get_weights())
    outputs = layers.Dense(5, name="head")(stem(inputs))
    model = PartiallyFrozen(inputs=inputs, outputs=outputs, freeze=freeze)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), LOSS, metrics=["accuracy"])
    return model


def movement(model, before):
    """Dict of variable path to how far it moved, relative to its length."""
    length, changes = np.linalg.norm, zip(paths(model), before, model.get_weights())
    return {names[0]: length(b - a) / max(length(a), length(b)) for names, a, b in changes}


def seconds(model, images, labels):
    """How long ten steps take."""
    batch = images[:BATCH_SIZE], labels[:BATCH_SIZE]
    return timeit.timeit(lambda: model.train_on_batch(*batch), number=10)


def draw(path, moved, accuracy):
    """Two panels: how far each layer moved, and how well each way does."""
    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    names = [name for name in moved["full"] if name.endswith(("kernel", "moving_mean"))]
    for number, way in enumerate(("frozen", "gradual", "full")):
        heights = [moved[way][name] for name in names]
        bars = left.bar(np.arange(len(names)) + 0.27 * (number - 1), heights, 0.25, label=way)
        left.bar_label(bars, ["" if height else "0" for height in heights])
    left.set_xticks(range(len(names)), [name.replace("/", "\n") for name in names], fontsize=7)
    left.set_title("how far a variable moved, relative to its length")
    left.legend(loc="upper left")
    for number, (way, of_seeds) in enumerate(accuracy.items()):
        right.bar(number, np.mean(of_seeds), color=f"C{number}", alpha=0.6)
        right.plot([number] * len(of_seeds), of_seeds, "k.")
    right.set_xticks(range(len(accuracy)), accuracy)
    right.set_title("accuracy (dots: seeds)")
    customstep.pictures.save_figure(path, figure)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="fashion_mini", help="a TFDS name or a folder")
    parser.add_argument("--out", type=scripts.folder, help="default: runs/freeze_transfer")
    parser.add_argument("--seed", type=scripts.seed, default=0)
    parser.add_argument("--fresh", action="store_true", help="start over, rather than go on")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything")
    args = parser.parse_args(argv)
    args.out = args.out or pathlib.Path("runs/freeze_transfer" + "_smoke" * args.smoke)
    pace, seeds, rounds, epochs = (20, 1, 2, 1) if args.smoke else (1, 3, 16, PRETRAIN_EPOCHS)
    gradual = {epoch // pace: what for epoch, what in GRADUAL.items()}
    tf.get_logger().setLevel("ERROR")  # it takes the tracing of many models for a mistake
    resuming = dict(fresh=args.fresh, configuration={"dataset": args.dataset, "seed": args.seed})
    keras.utils.set_random_seed(args.seed)
    images, labels = load_data(args.dataset, "train", OLD_CLASSES, 20 if args.smoke else None)
    old = build_classifier(images.shape[1:], freeze=())
    resume = customstep.Resume(args.out / "checkpoints/old", **resuming)
    old.fit(images, labels, BATCH_SIZE, epochs, verbose=2, callbacks=[resume])
    knowledge = old.get_layer("stem").get_weights()
    test = load_data(args.dataset, "test", NEW_CLASSES)
    accuracy, moved, models = {way: [] for way in FREEZE}, {}, {}
    for seed in range(args.seed, args.seed + seeds):
        few = load_data(args.dataset, "train", NEW_CLASSES, LABELS, seed)
        for way, freeze in FREEZE.items():
            keras.utils.set_random_seed(seed)
            stem_weights = None if way == "scratch" else knowledge
            model = models[way] = build_classifier(images.shape[1:], freeze, stem_weights)
            before = model.get_weights()
            unfreeze = Unfreeze(gradual if way == "gradual" else {})
            resume = customstep.Resume(args.out / f"checkpoints/{way}_{seed}", **resuming)
            model.fit(*few, BATCH_SIZE, EPOCHS // pace, verbose=0, callbacks=[unfreeze, resume])
            accuracy[way].append(model.evaluate(*test, 250, verbose=0)[1])
            moved[way] = movement(model, before)
            print(f"seed {seed}, {way}: accuracy {accuracy[way][-1]:.3f}")
    for name, distance in moved["frozen"].items():
        print(f"{name:32}", f"moved by {distance:.3f}" if distance else "bit-equal")
    pair = models["frozen"], models["full"]  # a resumed run times them anew
    turns = [[seconds(model, images, labels) for model in pair] for _ in range(rounds)]
    ratio = float(np.median([frozen / full for frozen, full in turns[1:]]))  # the first traces
    print(f"A step with the stem frozen takes {ratio:.2f} of a full one.")
    for way, of_seeds in accuracy.items():
        print(f"{way:8} accuracy {np.mean(of_seeds):.3f}", np.round(of_seeds, 3))
    draw(args.out / "movement.png", moved, accuracy)
    return {"accuracy": accuracy, "moved": moved, "ratio": ratio}


if __name__ == "__main__":
    customstep.run(main)
