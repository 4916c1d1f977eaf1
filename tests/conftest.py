"""One set-up for all tests: a quiet TensorFlow, two logical CPUs, one strategy, no global state."""

import customstep  # isort: skip  (first: it silences TensorFlow)

import gc
import os
import pathlib
import shutil
import signal
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

[_cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def pytest_collection_finish():
    """Leaves TensorFlow's and Keras's own objects out of what is searched for garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(items):
    """Begins with the longest tests, lest one of them runs alone at the end."""
    items.sort(key=lambda item: item.path.stem != "test_workers")


@pytest.fixture(autouse=True)
def fresh_keras():
    """Every test starts from the same random state and leaves the global policy alone."""
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="session")
def strategy():
    """One for all tests: TensorFlow's collectives clash when a process has two."""
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


@pytest.fixture
def two_replicas(strategy):
    """A strategy with two replicas.

    While it is used no garbage is collected: the iterator of an earlier run, freed by a replica's
    thread that is tracing, has been seen to wait for its own threads for ever (TF 2.21).
    """
    gc.disable()
    yield strategy
    gc.enable()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def hears_interrupts():
    """SIGINT as in a terminal: what a shell runs in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def nobody():
    """A callable that takes the superuser's rights away, and a `folder` that all may enter."""
    user, folder = os.geteuid(), pathlib.Path(tempfile.mkdtemp())
    folder.chmod(0o755)

    def become():
        if user == 0:
            os.seteuid(65534)

    become.folder = folder
    yield become
    os.seteuid(user)
    folder.chmod(0o755)
    for parent, names, _ in os.walk(folder):
        for name in names:
            pathlib.Path(parent, name).chmod(0o755)
    shutil.rmtree(folder)
