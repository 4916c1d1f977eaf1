"""One set-up for all tests: a quiet TensorFlow, two logical CPUs, one strategy, no global state."""

import customstep  # isort: skip  (first: it silences TensorFlow)

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


def _without_tuning(dataset):
    """A data set whose iterator has no thread that tunes it.

    Garbage collection that frees such an iterator may wait for the thread for a minute, or for
    ever where it happens while a replica is traced (TF 2.21).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


tf.data.Dataset._apply_debug_options = _without_tuning  # which every iterator calls


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
def two_replicas():
    """One strategy for all tests: TensorFlow's collectives clash when a process has two."""
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


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
