"""Several optimizers where Keras keeps one."""

import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers import SGD, Adam

from customstep import Objective, Update
from customstep.conditions import Above
from customstep.nonfinite import all_finite
from customstep.optimizers import (
    OptimizerGroup,
    by_update,
    check_rates_are_fixed,
    loss_scale,
    methods_by_update,
    optimizers_by_update,
    overwrites_weights,
    scaled,
    schedules_by_update,
    unscaled,
    with_loss_scale,
)

ONE = [tf.constant([1.0])]  # the gradient of one variable `(1,)`


def variable(value=0.0):
    return keras.Variable([float(value)])


def rates(group):
    return [float(np.array(one.learning_rate)) for one in group.optimizers]


def decay():
    return keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5)


def updates_of(**variables):
    return lambda: tuple(Update(name, None, [one]) for name, one in variables.items())


# The group


def test_members_keep_their_order_and_take_the_names_of_their_updates():
    second, first = SGD(0.1), Adam(0.2)
    group = OptimizerGroup({"z": first, "a": second})
    assert group.names == ("z", "a")
    assert group.optimizers == [first, second]
    assert (first.name, second.name) == ("z", "a")


@pytest.mark.parametrize("optimizer", [lambda: SGD(0.1), lambda: SGD(decay())], ids=["rate", "own"])
def test_group_has_no_learning_rate_of_its_own(optimizer):
    group = OptimizerGroup({"a": optimizer(), "b": SGD(0.4)})
    message = (
        r"no one learning rate\. Expected that of one update; received the group\. "
        r"Use `model\.optimizers\[name\]\.learning_rate`"
    )
    with pytest.raises(AttributeError, match=message):
        _ = group.learning_rate


def test_setting_a_learning_rate_is_refused_and_changes_none():
    group = OptimizerGroup({"a": SGD(0.1), "b": SGD(0.4)})
    message = (
        r"no one learning rate\. Expected that of one update; received 0\.05 for the group\. "
        r"Set `model\.optimizers\[name\]\.learning_rate`"
    )
    with pytest.raises(AttributeError, match=message):
        group.learning_rate = 0.05
    np.testing.assert_allclose(rates(group), [0.1, 0.4], rtol=1e-6)


def test_plateau_callback_keeps_the_proportion_of_the_rates():
    group = OptimizerGroup({"a": SGD(0.1), "b": SGD(0.4)})
    callback = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1)
    callback.set_model(types.SimpleNamespace(optimizer=group))
    callback.on_train_begin()
    for epoch in range(3):  # the first sets the best loss, the others each halve the rates
        logs = {"loss": 1.0}
        callback.on_epoch_end(epoch, logs)
    np.testing.assert_allclose(rates(group), [0.025, 0.1], rtol=1e-6)
    # Logged before they are halved, under the names of the updates.
    np.testing.assert_allclose(logs["learning_rate_a"], 0.05, rtol=1e-6)
    np.testing.assert_allclose(logs["learning_rate_b"], 0.2, rtol=1e-6)


def test_scheduler_callback_sees_the_rate_of_each_member():
    group = OptimizerGroup({"a": SGD(0.1), "b": SGD(0.4)})
    callback = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / (epoch + 2))
    callback.set_model(types.SimpleNamespace(optimizer=group))
    callback.on_epoch_begin(0)
    callback.on_epoch_begin(1)
    np.testing.assert_allclose(rates(group), [0.1 / 6, 0.4 / 6], rtol=1e-6)


def test_iterations_are_those_of_the_first_update():
    first, second = SGD(0.1), SGD(0.1)
    group = OptimizerGroup({"a": first, "b": second})
    group.build({"a": [variable()], "b": [variable()]})
    assert int(group.iterations) == 0
    for optimizer in (first, first, second):
        optimizer.apply(ONE)
    assert int(group.iterations) == 2


