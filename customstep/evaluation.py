"""How near generated images come to real ones, measured in the features of a network.

    real = extract(read_images("fashion_mini", "test").images)
    print(evaluate(extract(gan.sample(10_000, seed=0), image_range=gan.image_range), real))

The measures are functions of `Features`, or of arrays `(images, features)`. They see what the
network sees: numbers of different networks cannot be compared, and those of the bundled one are not
the "FID" of papers, which is of Inception's features. The Frechet distance shrinks with the number
of images, and real images do not reach 1 in precision, recall and coverage beside other real ones:
compare models at the same numbers of images.
"""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from customstep.checks import check_integer
from customstep.features import Features, symmetric_power

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

_TABLE = 2**21  # distances that are held at once


class Estimate(NamedTuple):
    """A measured number and how sure it is.

    Attributes:
        value: what these images have.
        error: its standard error, that of drawing other images of either kind.
        low, high: the 95 % confidence interval of what infinitely many images would have.
    """

    value: float
    error: float
    low: float
    high: float

    @property
    def interval(self):
        """`(low, high)`."""
        return self.low, self.high


# Distances between the distributions


def frechet_distance(real, generated):
    """The squared Frechet distance between the normal distributions of the features.

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), of the means and covariances (Dowson and Landau 1982;
    Heusel et al. 2017, arXiv:1706.08500, section 4). 0 is best. Finite samples of one and the same
    distribution are apart: the value is biased upwards, about in inverse proportion to the number
    of images (Chong and Forsyth 2020, arXiv:1911.07023, section 3).

    The standard error is the infinitesimal jackknife's, from the derivative of the distance in the
    weight of each image x: 2 (m - m')'(x - m) + (x - m)'(I - T)(x - m), where T is the linear map
    that transports the one normal distribution to the other. The confidence interval is around the
    value without its bias, which is by how much halves of the images are farther apart than all
    of them; of few images the value itself may lie above it.

    Args:
        real: `Features`, or an array `(n, d)`.
        generated: `Features`, or an array `(m, d)`.

    Returns:
        `Estimate`; of fewer than 4 images, whose halves have no covariance, the interval is NaN.

    Raises:
        ValueError: the features are of different lengths.
    """
    real, generated = _pair(real, generated)
    shift, variance = generated.mean - real.mean, 0.0
    for one, other, sign in ((generated, real, 1), (real, generated, -1)):
        root = other.covariance_root
        product = root @ one.covariance @ root
        transport = root @ symmetric_power(product, -0.5) @ root  # takes `one` to `other`
        centered = one.values - one.mean
        bend = np.eye(len(shift)) - transport
        influence = 2 * sign * centered @ shift + ((centered @ bend) * centered).sum(1)
        variance += influence.var() / len(one)
    value = _squared_frechet(real, generated)
    halves = [_squared_frechet(*pair) for pair in zip(_halves(real), _halves(generated))]
    bias = np.mean(halves) - value if halves else math.nan
    return _normal(value, math.sqrt(variance), bias, at_least=0.0)


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
    within = [_kernel_sums(one, one)[0] - _kernel_of_itself(one) for one in (real, generated)]
    across = _kernel_sums(real, generated)
    totals = [sums.sum() / (len(sums) * (len(sums) - 1)) for sums in within]
    value = sum(totals) - 2 * across[0].sum() / (n * m)
    variance = 0.0
    for inside, outside, count, others in zip(within, across, (n, m), (m, n)):
        if count < 3:
            return _normal(value, math.nan)
        without = (inside.sum() - 2 * inside) / ((count - 1) * (count - 2))
        without -= 2 * (outside.sum() - outside) / ((count - 1) * others)
        variance += (count - 1) * without.var()
    return _normal(value, math.sqrt(variance))


# What of one distribution the other one covers


def precision(real, generated, *, k=3):
    """The share of generated images that lie among the real ones: how good they are.

    An image does where it is no farther from some real image than that one's k-th neighbour
    (Kynkaanniemi et al. 2019, arXiv:1904.06991, equation 1). It tends to 1 where the distributions
    agree.

    The standard error has a part for the generated images and one for the real ones, by leaving
    out each once. That the radii of its neighbours would then grow is left out of account, so
    that the error is rather too large: 1.1 to 2.4 times the spread in `tests/test_evaluation.py`.

    Args:
        real: `Features`, or an array `(n, d)`, n above `k`.
        generated: `Features`, or an array `(m, d)`, m above `k`.
        k: rank of the neighbour, at least 1.

    Returns:
        `Estimate`.

    Raises:
        ValueError: the features are of different lengths, or there are too few images for `k`.
    """
    real, generated = _pair(real, generated)
    return _share(_Membership(generated, real, k).by_point())


def recall(real, generated, *, k=3):
    """The share of real images that lie among the generated ones: how varied these are.

    `precision` with the roles exchanged (equation 2 of the same paper).

    Args, Returns, Raises: as for `precision`.
    """
    return precision(generated, real, k=k)


