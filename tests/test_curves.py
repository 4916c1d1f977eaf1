"""Curves: what is drawn, and what is refused. The look is judged by eye."""

import types

import keras
import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from customstep.curves import plot_history

NAN = float("nan")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a history and returns what the panels hold: `{title: {label: {epoch: value}}}`."""
    figures = []
    save = Figure.savefig

    def savefig(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)

    def draw(history):
        plot_history(history, tmp_path / "curves.png")
        return {
            axes.get_title(): {
                line.get_label(): dict(zip(*map(list, line.get_data())))
                for line in axes.lines
                if line.get_linestyle() != "None"
            }
            for axes in figures[-1].axes
        }

    return draw


def test_a_metric_and_its_validation_share_a_panel(drawn):
    panels = drawn({"loss": [3, 2], "accuracy": [0, 1], "val_loss": [4, 3]})
    assert panels == {
        "loss": {"training": {1: 3, 2: 2}, "validation": {1: 4, 2: 3}},
        "accuracy": {"training": {1: 0, 2: 1}},
    }


def test_learning_rates_share_the_last_panel(drawn):
    panels = drawn({"learning_rate_generator": [1], "learning_rate_d": [2], "loss": [3]})
    assert list(panels) == ["loss", "learning_rate"]
    assert panels["learning_rate"] == {"generator": {1: 1}, "d": {1: 2}}


def test_values_that_are_not_finite_are_gaps(drawn):
    values = list(drawn({"loss": [1, NAN, 3, float("inf"), 5]})["loss"]["training"].values())
    np.testing.assert_array_equal(values, [1, NAN, 3, NAN, 5])


def test_a_history_of_gaps_alone_is_drawn(drawn):
    assert list(drawn({"loss": [NAN], "learning_rate": [NAN]})) == ["loss", "learning_rate"]


def test_rare_validation_is_drawn_at_the_epochs_of_keras(drawn):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = np.ones((2, 1), "float32"), np.ones((2, 1), "float32")
    history = model.fit(
        *data, initial_epoch=4, epochs=11, validation_data=data, validation_freq=3, verbose=0
    )
    panels = drawn(history)["loss"]
    assert list(panels["training"]) == [5, 6, 7, 8, 9, 10, 11]
    assert list(panels["validation"]) == [6, 9]


def test_picture_is_800_pixels_wide_and_the_same_bytes_every_time(tmp_path):
    history = {"loss": [3.0, 2.0], "val_loss": [3.0, 2.5], "accuracy": [0.1, 0.2]}
    for name in ("one.png", "two.png"):
        plot_history(types.SimpleNamespace(history=history), tmp_path / name, title="A title")
    with Image.open(tmp_path / "one.png") as image:
        assert image.width == 800
        assert "Software" not in image.info
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_matplotlib_is_left_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    plot_history({"loss": [1.0]}, tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before
    assert not matplotlib.pyplot.get_fignums()


@pytest.mark.parametrize("history", [{}, {"loss": []}])
def test_empty_history_is_refused(tmp_path, history):
    with pytest.raises(ValueError, match="history is empty. Expected.*received.*Train"):
        plot_history(history, tmp_path / "curves.png")


@pytest.mark.parametrize("history", [None, [1.0, 2.0]])
def test_what_is_no_history_is_refused(tmp_path, history):
    with pytest.raises(TypeError, match="not a history. Expected.*received.*Pass"):
        plot_history(history, tmp_path / "curves.png")


@pytest.mark.parametrize("values", [["high"], [[1.0, 2.0]], [[1.0], [1.0, 2.0]], 1.0])
def test_values_that_make_no_curve_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match="values of 'loss' make no curve. Expected.*received"):
        plot_history({"loss": values}, tmp_path / "curves.png")


def test_values_that_fit_no_epochs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'val_loss' fit no epochs. Expected 4.*received 3"):
        plot_history({"loss": [1, 2, 3, 4], "val_loss": [1, 2, 3]}, tmp_path / "curves.png")
