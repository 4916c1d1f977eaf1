"""Sheets of images, and the nearest image."""

import numpy as np
import pytest

from customstep import grids

CAPTION = 24  # rows that a caption takes


def gray(*values):
    """One 1 x 1 gray image for each value."""
    return np.array(values, np.uint8).reshape(-1, 1, 1, 1)


# Bytes


def test_range_ends_become_0_and_255():
    images = np.array([-1.0, -0.6, 0.0, 1.0]).reshape(1, 2, 2, 1)
    # (x + 1) * 127.5 = 0, 51, 127.5, 255; a half goes to the even neighbour.
    assert grids.to_uint8(images).ravel().tolist() == [0, 51, 128, 255]


def test_range_0_to_1_is_honoured():
    images = np.array([0.0, 0.2, 0.6, 1.0]).reshape(1, 2, 2, 1)
    assert grids.to_uint8(images, (0, 1)).ravel().tolist() == [0, 51, 153, 255]


def test_every_byte_survives_the_usual_preprocessing():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    scaled = images.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(grids.to_uint8(scaled), images)


def test_bytes_are_taken_as_they_are():
    images = np.array([[[0, 7, 255]]], np.uint8)
    assert grids.to_uint8(images).tolist() == [[[[0], [7], [255]]]]


def test_lists_and_missing_channel_axis_are_accepted():
    result = grids.to_uint8([[[-1.0, 1.0]]])
    assert (result.dtype, result.tolist()) == (np.uint8, [[[[0], [255]]]])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_every_float_type_is_accepted(dtype):
    pytest.importorskip("ml_dtypes")
    images = np.array([[[-1.0, 0.5, 1.0]]]).astype(dtype)
    assert grids.to_uint8(images).ravel().tolist() == [0, 191, 255]  # 1.5 * 127.5 = 191.25


def test_rounding_beyond_the_range_is_clipped():
    assert grids.to_uint8([[[-1.001, 1.001]]]).ravel().tolist() == [0, 255]


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4, 1), (2, 4, 4, 4), (2, 4, 4, 2), (1,) * 5])
def test_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match="Expected at least one.*images\\[None\\]") as error:
        grids.to_uint8(np.zeros(shape, np.float32))
    assert f"received shape {shape}" in str(error.value)


def test_wrong_type_is_named():
    with pytest.raises(TypeError, match="received int32.*astype"):
        grids.to_uint8(np.zeros((1, 2, 2, 1), np.int32))


def test_not_a_number_is_counted_and_located():
    images = np.zeros((5, 2, 2, 1))
    images[3, 0] = np.nan
    images[4, 1, 1] = np.inf
    with pytest.raises(ValueError, match="received 3 NaN or infinite values in 2 images.* index 3"):
        grids.to_uint8(images)


def test_values_outside_the_range_are_reported_with_the_remedy():
    with pytest.raises(ValueError, match=r"in \[-1, 1\]; .* 0 to 254.*`image_range`"):
        grids.to_uint8([[[0.0, 254.0]]])


@pytest.mark.parametrize("image_range", [(1, -1), (0, 0), (0, np.inf)])
def test_impossible_range_is_refused(image_range):
    with pytest.raises(ValueError, match="`image_range` is not a range.*received.*Pass"):
        grids.to_uint8([[[0.0]]], image_range)


# Sheets


def test_padding_goes_around_and_between_tiles():
    images = np.array([[[10, 20]], [[30, 40]]], np.uint8)
    sheet = grids.contact_sheet(images, 1, 2, padding=1, background=9)
    assert sheet[..., 0].tolist() == [[9] * 7, [9, 10, 20, 9, 30, 40, 9], [9] * 7]


def test_scale_repeats_pixels_but_not_padding():
    images = np.array([[[10, 20]], [[30, 40]]], np.uint8)
    sheet = grids.contact_sheet(images, 1, 2, padding=1, scale=2, background=9)
    row = [9, 10, 10, 20, 20, 9, 30, 30, 40, 40, 9]
    assert sheet[..., 0].tolist() == [[9] * 11, row, row, [9] * 11]