def test_group_refuses_to_apply_gradients_and_changes_nothing():
    x = variable(5)
    group = OptimizerGroup({"a": SGD(0.1), "b": SGD(0.4)})
    group.build([x])
    message = (
        r"cannot apply gradients\. Expected the optimizer of one update; received the group of "
        r"'a', 'b'\. Call `model\.optimizers\[name\]\.apply\(\.\.\.\)`\."
    )
    with pytest.raises(TypeError, match=message):
        group.apply(ONE, [x])
    with pytest.raises(TypeError, match=message):
        group.apply_gradients([(ONE[0], x)])
    assert (float(x[0]), int(group.iterations)) == (5, 0)


def test_build_gives_each_member_its_own_variables():
    x, y, z = variable(), variable(), variable()
    group = OptimizerGroup({"a": Adam(), "b": SGD(momentum=0.9)})
    assert not group.built
    group.build({"b": [z], "a": [x, y]})
    assert group.built and all(one.built for one in group.optimizers)
    # Adam: iterations, rate and two moments for each of two; momentum SGD: one for one.
    assert [len(one.variables) for one in group.optimizers] == [2 + 2 * 2, 2 + 1]


def test_build_with_a_list_gives_every_member_all_variables():
    group = OptimizerGroup({"a": SGD(momentum=0.9), "b": SGD(momentum=0.9)})
    group.build([variable(), variable()])
    assert [len(one.variables) for one in group.optimizers] == [2 + 2, 2 + 2]


def test_build_leaves_a_built_member_as_it_is():
    x = variable()
    member = SGD(0.1, momentum=0.9)
    member.build([x])
    member.apply(ONE)
    state = [np.array(one) for one in member.variables]
    group = OptimizerGroup({"a": member, "b": SGD()})
    group.build({"a": [x], "b": [variable()]})
    for before, after in zip(state, member.variables, strict=True):
        np.testing.assert_array_equal(before, after)


def test_two_members_may_train_the_same_variable():
    x = variable()
    group = OptimizerGroup({"a": SGD(0.5), "b": SGD(0.25)})
    group.build({"a": [x], "b": [x]})
    for optimizer in group.optimizers:
        optimizer.apply(ONE)
    assert float(x[0]) == -0.75


def test_variables_are_those_of_all_members_in_order():
    first, second = SGD(0.1, momentum=0.9), Adam(0.4)
    group = OptimizerGroup({"a": first, "b": second})
    group.build({"a": [variable()], "b": [variable()]})
    expected = [*first.variables, *second.variables]
    assert [id(one) for one in group.variables] == [id(one) for one in expected]


def test_group_leaves_saving_of_state_to_its_members():
    group = OptimizerGroup({"a": SGD(0.1)})
    store = {}
    group.save_own_variables(store)
    assert store == {}
    group.load_own_variables(store)


# Averaged weights


def averaging():
    return SGD(1.0, use_ema=True, ema_momentum=0.5)


def test_finalizing_overwrites_only_variables_of_averaging_members():
    x, y, other = variable(), variable(), variable(7)
    group = OptimizerGroup({"a": averaging(), "b": SGD(1.0)}, updates_of(a=x, b=y))
    group.build({"a": [x], "b": [y]})
    for optimizer in group.optimizers:
        optimizer.apply(ONE)
        optimizer.apply(ONE)
    assert (float(x[0]), float(y[0])) == (-2, -2)
    group.finalize_variable_values([y, x, other])  # Keras passes all, in the model's order
    # The mean starts at the first value, -1; then half of it and half of -2.
    assert float(x[0]) == 0.5 * -1 + 0.5 * -2
    assert (float(y[0]), float(other[0])) == (-2, 7)


def test_finalizing_gives_every_averaging_member_its_own_mean():
    x, y = variable(), variable(100)
    group = OptimizerGroup({"a": averaging(), "b": averaging()}, updates_of(a=x, b=y))
    group.build({"a": [x], "b": [y]})
    for optimizer in group.optimizers:
        optimizer.apply(ONE)
        optimizer.apply(ONE)
    group.finalize_variable_values([x, y])
    assert (float(x[0]), float(y[0])) == (-1.5, 98.5)


def test_finalizing_without_averages_changes_nothing():
    x = variable(3)
    group = OptimizerGroup({"a": SGD(1.0)}, updates_of(a=x))
    group.finalize_variable_values([x])  # not built
    group.build([x])
    group.finalize_variable_values([x])
    assert float(x[0]) == 3


