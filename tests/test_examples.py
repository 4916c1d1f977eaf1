"""Every example runs, and leaves what its docstring promises."""

import importlib.util
import pathlib
import re

import keras
import numpy as np
import pytest
from PIL import Image

import customstep
from tests.interruptions import Killed
from tests.soak import SOAK

EXAMPLES = sorted((pathlib.Path(__file__).parent.parent / "examples").glob("*.py"))
TRAINED = [path for path in EXAMPLES if "customstep.Resume(" in path.read_text(encoding="utf-8")]
QUICK = ("dcgan", "sharpness_aware")  # one fit, and several
RUN_ELSEWHERE = (  # by the tests of what they show, which look at what they return
    *("auxiliary_rotation", "conditional_updates", "dcgan", "freeze_transfer", "gradient_surgery"),
    *("mixup", "perceptual_denoiser", "scheduled_classifier", "sharpness_aware"),
)
ZOO = [path for path in TRAINED if path.stem not in RUN_ELSEWHERE]
KILLED = [path for path in TRAINED if SOAK or path.stem in QUICK]


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


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_example_of_the_zoo_leaves_what_it_promises(path, tmp_path):
    example = load(path)
    keras.utils.clear_session()
    example.main(["--smoke", "--out", str(tmp_path)])
    keras.mixed_precision.set_global_policy("float32")
    left = {file.name for file in tmp_path.iterdir()}
    promised = set(re.findall(r"`(\w+\.(?:png|gif|keras))`", example.__doc__))
    assert promised and promised <= left
    for name in promised:
        if name.endswith(".keras"):
            keras.models.load_model(tmp_path / name)
        else:
            with Image.open(tmp_path / name) as image:
                assert np.ptp(np.asarray(image.convert("L"))) > 0


@pytest.fixture(scope="module")
def dcgan_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("dcgan")
    history = load(EXAMPLES[0].with_name("dcgan.py")).main(["--smoke", "--out", str(out)])
    keras.mixed_precision.set_global_policy("float32")
    return out, history.history


def test_dcgan_leaves_what_it_promises(dcgan_run):
    out, history = dcgan_run
    assert np.isfinite(history["generator_loss"]).all()
    sheets = {f"epoch_{epoch:04d}.png" for epoch in (0, 2)}
    files = {"grid.png", "training.gif", "history.png", "history.csv", "gan.keras"}
    assert {path.name for path in out.iterdir()} == files | sheets | {"checkpoints"}
    with Image.open(out / "grid.png") as image:
        assert image.size == (10 * 86 + 2, 10 * 86 + 2)  # 10 tiles of 84 pixels and 2 between


def test_dcgan_model_goes_on_where_it_was(dcgan_run):
    out, _ = dcgan_run
    gan = keras.models.load_model(out / "gan.keras")
    assert gan.steps == 8
    with Image.open(out / "grid.png") as image:
        shown = np.asarray(image)
    samples = gan.sample(100, seed=0, labels=np.repeat(np.arange(10), 10))
    again = customstep.grids.contact_sheet(samples, 10, 10, scale=3)[..., 0]
    assert np.array_equal(shown, again)
    gan.fit(customstep.load_images(batch_size=32).take(2), verbose=0, shuffle=False)
    assert gan.steps == 10


@pytest.fixture
def steps_until_death(monkeypatch):
    """A list of one number: how many steps are left until Resume is killed before it can save."""
    left = [float("inf")]
    make, end_step = customstep.Resume.__init__, customstep.Resume.on_train_batch_end

    def make_eager(self, directory, **arguments):
        make(self, directory, **{"every": 1, **arguments})

    def end_step_or_die(self, batch, logs=None):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        end_step(self, batch, logs)

    monkeypatch.setattr(customstep.Resume, "__init__", make_eager)
    monkeypatch.setattr(customstep.Resume, "on_train_batch_end", end_step_or_die)
    return left


def run(path, out, *options):
    """What a script returns, in arrays and dicts, as if it ran in a process of its own."""
    keras.utils.clear_session()
    keras.mixed_precision.set_global_policy("float32")
    returned = load(path).main(["--smoke", "--out", str(out), *options])
    if isinstance(returned, dict):
        returned.pop("ratio", None)  # of times
    return getattr(returned, "history", returned)


def left_in(out):
    """What a run leaves, by name: the bytes of files, the weights of models."""
    found = {}
    for path in out.iterdir():
        if path.suffix == ".keras":
            model = keras.models.load_model(path, compile=False)
            found[path.name] = [weight.tobytes() for weight in model.get_weights()]
        elif path.name != "checkpoints":
            found[path.name] = path.read_bytes()
    return found


def assert_same(found, expected):
    keras.tree.assert_same_structure(found, expected)
    for a, b in zip(keras.tree.flatten(found), keras.tree.flatten(expected)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files left open
@pytest.mark.parametrize("path", KILLED, ids=lambda path: path.stem)
def test_killed_example_goes_on_bit_for_bit(path, tmp_path, steps_until_death):
    steps_until_death[0] = 10**6
    expected = run(path, tmp_path / "whole")
    steps = 10**6 - steps_until_death[0]
    out = tmp_path / "killed"
    steps_until_death[0] = steps // 2 + 1
    with pytest.raises(Killed):
        run(path, out)
    assert_same(run(path, out), expected)
    assert left_in(out) == left_in(tmp_path / "whole")

    steps_until_death[0] = 1  # a run that is complete does not train
    assert_same(run(path, out), expected)
    assert left_in(out) == left_in(tmp_path / "whole")
    with pytest.raises(Killed):
        run(path, out, "--fresh")
