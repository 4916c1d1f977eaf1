"""What happens to gradients between the tape and the optimizer, for `compile(gradients=...)`.

A method is a small object; a list of them is applied in order, the first nearest to the loss, and
a dict gives each update its own. They work on every template and are saved with the model:

    model.compile(Adam(), loss, gradients=[SharpnessAware(0.05), GradientCentralization()])
    gan.compile(optimizers, gradients={"discriminator": AdaptiveClipping(0.1)})

All see the gradients of the global batch, free of float16's loss scale. What Keras's optimizers
can do is theirs: `gradient_accumulation_steps`, `clipnorm`, `clipvalue`, `global_clipnorm`,
`use_ema`, `weight_decay`.
"""

import dataclasses
import warnings

import keras
import tensorflow as tf

from customstep import replicas
from customstep.checks import check_number
from customstep.saving import SavedDataclass

__all__ = [
    "AdaptiveClipping",
    "GradientCentralization",
    "GradientSurgery",
    "GradientTransform",
    "SharpnessAware",
    "SignDescent",
    "clip_by_unit",
    "surgery_weights",
]


# -- One gradient at a time -----------------------------------------------------------------


class GradientTransform(SavedDataclass):
    """Base of what is done to each gradient by itself.

    Derive a frozen dataclass from it, register it with Keras, and write `transform`. An entry that
    is infinite or not a number stays so whatever `transform` makes of it, for float16's loss scale
    and `compile(nonfinite="skip")` have to see it.

    Example:

        @keras.saving.register_keras_serializable("mine")
        @dataclasses.dataclass(frozen=True)
        class Normalized(GradientTransform):
            def transform(self, gradient, variable):
                return tf.math.l2_normalize(gradient)
    """

    def transform(self, gradient, variable):
        """The gradient that takes the place of one.

        Args:
            gradient: dense tensor of the variable's shape, float32 at least, of the global batch.
            variable: `keras.Variable`.

        Returns:
            Tensor like `gradient`.
        """
        raise NotImplementedError

    def __call__(self, compute, variables, **how):
        """The transformed gradients and the objective, as `StepModel.gradients` returns them.

        Args:
            compute: callable `(**how) -> (gradients, objective)`, what comes before this method.
            variables: the variables of the update.
            **how: as for `StepModel.differentiate`.
        """
        gradients, objective = compute(**how)
        transformed = [
            None if g is None else tf.where(tf.math.is_finite(g), self.transform(g, variable), g)
            for g, variable in zip(replicas.whole_gradients(gradients), variables)
        ]
        return [None if g is None else replicas.share(g) for g in transformed], objective


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class GradientCentralization(GradientTransform):
    """Takes the mean from the gradient of every unit's weights, which keeps the weights' mean.

    A regularizer that costs nothing, for networks with normalization layers. The gradients of
    vectors, such as biases, stay as they are.

    Yong et al. 2020 (arXiv:2004.01461), equation 1.

    Example:

        model.compile(SGD(0.1, momentum=0.9), loss, gradients=GradientCentralization())
    """

    def transform(self, gradient, variable):
        if len(gradient.shape) < 2:
            return gradient
        return gradient - tf.reduce_mean(gradient, _unit_axes(gradient), keepdims=True)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class SignDescent(GradientTransform):
    """Keeps the signs of the gradients only: every weight moves by the learning rate.

    Use it with plain `SGD` and a learning rate as for Adam. On several replicas it is the sign of
    their mean gradient, not their majority vote.

    Bernstein et al. 2018 (arXiv:1802.04434), algorithm 1, signSGD.

    Example:

        model.compile(SGD(1e-3), loss, gradients=SignDescent())
    """

    def transform(self, gradient, variable):
        return tf.sign(gradient)


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class AdaptiveClipping(GradientTransform):
    """Clips the gradient of every unit in proportion to the norm of the unit's weights.

    For networks without normalization layers, and where one `clipnorm` does not suit all layers.

    Brock et al. 2021 (arXiv:2102.06171), equation 3. A unit is what the last axis of a weight
    counts; a vector, such as a bias, is one unit, as in the authors' code.

    Args:
        ratio: lambda, the largest norm of a gradient relative to its weights, above 0. The paper
            takes 0.01 for batches of 4096 and larger ones for smaller batches.
        epsilon: the least norm that weights are taken to have, above 0, so that those that start
            at zero can move.

    Raises:
        ValueError: an argument is out of its range.

    Example:

        model.compile(SGD(0.1, momentum=0.9), loss, gradients=AdaptiveClipping(0.02))
    """

    ratio: float = 0.01
    epsilon: float = 1e-3

    def __post_init__(self):
        check_number("ratio", self.ratio, "(0, inf)")
        check_number("epsilon", self.epsilon, "(0, inf)")

    def transform(self, gradient, variable):
        weight = tf.cast(variable.value, gradient.dtype)
        return clip_by_unit(gradient, weight, self.ratio, self.epsilon)


def clip_by_unit(gradient, weight, ratio, epsilon):
    """G_i min(1, ratio max(||W_i||, epsilon) / ||G_i||) for each unit i: Brock et al., equation 3.

    Args:
        gradient: float tensor.
        weight: tensor of the same shape.
        ratio: lambda, float.
        epsilon: float.

    Returns:
        Tensor like `gradient`.
    """
    axes = _unit_axes(gradient)
    limit = ratio * tf.maximum(tf.math.reduce_euclidean_norm(weight, axes, keepdims=True), epsilon)
    norm = tf.math.reduce_euclidean_norm(gradient, axes, keepdims=True)
    return gradient * tf.minimum(tf.math.divide_no_nan(limit, norm), 1.0)


