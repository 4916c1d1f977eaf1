"""Sheets of images to look at, and the PNG and GIF files that keep them: numpy and Pillow only."""

import math
import numbers
import struct
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError

from customstep import __version__
from customstep.files import atomic_path

__all__ = [
    "class_sheet", "contact_sheet", "nearest_images", "nearest_sheet", "read_metadata",
    "save_gif", "save_png", "side_by_side", "slerp", "to_uint8",
]  # fmt: skip

_WHITE = 255
_CAPTION_HEIGHT = 16  # of the letters, in final pixels
_BLOCK = 1024  # references compared at once


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
    images = np.asarray(images)
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
    low, high = image_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"`image_range` is not a range. Expected two finite numbers, the lower first; received "
            f"{image_range}. Pass (-1, 1) for a tanh output or (0, 1) for a sigmoid output."
        )
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
        TypeError, ValueError: not images (see `to_uint8`), more images than tiles, or a number out
            of its range.

    Example:

        sheet = contact_sheet(generator(latents), rows=8, cols=8, scale=2)
    """
    images = to_uint8(images, image_range)
    n, h, w, c = images.shape
    _check_integer("padding", padding, 0)
    _check_integer("scale", scale, 1)
    if rows is not None:
        _check_integer("rows", rows, 1)
    if cols is None:
        cols = math.ceil(n / rows) if rows else min(n, math.ceil(math.sqrt(n * h / w)))
    _check_integer("cols", cols, 1)
    if rows is None:
        rows = math.ceil(n / cols)
    if n > rows * cols:
        raise ValueError(
            f"The images do not fit on the sheet. Expected at most {rows} x {cols} = {rows * cols} "
            f"images; received {n}. Pass images[:{rows * cols}], more rows or cols, or neither."
        )
    tile_h, tile_w = scale * h + padding, scale * w + padding
    tiles = _canvas((rows * cols, tile_h, tile_w, c), background)
    tiles[:n, : scale * h, : scale * w] = images.repeat(scale, axis=1).repeat(scale, axis=2)
    tiles = tiles.reshape(rows, cols, tile_h, tile_w, c).swapaxes(1, 2)  # (rows, h, cols, w, c)
    sheet = _canvas((rows * tile_h + padding, cols * tile_w + padding, c), background)
    sheet[padding:, padding:] = tiles.reshape(rows * tile_h, cols * tile_w, c)
    return sheet


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
    images, labels = np.asarray(images), np.asarray(labels)
    if labels.ndim != 1 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"Labels do not match the images. Expected one label for each image, shape "
            f"{images.shape[:1]}; received shape {labels.shape}. Pass integer labels: of one-hot "
            f"rows, labels.argmax(-1); of a column, labels[:, 0]."
        )
    _check_integer("cols", cols, 1)
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
    samples, references = np.asarray(samples), np.asarray(references)
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


def slerp(start, end, steps):
    """Spherical interpolation between latent vectors, both ends included.

    Samples of a Gaussian in many dimensions lie near a sphere; a straight line between two of them
    passes through its inside, where the generator was never trained (White, 2016). So the direction
    turns at a constant rate along the great circle (Shoemake, 1985, "slerp") while the norm goes
    linearly from one end's to the other's. Shoemake's quaternions have norm 1; White weighs the
    vectors themselves, which equals this where the norms are equal.

    References:
        K. Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
        T. White, "Sampling generative networks", arXiv:1609.04468, 2016.

    Args:
        start, end: `(latent_dim,)` or `(n, latent_dim)`, finite and not zero. Parallel vectors give
            the straight line between them.
        steps: number of points, at least 2.

    Returns:
        `(steps, latent_dim)` or `(n, steps, latent_dim)`, float32 (float64 from float64 or int64);
        the first and the last point are `start` and `end` exactly.

    Raises:
        ValueError: shapes differ or are of another rank; `steps` is below 2; a vector is zero or
            not finite, so has no direction; two are opposite, so no great circle is the shortest.

    Example:

        slerp([1.0, 0.0], [0.0, 1.0], steps=3)  # [[1, 0], [0.7071, 0.7071], [0, 1]]
    """
    start, end = np.asarray(start), np.asarray(end)
    _check_integer("steps", steps, 2)
    if start.shape != end.shape or start.ndim not in (1, 2):
        raise ValueError(
            f"The ends cannot be joined. Expected two arrays of one shape, (latent_dim,) or "
            f"(n, latent_dim); received {start.shape} and {end.shape}. Repeat the shorter one with "
            f"np.broadcast_to."
        )
    dtype = np.result_type(start, end, np.float32)
    p, q = (vectors.astype(np.float64)[..., np.newaxis, :] for vectors in (start, end))
    norm_p, norm_q = (np.linalg.norm(vectors, axis=-1, keepdims=True) for vectors in (p, q))
    for name, norm in (("start", norm_p), ("end", norm_q)):
        if not np.all((norm > 0) & np.isfinite(norm)):
            raise ValueError(
                f"A vector of `{name}` has no direction. Expected finite vectors other than zero; "
                f"received norms {norm.ravel()}. Draw the latents anew."
            )
    p_hat, q_hat = p / norm_p, q / norm_q
    # Kahan's angle: accurate near 0 and pi, where the arc cosine loses half the digits.
    chord = np.linalg.norm(p_hat - q_hat, axis=-1, keepdims=True)
    theta = 2 * np.arctan2(chord, np.linalg.norm(p_hat + q_hat, axis=-1, keepdims=True))
    if np.any(np.pi - theta < 1e-6):
        raise ValueError(
            f"Two vectors are opposite. Expected an angle below 180 degrees, so that one path is "
            f"the shortest; received angles {np.degrees(theta).ravel()}. Interpolate through a "
            f"third vector: slerp(start, middle, steps), then slerp(middle, end, steps)."
        )
    t = np.linspace(0, 1, steps)[:, np.newaxis]
    # sin(t theta) / sin(theta), written with sinc so that it is t where theta is 0.
    weight_p, weight_q = (
        u * np.sinc(u * theta / np.pi) / np.sinc(theta / np.pi) for u in (1 - t, t)
    )
    path = (weight_p * p_hat + weight_q * q_hat) * ((1 - t) * norm_p + t * norm_q)
    path[..., 0, :], path[..., -1, :] = start, end
    return path.astype(dtype)


def save_png(path, sheet, metadata=None):
    """Write a sheet as PNG, and in the file itself what it shows.

    The same inputs give the same bytes.

    Args:
        path: the file; it appears whole or not at all.
        sheet: uint8 `(h, w)`, `(h, w, 1)` or `(h, w, 3)`.
        metadata: `{key: value}` such as model, step and seed; values are written as `str(value)`.
            "Software" is always this package and its version.

    Raises:
        ValueError: not a sheet, or a key that PNG does not allow.
        OSError: the file cannot be written.

    Example:

        save_png("runs/grid.png", sheet, {"model": "DCGAN", "step": 4000, "seed": 0})
    """
    text = PngImagePlugin.PngInfo()
    for key, value in {**(metadata or {}), "Software": f"customstep {__version__}"}.items():
        if not (isinstance(key, str) and key.isascii() and key.isprintable() and 0 < len(key) < 80):
            raise ValueError(
                f"PNG does not allow this metadata key. Expected 1 to 79 printable ASCII "
                f"characters; received {key!r}. Shorten the key and keep the rest in its value."
            )
        text.add_text(key, str(value))
    image = Image.fromarray(_plane(sheet))
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=text)


def read_metadata(path):
    """The metadata of a PNG file, `{key: text}`, as `save_png` wrote it.

    Args:
        path: the PNG file.

    Returns:
        dict of str to str; empty if the file has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a PNG.

    Example:

        read_metadata("runs/grid.png")["step"]  # "4000"
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return {key: str(value) for key, value in image.text.items()}
    except UnidentifiedImageError as error:
        raise ValueError(
            f"Cannot read metadata. Expected a PNG file; received '{path}', which is none. "
            f"Pass a file that `save_png` wrote."
        ) from error


