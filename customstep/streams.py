"""Batches whose order is a function of the training step, so that it is found again after a break.

A shuffle buffer has a state that dies with its process. Here the order of an epoch depends on two
numbers alone, a seed and the step at which the epoch begins, and costs no memory.
"""

import math

import tensorflow as tf

from customstep.checks import check_integer

__all__ = ["follow", "index_batches", "is_known"]

_ROUNDS = 16  # of the cipher; with TensorFlow's 4 some places are a little likelier than others


def index_batches(count, batch_size, *, shuffle=True, seed=0):
    """Batches of indices into arrays of `count` examples: what a resumable data set begins with.

    `fit` of a `StepModel` tells the data set its step before every epoch, also through `map`,
    `take`, `zip` and `prefetch`. Iterated elsewhere it counts its own epochs. Whatever is mapped
    over the indices should be a function of them; noise belongs into the model, which saves its
    random states.

    The order is a permutation that TensorFlow computes by a cipher of the index, so that no step
    has to know the one before. Its keys are drawn from `seed` and the step, because near ones would
    give orders that resemble one another.

    Args:
        count: number of examples, at least 1.
        batch_size: int, at least 1, and at most `count` where it shuffles.
        shuffle: True for a new order in each epoch and no short last batch, False for the stored
            order and every index.
        seed: int; equal seeds give equal orders, epoch by epoch.

    Returns:
        `tf.data.Dataset` of int64 `(batch,)`, of known length.

    Raises:
        ValueError: an argument is out of its range.

    Example:

        data = streams.index_batches(len(x), 32).map(lambda i: (tf.gather(x, i), tf.gather(y, i)))
        model.fit(data, epochs=5, shuffle=False, callbacks=[customstep.Resume("runs/mine")])
    """
    check_integer("count", count, 1)
    # A shuffled batch that is short is dropped: a larger one would leave none.
    check_integer("batch_size", batch_size, 1, count if shuffle else math.inf)
    check_integer("seed", seed, -(2**63), 2**63 - 1)

    def epoch(key):
        batches = tf.data.Dataset.range(count).batch(batch_size, drop_remainder=shuffle)
        if not shuffle:
            return batches
        seeds = tf.stack([tf.constant(seed, tf.int64), key])
        seeds = tf.random.stateless_uniform([3], seeds, None, None, tf.int64)
        last = tf.constant(count - 1, tf.int64)
        return batches.map(
            lambda indices: tf.raw_ops.RandomIndexShuffle(
                index=indices, seed=seeds, max_index=last, rounds=_ROUNDS
            )
        )

    keys = _Keys()
    source = tf.data.Dataset.from_generator(keys, output_signature=tf.TensorSpec((), tf.int64))
    length = count // batch_size if shuffle else -(-count // batch_size)
    batches = source.flat_map(epoch).apply(tf.data.experimental.assert_cardinality(length))
    options = tf.data.Options()  # several workers share the batches, for there are no files
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    stream = batches.with_options(options)
    stream.customstep_keys = keys  # where `follow` finds them
    return stream


def follow(dataset, step):
    """Lets the next iteration of a data set be that of the epoch which begins at a step.

    Args:
        dataset: what was passed to `fit`; where there is no stream in it, nothing happens.
        step: int, the number of training steps done before the epoch.
    """
    for part in _parts(dataset):
        if _is_stream(part):
            part.customstep_keys.next = step


def is_known(dataset):
    """Whether the order of all data is known by the step alone, once `follow` has told it.

    It is where there are streams in the data set, and nothing that remembers earlier epochs.
    """
    parts = list(_parts(dataset))
    return any(map(_is_stream, parts)) and not any(map(_remembers, parts))


class _Keys:
    """A generator of one number, another one for each iteration of a data set."""

    def __init__(self):
        self.next = 0

    def __call__(self):
        key = self.next
        self.next += 1
        yield key


def _parts(dataset):
    """A data set and all that it is made of, down to the streams; nothing of other data."""
    if not isinstance(dataset, tf.data.Dataset):
        return
    yield dataset
    if not _is_stream(dataset):
        for part in dataset._inputs():
            yield from _parts(part)


def _is_stream(part):
    return hasattr(part, "customstep_keys")


def _remembers(part):
    """Whether a part of a data set may give something else than in another process."""
    if _is_stream(part):
        return False
    return any(word in type(part).__name__ for word in ("Cache", "Shuffle")) or any(
        operation.op_def.is_stateful  # it draws from a layer's seeds, or calls Python
        for function in part._functions()
        for operation in function.function.graph.get_operations()
    )
