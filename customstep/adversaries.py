"""Whether two networks, and the data they are given, make a GAN: each mistake said before a step."""

import keras
import numpy as np
import tensorflow as tf

__all__ = [
    "check_arrays",
    "check_images",
    "check_labels",
    "check_networks",
    "check_not_empty",
    "inputs_of",
]


def inputs_of(x, labels):
    """What a network is given: `x`, or `[x, labels]` where it is label-conditional."""
    return x if labels is None else [x, labels]


def check_networks(generator, discriminator, latents, labels):
    """Calls both networks on symbols, which also builds them where they are not.

    Args:
        generator, discriminator: `keras.Model` or layers.
        latents: `keras.KerasTensor` `(batch, latent_dim)`.
        labels: `keras.KerasTensor` `(batch,)`, or None.

    Returns:
        The shape of an image, `(height, width, channels)`.

    Raises:
        ValueError: they do not fit one another.
    """
    images = _symbolic_call("generator", generator, inputs_of(latents, labels))
    if len(images.shape) != 4:
        raise ValueError(
            "The generator does not make images. Expected an output of (batch, height, "
            f"width, channels); received {images.shape}. End it with a convolution or Reshape."
        )
    logits = _symbolic_call("discriminator", discriminator, inputs_of(images, labels))
    if len(logits.shape) > 1 and logits.shape[-1] != 1:
        raise ValueError(
            "The discriminator does not give one logit. Expected an output of (batch, 1) or "
            f"(batch, height, width, 1); received {logits.shape}. End it with `Dense(1)`."
        )
    last = (getattr(discriminator, "layers", None) or [None])[-1]
    if getattr(last, "activation", None) is keras.activations.sigmoid:
        raise ValueError(
            "The discriminator ends in a sigmoid. Expected logits, because every loss here "
            "has its own last function; received probabilities. Remove the activation."
        )
    return tuple(images.shape[1:])


def check_images(images, shape, image_range):
    """Raises a `ValueError` where the images of a batch are not of the generator's kind.

    Args:
        images: tensor, or a nest of them; what is known while a graph is traced.
        shape: `(height, width, channels)` of the generator's images.
        image_range: `(low, high)` of them.
    """
    is_tensor = not keras.tree.is_nested(images)
    if not is_tensor or not tf.TensorShape(shape).is_compatible_with(images.shape[1:]):
        received = keras.tree.map_structure(lambda one: tuple(one.shape), images)
        raise ValueError(
            "The images do not fit this GAN. Expected one tensor of shape (batch, "
            f"{', '.join(map(str, shape))}), as the generator makes them; received "
            f"{received}. Resize them, as `load_images(image_size=...)` does, or add the axis "
            "of the channel with images[..., None]."
        )
    if images.dtype == tf.uint8 and max(image_range) < 255:
        raise ValueError(
            f"The images are bytes. Expected floats in {image_range}, the range of the "
            "generator; received uint8. Scale them, as `load_images(image_range=...)` does, "
            "or make the GAN with `image_range=(0, 255)`."
        )


def check_labels(labels, num_classes):
    """Raises a `ValueError` where the labels of a batch are missing or of the wrong kind.

    Args:
        labels: tensor, a nest of them, or None; what is known while a graph is traced.
        num_classes: int.
    """
    if labels is None:
        raise ValueError(
            "A conditional GAN needs labels. Expected data of (images, labels); received "
            "images alone. Pass the labels, or make the GAN without `num_classes`."
        )
    is_column = not keras.tree.is_nested(labels) and tuple(labels.shape[1:]) in ((), (1,))
    if not is_column or not tf.as_dtype(labels.dtype).is_integer:
        received = keras.tree.map_structure(_described, labels)
        raise ValueError(
            "The labels are of the wrong kind. Expected integers of shape (batch,), in "
            f"[0, {num_classes}); received {received}. Convert floats with "
            "labels.astype('int32'), and one-hot rows with labels.argmax(-1)."
        )


def check_arrays(images, labels, image_range, num_classes, *, nonfinite=False):
    """Raises a `ValueError` where arrays hold what a step could not tell from good values.

    Args:
        images: as for `fit`; of an array of floats, the first 1,024 are looked at.
        labels: as for `fit`; all of an array of integers are looked at.
        image_range: `(low, high)`.
        num_classes: int, or None for a GAN that takes no labels.
        nonfinite: whether values that are not finite are left to the step.
    """
    if num_classes is not None and _is_array(labels, "iu") and len(labels):
        low, high = int(np.min(labels)), int(np.max(labels))
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"The labels are out of range. Expected integers in [0, {num_classes}); "
                f"received labels from {low} to {high}. Correct them, or make the GAN and its "
                "networks with another `num_classes`."
            )
    if not _is_array(images, "f"):
        return
    first = np.asarray(images[:1024])
    if nonfinite:
        first = first[np.isfinite(first)]
    if not first.size:
        return
    low, high = image_range
    slack = (high - low) / 10  # for what resizing adds
    smallest, largest = float(first.min()), float(first.max())
    if not (low - slack <= smallest and largest <= high + slack):
        raise ValueError(
            f"The images are not in their range. Expected values in [{low}, {high}], as "
            f"the generator makes them; received values from {smallest:g} to {largest:g}. "
            "Scale them, as `load_images` does, or make the GAN with another `image_range`."
        )


def check_not_empty(x):
    """Raises a `ValueError` where `fit` would be over at once, of which Keras only warns."""
    if isinstance(x, tf.data.Dataset):
        empty = x.cardinality() == 0
    else:
        shapes = [getattr(one, "shape", None) for one in keras.tree.flatten(x)]
        empty = any(shape is not None and len(shape) and shape[0] == 0 for shape in shapes)
    if empty:
        raise ValueError(
            f"There are no data. Expected at least one batch; received {type(x).__name__} without "
            "any. Pass more examples, or lower a batch size that is larger than the data set and "
            "leaves no batch with `drop_remainder=True`."
        )


def _symbolic_call(name, network, inputs):
    shapes = [tensor.shape for tensor in keras.tree.flatten(inputs)]
    try:
        _check_inputs(network, shapes)
        return network(inputs)
    except Exception as error:
        raise ValueError(
            f"The {name} cannot be called on what the GAN gives it. Expected a network of inputs "
            f"{shapes}; received one that fails ({error}). Change the network, `latent_dim` or "
            "`num_classes`."
        ) from error


def _check_inputs(network, shapes):
    """Raises a `ValueError` where a network was made for other shapes.

    Keras lets pass a last axis of 1 where another length is expected.
    """
    expected = [tensor.shape for tensor in getattr(network, "inputs", None) or ()]
    for want, have in zip(expected, shapes):
        if len(want) == len(have) and not tf.TensorShape(want).is_compatible_with(have):
            raise ValueError(f"its inputs are {expected}")


def _is_array(values, kinds):
    """Whether it is an array or tensor of numbers of some kinds, in the letters of numpy."""
    is_array = isinstance(values, (np.ndarray, tf.Tensor)) and len(values.shape)
    return is_array and np.asarray(values[:0]).dtype.kind in kinds


def _described(tensor):
    return f"{tf.as_dtype(tensor.dtype).name} {tuple(tensor.shape)}"
