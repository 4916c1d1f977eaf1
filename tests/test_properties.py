"""Properties that hold for any input: sheets, selections, schedules.

CUSTOMSTEP_SOAK=1 tries far more inputs. The same inputs are tried in every run.
"""

import fnmatch
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st
from keras import layers

from customstep import grids, pictures, schedules, selection
from customstep.selection import Part, intersection, select, union, without
from tests.soak import repeatable

# Sheets.


@st.composite
def sheets(draw, max_images=12):
    """Byte images and a layout that holds them."""
    n = draw(st.integers(1, max_images))
    rows = draw(st.integers(1, max_images))
    layout = {
        "rows": rows,
        "cols": draw(st.integers(math.ceil(n / rows), max_images)),
        "padding": draw(st.integers(0, 4)),
        "scale": draw(st.integers(1, 3)),
        "background": draw(st.integers(0, 255)),
    }
    shape = (n, draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 3])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(0, 256, shape, np.uint8), layout


@repeatable
@given(sheets())
def test_sheet_has_the_size_that_is_told_before(sheet):
    images, layout = sheet
    n, h, w, c = images.shape
    made = grids.contact_sheet(images, **layout)
    del layout["background"]
    assert made.shape == (*grids.sheet_size(height=h, width=w, **layout), c)
    rows, padding, scale = layout["rows"], layout["padding"], layout["scale"]
    assert made.shape[0] == rows * scale * h + (rows + 1) * padding


@repeatable
@given(sheets())
def test_every_image_is_found_in_the_sheet_and_all_else_is_background(sheet):
    images, layout = sheet
    made = grids.contact_sheet(images, **layout)
    n, h, w, _ = images.shape
    scale, padding = layout["scale"], layout["padding"]
    rest = np.ones(made.shape[:2], bool)
    for number, image in enumerate(images):
        row, col = divmod(number, layout["cols"])
        top = padding + row * (scale * h + padding)
        left = padding + col * (scale * w + padding)
        tile = np.s_[top : top + scale * h, left : left + scale * w]
        for y in range(scale):
            for x in range(scale):
                np.testing.assert_array_equal(made[tile][y::scale, x::scale], image)
        rest[tile] = False
    assert (made[rest] == layout["background"]).all()


@repeatable
@given(st.integers(1, 200), st.none() | st.integers(1, 30), st.none() | st.integers(1, 30))
def test_layout_that_is_left_open_holds_all_images_without_an_empty_row(n, rows, cols):
    assume(rows is None or cols is None or rows * cols >= n)
    images = np.zeros((n, 1, 1), np.uint8)
    height, width, _ = grids.contact_sheet(images, rows, cols, padding=0).shape
    assert height * width >= n
    if rows is None:
        assert (height - 1) * width < n
    elif cols is None:
        assert height * (width - 1) < n
    assert rows in (None, height) and cols in (None, width)


@repeatable
@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=20),
    st.floats(-300, 300),
    st.floats(0.01, 600),
)
def test_bytes_are_found_again_after_a_way_through_floats(values, low, width):
    images = np.array(values, np.uint8).reshape(1, 1, -1, 1)
    high = low + width
    floats = (low + images / 255.0 * width).astype(np.float32)
    # float32 has to resolve a 255th of the range at its ends
    assume(np.spacing(np.float32(max(abs(low), abs(high)))) < width / 2000)
    np.testing.assert_array_equal(grids.to_uint8(floats, (low, high)), images)


KEYS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=79)
# PNG has no zero byte in a text, and no halves of surrogate pairs.
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)


@repeatable
@given(metadata=st.dictionaries(KEYS, VALUES | st.integers() | st.booleans(), max_size=5))
def test_metadata_are_read_as_they_were_written(metadata, tmp_path):
    path = tmp_path / "a.png"
    pictures.save_png(path, np.zeros((2, 2), np.uint8), metadata)
    found = pictures.read_metadata(path)
    software = found.pop("Software")
    assert software.startswith("customstep ")
    expected = {key: str(value) for key, value in metadata.items() if key != "Software"}
    assert found == expected


# Selections.


