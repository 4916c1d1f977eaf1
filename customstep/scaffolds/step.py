"""A training step of my own.

    python my_model.py --smoke     # a few steps: does it run at all?
    python my_model.py             # the whole training; its curves are in runs/my_model
"""

import customstep
import keras
import tensorflow as tf
from customstep import Objective, StepModel, losses, scripts
from keras import layers


@keras.saving.register_keras_serializable("my_model")
class MyModel(StepModel):
    """An autoencoder with a sparse code. Override what is new, and delete what is not."""

    terms = ("error", "sparsity")  # what the objective returns, logged by these names

    def __init__(self, encoder, decoder, sparsity_weight=0.01, **kwargs):
        super().__init__(**kwargs)  # arguments kept under their own names are saved
        self.encoder, self.decoder, self.sparsity_weight = encoder, decoder, sparsity_weight

    def call(self, x, training=False):
        return self.decoder(self.encoder(x, training=training), training=training)

    def objective(self, batch, training):
        code = self.encoder(batch.x, training=training)
        error = (self.decoder(code, training=training) - batch.x) ** 2
        sparsity = self.sparsity_weight * losses.weighted_mean(tf.abs(code), batch.sample_weight)
        error = losses.weighted_mean(error, batch.sample_weight)
        return Objective({"error": error, "sparsity": sparsity})


def load_data(dataset, split, smoke):
    """Batches of images in [-1, 1], of a TFDS data set or a folder of images."""
    data = customstep.load_images(dataset, split, batch_size=64, image_size=(28, 28))
    return data.take(4) if smoke else data


def main(argv=None):
    parser = scripts.training_parser(__doc__, epochs=5, out="runs/my_model")
    args = scripts.begin(parser, argv)
    data, test = (load_data(args.dataset, split, args.smoke) for split in ("train", "test"))
    shape = data.element_spec[0].shape[1:]
    encoder = keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(32, "relu")])
    decoder = [keras.Input((32,)), layers.Dense(shape.num_elements(), dtype="float32")]
    model = MyModel(encoder, keras.Sequential([*decoder, layers.Reshape(shape, dtype="float32")]))
    model.compile("adam")  # and `schedule_lr=`, `gradients=`, `when=`, `nonfinite=`
    resume = customstep.Resume(args.out / "checkpoints", **args.resuming)
    training = dict(epochs=args.epochs, shuffle=False, validation_data=test)
    history = model.fit(data, callbacks=[resume], **training)
    model.save(args.out / "model.keras")
    return history


if __name__ == "__main__":
    customstep.run(main)
