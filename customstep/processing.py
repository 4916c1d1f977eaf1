"""What a step does to a batch before the model sees it, and to the outputs after.

A processor is a small object: augmentation in `fit`, normalisation everywhere, the way back to the
user's own units in `predict`. The template `Processed` runs a list of them, in the graph and on
the accelerator, with random numbers that are saved with the model:

    Processed(inputs=inputs, outputs=logits, processors=[OneHot(10), RandomFlip(), Mixup(0.2)])

Images are `(batch, height, width, channels)`. Random processors decide for every example anew, and
mix within the part of the batch that their replica sees. Where targets and outputs are dicts, the
processors that are for one of them take its name as `output`.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping

import keras
import tensorflow as tf

from customstep import noise
from customstep.checks import as_array, check_integer, check_number
from customstep.saving import SavedDataclass

__all__ = [
    "CutMix",
    "Flip",
    "Mixup",
    "Normalize",
    "OneHot",
    "Processor",
    "RandomFlip",
    "RandomIntensity",
    "RandomResizedCrop",
    "RandomShift",
    "Shift",
    "Softmax",
    "StandardizeTargets",
    "augmented",
    "augmented_views",
    "box_mask",
    "check_processors",
    "crop",
    "mix_targets",
    "shift",
]


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Processor(SavedDataclass):
    """One piece of pre- and post-processing; this one does nothing.

    Derive yours as a frozen, registered dataclass and override what it does. A batch may lack `y`
    and `sample_weight`, in `predict` for one.

    Example:

        @keras.saving.register_keras_serializable("mine")
        @dataclasses.dataclass(frozen=True)
        class LogTargets(Processor):
            def infer(self, batch):
                return batch if batch.y is None else batch._replace(y=tf.math.log1p(batch.y))

            def outputs(self, outputs):
                return tf.math.expm1(outputs)
    """

    def train(self, batch, seed):
        """The batch that `fit` learns from: by default the one of `infer`.

        Args:
            batch: `Batch`.
            seed: int64 `(2,)`, for one draw of `customstep.noise`, or for `noise.split`.

        Returns:
            `Batch`.
        """
        return self.infer(batch)

    def infer(self, batch):
        """The batch that `evaluate` and `predict` see: by default as it came."""
        return batch

    def outputs(self, outputs):
        """What `predict` returns for outputs of the model: by default the outputs."""
        return outputs


def augmented(batch, processors, seed):
    """The batch after the `train` of every processor, each with a seed of its own.

    Args:
        batch: `Batch`.
        processors: sequence of `Processor`.
        seed: int64 `(2,)`.

    Returns:
        `Batch`.
    """
    for processor, its_seed in zip(processors, noise.split(seed, len(processors))):
        batch = processor.train(batch, its_seed)
    return batch


def augmented_views(batch, processors, seed, count=2):
    """A list of `count` batches, the same one `augmented` otherwise each time."""
    return [augmented(batch, processors, one) for one in noise.split(seed, count)]


def check_processors(name, processors):
    """A tuple of processors; raises a `TypeError` where something else is among them."""
    for processor in (processors := tuple(keras.tree.flatten(processors))):
        if not isinstance(processor, Processor):
            raise TypeError(
                f"`{name}` holds something else. Expected processors such as "
                f"`processing.RandomFlip()`; received {processor!r}. Make an object of its class, "
                "or derive your own from `processing.Processor`."
            )
    return processors


# -- Inputs ---------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Normalize(Processor):
    """(x - mean) / std, everywhere: the model carries the scale of its inputs with it.

    Floats keep their type; integers, such as uint8 images, become `keras.config.floatx()`.

    Args:
        mean: number, or one for each channel (the last axis of `x`).
        std: number above 0, or one for each channel.

    Raises:
        ValueError: a number is out of range, or there is not one for each channel.

    Example:

        Normalize(mean=127.5, std=127.5)  # bytes to [-1, 1]
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def __post_init__(self):
        _check_moments(self)

    def infer(self, batch):
        return batch._replace(x=_standardized(self, batch.x))


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class RandomShift(Processor):
    """Moves every training image by whole pixels, repeating those at its edge.

    He et al. 2016 (arXiv:1512.03385, section 4.2) crop from an image padded with zeros. Repeated
    pixels need not know which value is the background (Yarats et al. 2021, arXiv:2004.13649).

    Args:
        pixels: int of at least 1, the farthest an image moves along either axis.

    Raises:
        ValueError: `pixels` is out of range, or `x` are not images.
    """

    pixels: int

    def __post_init__(self):
        check_integer("pixels", self.pixels, 1)

    def train(self, batch, seed):
        _check_images(self, batch.x)
        moves = noise.uniform((2, batch.size), seed) * (2 * self.pixels + 1)
        dy, dx = tf.unstack(tf.cast(moves, tf.int32) - self.pixels)
        return batch._replace(x=shift(batch.x, dy, dx))


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class RandomFlip(Processor):
    """Mirrors half of the training images, left to right.

    Use it where a mirror image is of the same class: for clothes, not for digits.

    Raises:
        ValueError: `x` are not images.
    """

    def train(self, batch, seed):
        _check_images(self, batch.x)
        heads = noise.uniform((batch.size, 1, 1, 1), seed) < 0.5
        return batch._replace(x=tf.where(heads, tf.reverse(batch.x, [2]), batch.x))


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(Processor):
    """Cuts a part out of every training image and enlarges it to the whole size.

    The part has the image's proportions, a random area and a random place. Szegedy et al. 2015
    (arXiv:1409.4842, section 6), who also vary the proportions; what Chen et al. 2020
    (arXiv:2002.05709, section 3.1) find to matter most for contrastive learning. Pixels between
    pixels are interpolated linearly.

    Args:
        min_area: in `(0, 1]`, the smallest area of the part, as a share of the image's.

    Raises:
        ValueError: `min_area` is out of range, or `x` are not images of floats.
    """

    min_area: float = 0.3

    def __post_init__(self):
        check_number("min_area", self.min_area, "(0, 1]")

    def train(self, batch, seed):
        _check_images(self, batch.x)
        _check_floats("x", batch.x, "Normalize(mean, std)")
        area, top, left = tf.unstack(noise.uniform((3, batch.size), seed))
        side = tf.sqrt(self.min_area + (1 - self.min_area) * area)
        return batch._replace(x=crop(batch.x, side, top, left))


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class RandomIntensity(Processor):
    """Changes contrast and brightness of every training image: a (x - m) + m + b, m its mean.

    The part of the colour jitter that gray images can have (Howard 2013, arXiv:1312.5402).

    Args:
        contrast: in `[0, 1]`; a is uniform in `[1 - contrast, 1 + contrast]`.
        brightness: at least 0; b is uniform in `[-brightness, brightness]`, in units of `x`.

    Raises:
        ValueError: a number is out of range, or `x` are not images of floats.
    """

    contrast: float = 0.4
    brightness: float = 0.2

    def __post_init__(self):
        check_number("contrast", self.contrast, "[0, 1]")
        check_number("brightness", self.brightness, "[0, inf)")

    def train(self, batch, seed):
        _check_images(self, batch.x)
        _check_floats("x", batch.x, "Normalize(mean, std)")
        draws = tf.cast(2 * noise.uniform((2, batch.size, 1, 1, 1), seed) - 1, batch.x.dtype)
        mean = tf.reduce_mean(batch.x, axis=(1, 2, 3), keepdims=True)
        contrast = 1 + self.contrast * draws[0]
        return batch._replace(x=contrast * (batch.x - mean) + mean + self.brightness * draws[1])


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Flip(Processor):
    """Mirrors every image, left to right; a view for `Processed`.

    Where an output is an image too, derive a view whose `outputs` mirrors it back.
    """

    def infer(self, batch):
        _check_images(self, batch.x)
        return batch._replace(x=tf.reverse(batch.x, [2]))


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Shift(Processor):
    """Moves every image by whole pixels, repeating those at its edge; a view for `Processed`.

    Args:
        dy, dx: ints, how far down and to the right; negative is up and to the left.

    Raises:
        ValueError: one of them is not a whole number, or `x` are not images.
    """

    dy: int
    dx: int

    def __post_init__(self):
        check_integer("dy", self.dy, -math.inf)
        check_integer("dx", self.dx, -math.inf)

    def infer(self, batch):
        _check_images(self, batch.x)
        return batch._replace(x=shift(batch.x, self.dy, self.dx))