def test_sheet_is_row_major_and_missing_tiles_are_background():
    sheet = grids.contact_sheet(gray(1, 2, 3, 4), 2, 3, padding=0, background=7)
    assert sheet[..., 0].tolist() == [[1, 2, 3], [4, 7, 7]]


def test_colour_stays_with_its_pixel():
    images = np.array([[[[1, 2, 3]]], [[[4, 5, 6]]]], np.uint8)
    sheet = grids.contact_sheet(images, 2, 1, padding=0)
    assert sheet.tolist() == [[[1, 2, 3]], [[4, 5, 6]]]


@pytest.mark.parametrize(
    "n, h, w, rows, cols, shape",
    [
        (10, 1, 1, None, None, (3, 4)),  # the square root of 10 rounds up to 4 columns
        (4, 4, 1, None, None, (4, 4)),  # tall tiles stand in one row
        (4, 1, 4, None, None, (4, 4)),  # wide tiles lie in one column
        (2, 9, 1, None, None, (9, 2)),  # never more columns than images
        (10, 1, 1, 2, None, (2, 5)),
        (10, 1, 1, None, 3, (4, 3)),
        (10, 1, 1, 4, 5, (4, 5)),
    ],
)
def test_missing_rows_and_cols_follow_from_the_images(n, h, w, rows, cols, shape):
    images = np.zeros((n, h, w, 1), np.uint8)
    assert grids.contact_sheet(images, rows, cols, padding=0).shape == (*shape, 1)


def test_float_images_are_shown_in_their_range():
    sheet = grids.contact_sheet([[[0.0]], [[1.0]]], 1, 2, padding=0, image_range=(0, 1))
    assert sheet.ravel().tolist() == [0, 255]


def test_ten_thousand_tiles_fit_on_one_sheet():
    images = np.zeros((10_000, 28, 28, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(10_000) % 251
    sheet = grids.contact_sheet(images, 100, 100)
    assert sheet.shape == (3002, 3002, 1)  # 100 * (28 + 2) + 2
    corners = sheet[2::30, 2::30, 0]
    np.testing.assert_array_equal(corners, np.arange(10_000).reshape(100, 100) % 251)


def test_more_images_than_tiles_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"at most 2 x 2 = 4 images; received 5.*images\[:4\]"):
        grids.contact_sheet(gray(1, 2, 3, 4, 5), 2, 2)


@pytest.mark.parametrize(
    "name, value",
    [
        ("rows", 0), ("cols", 0), ("cols", 2.0), ("padding", -1), ("scale", 0),
        ("scale", 1.5), ("background", 256), ("background", -1),
    ],
)  # fmt: skip
def test_number_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"`{name}` .*Expected.*received {value}.*Pass"):
        grids.contact_sheet(gray(1), **{name: value})


def test_classes_are_rows_in_ascending_order():
    sheet = grids.class_sheet(gray(10, 11, 12, 13), [2, 0, 2, 2], cols=2, padding=0, background=5)
    assert sheet[..., 0].tolist() == [[11, 5], [10, 12]]


def test_class_sheet_scales_and_pads_like_a_contact_sheet():
    sheet = grids.class_sheet([[[0.0]], [[1.0]]], [1, 0], 1, image_range=(0, 1), padding=1, scale=2)
    assert sheet[:, 1, 0].tolist() == [255, 255, 255, 255, 0, 0, 255]


@pytest.mark.parametrize("labels", [[0], [[1, 0], [0, 1]], 0])
def test_labels_that_do_not_match_are_refused(labels):
    with pytest.raises(ValueError, match=r"shape \(2,\); received shape \(.*argmax"):
        grids.class_sheet(gray(1, 2), labels)


def test_class_sheet_refuses_no_images_and_no_columns():
    with pytest.raises(ValueError, match=r"received shape \(0, 1, 1, 1\)"):
        grids.class_sheet(gray(), [])
    with pytest.raises(ValueError, match="`cols` .*received 0"):
        grids.class_sheet(gray(1), [0], cols=0)


