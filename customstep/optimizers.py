"""Several optimizers in the one place where Keras keeps an optimizer."""

import types

import keras
import tensorflow as tf

from customstep import replicas
from customstep.stateful import BoundSchedule

__all__ = [
    "OptimizerGroup",
    "by_update",
    "check_rates_are_fixed",
    "clipped_over_replicas",
    "loss_scale",
    "methods_by_update",
    "optimizers_by_update",
    "overwrites_weights",
    "scaled",
    "schedules_by_update",
    "unscaled",
    "with_loss_scale",
]


@keras.saving.register_keras_serializable("customstep")
class OptimizerGroup(keras.optimizers.Optimizer):
    """The optimizers of a model with several updates, as Keras and its callbacks see them.

    `keras.Model` has room for one optimizer: saving, `BackupAndRestore`, `TensorBoard` and the
    learning rate callbacks look at `model.optimizer` and nowhere else. The group stands there and
    answers as `keras.optimizers.MultiOptimizer` does, so that a callback acts on every member.
    Other than in `MultiOptimizer`, two members may train the same variable. The group applies no
    gradients: a step does that with the member of each update.

    Args:
        optimizers: dict of update name to `keras.optimizers.Optimizer`, in the order of the
            updates. Each takes the name of its update, under which callbacks log its rate.
        updates: None, or a callable that returns the `Update`s, for `finalize_variable_values`.
        name: the group's name.

    Attributes:
        names: tuple of update names.
        optimizers: list of their optimizers.
    """

    def __init__(self, optimizers, updates=None, name="optimizer_group"):
        super().__init__(learning_rate=0.0, name=name)
        self.names = tuple(optimizers)
        self.optimizers = list(optimizers.values())
        for update, optimizer in optimizers.items():
            optimizer.name = update
        self._updates = updates

    def build(self, variables):
        """Builds every member that is not built.

        Args:
            variables: dict of update name to the variables that the update trains, or, as Keras
                itself calls it, one list for all.
        """
        if not isinstance(variables, dict):
            variables = dict.fromkeys(self.names, variables)
        for name, optimizer in zip(self.names, self.optimizers):
            if not optimizer.built:
                optimizer.build(list(variables[name]))
        self.built = True

    @property
    def variables(self):
        return [variable for optimizer in self.optimizers for variable in optimizer.variables]

    @property
    def iterations(self):
        """How often the first update was applied."""
        return self.optimizers[0].iterations

    @property
    def learning_rate(self):
        if len(self.optimizers) == 1:
            return self.optimizers[0].learning_rate
        raise AttributeError(
            "Several optimizers have no one learning rate. Expected that of one update; received "
            "the group. Use `model.optimizers[name].learning_rate`."
        )

    @learning_rate.setter
    def learning_rate(self, rate):
        if len(self.optimizers) == 1:
            self.optimizers[0].learning_rate = rate
            return
        raise AttributeError(
            "Several optimizers have no one learning rate. Expected that of one update; received "
            f"{rate!r} for the group. Set `model.optimizers[name].learning_rate`."
        )

    def finalize_variable_values(self, var_list):
        """Lets each member finalize its own variables; Keras passes all of the model's."""
        for update in self._updates() if self._updates else ():
            optimizer = self.optimizers[self.names.index(update.name)]
            with update.kept(at_rest=True):
                optimizer.finalize_variable_values(list(update.known))

    def apply(self, grads, trainable_variables=None):
        raise TypeError(
            "A group of optimizers cannot apply gradients. Expected the optimizer of one update; "
            f"received the group of {_listed(self.names)}. Call "
            "`model.optimizers[name].apply(...)`."
        )

    def save_own_variables(self, store):
        """Nothing: Keras visits every member, and each saves its own."""

    def load_own_variables(self, store):
        """Nothing, as in `save_own_variables`."""

    def get_config(self):
        members = map(keras.optimizers.serialize, self.optimizers)
        return {"name": self.name, "optimizers": dict(zip(self.names, members))}

    @classmethod
    def from_config(cls, config):
        members = {k: keras.optimizers.deserialize(v) for k, v in config["optimizers"].items()}
        return cls(members, name=config["name"])


def optimizers_by_update(names, optimizer):
    """The `optimizer` argument of `compile`, one instance for each update.

    Args:
        names: list of update names.
        optimizer: an optimizer or its name, or a dict of update name to one.

    Returns:
        Dict of update name to `keras.optimizers.Optimizer`, in the order of `names`.

    Raises:
        ValueError: the names do not match, one is no optimizer, or one object serves two updates.
    """
    if not _is_by_update(optimizer):
        if len(names) > 1:
            example = ", ".join(f'"{name}": Adam()' for name in names)
            raise ValueError(
                f"One optimizer cannot serve several updates. Expected one for each of "
                f"{_listed(names)}; received {optimizer!r}. Pass `optimizer={{{example}}}`."
            )
        optimizer = {names[0]: optimizer}
    if set(optimizer) != set(names):
        raise ValueError(
            f"The optimizers do not fit the updates. Expected the names {_listed(names)}; "
            f"received {_listed(optimizer)}. Pass a dict with one optimizer for each name."
        )
    optimizers = {}
    for name in names:
        try:
            optimizers[name] = keras.optimizers.get(optimizer[name])
        except (TypeError, ValueError) as error:  # which says what it does not understand
            raise ValueError(
                f"The optimizer of '{name}' is none. Expected an optimizer or its name; received "
                f"{optimizer[name]!r} ({error}). Pass such as `keras.optimizers.Adam()`."
            ) from error
        if optimizers[name] is None:
            raise ValueError(
                f"The update '{name}' has no optimizer. Expected an optimizer or its name; "
                "received None. Pass such as `keras.optimizers.Adam()`."
            )
    if len({id(one) for one in optimizers.values()}) < len(names):
        raise ValueError(
            "One optimizer object serves several updates. Expected an object for each of "
            f"{_listed(names)}, because each keeps the state of its own variables; received the "
            "same one twice. Create one optimizer for each update."
        )
    return optimizers


