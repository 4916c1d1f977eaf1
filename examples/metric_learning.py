"""Which clothes are alike? An embedding for classes it has never seen (R4: losses of one's own).

    python examples/metric_learning.py             # the embedded Fashion-MNIST
    python examples/metric_learning.py --smoke     # seconds: does it run at all?

An embedding is trained on seven classes and asked about the three others: is the nearest neighbour
of an image of its class? In `runs/metric_learning/` it leaves `neighbours.png`, images and the five
that are nearest, and the model, `embedding.keras`. If killed, the same command resumes it.

MEASURED

Khosla et al. 2020 (arXiv:2004.11362).
"""

import functools

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import numpy as np
from customstep import MetricLearning, grids, pictures, scripts
from customstep.schedules import LinearDecay
from keras import layers

UNSEEN = (2, 4, 6)  # classes kept out of the training: pullovers, coats and shirts
BATCH_SIZE = 100  # images in a step
EPOCHS = 10  # 70 steps each on the embedded data set
LEARNING_RATE = 2e-3  # falling to 0 over the second half
NEIGHBOURS = 5  # shown in the picture


def load_data(dataset, smoke):
    """Images `(28, 28, channels)` in [0, 1] and labels: seen ones to train on, unseen ones."""
    read = functools.partial(customstep.read_images, dataset, image_size=(28, 28))
    train, test = read(split="train"), read(split="test")
    seen, unseen = ~np.isin(train.labels, UNSEEN), np.isin(test.labels, UNSEEN)
    count = 3 * BATCH_SIZE if smoke else None
    x, y = train.images[seen][:count] / np.float32(255), train.labels[seen][:count]
    return (x, y), (test.images[unseen] / np.float32(255), test.labels[unseen])


def build_model(channels):
    """Images to points in 64 dimensions."""
    x = images = keras.Input((28, 28, channels))
    for filters, strides in ((32, 2), (64, 2), (128, 2)):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    points = layers.Dense(64, dtype="float32")(layers.Flatten()(x))
    return MetricLearning(inputs=images, outputs=points)


def nearest(points, count):
    """The `count` nearest other points of each, by the angle between them: int `(n, count)`."""
    points = points.reshape(len(points), -1)
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    similarities = points @ points.T
    np.fill_diagonal(similarities, -np.inf)
    return np.argsort(-similarities, axis=1)[:, :count]


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=EPOCHS, out="runs/metric_learning")
    args = scripts.begin(parser, argv)
    (x, y), (unseen_x, unseen_y) = load_data(args.dataset, args.smoke)

    model = build_model(x.shape[-1])
    steps = args.epochs * -(-len(x) // BATCH_SIZE)
    model.compile("adam", schedule_lr=LinearDecay(LEARNING_RATE, steps=steps))
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    history = model.fit(x, y, BATCH_SIZE, args.epochs, verbose=2, callbacks=[resume])
    model.save(args.out / "embedding.keras")

    found = {
        "pixels": nearest(unseen_x, NEIGHBOURS),
        "embedding": nearest(model.predict(unseen_x, verbose=0), NEIGHBOURS),
    }
    for name, neighbours in found.items():
        right = np.mean(unseen_y[neighbours[:, 0]] == unseen_y)
        print(f"{name}: the nearest of {len(unseen_x)} unseen clothes is of its class: {right:.1%}")
    queries = np.concatenate([np.flatnonzero(unseen_y == one)[:4] for one in UNSEEN])
    rows = np.concatenate([queries[:, None], found["embedding"][queries]], axis=1)
    sheet = grids.contact_sheet(
        unseen_x[rows.ravel()], len(rows), NEIGHBOURS + 1, scale=3, image_range=(0, 1)
    )
    pictures.save_png(args.out / "neighbours.png", sheet, {"model": "metric_learning"})
    print(f"{args.out / 'neighbours.png'} shows images on the left and what is nearest.")
    return history


if __name__ == "__main__":
    customstep.run(main)
