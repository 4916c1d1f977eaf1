"""Images for training and evaluation: the embedded set, any TFDS image set, or a folder of images.

    gan.fit(load_images("fashion_mini", batch_size=32), epochs=10)
"""

import difflib
import os
import pathlib
import re
import warnings
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import requests
import tensorflow as tf
import tensorflow_datasets as tfds

from customstep import streams
from customstep.checks import as_array, check_path, check_range
from customstep.files import ASSETS

__all__ = ["ImageSet", "load_images", "read_images"]

EMBEDDED = "fashion_mini"
MINI = ASSETS / "fashion_mini/1.0.0"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # not EPS, which runs a program, under such a name


class ImageSet(NamedTuple):
    """Images in memory with their labels: what `read_images` returns.

    Attributes:
        images: uint8 array `(n, height, width, channels)`.
        labels: int32 array `(n,)`, indices into `class_names`; -1 where TFDS has no label.
        class_names: tuple of str.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple

    def batches(self, batch_size, *, image_range=(-1.0, 1.0), shuffle=True, seed=0):
        """A `tf.data.Dataset` of `(images, labels)`; see `load_images` for arguments and errors."""
        check_range("image_range", image_range)
        low, high = map(float, image_range)
        order = streams.index_batches(len(self.labels), batch_size, shuffle=shuffle, seed=seed)
        with tf.device("CPU"):
            all_images, all_labels = tf.constant(self.images), tf.constant(self.labels)

        def gather(indices):  # a batch is gathered and scaled at once
            unit = tf.cast(tf.gather(all_images, indices), tf.float32) / 255.0
            return low * (1.0 - unit) + high * unit, tf.gather(all_labels, indices)

        batches = order.map(gather, num_parallel_calls=tf.data.AUTOTUNE)
        return batches.prefetch(tf.data.AUTOTUNE)


def load_images(
    source=EMBEDDED,
    split="train",
    *,
    batch_size,
    image_range=(-1.0, 1.0),
    shuffle=True,
    seed=0,
    image_size=None,
    data_dir=None,
):
    """Batches of images and labels, ready for `fit` (shuffled) or `evaluate` (`shuffle=False`).

    The set is read once and held in memory as uint8; the number of batches is known.

    Args:
        source: what to read; a name that TFDS knows is always that data set.
            "fashion_mini": the embedded set, which needs no network.
            "cifar10", "cifar10:3.0.2", "cifar10_corrupted/fog_1": a TFDS image data set.
            Anything else is the path of a folder (`"./mnist"` if TFDS knows its name): of images
            (one class), of sub-folders of images (one class each, sorted by name), or of a
            prepared TFDS data set.
        split: such as "train", "test" or "train[:10%]". A folder of images has only "train".
        batch_size: int, at least 1.
        image_range: `(low, high)`, the values of black (0) and white (255), met exactly.
        shuffle: True to train: a new order each epoch and no short last batch, which would cost a
            second trace. False to evaluate: every image, in the stored order.
        seed: int; equal seeds give equal orders, epoch by epoch; see `streams.index_batches`.
        image_size: `(height, width)`, or None for the size the images have; see `read_images`.
        data_dir: folder of TFDS's prepared data sets and downloads, or None for TFDS's default.

    Returns:
        `tf.data.Dataset` of `(images, labels)`: float32 `(batch, height, width, channels)` in
        `image_range`, and int32 `(batch,)`. A set without class labels has label 0 everywhere.

    Raises:
        ValueError: no such source or split, no image or a damaged one, images of several sizes
            without `image_size`, or an argument outside its range.
        ConnectionError: a TFDS set that is not prepared yet cannot be downloaded.

    Example:

        batches = load_images("fashion_mini", batch_size=32)
        images, labels = next(iter(batches))  # (32, 28, 28, 1) in [-1, 1], (32,)
    """
    image_set = read_images(source, split, image_size=image_size, data_dir=data_dir)
    return image_set.batches(batch_size, image_range=image_range, shuffle=shuffle, seed=seed)


def read_images(source=EMBEDDED, split="train", *, image_size=None, data_dir=None):
    """A whole set of images as arrays, with its class names: for grids and for evaluation.

    Give `image_size` for images of several sizes, or to keep a large set small in memory: each is
    cropped around its centre to the aspect ratio, then resized (bilinear, antialiased). Files are
    turned upright by EXIF and lose transparency; all gray they have one channel, otherwise three,
    CMYK included. Of an animation it is the first frame. Gray of 16 bits, which has no range that
    all agree on, is an error, as is a file that is damaged or is of more pixels than Pillow's
    `PIL.Image.MAX_IMAGE_PIXELS`, 89 million. Links are followed, also out of the folder.

    Args:
        source, split, image_size, data_dir: as for `load_images`, with the same errors.

    Returns:
        An `ImageSet`. A set without class labels is one class with the name of the set.

    Example:

        images, labels, class_names = read_images("fashion_mini", "test")
        class_names[labels[0]]  # the name of the first image's class
    """
    check_path("source", source)
    if data_dir is not None:
        check_path("data_dir", data_dir)
    _check_image_size(image_size)
    folder = MINI if source == EMBEDDED else pathlib.Path(os.path.expanduser(source))
    names = tfds.list_builders(with_community_datasets=False)
    if isinstance(source, str) and re.split("[/:]", source)[0] in names:
        return _read_tfds(_prepared_builder(source, data_dir), split, image_size)
    if os.path.isfile(folder / "dataset_info.json"):
        return _read_tfds(tfds.builder_from_directory(folder), split, image_size)
    if os.path.isdir(folder):  # False for a name that is too long, too
        return _read_folder(folder, split, image_size)
    near = difflib.get_close_matches(str(source).lower(), [EMBEDDED, *names])
    raise ValueError(
        f"There is no data set '{source}'. Expected '{EMBEDDED}', a name that TFDS knows or the "
        f"path of a folder; received {str(source)!r}. "
        + (f"Did you mean {' or '.join(map(repr, near))}?" if near else "Check the spelling.")
    )


def _prepared_builder(name, data_dir):
    """The TFDS builder of a data set that is on disk, downloaded first if need be."""
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (AssertionError, ValueError) as error:  # TFDS asserts that it knows the version
        raise ValueError(
            f"TFDS cannot open the data set '{name}'. Expected a configuration and a version that "
            f"it knows; received '{name}' ({error}). Write 'name', 'name/config' or 'name:version'."
        ) from error
    if not (builder.data_path / "dataset_info.json").exists():
        _require_files_or_network(builder)
        builder.download_and_prepare()
    return builder


def _require_files_or_network(builder):
    """Learn in seconds that a download is impossible: TFDS retries for minutes."""
    manual = builder.data_dir_root / "downloads" / "manual"
    urls = {url: info.filename or url for url, info in (builder.url_infos or {}).items()}
    missing = {url: file for url, file in urls.items() if not (manual / file).exists()}
    url = next((url for url in missing if url.startswith("http")), None)
    if url is None or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:  # which TFDS shows where files miss
        return
    try:
        with requests.get(url, stream=True, timeout=5) as response:
            if response.status_code >= 500:  # such as a proxy without a way out
                response.raise_for_status()
    except requests.RequestException as error:
        raise ConnectionError(
            f"Cannot download the data set '{builder.name}': '{url}' does not answer "
            f"({type(error).__name__}). Expected a network, the prepared data set in "
            f"'{builder.data_path}', or the published files in '{manual}'; received no answer, and "
            f"no {', '.join(missing.values())}. Put the files or the prepared folder there, or use "
            f"the embedded data set, source='{EMBEDDED}'."
        ) from error


def _read_tfds(builder, split, image_size):
    features = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise ValueError(
            f"The data set '{builder.name}' has no images. Expected a feature 'image' of uint8 "
            f"images; received the features {list(features)}. Choose an image data set."
        )
    if image_size is None and None in image.shape:
        raise _mixed_sizes(f"data set '{builder.name}'", image.shape)
    labelled = isinstance(label, tfds.features.ClassLabel)

    def select(example):
        pixels = _fit(example["image"], image_size) if image_size else example["image"]
        return pixels, tf.cast(example["label"] if labelled else 0, tf.int32)

    try:
        examples = builder.as_dataset(split=str(split))
    except ValueError as error:
        raise _unknown_split(builder.name, list(builder.info.splits), split) from error
    batches = examples.map(select, num_parallel_calls=tf.data.AUTOTUNE).batch(256)
    images, labels = map(np.concatenate, zip(*tfds.as_numpy(batches)))
    return ImageSet(images, labels, tuple(label.names) if labelled else (builder.name,))


def _read_folder(folder, split, image_size):
    if split != "train":
        raise _unknown_split(folder, ["train"], split)
    files = _image_files(folder)
    classes = [path for path in sorted(folder.glob("[!.]*/")) if _image_files(path)]
    if bool(files) == bool(classes):
        raise ValueError(
            f"The folder '{folder}' is not a set of images. Expected images ({' '.join(SUFFIXES)}) "
            f"in it, or in a sub-folder for each class; received {'both' if files else 'neither'}. "
            f"Name another folder, or move the images."
        )
    names = [path.name for path in classes] or [folder.resolve().name]
    groups = [_image_files(path) for path in classes] or [files]
    files = sum(groups, [])
    images = []
    with warnings.catch_warnings():  # about what a file has besides its pixels
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        for file in files:
            pixels = _read_file(file)
            images.append(_fit(pixels, image_size).numpy() if image_size else pixels)
            sizes = images[0].shape[:2], images[-1].shape[:2]
            if sizes[0] != sizes[1]:
                found = {files[0].name: sizes[0], file.name: sizes[1]}
                raise _mixed_sizes(f"folder '{folder}'", found)
    channels = max(pixels.shape[-1] for pixels in images)
    images = [np.broadcast_to(pixels, (*pixels.shape[:2], channels)) for pixels in images]
    labels = np.repeat(np.arange(len(groups), dtype=np.int32), list(map(len, groups)))
    return ImageSet(np.stack(images), labels, tuple(names))


def _image_files(folder):
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES)
                and not entry.name.startswith(".")
                and not _is_folder(entry)
            ]
    except OSError as error:
        raise ValueError(
            f"Cannot read the folder '{folder}'. Expected a folder that may be listed; received "
            f"one that fails ({error.strerror}). Change its permissions, or move it away."
        ) from error
    return [folder / name for name in sorted(names)]


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _read_file(path):
    """One file as a uint8 array `(height, width, 1 or 3)`."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            raise OSError("no file, or a link to none")
        with PIL.Image.open(path, formats=_FORMATS) as image:
            if image.mode[0] in "IF":
                raise OSError("more than 8 bits a channel")
            image = PIL.ImageOps.exif_transpose(image)
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except Exception as error:  # Pillow's readers raise all kinds on damaged files
        raise ValueError(
            f"Cannot read the image '{path}'. Expected a whole PNG, JPEG, BMP, GIF or WebP file of "
            f"8 bits a channel; received one that fails ({error or type(error).__name__}). "
            f"Replace or remove the file."
        ) from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _fit(image, size):
    """Crop a uint8 `(h, w, c)` image around its centre to the shape of `size`, and resize it."""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    rows = tf.clip_by_value(width * size[0] // size[1], 1, height)
    columns = tf.clip_by_value(height * size[1] // size[0], 1, width)
    top, left = (height - rows) // 2, (width - columns) // 2
    image = image[top : top + rows, left : left + columns]
    # Antialiased bilinear averages areas to shrink, as "area" does, but enlarges without blocks.
    return tf.cast(tf.round(tf.image.resize(image, size, antialias=True)), tf.uint8)


def _mixed_sizes(what, received):
    return ValueError(
        f"The images of the {what} differ in size. Expected one size; received {received}. "
        f"Pass image_size=(height, width)."
    )


def _unknown_split(name, known, split):
    return ValueError(
        f"'{name}' has no images in the split '{split}'. Expected one of {known}, or a part of one "
        f"if it is a TFDS set; received {split!r}. Choose one, or name a sub-folder."
    )


def _check_image_size(size):
    values = as_array("image_size", (1, 1) if size is None else size)
    if values.shape != (2,) or values.dtype.kind != "i" or values.min() < 1:
        raise ValueError(
            f"The image size is not a size. Expected two positive whole numbers (height, width); "
            f"received {size!r}. Pass such as image_size=(64, 64)."
        )
