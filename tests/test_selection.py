"""Which variables patterns, layers and parts select, and what a mistake is told."""

import keras
import numpy as np
import pytest
from keras import layers

from customstep import selection
from customstep.selection import Part


class Net(keras.Model):
    """Layers in attributes, a list and a dict; the stem is built before the model."""

    def __init__(self):
        super().__init__(name="net")
        self.stem = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="in")], name="body")
        self.blocks = [layers.Dense(3, name="a"), layers.BatchNormalization(name="b")]
        self.heads = {"main": layers.Dense(2, name="c")}
        self(keras.KerasTensor((None, 4)))

    def call(self, x, training=False):
        x = self.blocks[1](self.blocks[0](self.stem(x)), training=training)
        return self.heads["main"](x)


@pytest.fixture(scope="module")
def net():
    return Net()


def selected(model, what):
    """First paths of what is selected, with the shape of the mask where it is a part."""
    chosen = selection.select(model, what)
    return {
        names[0]: chosen[id(v)].shape
        for v, names in zip(model.weights, selection.paths(model))
        if id(v) in chosen
    }


def test_paths_go_by_attributes_and_by_names(net):
    names = selection.paths(net)
    assert names[0] == ("stem/in/kernel", "body/in/kernel")
    assert names[2] == ("blocks/0/kernel", "a/kernel")
    assert names[6] == ("blocks/1/moving_mean", "b/moving_mean")
    assert names[9] == ("heads/main/bias", "c/bias")
    assert len(names) == len(net.weights) == 10


@pytest.mark.parametrize(
    "pattern, count",
    [
        ("*", 10),
        ("stem/*", 2),
        ("body/in/*", 2),
        ("blocks/*", 6),
        ("blocks/[01]/bias", 1),
        ("*/kernel", 3),
        ("?/kernel", 2),
        ("heads/main/bias", 1),
        ("net/a/kernel", 1),  # as Keras has it
        (3, 1),
        (["stem/*", ("a/*",)], 4),
        ([], 0),
    ],
)
def test_pattern_selects_whole_variables(net, pattern, count):
    chosen = selected(net, pattern)
    assert len(chosen) == count
    assert set(chosen.values()) <= {()}


def test_path_of_the_model_goes_before_that_of_keras():
    """Two layers of one name: Keras calls the inner one "dense" too, as it was built by itself."""
    inputs = keras.Input((2,))
    stem = keras.Model(inputs, layers.Dense(2, name="dense")(inputs), name="stem")
    model = keras.Model(inputs, layers.Dense(2, name="dense")(stem(inputs)))
    assert [variable.path for variable in model.weights[::2]] == ["dense/kernel"] * 2
    assert set(selected(model, "dense/*")) == {"dense/kernel", "dense/bias"}
    assert set(selected(model, "stem/*")) == {"stem/dense/kernel", "stem/dense/bias"}


def test_layer_selects_its_own_variables_and_those_within(net):
    assert set(selected(net, net.stem)) == {"stem/in/kernel", "stem/in/bias"}
    assert len(selected(net, [net.blocks[1], net.heads["main"]])) == 6


def test_shared_layer_has_all_its_paths_and_is_one_variable():
    inputs, shared = keras.Input((2,)), layers.Dense(2, name="shared")
    inner = keras.Model(inputs, shared(inputs), name="inner")
    model = keras.Model(inputs, shared(inner(inputs)))
    assert selection.paths(model)[0] == ("inner/shared/kernel", "shared/kernel")
    assert len(selected(model, "shared/*")) == len(selected(model, "*")) == 2


@pytest.mark.parametrize("rows", [[0, 2], (2, 0), np.array([0, 2]), range(0, 4, 2), slice(0, 3, 2)])
def test_rows_are_indices_along_the_first_axis(rows):
    mask = Part("x", rows=rows).mask_of("x", (4, 5, 6))
    assert mask.shape == (4, 1, 1)
    assert mask[:, 0, 0].tolist() == [True, False, True, False]


