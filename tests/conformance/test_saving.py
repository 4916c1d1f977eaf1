"""Every template is saved whole: training goes on from the file as if it had never stopped."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.descriptors import equal, fit, state


def trained(descriptor):
    model = descriptor.make()
    fit(model, descriptor, epochs=1)
    return model


def continues_to(reference, restored, descriptor):
    """Whether a model of one epoch is after another where two epochs in one go lead."""
    fit(restored, descriptor, epochs=1)
    return equal(state(restored), reference[0])


def test_loaded_model_goes_on_bit_for_bit(descriptor, reference, tmp_path):
    model = trained(descriptor)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert type(restored).__name__ == type(model).__name__
    assert equal(state(model), state(restored))
    assert continues_to(reference, restored, descriptor)


def test_weights_file_restores_into_a_fresh_model(descriptor, reference, tmp_path):
    model = trained(descriptor)
    model.save_weights(tmp_path / "model.weights.h5")
    restored = descriptor.make(seed=1)
    assert not equal(state(model), state(restored))
    restored.load_weights(tmp_path / "model.weights.h5")
    assert continues_to(reference, restored, descriptor)


def test_tensorflow_checkpoint_goes_on_bit_for_bit(descriptor, reference, tmp_path):
    model = trained(descriptor)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    restored = descriptor.make(seed=1)
    tf.train.Checkpoint(model=restored).restore(path).assert_existing_objects_matched()
    assert equal(state(model), state(restored))
    assert continues_to(reference, restored, descriptor)


def test_model_is_saved_without_compile(descriptor, tmp_path):
    keras.utils.set_random_seed(0)
    model = descriptor.create()
    outputs = model.predict(descriptor.predicts, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    again = restored.predict(descriptor.predicts, verbose=0)
    assert equal(keras.tree.flatten(again), keras.tree.flatten(outputs))


def test_deep_copy_is_independent_and_equal(descriptor):
    model = trained(descriptor)
    twin = copy.deepcopy(model)
    assert equal(state(model), state(twin))
    before = state(model)
    fit(twin, descriptor, epochs=1)
    assert equal(state(model), before)


def test_failed_save_leaves_the_old_file(descriptor, tmp_path, monkeypatch):
    model = trained(descriptor)
    path = tmp_path / "model.keras"
    path.write_bytes(b"old")
    monkeypatch.setattr(model, "save_own_variables", _fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]


def _fail(store):
    raise OSError("disk full")


def test_backup_restores_an_interrupted_run(descriptor, reference, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                raise KeyboardInterrupt

    backup = dict(backup_dir=tmp_path / "backup", delete_checkpoint=False)
    interrupted = descriptor.make()
    callbacks = [keras.callbacks.BackupAndRestore(**backup), Stop()]
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, descriptor, callbacks=callbacks)
    restored = descriptor.make(seed=1)
    fit(restored, descriptor, callbacks=[keras.callbacks.BackupAndRestore(**backup)])
    assert equal(state(restored), reference[0])
