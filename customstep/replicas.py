"""What a training step has to know of `tf.distribute`; no other file knows of it.

Replicas are the devices that train one model in step, in one process (`MirroredStrategy`) or in
several, the workers (`MultiWorkerMirroredStrategy`).
"""

import warnings

import keras
import tensorflow as tf

__all__ = [
    "RESTARTED",
    "PackedLogs",
    "assign_parts",
    "check_arguments",
    "check_scope",
    "cond",
    "count",
    "every",
    "gathered",
    "index",
    "is_chief",
    "join",
    "leave",
    "meet",
    "of_examples",
    "on_examples",
    "parts",
    "places",
    "several_workers",
    "share",
    "specification",
    "steps_per_execution",
    "total",
    "wait_for_devices",
    "weight",
    "weight_and_presence",
    "whole",
    "whole_gradients",
]

# The environment variable of workers that `customstep launch` has started once more.
RESTARTED = "CUSTOMSTEP_RESTARTED"


# -- Inside a step --------------------------------------------------------------------------


def count():
    """The number of replicas that run this code in step, 1 outside of `strategy.run`."""
    if tf.distribute.in_cross_replica_context():
        return 1
    return tf.distribute.get_strategy().num_replicas_in_sync


def weight(size):
    """What a mean over this replica's part of a batch weighs in the mean over the whole batch.

    Optimizers sum gradients over the replicas, so the sum of weighted means is what one device
    would descend, also where the parts of a last batch differ in size or some are empty.

    Args:
        size: the number of examples in this replica's part, an int or an int scalar.

    Returns:
        1 without a strategy, else a float or a float32 scalar.
    """
    return weight_and_presence(size)[0]


def weight_and_presence(size):
    """`weight`, and whether every replica has examples: True, or a bool scalar, from one sum."""
    if _have_equal_parts(size):
        return (1 if count() == 1 else 1 / count()), True
    size = tf.cast(size, tf.float32)
    [sums] = total([tf.stack([size, tf.cast(tf.equal(size, 0), tf.float32)])])
    return tf.math.divide_no_nan(size, sums[0]), tf.equal(sums[1], 0)


def _have_equal_parts(size):
    """Whether all replicas have as many examples, and at least one."""
    # A graph knows the size of a part only where all have the same.
    return count() == 1 or (isinstance(size, int) and not tf.executing_eagerly())


def share(whole):
    """An equal share, for each replica, of what is the same on all: a tensor over their number."""
    return whole if count() == 1 else whole / count()


def whole(share):
    """The whole of a share, for the losses that Keras has divided, in any context."""
    number = tf.distribute.get_strategy().num_replicas_in_sync
    return share if number == 1 else share * number


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


def places(size):
    """Numbers for the examples of this replica's part, which no other replica has.

    Args:
        size: the number of examples, an int or an int scalar.

    Returns:
        int64 `(size,)`.
    """
    return tf.range(tf.cast(size, tf.int64)) + 2**32 * index()


def gathered(tensor):
    """The rows of a tensor on all replicas, joined along its first axis; gradients flow back."""
    if count() == 1:
        return tensor
    return tf.distribute.get_replica_context().all_gather(tensor, axis=0)


def on_examples(call, inputs):
    """What `call` makes of inputs, also on a replica that has none of them.

    Two convolutions in a row, fused into one operation, fail on an empty batch (TensorFlow 2.21).
    So one example of zeros takes its place, and what is made of it is cut off.

    Args:
        call: callable of the inputs that returns tensors with one row for each example.
        inputs: tensor, or a nest of them, `(batch, ...)`.
    """
    if count() == 1:
        return call(inputs)
    present = [tensor for tensor in keras.tree.flatten(inputs) if tensor is not None]
    size = tf.shape(present[0])[0]

    def padded(tensor):
        if tensor is None:
            return None
        rows = tf.cast(tf.equal(size, 0), tf.int32)
        shape = tf.concat([[rows], tf.shape(tensor)[1:]], axis=0)
        return tf.concat([tensor, tf.zeros(shape, tensor.dtype)], axis=0)

    outputs = call(keras.tree.map_structure(padded, inputs, none_is_leaf=True))
    return keras.tree.map_structure(lambda tensor: tensor[:size], outputs)


def whole_gradients(gradients):
    """Gradients of the global batch: dense, summed over the replicas, float32 at least.

    Args:
        gradients: list of tensors, dense or sparse, or None.

    Returns:
        List of dense tensors or None.
    """
    totals = total([tf.convert_to_tensor(g) for g in gradients if g is not None])
    totals = iter([tf.cast(g, tf.float32) if g.dtype.size < 4 else g for g in totals])
    return [None if gradient is None else next(totals) for gradient in gradients]


