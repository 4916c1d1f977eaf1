"""A denoiser judged by a network's features beside its pixels (R4: custom losses and metrics).

    python examples/perceptual_denoiser.py             # the embedded Fashion-MNIST
    python examples/perceptual_denoiser.py --smoke     # seconds: does it run at all?

The mean of all images that the noise may hide, a blur, has the least squared error. The perceptual
loss (Johnson et al. 2016, arXiv:1603.08155, equation 2) compares what a frozen classifier sees in
the denoised and clean image. Metrics: PSNR, and how often a judge, a second classifier, is right.

Measured on two busy cores in bfloat16: 409 s in all. In three runs of each variant the term raised
what is recognized from 63 to 71 % and cost 0.5 dB of PSNR (17.2 to 16.7): outlines are sharper,
textures checkered. See `runs/perceptual_denoiser/grid.png`. If killed, the same command resumes it.
"""

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import numpy as np
from customstep import grids, pictures, scripts
from keras import layers, ops

NOISE = 0.7  # standard deviation of the noise on pixels in [0, 1]
WEIGHTS = {"pixel loss": 0.0, "+ perceptual": 1.0}  # of the perceptual term, in each variant
RUNS = 3  # of each variant, from one seed on
BATCH_SIZE = 50  # images in a step
EPOCHS = 5  # of every network, 200 steps each on the embedded data set
LEARNING_RATE = 2e-3  # of a denoiser, falling to 0 over the second half
IMAGE_SIZE = 28  # height and width
HIDDEN = dict(padding="same", activation="relu")  # all convolutions but the last


class PSNR(keras.metrics.MeanSquaredError):
    """The peak signal-to-noise ratio of a whole set of images in [0, 1], in decibels."""

    def result(self):
        return -10 * ops.log10(super().result())


class Denoiser(customstep.StepModel):
    """Its data are noisy images and `{"image": clean images, "label": classes}`."""

    terms = ("pixel", "perceptual", "feature_distance")

    def __init__(self, network, loss_network, judge, weight):
        super().__init__()
        self.network, self.weight = network, weight
        self.loss_network, self.judge = loss_network, judge
        loss_network.trainable = judge.trainable = False
        self.psnr = PSNR(name="psnr")  # Keras lists, resets and aggregates what is kept here
        self.recognized = keras.metrics.SparseCategoricalAccuracy(name="recognized")

    def call(self, x, training=False):
        return self.network(x, training=training)

    def objective(self, batch, training):
        clean, labels = batch.y["image"], batch.y["label"]
        denoised = self(batch.x, training=training)
        # `training=False`, because what is frozen would still drop out.
        features = (self.loss_network(images, training=False) for images in (denoised, clean))
        distance = sum(ops.mean((found - wanted) ** 2) for found, wanted in zip(*features))
        self.psnr.update_state(clean, denoised)
        self.recognized.update_state(labels, self.judge(denoised, training=False))
        terms = {"pixel": ops.mean((denoised - clean) ** 2), "perceptual": self.weight * distance}
        return customstep.Objective(terms, logs={"feature_distance": distance})


def load_data(dataset, split, smoke, rng):
    """Noisy images, and what a `Denoiser` is to find in them."""
    images, labels, _ = customstep.read_images(dataset, split, image_size=(IMAGE_SIZE, IMAGE_SIZE))
    clean = images[: 4 * BATCH_SIZE if smoke else None] / np.float32(255)
    noisy = clean + NOISE * rng.standard_normal(clean.shape, dtype="float32")
    return noisy, {"image": clean, "label": labels[: len(clean)]}


