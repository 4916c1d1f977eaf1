"""A variational autoencoder: clothes from a code of 16 numbers (R1: additional losses).

    python examples/vae.py             # the embedded Fashion-MNIST
    python examples/vae.py --smoke     # seconds: does it run at all?

In `runs/vae/` it leaves `reconstructions.png`, test images above what their codes say of them,
`grid.png`, images of random codes, and the model, `vae.keras`. If killed, the same command resumes
it. The weight of the divergence grows over the first epochs, lest the decoder ignores the codes.

    customstep grid runs/vae/vae.keras --interpolate    # from one code to another, row by row

Measured on two busy cores in bfloat16: 94 s in all. Test images cost 241.6 nats each: 227.1 for the
pixels, 14.4 for the code. `assets/vae_grid.png` is the sheet.
"""

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
from customstep import grids, pictures, scripts
from customstep.schedules import LinearDecay
from keras import layers
from keras.optimizers.schedules import PolynomialDecay

LATENT_DIM = 16  # numbers in a code
BATCH_SIZE = 64  # images in a step
EPOCHS = 20  # 157 steps each on the embedded data set
LEARNING_RATE = 2e-3  # falling to 0 over the second half
ANNEALING = 0.25  # of the training, in which the divergence's weight grows from 0 to 1


def load_data(dataset, split, smoke):
    """Batches of `(images,)`, images `(28, 28, channels)` in [0, 1]."""
    images = customstep.read_images(dataset, split, image_size=(28, 28))
    data = images.batches(BATCH_SIZE, image_range=(0, 1), shuffle=split == "train")
    data = data.map(lambda x, y: (x,))
    return data.take(4) if smoke else data


def build_encoder(channels):
    """Images to means and logarithms of variances."""
    x = images = keras.Input((28, 28, channels))
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Dense(256, activation="relu")(layers.Flatten()(x))
    return keras.Model(images, layers.Dense(2 * LATENT_DIM, dtype="float32")(x))


def build_decoder(channels):
    """Codes to logits of pixels."""
    codes = keras.Input((LATENT_DIM,))
    x = layers.Dense(256, activation="relu")(codes)
    x = layers.Reshape((7, 7, 64))(layers.Dense(7 * 7 * 64, activation="relu")(x))
    x = layers.Conv2DTranspose(32, 4, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(16, 4, strides=2, padding="same", activation="relu")(x)
    return keras.Model(codes, layers.Conv2D(channels, 3, padding="same", dtype="float32")(x))


def main(argv=None):
    args = scripts.begin(scripts.training_parser(__doc__, epochs=EPOCHS, out="runs/vae"), argv)
    data = load_data(args.dataset, "train", args.smoke)
    test_data = load_data(args.dataset, "test", args.smoke)
    channels, steps = data.element_spec[0].shape[-1], args.epochs * len(data)

    networks = build_encoder(channels), build_decoder(channels)
    growing = PolynomialDecay(0.0, max(1, int(ANNEALING * steps)), 1.0)
    vae = customstep.VAE(*networks, LATENT_DIM, kl_weight=growing)
    vae.compile("adam", schedule_lr=LinearDecay(LEARNING_RATE, steps=steps))
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    training = dict(epochs=args.epochs, shuffle=False, validation_data=test_data, verbose=2)
    history = vae.fit(data, callbacks=[resume], **training)
    vae.save(args.out / "vae.keras")

    [images] = next(iter(test_data))
    shown = {"test images": images[:10], "restored": vae.predict(images[:10], verbose=0)}
    sheet = grids.side_by_side(shown, cols=1, scale=3, image_range=(0, 1))
    pictures.save_png(args.out / "reconstructions.png", sheet, {"model": "vae"})
    images = vae.sample(100, seed=args.seed)
    sheet = grids.contact_sheet(images, 10, 10, scale=3, image_range=(0, 1))
    pictures.save_png(args.out / "grid.png", sheet, {"model": "vae", "seed": args.seed})
    logs = {name[4:]: values[-1] for name, values in history.history.items() if "val_" in name}
    print(
        f"Test images cost {logs['loss']:.1f} nats each: {logs['reconstruction_loss']:.1f} for the "
        f"pixels, {logs['kl']:.1f} for the code. The pictures are in {args.out}."
    )
    return history


if __name__ == "__main__":
    customstep.run(main)