# -- Inputs and targets mixed between examples ----------------------------------------------


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Mixup(Processor):
    """Trains on blends of two examples: lam x_i + (1 - lam) x_j, and targets alike.

    Zhang et al. 2018 (arXiv:1710.09412), section 2, with lam of Beta(alpha, alpha); their code
    draws one lam a batch, this draws one an example. Sample weights are mixed too, see
    `mix_targets`. An accuracy in `fit` is measured against the larger part of a blend.

    Args:
        alpha: float above 0; a small one leaves most examples nearly as they are.

    Raises:
        ValueError: `alpha` is out of range, `x` or `y` are not floats, or weights do not fit.

    Example:

        processors = [Normalize(127.5, 127.5), OneHot(10), Mixup(0.2)]
    """

    alpha: float = 0.2

    def __post_init__(self):
        _check_positive("alpha", self.alpha)

    def train(self, batch, seed):
        n = batch.size
        pairing, mixing = noise.split(seed, 2)
        partner = noise.permutation(n, pairing)
        share = noise.symmetric_beta(self.alpha, (n,), mixing)

        def mix(x):
            _check_floats("x", x, "Normalize(mean, std)")
            return _blend(x, partner, share)

        batch = batch._replace(x=keras.tree.map_structure(mix, batch.x))
        return mix_targets(batch, partner, share)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class CutMix(Processor):
    """Trains on images with a box of another image pasted in, and targets by the pixels of each.

    Yun et al. 2019 (arXiv:1905.04899), section 3.2: a box of the area 1 - lam, lam of
    Beta(alpha, alpha), anywhere in the image. What lies outside is cut off, and the targets follow
    the pixels that were pasted. Their code draws one box a batch, this draws one an example.

    Args:
        alpha: float above 0; 1 makes boxes of all sizes alike.

    Raises:
        ValueError: `alpha` is out of range, `x` are not images, `y` are not floats, or weights do
            not fit.
    """

    alpha: float = 1.0

    def __post_init__(self):
        _check_positive("alpha", self.alpha)

    def train(self, batch, seed):
        _check_images(self, batch.x)
        n, height, width, _ = keras.ops.shape(batch.x)
        pairing, cutting, placing = noise.split(seed, 3)
        partner = noise.permutation(n, pairing)
        side = tf.sqrt(1 - noise.symmetric_beta(self.alpha, (n,), cutting))
        centre_y, centre_x = tf.unstack(noise.uniform((2, n), placing))
        pasted = box_mask(height, width, side, centre_y, centre_x)
        x = tf.where(pasted[..., None], tf.gather(batch.x, partner), batch.x)
        share = 1 - tf.reduce_mean(tf.cast(pasted, tf.float32), axis=(1, 2))
        return mix_targets(batch._replace(x=x), partner, share)


