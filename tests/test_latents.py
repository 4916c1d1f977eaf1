"""Paths between latent vectors."""

import numpy as np
import pytest

from customstep import latents


def test_right_angle_is_halved():
    path = latents.slerp([1.0, 0.0], [0.0, 1.0], 3)
    np.testing.assert_allclose(path, [[1, 0], [0.5**0.5, 0.5**0.5], [0, 1]], rtol=1e-15)


def test_angle_grows_by_equal_steps():
    path = latents.slerp([1.0, 0.0], [0.0, 1.0], 4)  # 0, 30, 60 and 90 degrees
    root = 3**0.5 / 2
    np.testing.assert_allclose(path, [[1, 0], [root, 0.5], [0.5, root], [0, 1]], rtol=1e-14)


def test_norm_goes_linearly():
    path = latents.slerp([2.0, 0.0, 0.0], [0.0, 0.0, 6.0], 5)
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), [2, 3, 4, 5, 6], rtol=1e-14)


def test_batch_equals_its_rows_and_ends_are_exact():
    start, end = np.random.default_rng(0).normal(size=(2, 6, 100)).astype(np.float32)
    paths = latents.slerp(start, end, 7)
    assert (paths.shape, paths.dtype) == ((6, 7, 100), np.float32)
    np.testing.assert_array_equal(paths[:, 0], start)
    np.testing.assert_array_equal(paths[:, -1], end)
    rows = [latents.slerp(a, b, 7) for a, b in zip(start, end, strict=True)]
    np.testing.assert_array_equal(paths, rows)


def test_parallel_vectors_give_a_straight_line():
    path = latents.slerp([1.0, 2.0], [3.0, 6.0], 3)
    np.testing.assert_allclose(path, [[1, 2], [2, 4], [3, 6]], rtol=1e-14)


def test_nearly_parallel_vectors_stay_accurate():
    angle = 1e-9
    path = latents.slerp([1.0, 0.0], [np.cos(angle), np.sin(angle)], 3)
    np.testing.assert_allclose(path[1], [1, angle / 2], rtol=1e-12)


def test_opposite_vectors_have_no_path():
    with pytest.raises(ValueError, match="opposite.*received angles.*180.*third vector"):
        latents.slerp([1.0, 2.0], [-2.0, -4.0], 5)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_vector_without_direction_is_refused(value):
    with pytest.raises(ValueError, match="`end` has no direction.*received norms.*anew"):
        latents.slerp([1.0, 1.0], [value, value], 5)


@pytest.mark.parametrize("start, end", [((3,), (4,)), ((2, 3), (3,)), ((), ()), ((1, 2, 3),) * 2])
def test_ends_of_other_shapes_are_refused(start, end):
    with pytest.raises(ValueError, match="cannot be joined.*received.*broadcast_to"):
        latents.slerp(np.ones(start), np.ones(end), 5)


def test_path_has_two_points_at_least():
    with pytest.raises(ValueError, match="`steps` .*at least 2; received 1"):
        latents.slerp([1.0], [2.0], 1)
