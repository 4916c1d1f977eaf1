"""Every template goes on from any step as if it had never been interrupted, bit for bit."""

import keras
import pytest

from tests.conformance.sampling import some
from tests.descriptors import equal, fit, state
from tests.interruptions import interrupted
from tests.soak import SOAK

POLICIES = ["mixed_float16", "mixed_bfloat16"] if SOAK else ["mixed_float16"]


def trains(descriptor):
    """What `interrupted` takes to fit a model."""
    return lambda model, callbacks: fit(model, descriptor, callbacks=callbacks)


def test_killed_run_goes_on_bit_for_bit(descriptor, reference, tmp_path):
    # Of the steps of each process, the last one is lost.
    model, history = interrupted(
        descriptor.make,
        trains(descriptor),
        tmp_path,
        steps=2 if SOAK else 3,
    )
    assert equal(state(model), reference[0])
    assert history == reference[1]


@some()
@pytest.mark.parametrize("policy", POLICIES)
def test_killed_run_in_mixed_precision_goes_on(descriptor, policy, tmp_path):
    keras.mixed_precision.set_global_policy(policy)
    whole = descriptor.make()
    expected = fit(whole, descriptor)
    model, history = interrupted(
        descriptor.make,
        trains(descriptor),
        tmp_path,
    )
    assert equal(state(model), state(whole))
    assert history == expected


@some(1)
def test_killed_run_of_several_steps_per_execution_goes_on(descriptor, reference, tmp_path):
    model, history = interrupted(
        lambda seed: descriptor.make(seed, steps_per_execution=2),
        trains(descriptor),
        tmp_path,
        steps=2 if SOAK else 3,
    )
    assert equal(state(model), reference[0])
    assert history == reference[1]


@some(2)
def test_killed_run_on_two_replicas_goes_on(descriptor, two_replicas, tmp_path):
    def make(seed):
        with two_replicas.scope():
            return descriptor.make(seed)

    whole = make(0)
    expected = fit(whole, descriptor)
    model, history = interrupted(
        make,
        trains(descriptor),
        tmp_path,
    )
    assert equal(state(model), state(whole))
    assert history == expected
