"""Sheets as PNG and GIF files."""

import pathlib

import numpy as np
import pytest
from PIL import Image

import customstep
from customstep import pictures


def frames_of(path):
    """Frames as RGB arrays, and how long each stays."""
    with Image.open(path) as image:
        frames, durations = [], []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
        return frames, durations, image.info.get("loop")


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
def test_png_keeps_every_pixel(tmp_path, shape):
    sheet = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pictures.save_png(tmp_path / "new" / "sheet.png", sheet)
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        np.testing.assert_array_equal(np.asarray(image), sheet.squeeze())


def test_metadata_come_back_as_text(tmp_path):
    path = tmp_path / "sheet.png"
    metadata = {"model": "µ → 文", "step": 4000, "loss": 0.5, "note": "two\nlines", "none": ""}
    pictures.save_png(path, np.zeros((2, 2), np.uint8), metadata)
    assert pictures.read_metadata(path) == {
        "model": "µ → 文",
        "step": "4000",
        "loss": "0.5",
        "note": "two\nlines",
        "none": "",
        "Software": f"customstep {customstep.__version__}",
    }


def test_png_without_metadata_has_none(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "plain.png")
    assert pictures.read_metadata(tmp_path / "plain.png") == {}


@pytest.mark.parametrize("key", ["", "k" * 80, "ключ", "a\0b", 3])
def test_metadata_key_that_png_forbids_is_refused(tmp_path, key):
    with pytest.raises(ValueError, match="metadata key.*received.*Shorten"):
        pictures.save_png(tmp_path / "sheet.png", np.zeros((2, 2), np.uint8), {key: 1})


def test_metadata_of_another_format_are_refused(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "image.gif")
    with pytest.raises(ValueError, match="Expected a PNG file; received.*image.gif.*save_png"):
        pictures.read_metadata(tmp_path / "image.gif")


def test_same_sheets_give_the_same_bytes(tmp_path):
    sheets = np.random.default_rng(0).integers(0, 256, (3, 30, 30, 3), dtype=np.uint8)
    for name in ("a", "b"):
        pictures.save_png(tmp_path / f"{name}.png", sheets[0], {"step": 1})
        pictures.save_gif(tmp_path / f"{name}.gif", sheets)
    for suffix in ("png", "gif"):
        a, b = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        assert a.read_bytes() == b.read_bytes()


def test_gray_gif_keeps_every_pixel_and_loops(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    pictures.save_gif(tmp_path / "a.gif", [ramp, 255 - ramp], frame_ms=50, hold_last_ms=1230)
    frames, durations, loop = frames_of(tmp_path / "a.gif")
    np.testing.assert_array_equal(frames[0], ramp.repeat(3, axis=2))
    np.testing.assert_array_equal(frames[1], 255 - ramp.repeat(3, axis=2))
    assert (durations, loop) == ([50, 1230], 0)


def test_equal_sheets_stay_as_long_as_the_frames_they_would_be(tmp_path):
    black, white = np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)
    pictures.save_gif(tmp_path / "a.gif", [black, black, white, white, white])
    frames, durations, _ = frames_of(tmp_path / "a.gif")
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 255]
    assert durations == [2 * 200, 2 * 200 + 2000]


def test_gif_of_few_colours_is_exact(tmp_path):
    red, blue, gold = [200, 10, 10], [5, 5, 250], [255, 215, 0]
    sheets = np.array([[[red, blue]], [[gold, red]]], np.uint8).repeat(8, axis=1)
    pictures.save_gif(tmp_path / "a.gif", sheets)
    frames, _, _ = frames_of(tmp_path / "a.gif")
    np.testing.assert_array_equal(frames, sheets)


def test_gif_of_many_colours_is_close(tmp_path):
    ramp = np.linspace(0, 255, 64)
    a, b = np.meshgrid(ramp, ramp)
    sheet = np.stack([a, b, (a + b) / 2], axis=-1).astype(np.uint8)
    pictures.save_gif(tmp_path / "a.gif", [sheet])
    frames, durations, _ = frames_of(tmp_path / "a.gif")
    # 256 colours on 256 x 256 values: cells of about 16 x 16, so at most some 16 away.
    assert np.abs(frames[0].astype(int) - sheet).max() <= 16
    assert durations == [2000]


def test_gif_larger_than_one_buffer_is_whole(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 500), dtype=np.uint8)
    pictures.save_gif(tmp_path / "a.gif", [noise, noise[::-1]])
    frames, _, _ = frames_of(tmp_path / "a.gif")
    np.testing.assert_array_equal(frames[1][..., 0], noise[::-1])


@pytest.mark.parametrize("shapes", [[], [(2, 2), (2, 3)], [(2, 2), (2, 2, 3)], [(1, 65536)]])
def test_sheets_that_make_no_animation_are_refused(tmp_path, shapes):
    with pytest.raises(ValueError, match="animation.*received [0-9] of shapes.*same rows"):
        pictures.save_gif(tmp_path / "a.gif", [np.zeros(shape, np.uint8) for shape in shapes])


@pytest.mark.parametrize(
    "name, value", [("frame_ms", 10), ("hold_last_ms", 655360), ("frame_ms", 50.0)]
)
def test_gif_time_out_of_range_is_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}` .*from 20 to 655350; received {value}"):
        pictures.save_gif(tmp_path / "a.gif", [np.zeros((2, 2), np.uint8)], **{name: value})


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (4, 0), (1, 4, 4, 1)])
def test_what_is_no_sheet_is_refused(tmp_path, shape):
    sheet = np.zeros(shape, np.uint8)
    for save, data in ((pictures.save_png, sheet), (pictures.save_gif, [sheet])):
        with pytest.raises(ValueError, match="not a sheet.*received uint8.*contact_sheet"):
            save(tmp_path / "a", data)
    with pytest.raises(ValueError, match="received float64"):
        pictures.save_png(tmp_path / "a.png", np.zeros((4, 4)))


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, name):
    def fail(self, *args, **kwargs):
        raise OSError("No space left on device")

    path = tmp_path / name
    path.write_bytes(b"old")
    sheet = np.zeros((2, 2), np.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", fail)
        patch.setattr(Image.Image, "save", fail)
        with pytest.raises(OSError, match="No space left"):
            if name == "a.png":
                pictures.save_png(path, sheet)
            else:
                pictures.save_gif(path, [sheet])
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == b"old"
