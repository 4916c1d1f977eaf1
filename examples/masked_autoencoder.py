"""Three quarters of an image hidden, and guessed: a masked autoencoder (R4, R5).

    python examples/masked_autoencoder.py             # the embedded Fashion-MNIST
    python examples/masked_autoencoder.py --smoke     # seconds: does it run at all?

A small transformer sees 12 of the 49 patches of an image, another one guesses the rest. In
`runs/masked_autoencoder/` it leaves `grid.png`, test images as they are seen, guessed and true,
and the model, `masked_autoencoder.keras`. If killed, the same command resumes it.

Measured on two busy cores in bfloat16: 203 s in all. The squared error of a hidden pixel of a test
image is 0.034, that of the mean image 0.087; `assets/masked_autoencoder.png` is the picture.

He et al. 2022 (arXiv:2111.06377).
"""

import customstep  # before keras: it keeps TensorFlow's start-up lines off the screen
import keras
import numpy as np
from customstep import grids, pictures, scripts
from customstep.schedules import WarmupCosine
from keras import layers, ops

PATCH_SIZE = 4  # pixels: 49 patches of an image
MASK_RATIO = 0.75  # of the patches that are hidden
WIDTH = 64  # numbers in the code of a patch
BATCH_SIZE = 100  # images in a step
EPOCHS = 30  # 100 steps each on the embedded data set
LEARNING_RATE = 2e-3  # after a warm-up, falling to 0


def load_data(dataset, split, smoke):
    """Float images `(n, 28, 28, channels)` in [0, 1]."""
    images = customstep.read_images(dataset, split, image_size=(28, 28)).images
    return images[: 3 * BATCH_SIZE if smoke else None] / np.float32(255)


def block(x):
    """A transformer block with its normalizations first."""
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(4, WIDTH // 4)(y, y)])
    y = layers.Dense(2 * WIDTH, activation="gelu")(layers.LayerNormalization()(x))
    return layers.Add()([x, layers.Dense(WIDTH)(y)])


def build_encoder(count, size):
    """`[patches, places]` to codes."""
    patches, places = keras.Input((None, size)), keras.Input((None,), dtype="int32")
    x = layers.Add()([layers.Dense(WIDTH)(patches), layers.Embedding(count, WIDTH)(places)])
    for _ in range(3):
        x = block(x)
    return keras.Model([patches, places], layers.LayerNormalization()(x))


@keras.saving.register_keras_serializable("masked_autoencoder")
class Places(layers.Layer):
    """Adds a learned vector to each code of a sequence, by its place."""

    def build(self, shape):
        self.vectors = self.add_weight(shape=shape[1:], initializer="normal")

    def call(self, codes):
        return codes + ops.cast(self.vectors, codes.dtype)


def build_decoder(count, size):
    """Codes of all places to patches."""
    codes = keras.Input((count, WIDTH))
    x = block(block(Places()(codes)))
    x = layers.Dense(size, dtype="float32")(layers.LayerNormalization()(x))
    return keras.Model(codes, x)


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=EPOCHS, out="runs/masked_autoencoder")
    args = scripts.begin(parser, argv)
    x, test = (load_data(args.dataset, split, args.smoke) for split in ("train", "test"))
    count, size = (28 // PATCH_SIZE) ** 2, PATCH_SIZE**2 * x.shape[-1]

    networks = build_encoder(count, size), build_decoder(count, size)
    patching = dict(patch_size=PATCH_SIZE, mask_ratio=MASK_RATIO)
    model = customstep.MaskedAutoencoder(*networks, WIDTH, **patching)
    schedule = WarmupCosine(LEARNING_RATE, steps=args.epochs * len(x) // BATCH_SIZE, warmup=0.1)
    model.compile(keras.optimizers.AdamW(weight_decay=0.05), schedule_lr=schedule)
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    training = dict(batch_size=BATCH_SIZE, epochs=args.epochs, validation_data=(test,), verbose=2)
    history = model.fit(x, callbacks=[resume], **training)
    model.save(args.out / "masked_autoencoder.keras")

    seen, guessed = model.reconstruct(test[:12], seed=args.seed)
    shown = {"seen": seen, "guessed": guessed.clip(0, 1), "true": test[:12]}
    sheet = grids.side_by_side(shown, cols=1, scale=3, image_range=(0, 1))
    pictures.save_png(args.out / "grid.png", sheet, {"model": "masked_autoencoder"})
    error = history.history["val_loss"][-1]
    of_mean = np.mean((test - x.mean(axis=0)) ** 2)
    print(
        f"Squared error of a hidden pixel {error:.4f}; of the mean image it would be "
        f"{of_mean:.4f}. The picture is {args.out / 'grid.png'}."
    )
    return history


if __name__ == "__main__":
    customstep.run(main)