# -- Targets and outputs --------------------------------------------------------------------


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class OneHot(Processor):
    """Integer labels, `(batch,)` or `(batch, 1)`, as rows of 0 and 1 that can be mixed.

    In `fit` and in `evaluate`, so that both use one loss, `CategoricalCrossentropy`. A label out of
    range becomes a row of NaN, for zeros would count as a loss of 0.

    Args:
        num_classes: int of at least 1; labels are in `[0, num_classes)`.
        output: the entry of `y` that are the labels, where `y` is a dict.

    Raises:
        ValueError: `num_classes` is out of range, `output` does not fit `y`, or `y` are not
            integer labels.
    """

    num_classes: int
    output: str | None = None

    def __post_init__(self):
        check_integer("num_classes", self.num_classes, 1)

    def infer(self, batch):
        return batch._replace(y=_map_output(self, self._encode, batch.y))

    def _encode(self, y):
        if not y.dtype.is_integer or y.shape.rank > 2 or y.shape[1:] not in ((), (1,)):
            raise ValueError(
                f"`OneHot` cannot encode the targets. Expected integers of shape (batch,) or "
                f"(batch, 1); received {_described(y)}. Leave it out for one-hot targets, or cast "
                "the labels to int32."
            )
        y = tf.reshape(tf.cast(y, tf.int64), [-1])
        known = (y >= 0) & (y < self.num_classes)
        rows = tf.one_hot(y, self.num_classes, dtype=keras.config.floatx())
        return tf.where(known[:, None], rows, math.nan)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class StandardizeTargets(Processor):
    """Regression on (y - mean) / std, and predictions in the units of y again.

    The losses and metrics of `fit` and `evaluate` are those of the standardized targets: a mean
    absolute error times `std` is in the units of y, a mean squared error times `std` squared.

    Args:
        mean: number, or one for each target (the last axis of `y`).
        std: number above 0, or one for each target.
        output: the entry of `y` and of the outputs, where these are dicts.

    Raises:
        ValueError: a number is out of range, or `output` does not fit the data.

    Example:

        StandardizeTargets(mean=180, std=104, output="rotation")
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    output: str | None = None

    def __post_init__(self):
        _check_moments(self)

    def infer(self, batch):
        return batch._replace(y=_map_output(self, lambda y: _standardized(self, y), batch.y))

    def outputs(self, outputs):
        return _map_output(self, lambda z: _float32(z) * self.std + self.mean, outputs)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class Softmax(Processor):
    """Probabilities from `predict` where the model gives logits.

    Args:
        temperature: float above 0 that the logits are divided by; above 1 for a model that is
            surer than it should be (Guo et al. 2017, arXiv:1706.04599).
        output: the entry of the outputs that are the logits, where the outputs are a dict.

    Raises:
        ValueError: `temperature` is out of range, or `output` does not fit the outputs.
    """

    temperature: float = 1.0
    output: str | None = None

    def __post_init__(self):
        _check_positive("temperature", self.temperature)

    def outputs(self, outputs):
        return _map_output(self, lambda z: tf.nn.softmax(_float32(z) / self.temperature), outputs)


# -- Pure functions -------------------------------------------------------------------------


def mix_targets(batch, partner, share):
    """The targets and sample weights of examples that were mixed with a partner.

    With sample weights w, the weight of a mixed example is W = lam w_i + (1 - lam) w_j and its
    target (lam w_i y_i + (1 - lam) w_j y_j) / W, so that for a loss linear in its target, such as
    cross-entropy, W loss(y) = lam w_i loss(y_i) + (1 - lam) w_j loss(y_j) exactly.

    Args:
        batch: `Batch`; `y`, float `(batch, ...)`, or a nest of them, or None; `sample_weight`
            `(batch,)` or None.
        partner: int `(batch,)`, the number j of each example's partner.
        share: float32 `(batch,)`, lam, the part of each example that is its own.

    Returns:
        `Batch` with the same `x`.

    Raises:
        ValueError: `y` are not floats, or the weights are not one an example.
    """
    weight = batch.sample_weight
    if weight is not None:
        if keras.tree.is_nested(weight) or weight.shape.rank != 1:
            raise ValueError(
                "The sample weights cannot be mixed. Expected one number an example, shape "
                f"(batch,); received {keras.tree.map_structure(_described, weight)}. Mix "
                "without weights, or give each example one."
            )
        weight = tf.cast(weight, share.dtype)
        own = share * weight
        weight = own + (1 - share) * tf.gather(weight, partner)
        share = tf.math.divide_no_nan(own, weight)

    def mix(y):
        _check_floats("y", y, "OneHot(num_classes)")
        return _blend(y, partner, share)

    y = None if batch.y is None else keras.tree.map_structure(mix, batch.y)
    return batch._replace(y=y, sample_weight=weight)


def box_mask(height, width, side, centre_y, centre_x):
    """Which pixels of an image have their centre in a box.

    Args:
        height, width: of the image, in pixels.
        side: float32 `(batch,)`, the sides of the boxes as fractions of those of the image.
        centre_y, centre_x: float32 `(batch,)`, their centres, from 0 (top, left) to 1.

    Returns:
        bool `(batch, height, width)`; what lies outside of the image is cut off.

    Example:

        box_mask(4, 4, side=[0.5], centre_y=[0.5], centre_x=[0.0])  # rows 1 and 2 of column 0
    """

    def inside(length, centre):
        pixels = (tf.cast(tf.range(length), tf.float32) + 0.5) / tf.cast(length, tf.float32)
        return tf.abs(pixels - tf.expand_dims(centre, 1)) < tf.expand_dims(side, 1) / 2

    return inside(height, centre_y)[:, :, None] & inside(width, centre_x)[:, None, :]


def shift(images, dy, dx):
    """Images moved by whole pixels, with those at the edge repeated.

    Args:
        images: `(batch, height, width, channels)` of any type.
        dy, dx: int32 `(batch,)`, or one for all, how far down and to the right.

    Returns:
        As `images`.
    """
    n, height, width, _ = keras.ops.shape(images)

    def sources(length, distance):
        distance = tf.broadcast_to(distance, (n,))[:, None]
        return tf.clip_by_value(tf.range(length) - distance, 0, length - 1)  # (batch, length)

    images = tf.gather(images, sources(height, dy), axis=1, batch_dims=1)
    return tf.gather(images, sources(width, dx), axis=2, batch_dims=1)


def crop(images, side, top, left):
    """A part of every image, enlarged to the size of the whole by linear interpolation.

    Args:
        images: float `(batch, height, width, channels)`.
        side: float32 `(batch,)` in `(0, 1]`, height and width of the part, as shares of the
            image's.
        top, left: float32 `(batch,)` in `[0, 1]`, its place: 0 is at the upper or left edge, 1 at
            the other one.

    Returns:
        As `images`.
    """
    _, height, width, _ = keras.ops.shape(images)

    def weights(length, start):  # of every source pixel in every pixel of the part
        pixels = tf.range(length, dtype=tf.float32)
        room = (1 - side) * tf.cast(length, tf.float32)
        places = (pixels + 0.5) * side[:, None] + (start * room)[:, None] - 0.5
        places = tf.clip_by_value(places, 0.0, pixels[-1])
        return tf.cast(tf.nn.relu(1 - tf.abs(places[..., None] - pixels)), images.dtype)

    images = tf.einsum("bij,bjkc->bikc", weights(height, top), images)
    return tf.einsum("bij,bkjc->bkic", weights(width, left), images)


def _blend(values, partner, share):
    """share * values + (1 - share) * their partners, in the type of the values."""
    share = tf.cast(share, values.dtype)
    share = tf.reshape(share, [-1] + [1] * (values.shape.rank - 1))
    return share * values + (1 - share) * tf.gather(values, partner)


def _standardized(moments, values):
    """(values - mean) / std of the `mean` and `std` of a processor, as floats."""

    def standardize(z):
        for name, value in (("mean", moments.mean), ("std", moments.std)):
            if isinstance(value, tuple) and (z.shape.rank < 2 or z.shape[-1] != len(value)):
                raise ValueError(
                    f"`{name}` does not fit the data. Expected one number, or one for each entry "
                    f"of the last axis of {_described(z)}; received {len(value)} numbers. "
                    f"Correct {type(moments).__name__}."
                )
        z = z if z.dtype.is_floating else tf.cast(z, keras.config.floatx())
        return (z - moments.mean) / moments.std

    return keras.tree.map_structure(standardize, values)


def _map_output(processor, function, values):
    """`function` of a tensor, or of the entry `processor.output` of a dict; None stays None."""
    name = processor.output
    if values is None:
        return None
    if name is None and not keras.tree.is_nested(values):
        return function(values)
    if isinstance(values, Mapping) and name in values:
        return {**values, name: function(values[name])}
    expected = "one tensor" if name is None else f"a dict with '{name}' in it"
    raise ValueError(
        f"`{type(processor).__name__}` cannot tell which targets or outputs are its own. Expected "
        f"{expected}; received {keras.tree.map_structure(_described, values)}. Pass `output=` the "
        "name of an entry where they are a dict, and leave it out where they are one tensor."
    )


def _float32(outputs):
    """Outputs at the precision that predictions deserve, also where the model has less."""
    return tf.cast(outputs, tf.float32) if outputs.dtype.size < 4 else outputs


def _described(tensor):
    return f"{tensor.dtype.name} {tensor.shape}"


# -- Checks ---------------------------------------------------------------------------------


def _check_images(processor, x):
    if keras.tree.is_nested(x) or x.shape.rank != 4:
        raise ValueError(
            f"`{type(processor).__name__}` needs images. Expected one tensor of shape (batch, "
            f"height, width, channels); received {keras.tree.map_structure(_described, x)}. Add "
            "an axis to gray images (x[..., None]); pick the images out of several inputs in a "
            "processor of your own."
        )


def _check_floats(name, tensor, remedy):
    if not tensor.dtype.is_floating:
        raise ValueError(
            f"Whole numbers cannot be mixed. Expected `{name}` of floats; received "
            f"{_described(tensor)}. Put `{remedy}` before the processor that mixes."
        )


def _check_positive(name, value):
    if not (isinstance(value, numbers.Real) and 0 < value < math.inf):
        raise ValueError(
            f"`{name}` is out of its range. Expected a finite number above 0; received "
            f"{value!r}. Pass, for example, {name}=1.0."
        )


def _check_moments(processor):
    """Checks `mean` and `std`, and makes floats, or tuples of floats, of them."""
    for name, low in (("mean", -math.inf), ("std", 0.0)):
        value = getattr(processor, name)
        values = as_array(name, value)
        numeric = values.dtype.kind in "iuf" and 0 < values.size and values.ndim < 2
        if not numeric or not ((low < values) & (values < math.inf)).all():
            raise ValueError(
                f"`{name}` is out of its range. Expected a number, or one for each channel, all "
                f"finite{' and above 0' if low == 0 else ''}; received {value!r}. Correct "
                f"{type(processor).__name__}."
            )
        # A tuple, whatever came: a saved configuration brings lists.
        value = float(values) if values.ndim == 0 else tuple(map(float, values))
        object.__setattr__(processor, name, value)
