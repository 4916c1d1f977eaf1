"""A GAN whose discriminator pauses while it wins, fed with broken batches (R7: conditions).

    python examples/conditional_updates.py             # the embedded Fashion-MNIST
    python examples/conditional_updates.py --smoke     # seconds: does it run at all?

Trains the same GAN twice, once with a discriminator that always learns and once with one that does
so only while its loss is above a threshold. In both runs some batches are corrupted with NaN, which
`nonfinite="skip"` passes over and counts, and every 250 steps the generator is put back onto its
moving average, as an action of a subclass. In `runs/conditional_updates/` are then the models, and
`conditional_updates.png`, curves and samples. If killed, the same command resumes it.

Measured on two shared and busy cores: 164 s in all. Both skip the 24 steps of the 24 corrupted
batches. The pausing discriminator trains in 49 % of the steps, its loss stays at 1.19 rather than
falling to 0.80, and a step takes 0.94 of the time. To the eye the samples of both are alike.
"""

import time

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import numpy as np
import tensorflow as tf
from customstep import conditions, grids, scripts
from keras import layers
from matplotlib.figure import Figure

LATENT_DIM = 64  # length of the noise vector that an image is made from
BATCH_SIZE = 16  # images in a step
EPOCHS = 4  # 625 steps each on the embedded data set
LEARNING_RATE = 5e-4  # of both networks
WINNING = 1.2  # the discriminator rests while its loss, 1.39 where it can but guess, is below
CORRUPT_EVERY = 100  # one batch in so many has a pixel that is not a number
RESTART_EVERY = 250  # steps, after which the generator is put back onto its average
IMAGE_SIZE = (28, 28)  # height and width


@keras.saving.register_keras_serializable("examples")
class RestartingGAN(customstep.GAN):
    """A GAN whose generator is put back onto its moving average now and then."""

    def __init__(self, *args, **kwargs):
        self.restarted = keras.metrics.Mean("restarted")  # before the GAN is built; it is logged
        super().__init__(*args, **kwargs)

    def after_step(self, batch):
        super().after_step(batch)
        due = conditions.Every(RESTART_EVERY, offset=RESTART_EVERY - 1)(self.step)
        conditions.run_if(due, self.restart)
        self.restarted.update_state(due)

    def restart(self):
        for weight, average in zip(self.generator.weights, self.ema_generator.weights):
            weight.assign(average)


def load_data(dataset, smoke):
    """Shuffled batches of images in [-1, 1], some with NaN; how many in an epoch, how many so."""
    data = customstep.load_images(dataset, batch_size=BATCH_SIZE, image_size=IMAGE_SIZE)
    data, every = (data.take(8), 4) if smoke else (data, CORRUPT_EVERY)
    broken = data.enumerate().map(lambda i, xy: tf.where(i % every == every - 1, np.nan, xy[0]))
    return broken, len(data), len(data) // every


def build_generator(channels):
    """Noise `(64,)` to images `(28, 28, channels)` in [-1, 1]."""
    inputs = keras.Input((LATENT_DIM,))
    x = layers.BatchNormalization()(layers.Dense(7 * 7 * 128, use_bias=False)(inputs))
    x = layers.Reshape((7, 7, 128))(layers.ReLU()(x))
    x = layers.Conv2DTranspose(32, 4, strides=4, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(channels, 5, padding="same")(x)
    return keras.Model(inputs, layers.Activation("tanh", dtype="float32")(x))


def build_discriminator(channels):
    """Images to one logit, "how real is it?"."""
    inputs = x = keras.Input((*IMAGE_SIZE, channels))
    for filters in (32, 64, 128):
        x = layers.LeakyReLU(0.2)(layers.Conv2D(filters, 4, strides=2, padding="same")(x))
    return keras.Model(inputs, layers.Dense(1, dtype="float32")(layers.Flatten()(x)))


def train(when, args, name):
    """One run: the model, its history, how many batches were corrupted, how long a step took."""
    keras.utils.set_random_seed(args.seed)
    data, steps, corrupted = load_data(args.dataset, args.smoke)
    networks = [new(data.element_spec.shape[-1]) for new in (build_generator, build_discriminator)]
    gan = RestartingGAN(*networks, LATENT_DIM, ema_decay=0.998)
    adams = {u.name: keras.optimizers.Adam(LEARNING_RATE, 0.5, 0.99) for u in gan.updates()}
    gan.compile(adams, when={"discriminator": when}, nonfinite="skip")
    gan.fit(data.take(1), shuffle=False, verbose=0)  # traces the step, off the clock
    resume = customstep.Resume(args.out / f"checkpoints/{name}", **args.resuming)
    start = time.perf_counter()
    history = gan.fit(data, epochs=args.epochs, shuffle=False, verbose=2, callbacks=[resume])
    per_step = 1000 * (time.perf_counter() - start) / (args.epochs * steps)
    pace = f"{per_step:.1f} ms a step" if resume.found is None else "resumed, hence not timed"
    return gan, history.history, corrupted * args.epochs, pace


def draw(runs, path, seed):
    """The curves of every run, and its samples below them."""
    figure = Figure(figsize=(8, 7), dpi=100, layout="constrained")
    axes = figure.subplots(2, len(runs), height_ratios=[2, 3], sharey="row")
    for column, (name, (gan, logs, *_)) in enumerate(runs.items()):
        epochs = range(1, len(logs["generator_loss"]) + 1)
        for quantity in ("discriminator_loss", "generator_loss", "active_discriminator"):
            axes[0, column].plot(epochs, logs[quantity], label=quantity)
        axes[0, column].set(title=name, xlabel="epoch", xticks=epochs, ylim=(0, None))
        axes[0, column].grid(alpha=0.3)
        sheet = grids.contact_sheet(gan.sample(36, seed=seed), 6, 6, scale=2)
        axes[1, column].imshow(sheet, cmap="gray")
        axes[1, column].set_axis_off()
    axes[0, 0].legend(fontsize="small")
    customstep.pictures.save_figure(path, figure)


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=EPOCHS, out="runs/conditional_updates")
    args = scripts.begin(parser, argv)

    always, pausing = conditions.Every(1), conditions.Above("discriminator_loss", WINNING)
    runs = {"always": train(always, args, "always"), "pausing": train(pausing, args, "pausing")}
    for name, (gan, logs, corrupted, pace) in runs.items():
        gan.save(args.out / f"{name}.keras")
        finite = all(np.isfinite(weight).all() for weight in gan.get_weights())
        print(
            f"{name}: {sum(logs['nonfinite_discriminator']):.0f} steps skipped of {corrupted} "
            f"corrupted batches, all weights {'' if finite else 'NOT '}finite; discriminator "
            f"trained in {np.mean(logs['active_discriminator']):.0%} of {gan.steps} steps; "
            f"{np.mean(logs['restarted']) * gan.steps:.0f} restarts; {pace}."
        )
    draw(runs, args.out / "conditional_updates.png", args.seed)
    print(f"The curves and samples are in {args.out / 'conditional_updates.png'}.")
    return {name: logs for name, (_, logs, *_) in runs.items()}


if __name__ == "__main__":
    customstep.run(main)
