"""What several workers run for `test_workers.py`: the work of one, as `customstep launch` starts it.

    customstep launch tests/conformance/workers.py templates OUT
    customstep launch tests/conformance/workers.py killed OUT [--kill]
"""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

import customstep  # isort: skip  (first: it silences TensorFlow)

import keras
import numpy as np
import tensorflow as tf

from tests.conformance.sampling import sample
from tests.descriptors import CLASSES, FEATURES, fit, functional_classifier, state

TEMPLATES = sample(first=2, step=4)


class Stop(keras.callbacks.Callback):
    """Interrupts a run after its first epoch."""

    def on_epoch_end(self, epoch, logs=None):
        raise KeyboardInterrupt


class Kill(keras.callbacks.Callback):
    """Kills the second worker in the middle of the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.steps == 5 and not customstep.replicas.is_chief():
            os.kill(os.getpid(), signal.SIGKILL)


def train(descriptor, out):
    """Two epochs in one go, with every file that a run may leave."""
    x, y, *_ = descriptor.batch
    model = descriptor.make()
    term = f"val_{model.terms[-1]}" if model.terms else "val_loss"
    callbacks = [
        keras.callbacks.ModelCheckpoint(
            out / "best.keras", monitor=term, mode="min", save_best_only=True
        ),
        keras.callbacks.EarlyStopping(monitor=term, mode="min", patience=9),
        keras.callbacks.CSVLogger(out / "history.csv"),
        keras.callbacks.TensorBoard(out / "logs", write_graph=False),
    ]
    history = fit(model, descriptor, validation_data=(x, y), callbacks=callbacks)
    model.save(out / "model.keras")
    predictions = model.predict(descriptor.predicts, batch_size=2, verbose=0)
    logs = model.evaluate(**descriptor.data(), batch_size=10, verbose=0, return_dict=True)
    write(out / "state.npz", state(model))
    write(out / "predictions.npz", keras.tree.flatten(predictions))
    histories = {name: np.array(values) for name, values in history.items()}
    with customstep.files.atomic_path(out / "logs.npz") as path:
        np.savez(path, **histories, **{f"evaluate_{name}": logs[name] for name in logs})


def resume(descriptor, out):
    """The same two epochs, interrupted after the first one, by another model of other weights."""
    backup = dict(backup_dir=out / "backup")
    callbacks = [keras.callbacks.BackupAndRestore(**backup), Stop()]
    try:
        fit(descriptor.make(), descriptor, callbacks=callbacks)
    except KeyboardInterrupt:
        pass
    model = descriptor.make(seed=1)
    fit(model, descriptor, callbacks=[keras.callbacks.BackupAndRestore(**backup)])
    write(out / "resumed.npz", state(model))


def write(path, arrays):
    with customstep.files.atomic_path(path) as temporary:
        np.savez(temporary, *arrays)


def templates(out):
    for descriptor in TEMPLATES:
        folder = out / descriptor.name
        folder.mkdir(exist_ok=True)
        train(descriptor, folder)
        resume(descriptor, folder)


def killed(out, kill):
    """Three epochs with a checkpoint after each; started again, it goes on from the last one."""
    keras.utils.set_random_seed(0)
    model = functional_classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, ["accuracy"])
    data = customstep.streams.index_batches(24, 8)
    data = data.map(lambda i: (tf.gather(FEATURES, i), tf.gather(CLASSES, i)))
    callbacks = [customstep.Resume(out / "checkpoints")]
    if kill and not customstep.checkpoints.names(out / "checkpoints"):
        callbacks.append(Kill())
    history = model.fit(data, epochs=3, verbose=0, callbacks=callbacks, shuffle=False).history
    write(out / "state.npz", [*state(model), *map(np.array, history.values())])


if __name__ == "__main__":
    what, out = sys.argv[1], pathlib.Path(sys.argv[2])
    if what == "templates":
        templates(out)
    else:
        killed(out, "--kill" in sys.argv)