# Serialization


@pytest.mark.parametrize(
    "save, load",
    [
        (keras.optimizers.serialize, keras.optimizers.deserialize),
        (keras.saving.serialize_keras_object, keras.saving.deserialize_keras_object),
    ],
    ids=["optimizers", "saving"],
)
def test_group_survives_serialization(save, load):
    members = {"z": Adam(0.1, beta_1=0.5), "a": SGD(decay(), momentum=0.9)}
    saved = json.loads(json.dumps(save(OptimizerGroup(members, name="mine"))))
    assert saved["registered_name"] == "customstep>OptimizerGroup"
    loaded = load(saved)
    assert isinstance(loaded, OptimizerGroup)
    assert (loaded.name, loaded.names) == ("mine", ("z", "a"))
    adam, sgd = loaded.optimizers
    assert (type(adam), type(sgd)) == (Adam, SGD)
    np.testing.assert_allclose(rates(loaded), [0.1, 0.1], rtol=1e-6)
    assert (adam.beta_1, sgd.momentum) == (0.5, 0.9)
    assert isinstance(sgd.get_config()["learning_rate"], dict)  # still a schedule


def test_loss_scale_members_survive_serialization():
    group = OptimizerGroup({"a": keras.optimizers.LossScaleOptimizer(SGD(0.1)), "b": SGD(0.4)})
    loaded = keras.optimizers.deserialize(keras.optimizers.serialize(group))
    assert isinstance(loaded.optimizers[0], keras.optimizers.LossScaleOptimizer)
    np.testing.assert_allclose(rates(loaded), [0.1, 0.4], rtol=1e-6)


# `optimizers_by_update`


def test_optimizers_come_in_the_order_of_the_updates():
    a, b = SGD(), Adam()
    result = optimizers_by_update(["a", "b"], {"b": b, "a": a})
    assert list(result.items()) == [("a", a), ("b", b)]


def test_names_of_optimizers_give_one_object_each():
    result = optimizers_by_update(["a", "b"], {"a": "adam", "b": "adam"})
    assert [type(one) for one in result.values()] == [Adam, Adam]
    assert result["a"] is not result["b"]


@pytest.mark.parametrize(
    "wrap", [lambda one: one, lambda one: {"train": one}], ids=["bare", "by_name"]
)
def test_one_update_takes_an_optimizer_with_or_without_its_name(wrap):
    member = SGD()
    assert optimizers_by_update(["train"], wrap(member)) == {"train": member}
    assert isinstance(optimizers_by_update(["train"], wrap("adam"))["train"], Adam)
    saved = keras.optimizers.serialize(SGD(0.25))  # a dict too, but not by update
    assert float(optimizers_by_update(["train"], wrap(saved))["train"].learning_rate) == 0.25


@pytest.mark.parametrize("optimizer", ["adam", None, ["adam", "adam"]], ids=repr)
def test_one_optimizer_for_several_updates_is_refused(optimizer):
    message = (
        r"One optimizer cannot serve several updates\. Expected one for each of 'a', 'b'; "
        rf"received {optimizer!r}\. Pass `optimizer={{\"a\": Adam\(\), \"b\": Adam\(\)}}`\."
    ).replace("['adam', 'adam']", r"\['adam', 'adam'\]")
    with pytest.raises(ValueError, match=message):
        optimizers_by_update(["a", "b"], optimizer)


@pytest.mark.parametrize(
    "given, received",
    [
        (["a"], "'a'"),
        (["a", "c"], "'a', 'c'"),
        (["a", "b", "c"], "'a', 'b', 'c'"),
        ([], "none"),
    ],
    ids=str,
)
def test_optimizers_that_do_not_fit_the_updates_are_refused(given, received):
    message = (
        r"do not fit the updates\. Expected the names 'a', 'b'; "
        rf"received {received}\. Pass a dict with one optimizer for each name\."
    )
    with pytest.raises(ValueError, match=message):
        optimizers_by_update(["a", "b"], {name: SGD() for name in given})


