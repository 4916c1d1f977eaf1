"""Learning-rate schedules against hand arithmetic."""

import keras
import pytest

from customstep.schedules import LinearDecay


@pytest.mark.parametrize(
    "step, rate", [(0, 0.2), (50, 0.2), (75, 0.1), (90, 0.04), (100, 0.0), (150, 0.0)]
)
def test_linear_decay_is_constant_then_straight(step, rate):
    assert float(LinearDecay(0.2, steps=100)(float(step))) == pytest.approx(rate, abs=1e-7)


def test_linear_decay_may_begin_at_once():
    assert float(LinearDecay(0.2, steps=10, start=0)(5.0)) == pytest.approx(0.1)


def test_schedule_is_saved_and_loaded():
    schedule = LinearDecay(0.2, steps=10, start=0.25)
    saved = keras.saving.serialize_keras_object(schedule)
    assert keras.saving.deserialize_keras_object(saved) == schedule


@pytest.mark.parametrize("argument", [{"rate": 0.0}, {"steps": 0}, {"start": 1.0}])
def test_argument_out_of_range_is_named(argument):
    [(name, value)] = argument.items()
    with pytest.raises(ValueError, match=f"`{name}`.*received {value}"):
        LinearDecay(**{"rate": 0.1, "steps": 10, **argument})
