"""Every example runs, and leaves what its docstring promises."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest
from PIL import Image

import customstep

EXAMPLES = sorted((pathlib.Path(__file__).parent.parent / "examples").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_has_the_skeleton(path):
    example = load(path)
    assert f"python examples/{path.name}" in example.__doc__
    assert "--smoke" in example.__doc__
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
    assert callable(example.main) and callable(example.load_data)


@pytest.fixture(scope="module")
def dcgan_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("dcgan")
    history = load(EXAMPLES[0].with_name("dcgan.py")).main(["--smoke", "--out", str(out)])
    keras.mixed_precision.set_global_policy("float32")
    return out, history.history


def test_dcgan_leaves_what_it_promises(dcgan_run):
    out, history = dcgan_run
    assert np.isfinite(history["generator_loss"]).all()
    sheets = {f"epoch_{epoch:04d}.png" for epoch in range(3)}
    files = {"grid.png", "training.gif", "history.png", "history.csv", "gan.keras"}
    assert {path.name for path in out.iterdir()} == files | sheets
    with Image.open(out / "grid.png") as image:
        assert image.size == (8 * 86 + 2, 8 * 86 + 2)  # 8 tiles of 84 pixels and 2 between


def test_dcgan_model_goes_on_where_it_was(dcgan_run):
    out, _ = dcgan_run
    gan = keras.models.load_model(out / "gan.keras")
    assert gan.steps == 8
    with Image.open(out / "grid.png") as image:
        shown = np.asarray(image)
    again = customstep.grids.contact_sheet(gan.sample(64, seed=0), 8, 8, scale=3)[..., 0]
    assert np.array_equal(shown, again)
    gan.fit(customstep.load_images(batch_size=16).take(2), verbose=0, shuffle=False)
    assert gan.steps == 10
