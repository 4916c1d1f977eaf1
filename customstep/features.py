"""Images as the features of a network: what `evaluation` compares.

    real = extract(read_images("fashion_mini", "test").images)
    real.values.shape  # (2000, 128)
"""

import functools
import hashlib
import pathlib
import random
import textwrap
import warnings

import keras
import numpy as np
import tensorflow as tf

from customstep.checks import as_array, check_integer, check_path, check_range
from customstep.files import ASSETS, atomic_path

__all__ = ["Features", "extract", "fashion_network"]

FASHION_NETWORK = ASSETS / "fashion_features.keras"
_BATCH = 256  # images that a network sees at once
_NAMES = ("values", "labels", "num_classes")  # of the arrays in a cached file


class Features:
    """Images as vectors, and what the measures need to know of them, each computed once.

    Args:
        values: `(n, d)` finite numbers, an image in each row; held as float64.
        labels: None, or int `(n,)`, the classes that the network sees in the images.
        num_classes: how many classes there are, where there are labels.

    Attributes:
        mean: float64 `(d,)`.
        covariance: float64 `(d, d)`, unbiased.
        covariance_root: float64 `(d, d)`, its symmetric root.
        class_shares: float `(num_classes,)`, the share of each class; None without labels.

    Raises:
        ValueError: there are fewer than two images, or the numbers do not fit.
    """

    def __init__(self, values, labels=None, num_classes=None):
        values = as_array("values", values)
        if values.ndim != 2 or len(values) < 2 or not values.size or values.dtype.kind not in "iuf":
            raise ValueError(
                f"These are no features. Expected numbers of the shape (images, features), at "
                f"least 2 images and 1 feature; received {values.dtype} {values.shape}. Average "
                f"or flatten what a network returns."
            )
        self.values = values.astype(np.float64)
        if not np.isfinite(self.values).all():
            bad = np.flatnonzero(~np.isfinite(self.values).all(1))
            raise ValueError(
                f"Some features are not finite. Expected finite numbers; received NaN or infinity "
                f"for {len(bad)} of {len(values)} images, the first of which is number {bad[0]}. "
                f"Look at that image, or use another network."
            )
        self.labels, self.num_classes = None, None
        if labels is not None:
            check_integer("num_classes", num_classes, 1)
            self.labels, self.num_classes = as_array("labels", labels), int(num_classes)
            whole = self.labels.dtype.kind in "iu" and self.labels.shape == (len(values),)
            if not whole or not ((self.labels >= 0) & (self.labels < num_classes)).all():
                raise ValueError(
                    f"The labels do not fit the features. Expected {len(values)} whole numbers "
                    f"from 0 to {num_classes - 1}; received {self.labels.dtype} {self.labels.shape}. "
                    f"Pass one class for each image."
                )

    def __len__(self):
        return len(self.values)

    @functools.cached_property
    def mean(self):
        return self.values.mean(0)

    @functools.cached_property
    def covariance(self):
        centered = self.values - self.mean
        return centered.T @ centered / (len(self) - 1)

    @functools.cached_property
    def covariance_root(self):
        """The symmetric root of `covariance`."""
        return symmetric_power(self.covariance, 0.5)

    @property
    def class_shares(self):
        if self.labels is None:
            return None
        return np.bincount(self.labels, minlength=self.num_classes) / len(self)

    @functools.cached_property
    def radii(self):
        """A dict of the neighbour's rank k to `(n,)` distances, filled by `evaluation`."""
        return {}


