"""Sheets of images to look at: pure functions of numpy arrays.

`pictures` writes the sheets to files; `callbacks.SampleGrid` makes them during training.
"""

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from customstep.checks import as_array, check_integer, check_range

__all__ = [
    "class_sheet",
    "contact_sheet",
    "nearest_images",
    "nearest_sheet",
    "sheet_size",
    "side_by_side",
    "to_uint8",
]

_WHITE = 255
_CAPTION_HEIGHT = 16  # of the letters, in final pixels
_BLOCK = 1024  # references compared at once
_LARGEST = 2**28  # pixels of a sheet; Pillow refuses to open much larger pictures


def to_uint8(images, image_range=(-1.0, 1.0)):
    """Images as bytes, 0 for the low end of their range and 255 for the high end.

    Args:
        images: float in `image_range`, or uint8, which is taken as it is; `(n, h, w, c)` with 1 or
            3 channels, or `(n, h, w)` for gray. Anything numpy converts: arrays, tensors, lists.
        image_range: `(low, high)` of float images; `(-1, 1)` is the range of `tanh`.

    Returns:
        uint8 `(n, h, w, c)`.

    Raises:
        TypeError: the values are neither float nor uint8.
        ValueError: wrong shape, no image, NaN or infinite values, or values outside the range by
            more than a thousandth of its width (less is rounding, and is clipped).

    Example:

        to_uint8([[[-1.0, 1.0]]])  # [[[[0], [255]]]]
    """
    images = as_array("images", images)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"These are not images. Expected at least one, in shape (n, h, w), (n, h, w, 1) or "
            f"(n, h, w, 3); received shape {images.shape}. Add the missing axis to a single image "
            f"with images[None], or drop a fourth channel with images[..., :3]."
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "fV":  # ml_dtypes registers bfloat16 as kind "V"
        raise TypeError(
            f"Images have the wrong type. Expected float or uint8; received {images.dtype}. "
            f"Convert bytes with images.astype('uint8'), anything else with astype('float32')."
        )
    check_range("image_range", image_range)
    low, high = image_range
    images = images.astype(np.float32)
    _check_finite("images", images)
    tolerance = 1e-3 * (high - low)
    smallest, largest = images.min(), images.max()
    if smallest < low - tolerance or largest > high + tolerance:
        raise ValueError(
            f"Images leave their range. Expected values in [{low:g}, {high:g}]; received values "
            f"from {smallest:g} to {largest:g}. Pass the generator's output range as "
            f"`image_range`, or clip the images to it."
        )
    return np.rint((images.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)


def contact_sheet(
    images, rows=None, cols=None, *, padding=2, scale=1, image_range=(-1.0, 1.0), background=_WHITE
):
    """Images in rows and columns, row by row, on one sheet.

    Args:
        images: float in `image_range` or uint8, `(n, h, w, c)` or `(n, h, w)`; see `to_uint8`.
        rows, cols: tiles down and across, each at least 1. One alone gives the other; with neither,
            the sheet is as near to a square as whole tiles allow.
        padding: pixels around and between tiles, at least 0; not scaled.
        scale: every image pixel becomes `scale` x `scale` pixels, at least 1.
        image_range: `(low, high)` of float images.
        background: gray level of padding and of missing tiles, 0 to 255.

    Returns:
        uint8 `(rows * (scale * h + padding) + padding, cols * (scale * w + padding) + padding, c)`.

    Raises:
        TypeError, ValueError: not images (see `to_uint8`), more images than tiles, a sheet that is
            too large, or a number out of its range.

    Example:

        sheet = contact_sheet(generator(latents), rows=8, cols=8, scale=2)
    """
    images = to_uint8(images, image_range)
    n, h, w, c = images.shape
    check_integer("padding", padding, 0)
    check_integer("scale", scale, 1)
    if rows is not None:
        check_integer("rows", rows, 1)
    if cols is None:
        cols = math.ceil(n / rows) if rows else min(n, math.ceil(math.sqrt(n * h / w)))
    check_integer("cols", cols, 1)
    if rows is None:
        rows = math.ceil(n / cols)
    if n > rows * cols:
        raise ValueError(
            f"The images do not fit on the sheet. Expected at most {rows} x {cols} = {rows * cols} "
            f"images; received {n}. Pass images[:{rows * cols}], more rows or cols, or neither."
        )
    height, width = sheet_size(rows, cols, h, w, padding, scale)
    tile_h, tile_w = scale * h + padding, scale * w + padding
    tiles = _canvas((rows * cols, tile_h, tile_w, c), background)
    tiles[:n, : scale * h, : scale * w] = images.repeat(scale, axis=1).repeat(scale, axis=2)
    tiles = tiles.reshape(rows, cols, tile_h, tile_w, c).swapaxes(1, 2)  # (rows, h, cols, w, c)
    sheet = _canvas((height, width, c), background)
    sheet[padding:, padding:] = tiles.reshape(rows * tile_h, cols * tile_w, c)
    return sheet


def sheet_size(rows, cols, height, width, padding=2, scale=1):
    """The height and width of a contact sheet, without making it.

    Args:
        rows, cols: tiles down and across.
        height, width: of one image, in pixels.
        padding, scale: as in `contact_sheet`.

    Returns:
        `(height, width)` of the sheet, in pixels.

    Raises:
        ValueError: the sheet has more than 2 ** 28 pixels.

    Example:

        sheet_size(8, 8, 28, 28, scale=2)  # (466, 466)
    """
    height = rows * (scale * height + padding) + padding
    width = cols * (scale * width + padding) + padding
    if height * width > _LARGEST:
        raise ValueError(
            f"The sheet is too large. Expected at most {_LARGEST:,} pixels; received {width:,} x "
            f"{height:,}. Lower `rows`, `cols`, `padding` or `scale`."
        )
    return height, width


def class_sheet(images, labels, cols=10, *, image_range=(-1.0, 1.0), background=_WHITE, **layout):
    """One class a row, in ascending order: the first `cols` images of each.

    Args:
        images: float in `image_range` or uint8, `(n, h, w, c)` or `(n, h, w)`.
        labels: `(n,)`, one class for each image; as many rows as there are different ones.
        cols: images of each class, at least 1; a class with fewer leaves background.
        image_range, background: as in `contact_sheet`.
        **layout: `padding` and `scale` of `contact_sheet`.

    Returns:
        uint8 sheet `(height, width, c)`.

    Raises:
        TypeError, ValueError: as `contact_sheet`, or labels that do not match the images.

    Example:

        sheet = class_sheet(generator([latents, labels]), labels, cols=10)
    """
    images, labels = as_array("images", images), as_array("labels", labels)
    if labels.ndim != 1 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"Labels do not match the images. Expected one label for each image, shape "
            f"{images.shape[:1]}; received shape {labels.shape}. Pass integer labels: of one-hot "
            f"rows, labels.argmax(-1); of a column, labels[:, 0]."
        )
    check_integer("cols", cols, 1)
    order = labels.argsort(kind="stable")
    classes, first, row = np.unique(labels[order], return_index=True, return_inverse=True)
    place = np.arange(len(order)) - first[row]  # within its class
    shown = place < cols
    chosen = to_uint8(images[order[shown]], image_range)
    tiles = _canvas((len(classes), cols, *chosen.shape[1:]), background)
    tiles[row[shown], place[shown]] = chosen
    tiles = tiles.reshape(-1, *chosen.shape[1:])  # (classes * cols, h, w, c)
    return contact_sheet(tiles, len(classes), cols, background=background, **layout)