def density(real, generated, *, k=5):
    """Of how many real images a generated one is within the k-th neighbour's distance, over k.

    Like `precision`, and not deceived by a single real image that lies apart (Naeem et al. 2020,
    arXiv:2002.09797). 1 is expected where the distributions agree; it may be more.

    Args, Returns, Raises: as for `precision`.
    """
    real, generated = _pair(real, generated)
    inside = _Membership(generated, real, k)
    balls, points = inside.balls_of_point / k, inside.points_of_ball / k
    variance = balls.var() / len(balls) + points.var() * len(points) / len(balls) ** 2
    return _normal(balls.mean(), math.sqrt(variance), at_least=0.0)


def coverage(real, generated, *, k=5):
    """The share of real images that have a generated one no farther than their k-th neighbour.

    Like `recall`, and not deceived by generated images that lie far apart (the paper of `density`).
    It tends to 1 where the distributions agree, and the sooner the larger `k`.

    Args, Returns, Raises: as for `precision`.
    """
    real, generated = _pair(real, generated)
    return _share(_Membership(generated, real, k).by_ball())


def memorization(train, test, generated):
    """How often a generated image is nearer to the training images than a test image is.

    Of pairs of one generated and one test image, the share in which the former is nearer to its
    nearest training image: one minus the statistic of the test for data-copying of Meehan et al.
    2020 (arXiv:2004.05675). 0.5 is best; towards 1, training images are copied; towards 0, the
    images are worse than real ones. Copies of a few images among many others do not show: look at
    them beside their neighbours, with `grids`.

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
    return _proportion(farther.mean(), error, min(len(farther), len(nearer)))


# All of them


class Evaluation(NamedTuple):
    """What `evaluate` measured; `print` it for a table.

    Attributes:
        estimates: dict of name to `Estimate`, as the functions of these names return it, and of
            "class_accuracy", the share of images that the network takes for the class asked for.
        class_shares: the shares of generated images that the network takes for each class; None
            for a network without classes.
        real_class_shares: those of the real images.
        counts: dict, how many images of each kind there were.
    """

    estimates: dict
    class_shares: Any
    real_class_shares: Any
    counts: dict

    def logs(self):
        """Dict of name to float: the estimates, and the smallest and the largest class share."""
        numbers = {name: estimate.value for name, estimate in self.estimates.items()}
        if self.class_shares is not None:
            smallest, largest = map(float, (min(self.class_shares), max(self.class_shares)))
            numbers.update(smallest_class=smallest, largest_class=largest)
        return numbers

    def __str__(self):
        ideal = {"frechet_distance": 0, "kernel_distance": 0, "memorization": 0.5}
        if self.real_class_shares is not None:
            shares = self.real_class_shares
            ideal.update(smallest_class=min(shares), largest_class=max(shares))
        rows = [("measure", "value", "95 % interval", "ideal")]
        for name, value in self.logs().items():
            interval = ""  # an extreme of several shares has none that is simple
            if name in self.estimates:
                low, high = self.estimates[name].interval
                interval = f"{low:.4g} to {high:.4g}"
            name, best = name.replace("_", " "), ideal.get(name, 1)
            rows.append((name, f"{value:.4g}", interval, f"{best:.3g}"))
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
        UserWarning: there are fewer than ten images for each feature, so that the Frechet distance
            is mostly bias.
    """
    real, generated = _pair(real, generated)
    counts = {"generated": len(generated), "real": len(real)}
    if train is not None:
        counts["training"] = len(train)
    _check_classes(generated, labels)
    warn_of_few(min(len(generated), len(real)), generated.values.shape[1])
    measures = frechet_distance, kernel_distance, precision, recall, density, coverage
    estimates = {measure.__name__: measure(real, generated) for measure in measures}
    if train is not None:
        estimates["memorization"] = memorization(train, real, generated)
    if labels is not None:
        correct = generated.labels == np.asarray(labels)
        error = math.sqrt(correct.var() / len(correct))
        estimates["class_accuracy"] = _proportion(correct.mean(), error, len(correct))
    return Evaluation(estimates, generated.class_shares, real.class_shares, counts)


def warn_of_few(images, dimensions):
    """Warns where there are fewer than ten images for each feature; see `evaluate`."""
    if images < 10 * dimensions:
        warnings.warn(
            f"There are few images for these features, so that the Frechet distance is too large. "
            f"Expected at least {10 * dimensions}, ten for each feature; received {images}. Take "
            f"more, and compare only with values of as many images.",
            stacklevel=3,
        )


def _check_classes(generated, labels):
    if labels is None:
        return
    if generated.labels is None or np.shape(labels) != (len(generated),):
        raise ValueError(
            f"The labels cannot be checked. Expected {len(generated)} labels and a network that "
            f"knows classes; received labels {np.shape(labels)} and "
            f"{generated.num_classes or 'no'} classes. Leave `labels` out, or pass both."
        )


