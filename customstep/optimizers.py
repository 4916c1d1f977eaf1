"""Several optimizers in the one place where Keras keeps an optimizer."""

import types

import keras

__all__ = ["OptimizerGroup", "optimizers_by_update", "schedules_by_update"]


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
        name: the group's name.

    Attributes:
        names: tuple of update names.
        optimizers: list of their optimizers.
    """

    def __init__(self, optimizers, name="optimizer_group"):
        super().__init__(learning_rate=0.0, name=name)
        self.names = tuple(optimizers)
        self.optimizers = list(optimizers.values())
        for update, optimizer in optimizers.items():
            optimizer.name = update
        # Not a dict, which Keras would track: the model's variables are not the group's to save.
        self._trained = types.MappingProxyType({})

    def build(self, variables):
        """Builds every member that is not built.

        Args:
            variables: dict of update name to the variables that the update trains, or, as Keras
                itself calls it, one list for all.
        """
        if not isinstance(variables, dict):
            variables = dict.fromkeys(self.names, variables)
        self._trained = types.MappingProxyType({k: tuple(v) for k, v in variables.items()})
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
        raise AttributeError(
            "Several optimizers have no one learning rate. Expected that of one update; received "
            "the group. Use `model.optimizers[name].learning_rate`."
        )

    @learning_rate.setter
    def learning_rate(self, rate):
        raise AttributeError(
            "Several optimizers have no one learning rate. Expected that of one update; received "
            f"{rate!r} for the group. Set `model.optimizers[name].learning_rate`."
        )

    def finalize_variable_values(self, var_list):
        """Lets each member finalize its own variables; Keras passes all of the model's."""
        for name, optimizer in zip(self.names, self.optimizers):
            optimizer.finalize_variable_values(list(self._trained.get(name, ())))

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
        ValueError: the names do not match, or one object serves two updates.
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
    optimizers = {name: keras.optimizers.get(optimizer[name]) for name in names}
    for name, one in optimizers.items():
        if one is None:
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


def schedules_by_update(names, schedule_lr, optimizers):
    """The `schedule_lr` argument of `compile`, for each update that has a schedule.

    Args:
        names: list of update names.
        schedule_lr: None, a callable `step -> rate` for all updates, or a dict of update name to
            a callable.
        optimizers: dict of update name to optimizer.

    Returns:
        Read-only mapping of update name to callable.

    Raises:
        ValueError: a name is not an update's, or the optimizer has a schedule of its own.
        TypeError: a schedule is not callable.
    """
    if schedule_lr is None:
        return types.MappingProxyType({})
    if not isinstance(schedule_lr, dict):
        schedule_lr = dict.fromkeys(names, schedule_lr)
    for name, schedule in schedule_lr.items():
        if name not in names:
            raise ValueError(
                f"`schedule_lr` names an update that does not exist. Expected "
                f"{_listed(names)}; received '{name}'. Correct the name."
            )
        if not callable(schedule):
            raise TypeError(
                f"The schedule of '{name}' cannot be called. Expected a callable of the step; "
                f"received {schedule!r}. Pass a function `step -> learning rate`."
            )
        if not isinstance(optimizers[name].learning_rate, keras.Variable):
            raise ValueError(
                f"The optimizer of '{name}' has a schedule already. Expected a fixed "
                "`learning_rate` beside `schedule_lr`; received a schedule. Pass one of the two."
            )
    return types.MappingProxyType(dict(schedule_lr))


def _is_by_update(optimizer):
    """Whether it is a dict by update name, not the serialized form of one optimizer."""
    return isinstance(optimizer, dict) and "class_name" not in optimizer


def _listed(names):
    return ", ".join(f"'{name}'" for name in names) or "none"