def by_update(argument, value, names):
    """An argument of `compile` that is one for all updates or a dict of update name to one.

    Args:
        argument: its name, for the error.
        value: what was passed; None for nothing.
        names: list of update names.

    Returns:
        Dict of update name to value, for the updates that have one.

    Raises:
        ValueError: a name is not an update's.
    """
    if not isinstance(value, dict):
        value = {} if value is None else dict.fromkeys(names, value)
    for name in value:
        if name not in names:
            raise ValueError(
                f"`{argument}` names an update that does not exist. Expected "
                f"{_listed(names)}; received '{name}'. Correct the name."
            )
    return dict(value)


def schedules_by_update(argument, value, names, dtype=tf.float32):
    """`schedule_lr` or `when` of `compile`, bound to the variables that hold their states.

    Args:
        argument: its name, for the error.
        value: None, a callable `step -> value` for all updates, or a dict of update name to a
            callable.
        names: list of update names.
        dtype: of what the callables return: float32 for rates, bool for conditions.

    Returns:
        Read-only mapping of update name to `stateful.BoundSchedule`.

    Raises:
        ValueError: a name is not an update's, or the rate at step 0 is negative or not finite.
        TypeError: a schedule is not callable, or returns a value of the wrong kind.
    """
    schedules = by_update(argument, value, names)
    for name, schedule in schedules.items():
        if not callable(schedule) or isinstance(schedule, type):
            raise TypeError(
                f"`{argument}` of '{name}' cannot be called. Expected a callable of the step; "
                f"received {schedule!r}. Pass a function `step -> value`."
            )
        schedules[name] = BoundSchedule(schedule, dtype)
        schedules[name].check(f"{argument}['{name}']", None if dtype == tf.bool else "[0, inf)")
    return types.MappingProxyType(schedules)


def methods_by_update(value, names):
    """The `gradients` argument of `compile`: dict of update name to tuple of gradient methods.

    Raises:
        ValueError: a name is not an update's, or a method that has to be the first is not.
        TypeError: a method is not callable.
    """
    methods = by_update("gradients", value, names)
    for name, of_update in methods.items():
        methods[name] = tuple(keras.tree.flatten(of_update))
        for position, method in enumerate(methods[name]):
            if not callable(method) or isinstance(method, type):
                raise TypeError(
                    f"A gradient method of '{name}' cannot be called. Expected an object such as "
                    f"`gradients.SharpnessAware()`; received {method!r}. Derive one of your own "
                    "from `gradients.GradientTransform`."
                )
            if position and getattr(method, "comes_first", False):
                raise ValueError(
                    f"A gradient method of '{name}' is out of place. Expected {method!r} first, "
                    "because it looks at each term of the objective; received it at place "
                    f"{position + 1}. Move it to the front of the list."
                )
    return types.MappingProxyType(methods)


def check_rates_are_fixed(schedules, optimizers):
    """Raises a `ValueError` where an optimizer has a schedule beside that of `schedule_lr`."""
    for name in schedules:
        if not isinstance(optimizers[name].learning_rate, keras.Variable):
            raise ValueError(
                f"The optimizer of '{name}' has a schedule already. Expected a fixed "
                "`learning_rate` beside `schedule_lr`; received a schedule. Pass one of the two."
            )


def with_loss_scale(optimizer):
    """The optimizer in a `LossScaleOptimizer`, unless it is one."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


def loss_scale(optimizer):
    """By what the optimizer will divide the gradients, a scalar; None for nothing."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.scale_loss(1.0)
    return optimizer.loss_scale_factor


def scaled(tensor, scale):
    """A loss or a gradient, dense or sparse or None, times the loss scale."""
    if scale is None or tensor is None:
        return tensor
    return tf.math.scalar_mul(tf.cast(scale, tensor.dtype), tensor)


def unscaled(gradient, scale):
    """The inverse of `scaled`, in float32 at least, for float16 would lose what the scale saved."""
    if scale is None or gradient is None:
        return gradient
    wide = tf.cast(gradient, tf.float32) if gradient.dtype == tf.float16 else gradient
    return tf.math.scalar_mul(1 / tf.cast(scale, wide.dtype), wide)


def clipped_over_replicas(optimizer, gradients):
    """Shares of gradients that are clipped as those of the global batch, where it is on replicas.

    A Keras optimizer clips what it is given, which is one replica's share. The shares of clipped
    gradients are within its limits and pass as they are.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
        gradients: sequence of one replica's gradients or None.

    Returns:
        Such a sequence: the same without replicas, or where the optimizer does not clip.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    clips = optimizer.clipnorm or optimizer.global_clipnorm or optimizer.clipvalue
    if replicas.count() == 1 or not clips:
        return gradients
    totals = replicas.whole_gradients(gradients)
    clipped = iter(optimizer._clip_gradients([g for g in totals if g is not None]))
    return [None if g is None else replicas.share(next(clipped)) for g in totals]


def overwrites_weights(optimizer):
    """Whether the optimizer puts averages in the place of all weights it knows, now and then."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return inner.use_ema and inner.ema_overwrite_frequency is not None


def _is_by_update(optimizer):
    """Whether it is a dict by update name, not the serialized form of one optimizer."""
    return isinstance(optimizer, dict) and "class_name" not in optimizer


def _listed(names):
    return ", ".join(f"'{name}'" for name in names) or "none"