def of_examples(gradient, size):
    """A gradient, or zeros on a replica that has no examples, where the mean of none is NaN.

    Args:
        gradient: tensor, dense or sparse, or None.
        size: the number of examples in this replica's part, an int or an int scalar.
    """
    if _have_equal_parts(size) or gradient is None:
        return gradient
    return tf.nest.map_structure(
        lambda t: tf.where(tf.greater(size, 0), t, tf.zeros_like(t)) if t.dtype.is_floating else t,
        gradient,
        expand_composites=True,
    )


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
            def placed(*arguments):
                # What a branch is given has no device, and a reduction asks for one.
                return branch(*tf.nest.map_structure(_placed, arguments))

            outputs = strategy.extended.call_for_each_replica(placed, arguments)
            flat = [local(output) for output in tf.nest.flatten(outputs)]
            # What is the same object on all replicas, such as None, comes back as one.
            number = max(map(len, flat), default=1)
            flat = [parts if len(parts) == number else parts * number for parts in flat]
            return [tf.nest.pack_sequence_as(outputs, mine) for mine in zip(*flat)]

        return tf.cond(local(condition)[0], lambda: run(yes), lambda: run(no))

    outputs = replica.merge_call(across_replicas, (condition, *arguments))
    number = tf.get_static_value(replica.replica_id_in_sync_group)
    mine = outputs[number % len(outputs)] if outputs else None
    return tf.nest.map_structure(_placed, mine)


def _placed(tensor):
    """A tensor on the device of this replica; what is no tensor, such as None, as it is."""
    return tf.identity(tensor) if tf.is_tensor(tensor) else tensor


# -- Around a step --------------------------------------------------------------------------


def join():
    """Makes this process one of several workers, for all models made from now on.

    The variable `TF_CONFIG` says which one of whom (see
    `tf.distribute.MultiWorkerMirroredStrategy`). It returns once all workers are there.
    """
    tf.distribute.experimental_set_strategy(tf.distribute.MultiWorkerMirroredStrategy())


def leave():
    """Makes this process train alone again: the inverse of `join`, harmless where it does so."""
    tf.distribute.experimental_set_strategy(None)


def wait_for_devices():
    """Waits until the devices have done all they were given, so that a clock tells the truth.

    A worker cannot ask that of the devices of others, and does not wait.
    """
    if all("job:localhost" in device.name for device in tf.config.list_logical_devices()):
        tf.test.experimental.sync_devices()


def is_chief(strategy=None):
    """Whether this process is the one that writes files, as it is where it trains alone.

    Reading a model's variables takes all workers, so that all of them save it, and all but the
    chief throw away what they wrote.

    Args:
        strategy: `tf.distribute.Strategy`; None for the one in force.

    Returns:
        bool.

    Example:

        if customstep.replicas.is_chief():
            print("This is printed once.")
    """
    strategy = strategy or tf.distribute.get_strategy()
    if not several_workers(strategy):
        return True
    resolver = strategy.cluster_resolver
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (not has_chief and resolver.task_id == 0)


class PackedLogs:
    """The logs of a step as one tensor, in which several workers can reduce them.

    Keras reduces each log by itself, and over the first axis, which a scalar does not have.

    Example:

        logs = PackedLogs()
        run = logs.unpacked(make_function(logs.packed(model.train_step)))
    """

    def packed(self, step):
        """A step that returns its logs as float32 `(1, n)`."""

        def packed_step(data):
            logs = step(data)
            self._structure = tf.nest.map_structure(lambda log: None, logs)
            return tf.stack([tf.cast(log, tf.float32) for log in tf.nest.flatten(logs)])[None]

        return packed_step

    def unpacked(self, function):
        """A function that returns the logs which `function` returns as float32 `(n,)`."""

        def unpacked_function(iterator):
            values = tf.unstack(function(iterator))
            return tf.nest.pack_sequence_as(self._structure, values)

        return unpacked_function