def test_mask_broadcasts_as_in_numpy():
    mask = Part("x", mask=[True, False, True]).mask_of("x", (2, 3))
    assert mask.tolist() == [[True, False, True]]


def test_selections_are_sets_of_entries():
    whole, rows, columns = (np.array(True), np.array([[True], [False]]), np.array([[True, False]]))
    a, b = {1: rows, 2: whole}, {1: columns, 3: rows}
    both = selection.union(a, b)
    assert both[1].tolist() == [[True, True], [True, False]]
    assert both[2].all() and both[3].tolist() == rows.tolist()
    assert selection.intersection(a, b)[1].tolist() == [[True, False], [False, False]]
    left = selection.without(both, {1: columns, 2: whole})
    assert set(left) == {1, 3}
    assert left[1].tolist() == [[False, True], [False, False]]
    assert selection.without({1: whole}, {1: rows})[1].tolist() == [[False], [True]]


def test_selection_becomes_positions_that_select_the_same(net):
    chosen = selection.select(net, ["stem/*", Part("heads/main/kernel", rows=[1])])
    entries = selection.as_entries(net, chosen)
    assert entries[:2] == [0, 1] and entries[2].pattern == 8
    config = keras.saving.serialize_keras_object(entries)
    again = selection.select(net, keras.saving.deserialize_keras_object(config))
    assert again.keys() == chosen.keys()
    assert all(np.array_equal(again[key], chosen[key]) for key in chosen)


def test_slice_of_rows_is_saved():
    config = keras.saving.serialize_keras_object(Part("x", rows=slice(1, None)))
    assert keras.saving.deserialize_keras_object(config).rows == slice(1, None)


@pytest.mark.parametrize(
    "what, near",
    [
        ("stm/*", "like 'stem/\\*'"),
        ("stem", "like 'stem/\\*'"),
        ("blocks/0/kernal", "like .*'blocks/0/kernel'"),
        ("quite different", "such as 'stem/\\*', .*'heads/\\*'"),
        (10, "such as 'stem/\\*'"),
        ("Stem/*", "like 'stem/\\*'"),
    ],
)
def test_pattern_that_matches_nothing_is_told_what_is_near(net, what, near):
    with pytest.raises(ValueError, match=f"matches no variable of 'net'.*{near}.*; received"):
        selection.select(net, ["stem/*", what])


def test_layer_of_another_model_is_refused(net):
    with pytest.raises(ValueError, match="'other' matches no variable of 'net'"):
        selection.select(net, layers.Dense(2, name="other"))


@pytest.mark.parametrize("what", [1.5, True, print])
def test_what_selects_nothing_by_its_type_is_refused(net, what):
    with pytest.raises(TypeError, match="Expected a pattern such as 'stem/\\*', a layer or a"):
        selection.select(net, what)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"rows": [3]}, "Expected rows from 0 to 2; received \\[3\\]"),
        ({"rows": [-1]}, "Expected rows from 0 to 2"),
        ({"rows": slice(5, 9)}, "Expected rows from 0 to 2"),
        ({"mask": [True] * 3}, "a mask that broadcasts to \\(3, 2\\); received one of \\(3,\\)"),
        ({"mask": np.ones((1, 3, 2), bool)}, "received one of \\(1, 3, 2\\)"),
        ({"mask": [[False]]}, "received one without a True"),
    ],
)
def test_part_that_does_not_fit_is_refused(net, arguments, expected):
    with pytest.raises(ValueError, match=f"does not fit 'heads/main/kernel'.*{expected}"):
        selection.select(net, Part("heads/main/kernel", **arguments))


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({}, "received neither"),
        ({"rows": [0], "mask": [True]}, "received both"),
        ({"rows": [0.5]}, "Expected a list of integers.*received float64"),
        ({"rows": [True, False]}, "received bool"),
        ({"mask": [1, 0]}, "Expected bools; received int64"),
    ],
)
def test_part_that_is_not_well_defined_is_refused(arguments, expected):
    with pytest.raises(TypeError, match=expected):
        Part("x", **arguments)