def test_one_object_for_two_updates_is_refused():
    shared = SGD()
    message = (
        r"One optimizer object serves several updates\. Expected an object for each of 'a', 'b', "
        r"because each keeps the state of its own variables; received the same one twice\. "
        r"Create one optimizer for each update\."
    )
    with pytest.raises(ValueError, match=message):
        optimizers_by_update(["a", "b"], {"a": shared, "b": shared})


def test_unknown_name_of_an_optimizer_is_refused_by_keras():
    with pytest.raises(ValueError, match="Could not interpret optimizer identifier: adamm"):
        optimizers_by_update(["a", "b"], {"a": "adam", "b": "adamm"})


@pytest.mark.parametrize("names", [["a"], ["a", "b"]], ids=str)
def test_update_without_optimizer_is_refused(names):
    with pytest.raises(ValueError, match="'a'"):
        optimizers_by_update(names, {"a": None, "b": SGD()} if len(names) > 1 else None)


# What `compile` takes by update


def halve(step):
    return 0.5**step


def test_one_value_is_for_all_updates_and_a_dict_for_those_it_names():
    assert by_update("when", None, ["a", "b"]) == {}
    assert by_update("when", halve, ["a", "b"]) == {"a": halve, "b": halve}
    assert by_update("when", {"b": halve}, ["a", "b"]) == {"b": halve}


def test_dict_by_update_is_a_copy():
    given = {"a": halve}
    result = by_update("when", given, ["a", "b"])
    given["b"] = halve
    assert result == {"a": halve}


def test_name_that_is_no_updates_is_refused():
    message = (
        r"`when` names an update that does not exist\. Expected 'a', 'b'; received 'c'\. "
        r"Correct the name\."
    )
    with pytest.raises(ValueError, match=message):
        by_update("when", {"a": halve, "c": halve}, ["a", "b"])


def test_no_schedule_gives_no_schedules():
    assert dict(schedules_by_update("when", None, ["a", "b"])) == {}
    assert dict(schedules_by_update("when", {}, ["a", "b"])) == {}


@pytest.mark.parametrize("schedule, rate", [(halve, 0.125), (decay(), 0.1 * 0.5**0.3)])
def test_schedules_are_called_with_the_step_and_keep_nothing(schedule, rate):
    bound = schedules_by_update("schedule_lr", schedule, ["a", "b"])
    assert list(bound) == ["a", "b"]
    for one in bound.values():
        assert float(one(3.0)) == pytest.approx(rate)
        assert one.variables == {}


def test_every_update_has_a_state_of_its_own():
    bound = schedules_by_update("when", Above("loss", 1.0, smoothing=0.0), ["a", "b"], tf.bool)
    bound["a"].observe(Objective({"x": tf.constant(0.5)}), size=1)
    means = {name: float(one.variables["mean"].value) for name, one in bound.items()}
    assert means == {"a": 0.5, "b": 0.0}
    assert (bool(bound["a"](0.0)), bool(bound["b"](0.0))) == (False, True)


def test_schedules_are_read_only():
    schedules = schedules_by_update("schedule_lr", {"a": halve}, ["a", "b"])
    with pytest.raises(TypeError):
        schedules["b"] = halve


@pytest.mark.parametrize("schedule", [0.1, {"a": 0.1}], ids=str)
def test_schedule_that_is_a_number_is_refused(schedule):
    message = (
        r"`schedule_lr` of 'a' cannot be called\. Expected a callable of the step; received 0\.1\. "
        r"Pass a function `step -> value`\."
    )
    with pytest.raises(TypeError, match=message):
        schedules_by_update("schedule_lr", schedule, ["a", "b"])


def pair():
    return {"a": SGD(0.1), "b": SGD(decay())}


@pytest.mark.parametrize("names", [["a", "b"], ["b"]], ids=str)
def test_second_schedule_beside_the_optimizers_own_is_refused(names):
    message = (
        r"The optimizer of 'b' has a schedule already\. Expected a fixed `learning_rate` beside "
        r"`schedule_lr`; received a schedule\. Pass one of the two\."
    )
    with pytest.raises(ValueError, match=message):
        check_rates_are_fixed(dict.fromkeys(names, halve), pair())