def several_workers(strategy):
    """Whether the replicas of a strategy, or of None, are in several processes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    cluster = strategy.cluster_resolver.cluster_spec().as_dict()
    return len(cluster.get("chief", [])) + len(cluster.get("worker", [])) > 1


def meet(strategy):
    """Waits until all workers of a strategy have come here, where there are several."""
    if several_workers(strategy):
        strategy.gather(tf.zeros([1]), axis=0)


def parts(variable):
    """What each replica of this process has of a variable: list of arrays, one on one device.

    Metrics differ from replica to replica, and only their sums are told.
    """
    return [part.numpy() for part in _local(variable)]


def assign_parts(variable, values):
    """Gives each replica of this process what `parts` returned of it."""
    for part, value in zip(_local(variable), values):
        part.assign(value)


def _local(variable):
    value = variable.value
    return value.values if isinstance(value, tf.distribute.DistributedValues) else [value]


def specification(dataset):
    """What one replica is given of a data set: nest of `tf.TensorSpec`, whose batch size varies.

    Args:
        dataset: `tf.data.Dataset`, distributed or not.
    """

    def of_one_replica(spec):
        if not isinstance(spec, tf.TypeSpec):
            return spec
        first, *_ = tf.nest.flatten(spec, expand_composites=True)
        return tf.TensorSpec([None, *first.shape[1:]], first.dtype)

    return keras.tree.map_structure(of_one_replica, dataset.element_spec)


def check_scope(model, strategy):
    """Raises a `ValueError` where a model is used under another strategy than it was made under.

    Args:
        model: `keras.Model`, for its name.
        strategy: the `tf.distribute.Strategy` it was made under, or None.
    """
    current = tf.distribute.get_strategy() if tf.distribute.has_strategy() else None
    if current is not None and current is not strategy:
        made = f"under {type(strategy).__name__}" if strategy else "under none"
        raise ValueError(
            f"The variables of '{model.name}' are not where the replicas look for them. Expected a "
            f"model made under the {type(current).__name__} in force; received one made {made}. "
            "Make, load and compile it inside `with strategy.scope():`."
        )


def check_arguments(strategy, optimizers, *, jit_compile=False):
    """Raises a `ValueError` where `compile` asks for what replicas cannot do.

    Each of these fails deep inside TensorFlow, if at all, once training begins.

    Args:
        strategy: the `tf.distribute.Strategy` of the model, or None.
        optimizers: dict of update name to `keras.optimizers.Optimizer`.
        jit_compile: as for `keras.Model.compile`.
    """
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    if strategy is not tf.distribute.get_strategy():
        raise ValueError(
            "The model is compiled outside of its strategy. Expected `compile` under the "
            f"{type(strategy).__name__} that the model was made under; received a call outside "
            "of it. Move it inside `with strategy.scope():`."
        )
    if jit_compile is True:
        raise ValueError(
            "XLA cannot compile a step over several replicas. Expected `jit_compile=False`; "
            f"received True for {strategy.num_replicas_in_sync} replicas. Leave it out, or train "
            "on one device."
        )
    for name, optimizer in optimizers.items():
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if not isinstance(optimizer.variables[0].value, tf.distribute.DistributedValues):
            raise ValueError(
                f"The optimizer of '{name}' was made outside of the model's strategy. Expected one "
                f"made under {type(strategy).__name__}; received one whose variables are on one "
                "device. Make it inside `with strategy.scope():`."
            )
        if optimizer.gradient_accumulation_steps:
            raise ValueError(
                f"The optimizer of '{name}' accumulates gradients, which Keras cannot do over "
                "several replicas. Expected `gradient_accumulation_steps=None`; received "
                f"{optimizer.gradient_accumulation_steps}. Leave it out, and pass batches that "
                "many times as large."
            )
        if optimizer.use_ema and optimizer.ema_overwrite_frequency:
            raise ValueError(
                f"The optimizer of '{name}' overwrites weights by their averages, which Keras "
                "cannot do over several replicas. Expected `ema_overwrite_frequency=None`; "
                f"received {optimizer.ema_overwrite_frequency}. Leave it out: `fit` puts the "
                "averages in place at its end."
            )


def steps_per_execution(strategy, steps):
    """How many steps one call of the graph can do, which changes its speed and nothing else.

    TensorFlow's collective operations fail inside the loop that Keras makes of several steps; they
    were seen to on processors, with one process and with several.

    Args:
        strategy: the `tf.distribute.Strategy` of the model, or None.
        steps: as for `keras.Model.compile`.

    Returns:
        `steps`, or 1 with a warning.
    """
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return steps
    in_loops = tf.distribute.ReductionToOneDevice, tf.distribute.HierarchicalCopyAllReduce
    if isinstance(getattr(strategy.extended, "_cross_device_ops", None), in_loops):
        return steps
    warnings.warn(
        "Steps are run one by one, because TensorFlow's collective operations fail in a loop. "
        f"Expected `steps_per_execution=1` for these replicas; received {steps}. Leave it out, or, "
        "in one process, make the strategy with "
        "`cross_device_ops=tf.distribute.ReductionToOneDevice()`.",
        stacklevel=3,
    )
    return 1