def _pair(a, b):
    a, b = (one if isinstance(one, Features) else Features(one) for one in (a, b))
    if a.values.shape[1] != b.values.shape[1]:
        raise ValueError(
            f"The features do not fit one another. Expected vectors of one length; received "
            f"{a.values.shape[1]} and {b.values.shape[1]}. Extract both with the same network."
        )
    return a, b


def _normal(value, error, bias=0.0, *, at_least=-math.inf):
    """An `Estimate` whose error is normal, around the value without its bias."""
    low, high = np.maximum(at_least, value - bias + error * np.array([-1.96, 1.96]))
    return Estimate(float(value), error, float(low), float(high))


def _proportion(value, error, count):
    """An `Estimate` of a share, with Wilson's interval of 1927, which stays within [0, 1].

    It is that of as many independent draws as have this error, or of `count` where all draws were
    alike, of which an error says nothing.
    """
    draws = value * (1 - value) / error**2 if 0 < value < 1 else count
    z = 1.96 / math.sqrt(draws)
    center, reach = value + z**2 / 2, z * math.sqrt(value * (1 - value) + z**2 / 4)
    low, high = ((center + sign * reach) / (1 + z**2) for sign in (-1, 1))
    return Estimate(float(value), error, max(0.0, float(low)), min(1.0, float(high)))


def _squared_frechet(real, generated):
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))."""
    root = real.covariance_root
    eigenvalues = np.linalg.eigvalsh(root @ generated.covariance @ root)  # those of C C'
    cross = np.sqrt(np.maximum(eigenvalues, 0.0)).sum()
    traces = np.trace(real.covariance) + np.trace(generated.covariance)
    return max(0.0, ((generated.mean - real.mean) ** 2).sum() + traces - 2 * cross)


def _halves(x):
    """Two random halves of the features; none where a half would be a single image."""
    if len(x) < 4:
        return []
    order = np.random.default_rng(0).permutation(len(x))  # labels may take turns in `x`
    return [Features(x.values[part]) for part in np.array_split(order, 2)]


def _kernel_of_itself(x):
    return ((x.values**2).sum(1) / x.values.shape[1] + 1) ** 3


def _kernel_sums(x, y):
    """The sums over `y` of the kernel, one for each of `x`, and those over `x`."""
    d = x.values.shape[1]
    over_y, over_x = [], np.zeros(len(y))
    for rows in _blocks(x, y):
        table = (rows @ y.values.T / d + 1) ** 3
        over_y.append(table.sum(1))
        over_x += table.sum(0)
    return np.concatenate(over_y), over_x


def _blocks(x, y):
    """Parts of the features of `x` whose table with all of `y` is small."""
    rows = max(1, _TABLE // len(y))
    return (x.values[start : start + rows] for start in range(0, len(x), rows))


def _distances(x, y):
    """Yields the distances from some of `x` to all of `y`, until all of `x` had their turn."""
    squares = (y.values**2).sum(1)
    for rows in _blocks(x, y):
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


class _Membership:
    """Which points lie in which balls: around each of `centers`, as far as its k-th neighbour.

    Attributes:
        balls_of_point: int `(points,)`, how many balls hold each point.
        points_of_ball: int `(balls,)`, how many points each ball holds.
    """

    def __init__(self, points, centers, k):
        self._points, self._centers, self._radii = points, centers, _radii(centers, k)
        self.points_of_ball = np.zeros(len(centers), int)
        counts = []
        for inside in self._tables():
            counts.append(inside.sum(1))
            self.points_of_ball += inside.sum(0)
        self.balls_of_point = np.concatenate(counts)

    def by_point(self):
        """Whether each point is in a ball, and how many points each ball alone holds."""
        alone, start = np.zeros(len(self._centers), int), 0
        for inside in self._tables():
            once = self.balls_of_point[start : start + len(inside)] == 1
            alone += inside[once].sum(0)
            start += len(inside)
        return self.balls_of_point > 0, alone

    def by_ball(self):
        """Whether each ball holds a point, and how many balls each point alone fills."""
        once = self.points_of_ball == 1
        alone = [inside[:, once].sum(1) for inside in self._tables()]
        return self.points_of_ball > 0, np.concatenate(alone)

    def _tables(self):
        """Yields bool `(some points, balls)` until all points had their turn."""
        return (rows <= self._radii for rows in _distances(self._points, self._centers))


def _share(covered_and_alone):
    """The share of what is covered, with the jackknife's error over both sets."""
    covered, alone = covered_and_alone
    variance = covered.var() / len(covered) + alone.var() * len(alone) / len(covered) ** 2
    return _proportion(covered.mean(), math.sqrt(variance), len(covered))


def _share_above(values, others):
    """For each value the share of `others` above it, equal ones counting half."""
    others = np.sort(others)
    above = len(others) - np.searchsorted(others, values, "right")
    not_below = len(others) - np.searchsorted(others, values, "left")
    return (above + not_below) / (2 * len(others))
