"""Every template goes on from any step as if it had never been interrupted, bit for bit."""

import keras
import pytest

from customstep import Resume
from tests.descriptors import equal, fit, state


class Killed(BaseException):
    """What no one catches, as little as a process hears of SIGKILL."""


def kill_after(steps):
    """A callback that ends the training after so many steps of this process."""
    left = iter(range(steps - 1))

    def end_step(batch, logs):
        if next(left, None) is None:
            raise Killed

    return keras.callbacks.LambdaCallback(on_train_batch_end=end_step)


def interrupted(make, train, directory, steps=5, every=1):
    """Trains with a fresh model again and again, killed after a few steps; returns the last one."""
    for seed in range(20):  # the first one counts
        model = make(seed)
        try:
            return model, train(model, [Resume(directory, every=every), kill_after(steps)])
        except Killed:
            continue
    raise AssertionError("it never ended")


def test_killed_run_goes_on_bit_for_bit(descriptor, reference, tmp_path):
    # Three steps each time, the third of which is lost.
    model, history = interrupted(
        descriptor.make,
        lambda model, callbacks: fit(model, descriptor, callbacks=callbacks),
        tmp_path,
        steps=3,
    )
    assert equal(state(model), reference[0])
    assert history == reference[1]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_killed_run_in_mixed_precision_goes_on(descriptor, policy, tmp_path):
    keras.mixed_precision.set_global_policy(policy)
    whole = descriptor.make()
    expected = fit(whole, descriptor)
    model, history = interrupted(
        descriptor.make,
        lambda model, callbacks: fit(model, descriptor, callbacks=callbacks),
        tmp_path,
    )
    assert equal(state(model), state(whole))
    assert history == expected


def test_killed_run_of_several_steps_per_execution_goes_on(descriptor, reference, tmp_path):
    model, history = interrupted(
        lambda seed: descriptor.make(seed, steps_per_execution=2),
        lambda model, callbacks: fit(model, descriptor, callbacks=callbacks),
        tmp_path,
        steps=3,
    )
    assert equal(state(model), reference[0])
    assert history == reference[1]


def test_killed_run_on_two_replicas_goes_on(descriptor, two_replicas, tmp_path):
    def make(seed):
        with two_replicas.scope():
            return descriptor.make(seed)

    whole = make(0)
    expected = fit(whole, descriptor)
    model, history = interrupted(
        make,
        lambda model, callbacks: fit(model, descriptor, callbacks=callbacks),
        tmp_path,
    )
    assert equal(state(model), state(whole))
    assert history == expected