@pytest.fixture(scope="module")
def network():
    inputs = keras.Input((4,))
    x = layers.Dense(3, name="stem")(inputs)
    x = layers.BatchNormalization(name="norm1")(x)
    block = keras.Sequential(
        [keras.Input((3,)), layers.Dense(3, name="conv"), layers.Dense(2, name="head")],
        name="block",
    )
    return keras.Model(inputs, layers.Dense(2, name="head")(block(x)), name="network")


PIECES = st.sampled_from(
    ["*", "?", "/", "stem", "head", "block", "conv", "norm", "kernel", "bias", "gamma", "moving_"]
    + ["[12]", "[!k]", "[", "]", "1", "K", "e", "*a*"]
)
MATCHING = st.sampled_from(
    ["*", "stem/*", "*/kernel", "*bias", "head/*", "block/*", "block/????/*", "norm[12]/gamma"]
    + ["*moving*", "network/*", "*/head/kernel", "[!s]*"]
)
PATTERNS = MATCHING | st.lists(PIECES, min_size=1, max_size=5).map("".join)


def selected(model, what):
    """The selection, nothing where a pattern matches nothing."""
    try:
        return select(model, what)
    except ValueError as error:
        assert "matches no variable" in str(error)
        return {}


@repeatable
@given(pattern=PATTERNS)
def test_pattern_selects_what_a_shell_glob_over_whole_paths_matches(pattern, network):
    of_paths, of_keras = (
        {
            id(variable)
            for variable, names in zip(network.weights, paths)
            if any(fnmatch.fnmatchcase(name, pattern) for name in names)
        }
        for paths in (selection.paths(network), [[v.path] for v in network.weights])
    )
    assert set(selected(network, pattern)) == (of_paths or of_keras)


@repeatable
@given(first=MATCHING, second=MATCHING)
def test_list_of_patterns_is_their_union_in_any_order(first, second, network):
    one, other = selected(network, first), selected(network, second)
    assume(one and other)  # by the names of some versions of Keras, "network/*" matches nothing
    assert set(select(network, [first, second])) == set(one) | set(other)
    assert set(select(network, [second, [first]])) == set(one) | set(other)


def masks_of(model, what):
    """A selection written out: a bool array of the full shape for each variable."""
    chosen = select(model, what)
    return [
        np.broadcast_to(chosen.get(id(v), np.array(False)), tuple(v.shape)) for v in model.weights
    ]


ROWS = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@repeatable
@given(rows=ROWS)
def test_part_is_its_rows_and_nothing_else(rows, network):
    mask = masks_of(network, Part("stem/kernel", rows=rows))[0]
    assert [row.all() for row in mask] == [number in rows for number in range(4)]
    assert mask.sum() == 3 * len(set(rows))


@repeatable
@given(rows=ROWS, bits=st.lists(st.booleans(), min_size=3, max_size=3))
def test_selections_are_sets_of_weights(rows, bits, network):
    assume(any(bits))
    a = select(network, [Part("stem/kernel", rows=rows), "norm1/*"])
    b = select(network, [Part("stem/kernel", mask=bits), "block/*"])
    full = {
        name: [np.broadcast_to(one.get(id(v), False), tuple(v.shape)) for v in network.weights]
        for name, one in (
            ("a", a),
            ("b", b),
            ("union", union(a, b)),
            ("intersection", intersection(a, b)),
            ("without", without(a, b)),
        )
    }
    for position in range(len(network.weights)):
        one, other = full["a"][position], full["b"][position]
        np.testing.assert_array_equal(full["union"][position], one | other)
        np.testing.assert_array_equal(full["intersection"][position], one & other)
        np.testing.assert_array_equal(full["without"][position], one & ~other)


@repeatable
@given(rows=ROWS, pattern=PATTERNS)
def test_selection_is_the_same_after_a_way_through_its_saved_form(rows, pattern, network):
    what = [Part("stem/kernel", rows=rows), *([pattern] if selected(network, pattern) else [])]
    entries = selection.as_entries(network, select(network, what))
    saved = keras.saving.serialize_keras_object(entries)
    again = keras.saving.deserialize_keras_object(saved)
    for mask, other in zip(masks_of(network, what), masks_of(network, again)):
        np.testing.assert_array_equal(mask, other)


