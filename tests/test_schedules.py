"""Learning-rate schedules against hand arithmetic."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from customstep.schedules import ExponentialDecay, LinearDecay, OneCycle, StepDecay, WarmupCosine

# A schedule and its rates by step: at 0, at every corner and beside it, and beyond the end.
RATES = {
    "StepDecay": (
        StepDecay(0.001, decay_steps=1000),
        {0: 1e-3, 999: 1e-3, 1000: 1e-4, 1999: 1e-4, 2000: 1e-5, 10_000: 1e-13},
    ),
    "StepDecay-half": (
        StepDecay(0.8, decay_steps=49, decay_rate=0.5),
        {0: 0.8, 48: 0.8, 49: 0.4, 97: 0.4, 98: 0.2, 49 * 7: 0.8 / 128},
    ),
    "ExponentialDecay": (
        ExponentialDecay(0.001, decay_steps=1000),
        # 10 ** -3.999 is 1e-4 and 0.23 % of it, for ln 10 is 2.303
        {0: 1e-3, 500: 1e-3 / math.sqrt(10), 1000: 1e-4, 1999: 1.0023e-5, 2000: 1e-5},
    ),
    "ExponentialDecay-growing": (
        ExponentialDecay(0.5, decay_steps=10, decay_rate=4),
        {0: 0.5, 5: 1.0, 10: 2.0, 20: 8.0},
    ),
    "LinearDecay": (
        LinearDecay(0.2, steps=100),
        {0: 0.2, 50: 0.2, 75: 0.1, 90: 0.04, 100: 0.0, 150: 0.0},
    ),
    "LinearDecay-at-once": (
        LinearDecay(0.2, steps=10, start=0),
        {0: 0.2, 5: 0.1, 10: 0.0},
    ),
    "WarmupCosine": (
        WarmupCosine(0.4, steps=100, warmup=0.2, final=0.5),
        # 80 steps from 0.4 to 0.2; cos(60 degrees) is 1/2 at a third, which is no whole step
        {0: 0.0, 1: 0.02, 10: 0.2, 20: 0.4, 60: 0.3, 100: 0.2, 101: 0.2, 1000: 0.2},
    ),
    "WarmupCosine-cold": (
        WarmupCosine(0.4, steps=90, warmup=0),
        {0: 0.4, 30: 0.3, 45: 0.2, 60: 0.1, 90: 0.0, 200: 0.0},
    ),
    "OneCycle": (
        OneCycle(1.0, steps=100, cycle=0.8, initial=0.2),
        # up by 0.02 a step to 1 at step 40, down to 0.2 at step 80, then by 0.01 a step to 0
        {0: 0.2, 1: 0.22, 20: 0.6, 40: 1.0, 60: 0.6, 79: 0.22, 80: 0.2, 90: 0.1, 100: 0, 150: 0},
    ),
    "OneCycle-from-0": (
        OneCycle(0.6, steps=20, cycle=0.5, initial=0),
        {0: 0.0, 5: 0.6, 10: 0.0, 15: 0.0, 20: 0.0},
    ),
}
SCHEDULES = {name: schedule for name, (schedule, _) in RATES.items()}


def each_schedule(test):
    return pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)(test)


@pytest.mark.parametrize(
    "schedule, step, rate",
    [
        pytest.param(schedule, step, rate, id=f"{name}-{step}")
        for name, (schedule, rates) in RATES.items()
        for step, rate in rates.items()
    ],
)
def test_rate_equals_hand_arithmetic(schedule, step, rate):
    assert float(schedule(float(step))) == pytest.approx(rate, rel=1e-4, abs=1e-8 * bool(not rate))


@each_schedule
def test_every_kind_of_number_gives_the_same_float32_rate(schedule):
    for step in (0, 3, 40, 1000):
        rates = [schedule(kind(step)) for kind in (int, float, np.int64, np.float32, tf.constant)]
        assert {rate.dtype for rate in rates} == {tf.float32}
        assert len({float(rate) for rate in rates}) == 1


@each_schedule
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_graph_and_xla_give_the_rates_of_eager_mode(schedule, jit):
    steps = np.arange(400, dtype="float32")  # with the corners: those of 49, 80 and 100 steps too
    traced = tf.function(schedule, jit_compile=jit, input_signature=[tf.TensorSpec([])])
    rates = [float(traced(step)) for step in steps]
    # XLA has a power of its own; a corner that were a step off would be off by far more.
    np.testing.assert_allclose(rates, schedule(steps), rtol=1e-5, atol=1e-7)


@each_schedule
def test_rate_is_finite_and_never_negative(schedule):
    rates = schedule(np.arange(0, 600, 7))  # one grows fourfold every 10 steps
    assert np.isfinite(rates).all() and np.min(rates) >= 0


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_shortest_training_has_finite_rates(steps):
    """A warm-up or a tail of less than one step is no division by zero."""
    for schedule in (LinearDecay, WarmupCosine, OneCycle):
        rates = np.array(schedule(0.1, steps=steps)(np.arange(5)))
        assert np.isfinite(rates).all() and (rates >= 0).all() and (rates <= 0.1 + 1e-8).all()
        np.testing.assert_allclose(rates[steps:], 0.0, atol=1e-8)


def test_smooth_form_meets_the_staircase_at_its_edges():
    edges = np.arange(0, 5000, 1000)
    stairs, smooth = StepDecay(0.001, 1000), ExponentialDecay(0.001, 1000)
    np.testing.assert_allclose(smooth(edges), stairs(edges), rtol=1e-5)


@each_schedule
def test_schedule_is_saved_and_loaded(schedule):
    saved = keras.saving.serialize_keras_object(schedule)
    assert keras.saving.deserialize_keras_object(saved) == schedule


LENGTH, DECAY = {"rate": 0.1, "steps": 10}, {"rate": 0.1, "decay_steps": 10}


@pytest.mark.parametrize(
    "schedule, valid, wrong",
    [
        (StepDecay, DECAY, {"rate": 0.0}),
        (StepDecay, DECAY, {"decay_steps": 0}),
        (StepDecay, DECAY, {"decay_steps": 2.5}),
        (StepDecay, DECAY, {"decay_rate": 0.0}),
        (ExponentialDecay, DECAY, {"rate": -0.1}),
        (ExponentialDecay, DECAY, {"decay_steps": -1}),
        (ExponentialDecay, DECAY, {"decay_rate": math.nan}),
        (LinearDecay, LENGTH, {"rate": math.inf}),
        (LinearDecay, LENGTH, {"steps": 0}),
        (LinearDecay, LENGTH, {"start": 1.0}),
        (WarmupCosine, LENGTH, {"rate": "0.1"}),
        (WarmupCosine, LENGTH, {"steps": 0}),
        (WarmupCosine, LENGTH, {"warmup": 1}),
        (WarmupCosine, LENGTH, {"warmup": -0.1}),
        (WarmupCosine, LENGTH, {"final": 1.1}),
        (OneCycle, LENGTH, {"rate": None}),
        (OneCycle, LENGTH, {"steps": 0}),
        (OneCycle, LENGTH, {"cycle": 0.0}),
        (OneCycle, LENGTH, {"cycle": 1.0}),
        (OneCycle, LENGTH, {"initial": -0.1}),
    ],
    ids=str,
)
def test_argument_out_of_range_is_named(schedule, valid, wrong):
    [(name, value)] = wrong.items()
    message = rf"`{name}` is out of its range\. Expected .*; received {value!r}\. "
    with pytest.raises(ValueError, match=message):
        schedule(**{**valid, **wrong})


def test_ends_of_an_interval_belong_to_it_where_they_are_said_to():
    WarmupCosine(0.1, 10, warmup=0, final=0)
    WarmupCosine(0.1, 10, warmup=0.99, final=1)
    OneCycle(0.1, 10, initial=1)
    with pytest.raises(ValueError, match=r"Expected a number in \[0, 1\); received 1\.0"):
        LinearDecay(0.1, 10, start=1.0)