def test_schedule_beside_another_updates_own_is_accepted():
    check_rates_are_fixed({"a": halve}, pair())


# Gradient methods


def method(compute, variables):
    return compute()


class First:
    comes_first = True

    def __call__(self, compute, variables):
        return compute(by_term=True)


def test_one_method_or_a_list_or_a_dict_give_tuples_by_update():
    first = First()
    assert dict(methods_by_update(None, ["a", "b"])) == {}
    assert dict(methods_by_update(method, ["a", "b"])) == {"a": (method,), "b": (method,)}
    assert dict(methods_by_update([first, method], ["a"])) == {"a": (first, method)}
    assert dict(methods_by_update({"b": [method]}, ["a", "b"])) == {"b": (method,)}


def test_method_that_cannot_be_called_is_refused():
    message = r"method of 'a' cannot be called\. Expected an object such as .*; received 'sam'\."
    with pytest.raises(TypeError, match=message):
        methods_by_update(["sam"], ["a"])


def test_method_that_has_to_be_first_is_refused_elsewhere():
    message = (
        r"method of 'a' is out of place\. Expected .*First.* first, because it looks at each term "
        r"of the objective; received it at place 2\. Move it to the front of the list\."
    )
    with pytest.raises(ValueError, match=message):
        methods_by_update([method, First()], ["a"])


# Loss scales and finite numbers

SPARSE = tf.IndexedSlices(tf.constant([[1.0, 2.0]]), tf.constant([1]), tf.constant([3, 2]))


def test_optimizer_without_a_scale_changes_no_gradient():
    gradient = tf.constant([1.0, 2.0])
    assert loss_scale(SGD()) is None
    assert scaled(gradient, None) is gradient
    assert unscaled(gradient, None) is gradient
    assert scaled(None, 2.0) is None and unscaled(None, 2.0) is None


def test_scales_are_those_the_optimizers_divide_by():
    assert loss_scale(SGD(loss_scale_factor=8.0)) == 8.0
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(), initial_scale=64.0)
    optimizer.build([variable()])
    assert float(loss_scale(optimizer)) == 64.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_unscaling_undoes_scaling(dtype):
    gradient = tf.constant([0.25, -3.0], dtype)
    there = scaled(gradient, 4.0)
    assert there.dtype == dtype
    np.testing.assert_array_equal(tf.cast(there, "float32"), [1.0, -12.0])
    np.testing.assert_array_equal(tf.cast(unscaled(there, 4.0), "float32"), [0.25, -3.0])


def test_unscaled_half_precision_keeps_what_the_scale_saved():
    tiny = 2.0**-30  # float16 ends at 2 ** -24
    gradient = unscaled(tf.constant([tiny * 2**15], tf.float16), tf.constant(2.0**15))
    assert gradient.dtype == tf.float32
    assert float(gradient[0]) == tiny


def test_sparse_gradients_stay_sparse():
    there = scaled(SPARSE, 4.0)
    assert isinstance(there, tf.IndexedSlices)
    np.testing.assert_array_equal(there.values, [[4.0, 8.0]])
    np.testing.assert_array_equal(unscaled(there, 4.0).values, SPARSE.values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(value):
    fine = [tf.ones((2, 2)), None, SPARSE]
    assert bool(all_finite(fine))
    assert not bool(all_finite([*fine, tf.constant([0.0, value], tf.float16)]))
    assert not bool(all_finite([*fine, scaled(SPARSE, value)]))


def test_only_averages_that_replace_the_weights_in_training_count():
    often = SGD(use_ema=True, ema_overwrite_frequency=2)
    assert not overwrites_weights(SGD())
    assert not overwrites_weights(SGD(use_ema=True))
    assert overwrites_weights(often)
    assert overwrites_weights(with_loss_scale(often))


def test_loss_scale_is_put_around_once():
    inner = SGD()
    wrapped = with_loss_scale(inner)
    assert wrapped.inner_optimizer is inner
    assert with_loss_scale(wrapped) is wrapped