def side_by_side(groups, *, background=_WHITE, **layout):
    """Groups of images from left to right, each a contact sheet under its caption.

    Args:
        groups: `{caption: images}` in the order to show, such as real images, then generated ones.
            Gray beside colour becomes colour.
        background: as in `contact_sheet`.
        **layout: the other arguments of `contact_sheet`, the same for every group.

    Returns:
        uint8 sheet `(height, width, c)`.

    Raises:
        TypeError, ValueError: as `contact_sheet`, or no group.

    Example:

        sheet = side_by_side({"real": images[:64], "generated": generator(latents)})
    """
    if not isinstance(groups, Mapping) or not groups:
        received = "an empty one" if isinstance(groups, Mapping) else type(groups).__name__
        raise ValueError(
            f"There are no groups to show. Expected a dict of captions to images; received "
            f'{received}. Pass {{"real": real_images, "generated": generated_images}}.'
        )
    blocks = [
        _captioned(contact_sheet(images, background=background, **layout), str(caption), background)
        for caption, images in groups.items()
    ]
    height, channels = (max(block.shape[axis] for block in blocks) for axis in (0, 2))
    gap = _canvas((height, _CAPTION_HEIGHT, channels), background)
    columns = []
    for block in blocks:
        column = _canvas((height, block.shape[1], channels), background)
        column[: len(block)] = block
        columns += [gap, column]
    return np.concatenate(columns[1:], axis=1)