def symmetric_power(matrix, exponent):
    """A power of a symmetric positive semi-definite matrix; that of a zero eigenvalue is zero."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > values[-1] * len(values) * np.finfo(values.dtype).eps
    return (vectors[:, kept] * values[kept] ** exponent) @ vectors[:, kept].T


def extract(images, network=None, *, image_range=None, cache=None):
    """The features of images.

    The network sees every image rounded to 8 bits, as it would be in a file: float32 from 0 to
    255, which is what most networks of `keras.applications` take. Let a layer of yours scale and
    resize where a network wants something else:

        scaled = [layers.Resizing(299, 299), layers.Rescaling(1 / 127.5, -1)]
        network = keras.Sequential([*scaled, inception])

    Args:
        images: `(n, height, width, channels)`, n at least 2; uint8, or floats in `image_range`.
        network: a Keras model from images to features `(n, d)`, or to a pair of features and
            logits `(n, classes)`; None for `fashion_network()`, which is for gray images of 28 by
            28 pixels.
        image_range: `(low, high)` of floats, such as (-1, 1), black and white; None for uint8.
        cache: None, or a folder in which the features are kept. Those of the same images and the
            same network are read from it.

    Returns:
        `Features`.

    Raises:
        ValueError: the images do not fit their range or the network, or its outputs are none of
            the above.
        TypeError: `cache` is not a path.
    """
    images = _as_bytes(images, image_range)
    network = fashion_network() if network is None else network
    if cache is None:
        return Features(*_compute(images, network))
    check_path("cache", cache)
    first = _compute(images[:2], network)  # which builds the network
    path = pathlib.Path(cache) / f"features-{_digest(images, network)[:32]}.npz"
    kept = _read(path)
    if kept is None or kept[0].shape != (len(images), first[0].shape[1]):
        kept = _compute(images, network)
        _write(path, *kept)
    return Features(*kept)


@functools.cache
def fashion_network():
    """The bundled network, which knows the ten classes of Fashion-MNIST.

    `assets/make_fashion_features.py` made it; it names 93.25 % of the test images rightly. Its 128
    features are the means of its last feature maps, scaled so that their variances over the real
    test images add up to 100: a Frechet distance of 1 is a hundredth of their spread.

    Returns:
        A Keras model from float32 images `(n, 28, 28, 1)` in [0, 255] to features `(n, 128)` and
        logits `(n, 10)`.
    """
    state = random.getstate()  # of which Keras draws seeds for weights that are replaced at once
    network = keras.models.load_model(FASHION_NETWORK, compile=False)
    random.setstate(state)
    network.trainable = False
    return network


def _as_bytes(images, image_range):
    images = as_array("images", images)
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(
            f"These are no images to compare. Expected at least 2 of the shape (n, height, width, "
            f"channels); received {images.dtype} {images.shape}. Stack them, and keep the channels."
        )
    if image_range is None:
        if images.dtype != np.uint8:
            raise ValueError(
                f"The range of the images is unknown. Expected uint8, or floats and their "
                f"`image_range`; received {images.dtype} alone. Pass bytes, or to `extract` "
                f"image_range=(-1, 1) for the images of a tanh."
            )
        return images
    check_range("image_range", image_range)
    low, high = map(float, image_range)
    if not (np.min(images) >= low and np.max(images) <= high):  # NaN is neither
        raise ValueError(
            f"The images leave their range. Expected finite values from {low:g} to {high:g}; "
            f"received {np.min(images):g} to {np.max(images):g}. Pass their own `image_range`."
        )
    return np.rint((images.astype(np.float32) - low) * (255 / (high - low))).astype(np.uint8)


def _compute(images, network):
    """Feature values, and labels and the number of classes or None and None."""
    try:
        parts = [_outputs(network, images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        reason = textwrap.shorten(str(error), 200).rstrip(".")
        raise ValueError(
            f"The network cannot take these images. Expected images of the shape "
            f"{getattr(network, 'input_shape', 'that it was built for')}; received "
            f"{images.shape} ({reason}). Pass a `network` for such images, or put a layer that "
            f"resizes them before it."
        ) from error
    outputs = [np.concatenate(part) for part in zip(*parts)]
    if not 1 <= len(outputs) <= 2 or any(output.ndim != 2 for output in outputs):
        raise ValueError(
            f"The network returns no features. Expected features (n, d), or a pair of features "
            f"and logits (n, classes); received {[output.shape for output in outputs]}. Add a "
            f"layer such as `GlobalAveragePooling2D` to it."
        )
    values, *logits = outputs
    return (values, logits[0].argmax(1), logits[0].shape[1]) if logits else (values, None, None)


def _outputs(network, images):
    outputs = network(tf.cast(images, tf.float32), training=False)
    if isinstance(outputs, dict):  # of which no order is known
        return []
    return [np.asarray(keras.ops.cast(one, "float32")) for one in keras.tree.flatten(outputs)]


def _digest(images, network):
    digest = hashlib.sha256(f"{images.dtype} {images.shape}".encode())
    digest.update(np.ascontiguousarray(images))
    config = keras.saving.serialize_keras_object(network)
    digest.update(repr(config).encode())
    for weight in network.get_weights():
        digest.update(np.ascontiguousarray(weight))
    return digest.hexdigest()


def _read(path):
    """What `_write` wrote; None where there is nothing, or a file that is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            values, labels, num_classes = (arrays[name] for name in _NAMES)
    except Exception:  # zipfile and numpy raise all kinds
        return None
    return (values, labels, int(num_classes)) if num_classes else (values, None, None)


def _write(path, values, labels, num_classes):
    labels = np.zeros(0, int) if labels is None else labels
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, **dict(zip(_NAMES, (values, labels, num_classes or 0))))
    except OSError as error:
        warnings.warn(
            f"The features were not kept for the next time. Expected a folder that can be written "
            f"to, and room in it; received {type(error).__name__}: {error}. Pass another `cache`.",
            stacklevel=3,
        )
