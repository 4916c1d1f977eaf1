"""What a training step has to know of `tf.distribute`; no other file knows of it."""

import tensorflow as tf

__all__ = ["count", "index", "share", "whole"]


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


def index():
    """This replica's number, an int64 scalar, 0 without a strategy."""
    if count() == 1:
        return tf.constant(0, tf.int64)
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.cast(replica, tf.int64)