def nearest_images(samples, references):
    """For every sample, the reference at the smallest Euclidean distance in pixel space.

    Distances of whole numbers are exact. References are read in blocks, so a memory-mapped array
    need not fit in memory.

    Args:
        samples: `(n, ...)`, float or uint8.
        references: `(m, ...)`, each of a sample's shape, on the samples' scale.

    Returns:
        indices: int64 `(n,)` in `[0, m)`; the first of equally near references.
        distances: float64 `(n,)`, on the scale of the images.

    Raises:
        ValueError: shapes differ, either is empty, only one of the two is uint8, or a value is NaN
            or infinite.

    Example:

        indices, distances = nearest_images([[0.0], [9.0]], [[1.0], [7.0]])  # [0, 1], [1.0, 2.0]
    """
    samples, references = as_array("samples", samples), as_array("references", references)
    if (
        samples.shape[1:] != references.shape[1:]
        or 0 in samples.shape + references.shape
        or min(samples.ndim, references.ndim) < 2
        or (samples.dtype == np.uint8) != (references.dtype == np.uint8)
    ):
        raise ValueError(
            f"Samples and references cannot be compared. Expected at least one of each, of one "
            f"shape and one scale; received {samples.dtype} {samples.shape} and "
            f"{references.dtype} {references.shape}. Crop or resize one, or "
            f"convert both with `to_uint8`."
        )
    points = _flat("samples", samples)
    best = np.full(len(points), np.inf)
    indices = np.zeros(len(points), np.int64)
    block = max(1, min(_BLOCK, 2**23 // len(points)))  # 64 MB of distances at most
    for first in range(0, len(references), block):
        others = _flat("references", references[first : first + block], first)
        # |p - q|^2 = |p|^2 - 2 p.q + |q|^2, and |p|^2 does not change which q is nearest.
        scores = np.square(others).sum(axis=1) / 2 - points @ others.T  # (n, block)
        nearest = scores.argmin(axis=1)
        score = scores[np.arange(len(points)), nearest]
        closer = score < best
        best[closer], indices[closer] = score[closer], first + nearest[closer]
    # From the differences themselves: the expansion above would lose a distance of exactly 0.
    for row, index in enumerate(indices):
        best[row] = np.linalg.norm(points[row] - references[index].ravel().astype(np.float64))
    return indices, best


def nearest_sheet(
    samples, references, *, padding=8, image_range=(-1.0, 1.0), background=_WHITE, **layout
):
    """Every sample beside its nearest reference, to see whether a generator memorised.

    A copy shows as a pair of equal images. The reverse does not hold: a generator can memorise and
    shift every image by a pixel, which is far away in pixel space.

    Args:
        samples, references: `(n, h, w, c)` and `(m, h, w, c)`, float in `image_range` or uint8.
        padding, image_range, background: as in `contact_sheet`; a tile is a pair.
        **layout: `rows`, `cols` (of pairs) and `scale` of `contact_sheet`.

    Returns:
        uint8 sheet `(height, width, c)` with a caption; in a pair the sample is on the left.

    Raises:
        TypeError, ValueError: as `contact_sheet` and `nearest_images`.

    Example:

        sheet = nearest_sheet(generator(latents), training_images, cols=4)
    """
    samples, references = to_uint8(samples, image_range), to_uint8(references, image_range)
    indices, _ = nearest_images(samples, references)
    line = _canvas((*samples.shape[:2], 1, samples.shape[3]), background)
    pairs = np.concatenate([samples, line, references[indices]], axis=2)  # (n, h, 2 * w + 1, c)
    sheet = contact_sheet(pairs, padding=padding, background=background, **layout)
    return _captioned(sheet, "sample | nearest reference", background)


def _canvas(shape, background):
    check_integer("background", background, 0, 255)
    return np.full(shape, background, np.uint8)


def _captioned(sheet, caption, background):
    """The sheet below its caption, and as wide as the wider of the two."""
    font = ImageFont.load_default(_CAPTION_HEIGHT)
    width = max(sheet.shape[1], math.ceil(font.getlength(caption)) + _CAPTION_HEIGHT // 2)
    band = Image.new("L", (width, 3 * _CAPTION_HEIGHT // 2), background)
    ink = 0 if background > 127 else 255
    ImageDraw.Draw(band).text((_CAPTION_HEIGHT // 4, 1), caption, fill=ink, font=font)
    canvas = _canvas((band.height + len(sheet), width, sheet.shape[2]), background)
    canvas[: band.height] = np.asarray(band)[..., np.newaxis]
    canvas[band.height :, : sheet.shape[1]] = sheet
    return canvas


def _check_finite(name, images, first=0):
    """Raise if a pixel is not a number; `first` is the position of the first of these images."""
    bad = ~np.isfinite(images)
    if bad.any():
        where = first + np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
        raise ValueError(
            f"Some pixels are not numbers. Expected finite `{name}`; received {bad.sum()} NaN or "
            f"infinite values in {len(where)} images, the first at index {where[0]}. Look for the "
            f"training step where a loss became NaN."
        )


def _flat(name, images, first=0):
    flat = images.reshape(len(images), -1).astype(np.float64)  # (n, pixels)
    _check_finite(name, flat, first)
    return flat
