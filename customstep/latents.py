"""Paths between latent vectors."""

import numpy as np

from customstep.checks import as_array, check_integer

__all__ = ["slerp"]


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
    start, end = as_array("start", start), as_array("end", end)
    check_integer("steps", steps, 2)
    numbers = start.dtype.kind in "iuf" and end.dtype.kind in "iuf"
    if not numbers or start.shape != end.shape or start.ndim not in (1, 2):
        raise ValueError(
            f"The ends cannot be joined. Expected two arrays of numbers of one shape, "
            f"(latent_dim,) or (n, latent_dim); received {start.dtype} {start.shape} and "
            f"{end.dtype} {end.shape}. Repeat the shorter one with np.broadcast_to."
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