def test_groups_stand_side_by_side_below_their_captions():
    groups = {"a": np.full((1, 40, 40), 50, np.uint8), "b": np.full((1, 40, 30), 60, np.uint8)}
    sheet = grids.side_by_side(groups, padding=0)
    assert sheet.shape == (CAPTION + 40, 40 + 16 + 30, 1)
    assert (sheet[CAPTION:, :40] == 50).all()
    assert (sheet[:, 40:56] == 255).all()
    assert (sheet[CAPTION:, 56:] == 60).all()
    assert sheet[:CAPTION, :40].min() < 64
    assert sheet[:CAPTION, 56:].min() < 64


def test_caption_is_light_on_a_dark_background():
    sheet = grids.side_by_side({"real": np.zeros((1, 40, 40), np.uint8)}, background=0)
    assert sheet[:CAPTION].max() > 192


def test_gray_beside_colour_becomes_colour():
    groups = {"a": np.full((1, 40, 40, 1), 50, np.uint8), "b": np.zeros((1, 20, 40, 3), np.uint8)}
    sheet = grids.side_by_side(groups, padding=0)
    assert sheet[CAPTION, 0].tolist() == [50, 50, 50]
    assert sheet[CAPTION, 56].tolist() == [0, 0, 0]
    assert sheet[CAPTION + 20, 56].tolist() == [255, 255, 255]  # the shorter group ends


@pytest.mark.parametrize("groups, received", [({}, "an empty one"), ([1], "list")])
def test_groups_must_be_named(groups, received):
    with pytest.raises(ValueError, match=f"received {received}.*Pass"):
        grids.side_by_side(groups)


# Nearest images


def test_distance_is_euclidean():
    indices, distances = grids.nearest_images([[0.0, 0.0]], [[6.0, 8.0], [3.0, 4.0]])
    assert (indices.tolist(), distances.tolist()) == ([1], [5.0])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_nearest_equals_brute_force_across_blocks(dtype):
    random = np.random.default_rng(0)
    samples = random.integers(0, 256, (20, 3, 2)).astype(dtype)
    references = random.integers(0, 256, (2500, 3, 2)).astype(dtype)
    differences = samples[:, None].astype(float) - references[None].astype(float)
    expected = np.sqrt(np.square(differences).sum(axis=(2, 3)))
    indices, distances = grids.nearest_images(samples, references)
    np.testing.assert_array_equal(indices, expected.argmin(axis=1))
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-14)


def test_copy_has_distance_zero_and_the_first_of_equals_wins():
    references = np.random.default_rng(0).uniform(-1, 1, (3000, 28, 28)).astype(np.float32)
    references[2999] = references[5]
    indices, distances = grids.nearest_images(references[2998:], references)
    assert (indices.tolist(), distances.tolist()) == ([2998, 5], [0.0, 0.0])


@pytest.mark.parametrize(
    "samples, references",
    [
        (np.zeros((2, 3)), np.zeros((2, 4))),
        (np.zeros((0, 3)), np.zeros((2, 3))),
        (np.zeros((2, 3)), np.zeros((0, 3))),
        (np.zeros(3), np.zeros(3)),
        (np.zeros((2, 3)), np.zeros((2, 3), np.uint8)),
    ],
)
def test_incomparable_images_are_refused(samples, references):
    with pytest.raises(ValueError, match="cannot be compared.*received.*to_uint8") as error:
        grids.nearest_images(samples, references)
    assert f"{references.dtype} {references.shape}" in str(error.value)


def test_reference_that_is_not_a_number_is_located():
    references = np.zeros((2000, 2))
    references[1500] = np.nan
    with pytest.raises(ValueError, match="finite `references`; received 2 .* index 1500"):
        grids.nearest_images(np.zeros((1, 2)), references)


def test_pairs_show_the_sample_on_the_left():
    samples, references = gray(10, 200), gray(190, 12)
    sheet = grids.nearest_sheet(samples, references, cols=1, padding=0, background=7)
    assert sheet[CAPTION:, :3, 0].tolist() == [[10, 7, 12], [200, 7, 190]]
    assert sheet[:CAPTION].max() > 192


def test_float_samples_compare_with_byte_references():
    sheet = grids.nearest_sheet([[[1.0]]], gray(0, 250), padding=0)
    assert sheet[CAPTION, :3, 0].tolist() == [255, 255, 250]
