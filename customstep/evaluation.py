"""How near generated images come to real ones, measured in the features of a network.

    real = extract(read_images("fashion_mini", "test").images)
    print(evaluate(extract(gan.sample(10_000, seed=0), image_range=gan.image_range), real))

The measures are functions of `Features`, or of arrays `(images, features)`. They see what the
network sees: numbers of different networks cannot be compared, and those of the bundled one are not
the "FID" of papers, which is of Inception's features. Distances shrink with the number of images;
compare runs at the same numbers.
"""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from customstep.checks import check_integer
from customstep.features import Features

__all__ = [
    "Estimate",
    "Evaluation",
    "coverage",
    "density",
    "evaluate",
    "frechet_distance",
    "kernel_distance",
    "memorization",
    "precision",
    "recall",
]

_BEST = {  # the value of a perfect model
    "frechet_distance": 0,
    "kernel_distance": 0,
    "precision": 1,
    "recall": 1,
    "density": 1,
    "coverage": 1,
    "memorization": 0.5,
    "class_accuracy": 1,
}
MEASURES = tuple(_BEST)[:6]  # those that need nothing but the features of two sets
_BLOCK = 1024  # rows of a table of all distances that are held at once


class Estimate(NamedTuple):
    """A measured number and its standard error, that of drawing other images."""

    value: float
    error: float

    @property
    def interval(self):
        """The 95 % confidence interval, `(low, high)`, where the error is normal."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error


# Distances between the distributions


def frechet_distance(real, generated):
    """The squared Frechet distance between the normal distributions of the features.

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), of the means and covariances (Dowson and Landau 1982;
    Heusel et al. 2017, arXiv:1706.08500, section 4). 0 is best. Finite samples of one and the same
    distribution are apart: the value is biased upwards, about in inverse proportion to the number
    of images.

    The standard error is the infinitesimal jackknife's, from the derivative of the distance in the
    weight of each image x: 2 (m - m')'(x - m) + (x - m)'(I - T)(x - m), where T is the linear map
    that transports the one normal distribution to the other. It does not include the bias.

    Args:
        real: `Features`, or an array `(n, d)`.
        generated: `Features`, or an array `(m, d)`.

    Returns:
        `Estimate`.

    Raises:
        ValueError: the features are of different lengths.
    """
    real, generated = _pair(real, generated)
    shift = generated.mean - real.mean
    influence = {}
    for one, other, sign in ((generated, real, 1), (real, generated, -1)):
        root = _power(other.covariance, 0.5)
        inner = root @ one.covariance @ root
        transport = root @ _power(inner, -0.5) @ root  # takes `one` to `other`
        centered = one.values - one.mean
        bend = np.eye(len(shift)) - transport
        influence[sign] = 2 * sign * centered @ shift + ((centered @ bend) * centered).sum(1)
    trace = np.trace(real.covariance) + np.trace(generated.covariance)
    value = shift @ shift + trace - 2 * np.trace(_power(inner, 0.5))
    variance = sum(values.var() / len(values) for values in influence.values())
    return Estimate(max(0.0, float(value)), math.sqrt(variance))


def kernel_distance(real, generated):
    """The squared maximum mean discrepancy with the kernel (x'y / d + 1)^3.

    The unbiased estimate (Gretton et al. 2012, equation 3) with the kernel of Binkowski et al. 2018
    (arXiv:1801.01401, section 4), of all images at once rather than of subsets. 0 is best, and
    samples of one distribution average 0, so that small values may be negative. The standard error
    is the jackknife's, which leaves out each image once.

    Args, Returns, Raises: as for `frechet_distance`.
    """
    real, generated = _pair(real, generated)
    n, m = len(real), len(generated)
    within = [_kernel_sums(one, one) - _kernel(one, one) for one in (real, generated)]
    across = [_kernel_sums(real, generated), _kernel_sums(generated, real)]
    totals = [sums.sum() / (len(sums) * (len(sums) - 1)) for sums in within]
    value = sum(totals) - 2 * across[0].sum() / (n * m)
    variance = 0.0
    for inside, outside, count, others in zip(within, across, (n, m), (m, n)):
        if count < 3:
            return Estimate(float(value), math.nan)
        without = (inside.sum() - 2 * inside) / ((count - 1) * (count - 2))
        without -= 2 * (outside.sum() - outside) / ((count - 1) * others)
        variance += (count - 1) * without.var()
    return Estimate(float(value), math.sqrt(variance))


# What of one distribution the other one covers


def precision(real, generated, *, k=3):
    """The share of generated images that lie among the real ones: how good they are.

    An image does where it is no farther from some real image than that one's k-th neighbour
    (Kynkaanniemi et al. 2019, arXiv:1904.06991, equation 1). 1 is best.

    Args:
        real: `Features`, or an array `(n, d)`, n above `k`.
        generated: `Features`, or an array `(m, d)`, m above `k`.
        k: rank of the neighbour, at least 1.

    Returns:
        `Estimate`; its error is that of the mean over the generated images, the real ones given.

    Raises:
        ValueError: the features are of different lengths, or there are too few images for `k`.
    """
    real, generated = _pair(real, generated)
    return _mean(_enclosing(generated, real, k) > 0)


def recall(real, generated, *, k=3):
    """The share of real images that lie among the generated ones: how varied these are.

    `precision` with the roles exchanged (equation 2 of the same paper). 1 is best.

    Args, Returns, Raises: as for `precision`.
    """
    return precision(generated, real, k=k)


def density(real, generated, *, k=5):
    """How many real images have a generated one among their k nearest, over what is expected.

    Like `precision`, and not deceived by a single real image that lies apart (Naeem et al. 2020,
    arXiv:2002.09797, equation 3). 1 is expected where the distributions agree; it may be more.

    Args, Returns, Raises: as for `precision`.
    """
    real, generated = _pair(real, generated)
    return _mean(_enclosing(generated, real, k) / k)


def coverage(real, generated, *, k=5):
    """The share of real images that have a generated one no farther than their k-th neighbour.

    Like `recall`, and not deceived by generated images that lie far apart (equation 4 of the
    paper of `density`). 1 is best; see its equation 9 for what to expect of finite samples.

    Args, Returns, Raises: as for `precision`.
    """
    real, generated = _pair(real, generated)
    return _mean(_nearest(real, generated) <= _radii(real, k))


def memorization(train, test, generated):
    """How often a generated image is nearer to the training images than a test image is.

    Of pairs of one generated and one test image, the share in which the former is nearer to its
    nearest training image (the statistic of the test of Meehan et al. 2020, arXiv:2004.05675,
    section 3). 0.5 is best; towards 1, training images are copied; towards 0, the images are
    worse than real ones. Copies of a few images among many others do not show: look at pairs.

    Args:
        train: `Features`, or an array `(l, d)`, of the images that the model was trained on.
        test: the same of images that it has not seen.
        generated: the same of generated images.

    Returns:
        `Estimate`, with the error of the Mann-Whitney statistic.

    Raises:
        ValueError: the features are of different lengths.
    """
    train, test = _pair(train, test)
    train, generated = _pair(train, generated)
    unseen, made = _nearest(test, train), _nearest(generated, train)
    farther = _share_above(made, unseen)
    nearer = _share_above(-unseen, -made)  # the same pairs, seen from the test images
    error = math.sqrt(farther.var() / len(farther) + nearer.var() / len(nearer))
    return Estimate(float(farther.mean()), error)


# All of them


class Evaluation(NamedTuple):
    """What `evaluate` measured; `print` it for a table.

    Attributes:
        frechet_distance, kernel_distance, precision, recall, density, coverage: `Estimate`s; see
            the functions of these names.
        memorization: `Estimate`, or None without training images.
        class_shares: list of `Estimate`, the share of generated images that the network takes for
            each class; None for a network without classes.
        class_accuracy: `Estimate` of the share that it takes for the class asked for, or None.
        counts: dict, how many images each kind had.
    """

    frechet_distance: Estimate
    kernel_distance: Estimate
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    memorization: Any
    class_shares: Any
    class_accuracy: Any
    counts: dict

    @property
    def estimates(self):
        """Dict of name to `Estimate`: those above, and the smallest and the largest class share."""
        estimates = {k: v for k, v in self._asdict().items() if isinstance(v, Estimate)}
        if self.class_shares:
            ordered = sorted(self.class_shares)
            estimates.update(smallest_class=ordered[0], largest_class=ordered[-1])
        return estimates

    def logs(self):
        """Dict of name to float: the values of `estimates`."""
        return {name: estimate.value for name, estimate in self.estimates.items()}

    def __str__(self):
        rows = [("measure", "value", "95 % interval", "best")]
        for name, estimate in self.estimates.items():
            best = _BEST.get(name, 1 / len(self.class_shares or [1]))
            low, high = (f"{end:.4g}" for end in estimate.interval)
            row = name.replace("_", " "), f"{estimate.value:.4g}", f"{low} to {high}", f"{best:.3g}"
            rows.append(row)
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        return "\n".join([*lines, f"of {counts} images"])


def evaluate(generated, real, *, train=None, labels=None):
    """All measures of generated images.

    Args:
        generated: `Features` of the generated images.
        real: `Features` of real images that the model was not trained on.
        train: `Features` of those that it was trained on, for `memorization`, or None.
        labels: int `(n,)`, the classes that the generated images were asked to be of, or None.

    Returns:
        `Evaluation`.

    Raises:
        ValueError: the features are of different lengths, there are fewer than 6 images, or there
            are labels and a network without classes.

    Warns:
        UserWarning: there are fewer than ten images for each feature, so that the distances are
            mostly bias.
    """
    real, generated = _pair(real, generated)
    counts = {"generated": len(generated), "real": len(real)}
    if train is not None:
        counts["training"] = len(train)
    dimensions = generated.values.shape[1]
    if (fewest := min(len(generated), len(real))) < 10 * dimensions:
        warnings.warn(
            f"There are few images for these features, so that distances are too large. Expected "
            f"at least {10 * dimensions}, ten for each feature; received {fewest}. Take more, and "
            f"compare only with values of as many images.",
            stacklevel=2,
        )
    shares = accuracy = None
    if generated.labels is not None:
        shares = [_mean(generated.labels == label) for label in range(generated.num_classes)]
    if labels is not None:
        if shares is None or np.shape(labels) != (len(generated),):
            raise ValueError(
                f"The labels cannot be checked. Expected {len(generated)} labels and a network "
                f"that knows classes; received labels {np.shape(labels)} and "
                f"{generated.num_classes or 'no'} classes. Leave `labels` out, or pass both."
            )
        accuracy = _mean(generated.labels == np.asarray(labels))
    return Evaluation(
        **{name: globals()[name](real, generated) for name in MEASURES},
        memorization=None if train is None else memorization(train, real, generated),
        class_shares=shares,
        class_accuracy=accuracy,
        counts=counts,
    )


def _pair(a, b):
    a, b = (one if isinstance(one, Features) else Features(one) for one in (a, b))
    if a.values.shape[1] != b.values.shape[1]:
        raise ValueError(
            f"The features do not fit one another. Expected vectors of one length; received "
            f"{a.values.shape[1]} and {b.values.shape[1]}. Extract both with the same network."
        )
    return a, b


def _mean(values):
    """The mean over images, and its standard error."""
    return Estimate(float(np.mean(values)), float(np.std(values) / math.sqrt(len(values))))


def _power(matrix, exponent):
    """A power of a symmetric positive semi-definite matrix; that of a zero eigenvalue is zero."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > values[-1] * len(values) * np.finfo(values.dtype).eps
    return (vectors[:, kept] * values[kept] ** exponent) @ vectors[:, kept].T


def _kernel(x, y):
    return ((x.values * y.values).sum(1) / x.values.shape[1] + 1) ** 3


def _kernel_sums(x, y):
    """The sums over `y` of the kernel, one for each of `x`."""
    d = x.values.shape[1]
    return np.concatenate([((rows @ y.values.T / d + 1) ** 3).sum(1) for rows in _blocks(x)])


def _blocks(x):
    return (x.values[start : start + _BLOCK] for start in range(0, len(x), _BLOCK))


def _distances(x, y):
    """Yields the distances from some of `x` to all of `y`, until all of `x` had their turn."""
    squares = (y.values**2).sum(1)
    for rows in _blocks(x):
        squared = (rows**2).sum(1)[:, None] + squares - 2 * rows @ y.values.T
        yield np.sqrt(np.maximum(squared, 0.0))


def _nearest(x, y):
    """The distance from each of `x` to the nearest of `y`."""
    return np.concatenate([rows.min(1) for rows in _distances(x, y)])


def _radii(x, k):
    """The distance from each image to its k-th nearest among the others."""
    check_integer("k", k, 1)
    if len(x) <= k:
        raise ValueError(
            f"There are too few images for their neighbours. Expected more than k = {k}; received "
            f"{len(x)}. Take more images, or a smaller `k`."
        )
    if k not in x.radii:
        rows = [np.partition(rows, k, axis=1)[:, k] for rows in _distances(x, x)]  # 0 is itself
        x.radii[k] = np.concatenate(rows)
    return x.radii[k]


def _enclosing(x, y, k):
    """How many of `y` have each of `x` within the distance of their k-th neighbour."""
    radii = _radii(y, k)
    return np.concatenate([(rows <= radii).sum(1) for rows in _distances(x, y)])


def _share_above(values, others):
    """For each value the share of `others` above it, equal ones counting half."""
    others = np.sort(others)
    above = len(others) - np.searchsorted(others, values, "right")
    not_below = len(others) - np.searchsorted(others, values, "left")
    return (above + not_below) / (2 * len(others))