# Schedules.


RATES = st.floats(1e-6, 10)
STEPS = st.integers(1, 100_000)
FRACTIONS = st.floats(0, 1)
BELOW_1 = st.floats(0, 0.99)
MADE = st.one_of(
    st.builds(schedules.StepDecay, RATES, STEPS, st.floats(0.1, 1)),
    st.builds(schedules.ExponentialDecay, RATES, STEPS, st.floats(0.1, 1)),
    st.builds(schedules.LinearDecay, RATES, STEPS, BELOW_1),
    st.builds(schedules.WarmupCosine, RATES, STEPS, BELOW_1, FRACTIONS),
    st.builds(schedules.OneCycle, RATES, STEPS, st.floats(0.01, 0.99), FRACTIONS),
)
FALLING = (schedules.StepDecay, schedules.ExponentialDecay, schedules.LinearDecay)
TIMES = st.lists(st.integers(0, 200_000), min_size=2, max_size=20)


@repeatable
@given(MADE, TIMES)
def test_rate_is_within_0_and_the_highest(schedule, times):
    rates = schedule(tf.constant(times, tf.float32)).numpy()
    assert np.isfinite(rates).all()
    assert (0 <= rates).all() and (rates <= schedule.rate * (1 + 1e-5)).all()


@repeatable
@given(MADE, TIMES)
def test_rates_of_an_array_are_those_of_its_steps(schedule, times):
    rates = schedule(tf.constant(times, tf.float32)).numpy()
    single = [schedule(tf.constant(float(step))).numpy() for step in times]
    np.testing.assert_allclose(rates, single, rtol=1e-5, atol=1e-6 * schedule.rate)


@repeatable
@given(MADE, TIMES)
def test_rate_rises_only_while_it_warms_up(schedule, times):
    if isinstance(schedule, schedules.WarmupCosine):
        times = [step for step in times if step >= schedule.warmup * schedule.steps]
    elif isinstance(schedule, schedules.OneCycle):
        times = [step for step in times if step >= schedule.cycle * schedule.steps / 2]
    assume(times)
    rates = schedule(tf.constant(sorted(times), tf.float32)).numpy()
    assert (np.diff(rates) <= 2e-6 * schedule.rate).all()


@repeatable
@given(MADE)
def test_rate_after_the_last_step_is_the_one_it_ended_with(schedule):
    if isinstance(schedule, FALLING[:2]):
        return  # these have no last step
    steps = schedule.steps
    end, later = schedule(tf.constant([float(steps), 3.0 * steps + 7])).numpy()
    expected = schedule.rate * getattr(schedule, "final", 0.0)
    np.testing.assert_allclose([end, later], expected, atol=1e-6 * schedule.rate)


@repeatable
@given(MADE, TIMES)
def test_saved_schedule_is_the_same(schedule, times):
    saved = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(saved)
    assert again == schedule and type(again) is type(schedule)
    steps = tf.constant(times, tf.float32)
    np.testing.assert_array_equal(again(steps), schedule(steps))


@repeatable
@given(
    st.lists(st.integers(0, 80).map(lambda eighths: eighths / 8), min_size=1, max_size=40),
    st.integers(1, 5),
    st.floats(0.1, 0.9),
    st.floats(0, 0.5),
)
def test_rate_on_a_plateau_falls_by_whole_factors_and_never_below_the_least(
    losses, patience, factor, min_rate
):
    schedule = schedules.ReduceOnPlateau(
        1.0, patience=patience, factor=factor, min_rate=min_rate, smoothing=0.0, min_delta=0.0
    )
    state = {name: tf.constant(float(v)) for name, v in schedule.initial_state().items()}
    best, waited, expected = math.inf, 0, 1.0
    for loss in map(np.float32, losses):
        state = schedule.observe(state, {"loss": tf.constant(loss)})
        state = {name: tf.cast(value, tf.float32) for name, value in state.items()}
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited >= patience:
            waited, expected = 0, max(expected * factor, min_rate)
        assert float(schedule(0.0, state)) == pytest.approx(expected, rel=1e-4)
