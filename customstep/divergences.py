"""How far predictions, codes and representations are apart: one number for each example.

Pure functions of tensors that return float32 `(batch,)`, to be averaged by `losses.weighted_mean`.
"""

import tensorflow as tf

from customstep import replicas

__all__ = [
    "absolute_error",
    "bernoulli_nats",
    "contrastive",
    "gaussian_kl",
    "probability_gap",
    "softened_kl",
]


def absolute_error(found, wanted):
    """The mean absolute difference of two tensors `(batch, ...)`."""
    return tf.reduce_mean(tf.abs(_flat(found) - _flat(wanted)), axis=1)


def bernoulli_nats(x, logits):
    """-log p(x) in nats, of pixels x in [0, 1] that are 1 with the probability sigmoid(logits).

    Kingma and Welling 2013 (arXiv:1312.6114), appendix C.1; pixels between 0 and 1 count in
    proportion.

    Args:
        x: float `(batch, ...)`.
        logits: float, of the same shape.

    Returns:
        float32 `(batch,)`.
    """
    nats = tf.nn.sigmoid_cross_entropy_with_logits(_flat(x), _flat(logits))
    return tf.reduce_sum(nats, axis=1)


def gaussian_kl(mean, log_variance):
    """KL(N(m, s^2) || N(0, 1)) in nats, summed over the axes of the code.

    Kingma and Welling 2013 (arXiv:1312.6114), appendix B.

    Args:
        mean: float `(batch, ...)`, m.
        log_variance: float, of the same shape, log s^2.

    Returns:
        float32 `(batch,)`.
    """
    m, v = _flat(mean), _flat(log_variance)
    return tf.reduce_sum((m**2 + tf.exp(v) - 1 - v) / 2, axis=1)


def probability_gap(target_logits, logits):
    """The mean squared difference of the probabilities of classes: consistency.

    Laine and Aila 2017 (arXiv:1610.02242), algorithm 1.

    Args:
        target_logits: float `(batch, classes)`. No gradient flows to them.
        logits: float `(batch, classes)`.

    Returns:
        float32 `(batch,)`.
    """
    p, q = (tf.nn.softmax(tf.cast(z, tf.float32)) for z in (target_logits, logits))
    return tf.reduce_mean((q - tf.stop_gradient(p)) ** 2, axis=-1)


def softened_kl(target_logits, logits, temperature=1.0):
    """T^2 KL(softmax(t / T) || softmax(z / T)): how far z is from t, wrong answers included.

    Hinton, Vinyals and Dean 2015 (arXiv:1503.02531), section 2; the factor keeps the size of the
    gradients as the temperature changes.

    Args:
        target_logits: float `(batch, classes)`, t. No gradient flows to them.
        logits: float `(batch, classes)`, z.
        temperature: T, above 0.

    Returns:
        float32 `(batch,)`.
    """
    t = tf.stop_gradient(tf.cast(target_logits, tf.float32)) / temperature
    z = tf.cast(logits, tf.float32) / temperature
    apart = tf.nn.log_softmax(t) - tf.nn.log_softmax(z)
    return temperature**2 * tf.reduce_sum(tf.nn.softmax(t) * apart, axis=-1)


def contrastive(embeddings, labels, temperature=0.1):
    """How much nearer an example is to all others than to those of its label.

    The mean over the positives p of an example i, those that share its label, of

        -log(exp(z_i z_p / T) / sum over all a but i of exp(z_i z_a / T))

    with z of length 1; 0 where there is no positive. With classes as labels it is the supervised
    contrastive loss, Khosla et al. 2020 (arXiv:2004.11362), equation 2; with a label for each pair
    of views it is NT-Xent, Chen et al. 2020 (arXiv:2002.05709), equation 1. On several replicas
    the others are those of the whole batch.

    Args:
        embeddings: float `(batch, features)`; their lengths do not matter.
        labels: int `(batch,)`.
        temperature: T, above 0.

    Returns:
        float32 `(batch,)`.
    """
    z = tf.math.l2_normalize(tf.cast(embeddings, tf.float32), axis=1, epsilon=1e-12)
    labels = tf.cast(tf.reshape(labels, [-1]), tf.int64)
    places = replicas.places(tf.shape(z)[0])
    others = replicas.gathered(z)
    is_positive, is_self = (
        mark[:, None] == replicas.gathered(mark)[None, :] for mark in (labels, places)
    )
    similarities = tf.matmul(z, others, transpose_b=True) / temperature
    similarities = tf.where(is_self, similarities.dtype.min, similarities)
    log_shares = tf.nn.log_softmax(similarities)
    positive = tf.cast(is_positive & ~is_self, tf.float32)
    log_shares = tf.where(is_self, 0.0, log_shares)
    return -tf.math.divide_no_nan(
        tf.reduce_sum(positive * log_shares, axis=1), tf.reduce_sum(positive, axis=1)
    )


def _flat(values):
    """float32 `(batch, all else)`."""
    return tf.reshape(tf.cast(values, tf.float32), (tf.shape(values)[0], -1))
