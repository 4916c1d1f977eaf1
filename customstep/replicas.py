"""What a training step has to know of `tf.distribute`; no other file knows of it."""

import tensorflow as tf

__all__ = ["cond", "count", "every", "index", "mean", "share", "total", "whole"]


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


def total(tensors):
    """The sums of tensors over all replicas, a list; the tensors themselves without a strategy."""
    if count() == 1:
        return list(tensors)
    replica = tf.distribute.get_replica_context()
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors))


def mean(tensors):
    """The means of tensors over all replicas, a list."""
    return [share(tensor) for tensor in total(tensors)]


def every(condition):
    """Whether a bool scalar is true on every replica."""
    if count() == 1:
        return condition
    [held] = total([tf.cast(condition, tf.int32)])
    return tf.equal(held, count())


def cond(condition, yes, no, *arguments):
    """`tf.cond` whose branches may use an optimizer, which `tf.cond` itself forbids on replicas.

    Args:
        condition: bool scalar, the same on every replica.
        yes: callable of `arguments` that returns tensors in any structure.
        no: callable that returns the like.
        *arguments: all that the branches take of this replica, its part of the batch for one.

    Returns:
        What the chosen branch returns.
    """
    if count() == 1:
        return tf.cond(condition, lambda: yes(*arguments), lambda: no(*arguments))
    replica = tf.distribute.get_replica_context()

    def across_replicas(strategy, condition, *arguments):
        # Optimizers meet the other replicas within a step, and can do so only where the branch
        # began with all of them together.
        local = strategy.experimental_local_results

        def run(branch):
            outputs = strategy.extended.call_for_each_replica(branch, arguments)
            flat = [local(output) for output in tf.nest.flatten(outputs)]
            # What is the same object on all replicas, such as None, comes back as one.
            number = max(map(len, flat), default=1)
            flat = [parts if len(parts) == number else parts * number for parts in flat]
            return [tf.nest.pack_sequence_as(outputs, mine) for mine in zip(*flat)]

        return tf.cond(local(condition)[0], lambda: run(yes), lambda: run(no))

    outputs = replica.merge_call(across_replicas, (condition, *arguments))
    number = tf.get_static_value(replica.replica_id_in_sync_group)
    return outputs[number % len(outputs)] if outputs else None
