"""Pictures as files: sheets as PNG with their provenance or as GIF, figures; whole or not at all."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from customstep import __version__
from customstep.checks import as_array, check_integer, check_path
from customstep.files import atomic_path

__all__ = ["read_metadata", "save_figure", "save_gif", "save_png"]


def save_figure(path, figure, **options):
    """Writes a matplotlib figure as a PNG file; equal figures give equal bytes.

    Args:
        path: the file; it appears whole or not at all.
        figure: `matplotlib.figure.Figure`.
        **options: more arguments of `figure.savefig`, such as `dpi`.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        # Without the version of matplotlib, which would differ from machine to machine.
        figure.savefig(temporary, format="png", metadata={"Software": None}, **options)


def save_png(path, sheet, metadata=None):
    """Write a sheet as PNG, and in the file itself what it shows.

    The same inputs give the same bytes.

    Args:
        path: the file; it appears whole or not at all.
        sheet: uint8 `(h, w)`, `(h, w, 1)` or `(h, w, 3)`.
        metadata: `{key: value}` such as model, step and seed; values are written as `str(value)`.
            "Software" is always this package and its version.

    Raises:
        TypeError: `path` is not a path, or `metadata` not a dict.
        ValueError: not a sheet, or a key that PNG does not allow.
        OSError: the file cannot be written.

    Example:

        save_png("runs/grid.png", sheet, {"model": "DCGAN", "step": 4000, "seed": 0})
    """
    if not isinstance(metadata or {}, Mapping):
        raise TypeError(
            f"The metadata have no keys. Expected a dict such as {{'seed': 0}}; received "
            f"{metadata!r}. Give each value a key."
        )
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
        OSError: it cannot be read.
        TypeError: `path` is not a path.
        ValueError: the file is not a PNG, or a damaged one.

    Example:

        read_metadata("runs/grid.png")["step"]  # "4000"
    """
    check_path("path", path)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return {key: str(value) for key, value in image.text.items()}
    except (UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"Cannot read metadata. Expected a PNG file; received '{path}', which is none. "
            f"Pass a file that `save_png` wrote."
        ) from error
    except OSError as error:
        raise type(error)(
            f"Cannot read metadata. Expected a PNG file; received '{path}', which cannot be "
            f"opened: {error.strerror or error}. Pass a file that `save_png` wrote."
        ) from error


def save_gif(path, sheets, *, frame_ms=200, hold_last_ms=2000):
    """Write sheets of equal size as an animated GIF that loops for ever.

    The same inputs give the same bytes. All frames share one palette, so colours do not flicker:
    256 grays, which is lossless, or the 256 colours that suit all the sheets together (median
    cut, no dithering). A sheet that equals the one before is kept as a longer frame.

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
    planes = [_plane(sheet) for sheet in ([] if sheets is None else sheets)]
    shapes = sorted({plane.shape for plane in planes})
    if len(shapes) != 1 or max(shapes[0]) > 65535:
        raise ValueError(
            f"The sheets do not make an animation. Expected at least one, all of one shape, sides "
            f"up to 65535; received {len(planes)} of shapes {shapes}. Make every sheet with the "
            f"same rows, cols, padding and scale."
        )
    check_integer("frame_ms", frame_ms, 20, 655350)
    check_integer("hold_last_ms", hold_last_ms, 20, 655350)
    frames = [Image.fromarray(plane) for plane in planes]
    if planes[0].ndim == 3:
        palette = Image.fromarray(np.concatenate(planes)).quantize(256)
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with atomic_path(path) as temporary:
        frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=[frame_ms] * (len(frames) - 1) + [hold_last_ms],
            loop=0,
        )


def _plane(sheet):
    """A sheet in the shape Pillow reads: `(h, w)` for gray, `(h, w, 3)` for colour."""
    sheet = as_array("sheet", sheet)
    channels = sheet.shape[2:]
    shaped = sheet.ndim > 1 and channels in ((), (1,), (3,)) and sheet.size
    if sheet.dtype != np.uint8 or not shaped:
        raise ValueError(
            f"This is not a sheet. Expected uint8 of shape (h, w), (h, w, 1) or (h, w, 3); "
            f"received {sheet.dtype} {sheet.shape}. Make one with `contact_sheet`."
        )
    return np.ascontiguousarray(sheet[..., 0] if channels == (1,) else sheet)