def build_classifier(channels, width):
    """Images to the logits of ten classes; and the features that a perceptual loss compares."""
    images = keras.Input((IMAGE_SIZE, IMAGE_SIZE, channels))
    x = layers.MaxPooling2D()(layers.Conv2D(width, 3, **HIDDEN)(images))
    edges = layers.Conv2D(2 * width, 3, **HIDDEN)(x)
    x = layers.BatchNormalization()(layers.MaxPooling2D()(edges))
    parts = layers.Conv2D(4 * width, 3, **HIDDEN)(x)
    x = layers.Dropout(0.5)(layers.Flatten()(parts))
    features = [layers.Activation("linear", dtype="float32")(x) for x in (edges, parts)]
    logits = layers.Dense(10, dtype="float32")(x)
    return customstep.StepModel(images, logits), keras.Model(images, features)


def build_denoiser(channels):
    """Noisy images to images in [0, 1]."""
    noisy = keras.Input((IMAGE_SIZE, IMAGE_SIZE, channels))
    fine = layers.Conv2D(32, 4, strides=2, **HIDDEN)(noisy)
    x = layers.Conv2D(64, 3, strides=2, **HIDDEN)(fine)
    x = layers.Conv2DTranspose(32, 4, strides=2, **HIDDEN)(layers.Conv2D(64, 3, **HIDDEN)(x))
    x = layers.Conv2D(32, 3, **HIDDEN)(layers.Concatenate()([x, fine]))
    x = layers.Conv2DTranspose(channels, 4, strides=2, padding="same")(x)
    return keras.Model(noisy, layers.Activation("sigmoid", dtype="float32")(x))


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=EPOCHS, out="runs/perceptual_denoiser")
    args = scripts.begin(parser, argv)
    runs = 1 if args.smoke else RUNS
    rng = np.random.default_rng(args.seed)
    x, y = load_data(args.dataset, "train", args.smoke, rng)
    test_x, test_y = load_data(args.dataset, "test", args.smoke, rng)
    training = dict(batch_size=BATCH_SIZE, epochs=args.epochs, verbose=2)
    steps = args.epochs * len(x) // BATCH_SIZE
    decay = customstep.schedules.LinearDecay(LEARNING_RATE, steps=steps)
    (classifier, loss_network), (judge, _) = (build_classifier(x.shape[-1], n) for n in (16, 24))
    for name, one in (("classifier", classifier), ("judge", judge)):
        one.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        resume = customstep.Resume(args.out / f"checkpoints/{name}", **args.resuming)
        one.fit(y["image"], y["label"], **training, callbacks=[resume])
    results, shown = {name: [] for name in WEIGHTS}, {"noisy": test_x.clip(0, 1)}
    for seed in range(args.seed, args.seed + runs):
        for name, weight in WEIGHTS.items():
            keras.utils.set_random_seed(seed)
            denoiser = Denoiser(build_denoiser(x.shape[-1]), loss_network, judge, weight)
            denoiser.compile("adam", schedule_lr=decay)
            resume = customstep.Resume(args.out / f"checkpoints/{weight}_{seed}", **args.resuming)
            denoiser.fit(x, y, **training, callbacks=[resume])
            results[name].append(denoiser.evaluate(test_x, test_y, verbose=0, return_dict=True))
            shown[name] = denoiser.predict(test_x, verbose=0)
    print(f"{'':14}PSNR (dB)       recognized (%)")
    for name, logs in results.items():
        runs = np.array([(one["psnr"], 100 * one["recognized"]) for one in logs])
        print(f"{name:14}{'   '.join(map('{:5.2f} +- {:.2f}'.format, runs.mean(0), runs.std(0)))}")
    first = [np.argmax(test_y["label"] == label) for label in range(10)]  # of every class
    groups = {name: images[first] for name, images in {**shown, "clean": test_y["image"]}.items()}
    sheet = grids.side_by_side(groups, cols=1, scale=4, image_range=(0, 1))
    pictures.save_png(args.out / "grid.png", sheet, {"noise": NOISE, "weights": WEIGHTS})
    with customstep.files.atomic_path(args.out / "denoiser.keras") as path:
        denoiser.network.save(path)  # without those that judged it
    return results


if __name__ == "__main__":
    customstep.run(main)