def save_gif(path, sheets, *, frame_ms=200, hold_last_ms=2000):
    """Write sheets of equal size as an animated GIF that loops for ever.

    The same inputs give the same bytes. Every sheet becomes one frame, even if it equals the one
    before; Pillow's own writer merges the two, and frame 7 would no longer be sheet 7. All frames
    share one palette, so colours do not flicker: 256 grays, which is lossless, or the 256 colours
    that suit all the sheets together (median cut, no dithering).

    Args:
        path: the file; it appears whole or not at all.
        sheets: list of uint8 `(h, w)`, `(h, w, 1)` or `(h, w, 3)`, all of one shape.
        frame_ms, hold_last_ms: how long every frame and the last one stay, in milliseconds, 20 to
            655350, rounded down to tens. (Browsers slow anything shorter down to 100.)

    Raises:
        ValueError: no sheet, not sheets, unequal shapes, sides above 65535 or a time out of range.
        OSError: the file cannot be written.

    Example:

        save_gif("runs/training.gif", [sheet_of_epoch_1, sheet_of_epoch_2])
    """
    planes = [_plane(sheet) for sheet in sheets]
    shapes = sorted({plane.shape for plane in planes})
    if len(shapes) != 1 or max(shapes[0]) > 65535:
        raise ValueError(
            f"The sheets do not make an animation. Expected at least one, all of one shape, sides "
            f"up to 65535; received {len(planes)} of shapes {shapes}. Make every sheet with the "
            f"same rows, cols, padding and scale."
        )
    _check_integer("frame_ms", frame_ms, 20, 655350)
    _check_integer("hold_last_ms", hold_last_ms, 20, 655350)
    if planes[0].ndim == 2:
        palette = np.arange(256, dtype=np.uint8).repeat(3).tobytes()
        frames = [Image.fromarray(plane) for plane in planes]
    else:
        colours = Image.fromarray(np.concatenate(planes)).quantize(256)
        palette = bytes(colours.getpalette()).ljust(768, b"\0")
        frames = [
            Image.fromarray(plane).quantize(palette=colours, dither=Image.Dither.NONE)
            for plane in planes
        ]
    height, width = planes[0].shape[:2]
    # GIF89a: screen with a global palette of 2 ** (7 + 1) colours, loop for ever, frames, trailer.
    parts = [b"GIF89a", struct.pack("<HHBBB", width, height, 0xF7, 0, 0), palette]
    parts.append(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
    for number, frame in enumerate(frames, start=1):
        milliseconds = hold_last_ms if number == len(frames) else frame_ms
        parts.append(struct.pack("<BBBBHBB", 0x21, 0xF9, 4, 0, milliseconds // 10, 0, 0))
        parts.append(struct.pack("<BHHHHBB", 0x2C, 0, 0, width, height, 0, 8))
        parts += [frame.tobytes("gif", frame.mode, 8, 0), b"\0"]
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join([*parts, b";"]))


def _canvas(shape, background):
    _check_integer("background", background, 0, 255)
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


def _check_integer(name, value, low, high=math.inf):
    if not isinstance(value, numbers.Integral) or not low <= value <= high:
        limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(
            f"`{name}` is out of its range. Expected a whole number {limits}; received {value!r}. "
            f"Pass, for example, {name}={low}."
        )


def _flat(name, images, first=0):
    flat = images.reshape(len(images), -1).astype(np.float64)  # (n, pixels)
    _check_finite(name, flat, first)
    return flat


def _plane(sheet):
    """A sheet in the shape Pillow reads: `(h, w)` for gray, `(h, w, 3)` for colour."""
    sheet = np.asarray(sheet)
    channels = sheet.shape[2:]
    shaped = sheet.ndim > 1 and channels in ((), (1,), (3,)) and sheet.size
    if sheet.dtype != np.uint8 or not shaped:
        raise ValueError(
            f"This is not a sheet. Expected uint8 of shape (h, w), (h, w, 1) or (h, w, 3); "
            f"received {sheet.dtype} {sheet.shape}. Make one with `contact_sheet`."
        )
    return np.ascontiguousarray(sheet[..., 0] if channels == (1,) else sheet)