# -- All gradients together -----------------------------------------------------------------


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class SharpnessAware(SavedDataclass):
    """Descends along the gradient of the worst point nearby (SAM), which finds flat minima.

    For better accuracy from few or noisily labelled data, at the price of a second gradient for
    each step. The second pass sees the dropout of the first, and changes nothing: moving
    statistics, logs and metrics are those of the first. The weights are never moved there and back.
    Where layers compute in bfloat16, a small radius is lost to rounding; float16 keeps it.

    Foret et al. 2021 (arXiv:2010.01412), equations 2 and 3; adaptive as Kwon et al. 2021
    (arXiv:2102.11600), equation 8. On several replicas there is one worst point, that of the
    global batch; the papers let each replica have its own.

    Args:
        radius: rho, how far away the point is, above 0. Adaptive, it is relative to the size of
            the weights, and about ten times as large.
        adaptive: measures distances relative to |w| + 0.01, weight by weight (ASAM).

    Raises:
        ValueError: `radius` is out of its range.

    Example:

        model.compile(SGD(0.1, momentum=0.9), loss, gradients=SharpnessAware(0.05))
    """

    radius: float = 0.05
    adaptive: bool = False

    def __post_init__(self):
        check_number("radius", self.radius, "(0, inf)")

    def __call__(self, compute, variables, *, at=None, **how):
        """As in `GradientTransform`."""
        gradients, objective = compute(at=at, **how)
        if at is None:
            at = [tf.convert_to_tensor(variable.value) for variable in variables]
        gradients, _ = compute(at=self._worst_point(replicas.whole_gradients(gradients), at), **how)
        return gradients, objective

    def _worst_point(self, gradients, weights):
        """w + radius T^2 g / ||T g||, where T is 1 or |w| + 0.01."""
        # Gradients are float32 also where weights are float16; the points are what weights are.
        wide = [w if g is None else tf.cast(w, g.dtype) for w, g in zip(weights, gradients)]
        scales = [tf.abs(w) + 0.01 if self.adaptive else tf.ones((), w.dtype) for w in wide]
        scaled = [None if g is None else t * g for t, g in zip(scales, gradients)]
        factor = tf.math.divide_no_nan(self.radius, tf.linalg.global_norm(scaled))
        points = [
            w if tg is None else w + tf.cast(factor, w.dtype) * t * tg
            for w, t, tg in zip(wide, scales, scaled)
        ]
        return [tf.cast(point, w.dtype) for point, w in zip(points, weights)]


@keras.saving.register_keras_serializable("customstep")
@dataclasses.dataclass(frozen=True)
class GradientSurgery(SavedDataclass):
    """Lets no term of an objective undo another (PCGrad): conflicting parts are projected away.

    For several tasks on one network. Where the gradients of two terms point against each other,
    each loses the part that opposes the other; where none do, it is the plain gradient. It needs
    one backward pass for each term, and comes first among the methods. The losses that are
    compiled into a `StepModel` are one term together, their sum; those of `AuxiliaryLoss` are one
    each. Where there is one term, it warns and is the plain gradient.

    Yu et al. 2020 (arXiv:2001.06782), algorithm 1. A term meets the others in their order, from
    the one after it on; the paper draws the order, which is the same for two terms.

    Example:

        two_tasks.compile("adam", gradients=GradientSurgery())
    """

    comes_first = True

    def __call__(self, compute, variables, **how):
        """As in `GradientTransform`."""
        by_term, objective = compute(by_term=True, **how)
        if len(by_term) == 1:
            warnings.warn(
                "`GradientSurgery` has nothing to do. Expected an objective of several terms; "
                f"received '{next(iter(by_term))}' alone. Use AuxiliaryLoss, or return one term "
                "per task.",
                stacklevel=2,
            )
        terms = [[_dense(gradient) for gradient in gradients] for gradients in by_term.values()]
        whole = [replicas.whole_gradients(term) for term in terms]
        weights = tf.unstack(surgery_weights(_inner_products(whole)))
        gradients = [
            [tf.cast(weight, g.dtype) * g for weight, g in zip(weights, parts) if g is not None]
            for parts in zip(*terms)
        ]
        return [tf.add_n(parts) if parts else None for parts in gradients], objective


def surgery_weights(products):
    """The weights of k gradients whose weighted sum is that of the projected ones.

    Each projected gradient is a combination of all k, and their inner products are all it takes
    to find it: g_i - sum of (g_i . g_j / g_j . g_j) g_j over the j that are met in conflict.

    Args:
        products: float `(k, k)`, the inner products of the gradients with one another.

    Returns:
        float `(k,)`, all 1 where no two gradients conflict.
    """
    k = products.shape[0]
    units = tf.unstack(tf.eye(k, dtype=products.dtype))
    combinations = []
    for i in range(k):
        combination = units[i]
        for j in (*range(i + 1, k), *range(i)):
            conflict = tf.minimum(tf.tensordot(combination, products[j], 1), 0.0)
            combination -= tf.math.divide_no_nan(conflict, products[j, j]) * units[j]
        combinations.append(combination)
    return tf.add_n(combinations)


def _inner_products(vectors):
    """float `(k, k)` of k lists of tensors or None, each list one long vector."""
    k = len(vectors)
    rows = [[None] * k for _ in range(k)]
    for i in range(k):
        for j in range(i + 1):
            pairs = zip(vectors[i], vectors[j])
            terms = [tf.reduce_sum(a * b) for a, b in pairs if a is not None and b is not None]
            rows[i][j] = rows[j][i] = sum(terms, 0.0)
    return tf.convert_to_tensor(rows)


def _dense(gradient):
    return None if gradient is None else tf.convert_to_tensor(gradient)


def _unit_axes(tensor):
    """The axes over one unit's weights: all but the last, or all of a vector."""
    rank = len(tensor.shape)
    return list(range(rank - 1)) if rank > 1 else None
