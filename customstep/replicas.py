"""What a training step has to know of `tf.distribute`; no other file knows of it."""

import tensorflow as tf

__all__ = ["count", "draw_seed", "share", "whole"]


def count():
    """The number of replicas that train in step, 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def share(mean):
    """One replica's share of a global mean: optimizers sum gradients over the replicas.

    Args:
        mean: float scalar, the mean over this replica's part of the batch.

    Returns:
        Float scalar; the sum over replicas that hold equal parts is the mean over the whole batch.
    """
    return mean if count() == 1 else mean / count()


def whole(share):
    """The inverse of `share`, for the losses that Keras has divided already."""
    return share if count() == 1 else share * count()


def draw_seed(generator):
    """The next seed of a `keras.random.SeedGenerator`, another one on every replica.

    A seed generator holds the same state on every replica, so its seeds alone would give every
    replica the same noise.

    Args:
        generator: `keras.random.SeedGenerator`.

    Returns:
        int64 `(2,)` for `tf.random.stateless_*`.
    """
    seed = generator.next()
    if count() == 1:
        return seed
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.random.experimental.stateless_fold_in(seed, replica)
