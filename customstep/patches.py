"""Images as sequences of square patches, and back."""

import tensorflow as tf

__all__ = ["from_patches", "to_patches"]


def to_patches(images, size):
    """The patches of images, row by row.

    Args:
        images: `(batch, height, width, channels)`.
        size: height and width of a patch, which divides those of the images.

    Returns:
        `(batch, height * width / size ** 2, size ** 2 * channels)`, of the type of the images.

    Raises:
        ValueError: `size` does not divide them.
    """
    _, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(
            f"The images cannot be cut into patches. Expected height and width in multiples of "
            f"{size}; received {height} x {width}. Resize them, or choose another patch size."
        )
    x = tf.reshape(images, (-1, height // size, size, width // size, size, channels))
    shape = (-1, height * width // size**2, size**2 * channels)
    return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), shape)


def from_patches(patches, size, shape):
    """The images of shape `(height, width, channels)` whose `to_patches` are `patches`."""
    height, width, channels = shape
    x = tf.reshape(patches, (-1, height // size, width // size, size, size, channels))
    return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, *shape))
