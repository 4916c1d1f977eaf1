"""The console script: pictures that are right, mistakes that are one line."""

import re
import sys

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

import customstep
from customstep import evaluation, features
from customstep.cli import main
from customstep.grids import contact_sheet
from customstep.pictures import read_metadata
from tests.descriptors import vae
from tests.test_callbacks import tiny_gan


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with gan.keras, conditional.keras, vae.keras and what makes no images."""
    folder = tmp_path_factory.mktemp("models")
    tiny_gan().save(folder / "gan.keras")
    tiny_gan(num_classes=3).save(folder / "conditional.keras")
    model = vae()
    model.compile("adam")
    model.save(folder / "vae.keras")
    keras.Sequential([keras.Input((2,)), layers.Dense(1)]).save(folder / "classifier.keras")
    (folder / "damaged.keras").write_bytes((folder / "gan.keras").read_bytes()[:1000])
    (folder / "folder.keras").mkdir()
    return folder


@pytest.fixture
def grid(models, tmp_path, monkeypatch):
    """Runs `customstep grid` in an empty folder; returns the pixels of grid.png."""
    monkeypatch.chdir(tmp_path)

    def run(model, *options):
        main(["grid", str(models / model), *options])
        with Image.open("grid.png") as image:
            return np.asarray(image)

    return run


def mistake(capsys, *argv):
    """Runs a command that fails, and returns its line on standard error."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in argv])
    output = capsys.readouterr()
    assert caught.value.code == 2
    assert output.out == ""
    assert output.err.count("\n") == 1 and output.err.endswith("\n")
    return output.err


def load(path):
    return keras.models.load_model(path, compile=False)


def test_grid_shows_what_sample_gives(models, grid):
    images = load(models / "gan.keras").sample(64, seed=3)
    expected = contact_sheet(images, 8, 8, scale=2)[..., 0]
    np.testing.assert_array_equal(grid("gan.keras", "--seed", "3"), expected)


def test_grid_shows_the_best_of_several(models, grid):
    gan, labels = load(models / "conditional.keras"), np.arange(3).repeat(5)
    images = gan.sample(15, seed=3, labels=labels, temperature=2.0, best_of=4)
    expected = contact_sheet(images, 3, 5, scale=2)[..., 0]
    options = "--seed 3 --cols 5 --temperature 2 --best-of 4".split()
    np.testing.assert_array_equal(grid("conditional.keras", *options), expected)
    assert read_metadata("grid.png")["best_of"] == "4"


def test_large_grid_drawn_in_parts_is_one_sheet(models, grid):
    images = load(models / "gan.keras").sample(70 * 60, seed=0)
    expected = contact_sheet(images, 70, 60, padding=1)[..., 0].astype(int)
    layout = "--rows 70 --cols 60 --padding 1 --scale 1".split()
    # Batches of other sizes may round in another way.
    np.testing.assert_allclose(grid("gan.keras", *layout), expected, atol=1)


@pytest.mark.parametrize("interpolate", [[], ["--interpolate"]])
@pytest.mark.parametrize(
    "options, classes",
    [
        ("", [0, 1, 2]),
        ("--rows 4", [0, 1, 2, 0]),
        ("--labels 2,0", [2, 0]),
        ("--labels 1 --rows 2", [1, 1]),
    ],
)
def test_rows_take_the_classes_in_turn(grid, options, classes, interpolate):
    layout = ["--padding", "0", "--scale", "1", *options.split(), *interpolate]
    expected = np.array([0, 128, 255])[classes].repeat(4)[:, np.newaxis]  # 4 x 4 images
    sheet = grid("conditional.keras", *layout)
    np.testing.assert_array_equal(sheet, np.broadcast_to(expected, (4 * len(classes), 32)))


def test_interpolation_goes_from_sample_to_sample(models, grid):
    gan = load(models / "gan.keras")
    ends = gan.predict(gan.latents(4, seed=0), verbose=0)
    first, last = (contact_sheet(half, 2, 1, padding=0)[..., 0] for half in (ends[:2], ends[2:]))
    layout = "--rows 2 --cols 5 --padding 0 --scale 1 --interpolate".split()
    sheet = grid("gan.keras", *layout).astype(int)
    np.testing.assert_allclose(sheet[:, :4], first, atol=1)
    np.testing.assert_allclose(sheet[:, -4:], last, atol=1)
    # A quarter of the way is nearer to the start than to the end.
    assert np.abs(sheet[:, 4:8] - first).mean() < np.abs(sheet[:, 4:8] - last).mean()


def test_picture_says_how_it_was_made(grid):
    grid("conditional.keras", "--labels", "2,1", "--cols", "3", "--seed", "5")
    assert read_metadata("grid.png") == {
        "model": "conditional.keras",
        "step": "0",
        "seed": "5",
        "rows": "2",
        "cols": "3",
        "interpolate": "False",
        "temperature": "1.0",
        "best_of": "1",
        "labels": "2,1",
        "Software": f"customstep {customstep.__version__}",
    }


def test_success_prints_the_picture_and_its_size(models, tmp_path, capsys):
    out = tmp_path / "new" / "sheet.png"
    main(["grid", str(models / "gan.keras"), "--rows", "2", "--cols", "3", "--out", str(out)])
    # 3 and 2 images of 8 pixels, 2 more around and between
    assert capsys.readouterr() == (f"{out}: 32 x 22 pixels, 6 images\n", "")


def test_terminal_sees_progress(grid, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    grid("gan.keras", "--rows", "30", "--cols", "40")
    assert capsys.readouterr().err == "\r1,000 of 1,200 images\r1,200 of 1,200 images\n"


@pytest.mark.parametrize(
    "model, options, line",
    [
        ("nothing.keras", "", "There is no model .*received a path that does not exist"),
        ("folder.keras", "", "There is no model .*received a folder"),
        ("damaged.keras", "", "cannot be loaded. Expected a .keras file.*received .*Pass"),
        ("classifier.keras", "", "makes no images. Expected.*received Sequential. Pass"),
        ("gan.keras", "--rows 0", "argument --rows: expected.*at least 1; received '0'"),
        ("gan.keras", "--cols 2.5", "argument --cols: expected.*at least 1; received '2.5'"),
        ("gan.keras", "--seed -1", "argument --seed: expected.*from 0 to.*received '-1'"),
        ("gan.keras", "--rows 99999 --cols 99999", "too large. Expected at most.*Lower `rows`"),
        ("gan.keras", "--interpolate --cols 1", "at least 2 columns.*received --cols 1"),
        ("gan.keras", "--interpolate --best-of 2", "received both, --best-of 2. Leave"),
        ("vae.keras", "--best-of 2", "VAE cannot tell better.*received --best-of 2. Leave"),
        ("gan.keras", "--labels 0", "takes no labels. Expected.*received .0.. Leave"),
        ("conditional.keras", "--labels 0,3", "no class 3. Expected.*from 0 to 2; received"),
        ("conditional.keras", "--labels 1,", "expected class numbers such as 0,1,2; received"),
        ("gan.keras", "--out sheet.jpg", "ends in .png; received 'sheet.jpg'. Change --out"),
        ("gan.keras", "--out file/sheet.png", "cannot be written. Expected.*received.*Change"),
        ("gan.keras", "--padding", "argument --padding: expected one argument"),
    ],
)
def test_mistake_is_one_line(models, tmp_path, monkeypatch, capsys, model, options, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    error = mistake(capsys, "grid", models / model, *options.split())
    assert error.startswith("customstep grid: error: ")
    assert re.search(line, error)
    assert not list(tmp_path.glob("**/*.png"))


def test_no_command_is_a_mistake_of_one_line(capsys):
    assert "COMMAND" in mistake(capsys)


@pytest.mark.parametrize("command", ["", "grid ", "evaluate ", "inspect ", "launch "])
def test_help_describes_in_80_columns(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main(f"{command}--help".split())
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"usage: customstep {command}" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_every_example_of_the_help_runs(models, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["grid", "--help"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    examples = [words[1:] for words in lines if words[:3] == ["customstep", "grid", "gan.keras"]]
    assert len(examples) >= 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gan.keras").symlink_to(models / "conditional.keras")
    for argv in examples:
        main(argv)


def test_version_is_the_package_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"customstep {customstep.__version__}\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a GAN, a classifier that takes labels, and a model that is not compiled."""
    folder = tmp_path_factory.mktemp("trained")
    inputs = keras.Input((28, 28, 1))
    logits = layers.Dense(10)(layers.Flatten()(inputs))
    classifier = customstep.StepModel(inputs, logits)
    classifier.save(folder / "untrained.keras")
    classifier.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    classifier.save(folder / "classifier.keras")
    latents = keras.Input((2,))
    images = layers.Reshape((28, 28, 1))(layers.Dense(784)(latents))
    logit = layers.Dense(1)(layers.Flatten()(inputs))
    gan = customstep.GAN(keras.Model(latents, images), keras.Model(inputs, logit), 2)
    gan.compile({"discriminator": "adam", "generator": "adam"})
    gan.save(folder / "gan.keras")
    return folder


@pytest.mark.parametrize(
    "model, update", [("gan.keras", "generator: Adam"), ("classifier.keras", "model: SGD")]
)
def test_inspect_prints_the_report_and_leaves_the_file(trained, capsys, model, update):
    before = (trained / model).read_bytes()
    main(["inspect", str(trained / model), "--split", "test", "--batch-size", "4"])
    text, errors = capsys.readouterr()
    assert "on a batch of 4" in text and update in text and errors == ""
    assert (trained / model).read_bytes() == before


@pytest.mark.parametrize(
    "model, options, line",
    [
        ("nothing.keras", "", "There is no model .*received a path that does not exist"),
        ("untrained.keras", "", "has no training step. Expected .*; received .*Compile"),
        ("classifier.keras", "--split nothing", "no images in the split 'nothing'"),
        ("classifier.keras", "--dataset nothing", "no data set 'nothing'"),
        ("classifier.keras", "--batch-size 0", "argument --batch-size: expected.*received '0'"),
        ("small.keras", "", "step of .* fails on this data. Expected .*; received .*Pass"),
    ],
)
def test_mistake_of_inspect_is_one_line(trained, capsys, model, options, line):
    small = keras.Input((4, 4, 1))
    small = customstep.StepModel(small, layers.Dense(1)(layers.Flatten()(small)))
    small.compile("sgd", "mse")
    small.save(trained / "small.keras")
    error = mistake(capsys, "inspect", trained / model, *options.split())
    assert error.startswith("customstep inspect: error: ")
    assert re.search(line, error)


def test_every_example_of_the_help_of_inspect_runs(trained, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    examples = [words[1:] for words in lines if words[:2] == ["customstep", "inspect"]]
    assert len(examples) >= 2
    monkeypatch.chdir(trained)
    for argv in examples:
        main(argv)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with a conditional GAN of ten classes and a network that knows three."""
    folder = tmp_path_factory.mktemp("drawn")
    latents, label, images = keras.Input((2,)), keras.Input((), dtype="int32"), None
    pixels = layers.Dense(784)(latents) + layers.Embedding(10, 784)(label)
    made = layers.Reshape((28, 28, 1))(layers.Activation("tanh")(pixels))
    images = keras.Input((28, 28, 1))
    logit = layers.Dense(1)(layers.Flatten()(images)) + layers.Embedding(10, 1)(label)
    networks = keras.Model([latents, label], made), keras.Model([images, label], logit)
    gan = customstep.GAN(*networks, 2, num_classes=10)
    gan.compile({"discriminator": "adam", "generator": "adam"})
    gan.save(folder / "gan.keras")
    features = layers.AveragePooling2D(7)(images)
    outputs = layers.Flatten()(features), layers.Dense(3)(layers.Flatten()(features))
    keras.Model(images, outputs).save(folder / "features.keras")
    return folder


def evaluated(capsys, *argv):
    """The table that `customstep evaluate` prints, `{measure: value}`, and what stands below it."""
    main(["evaluate", *map(str, argv)])
    _, *rows, counts, model, network = capsys.readouterr().out.splitlines()
    table = {row[:17].strip(): float(row[17:].split()[0]) for row in rows}
    return table, counts, f"{model} {network}"


@pytest.mark.filterwarnings("ignore:There are few images")
def test_evaluate_prints_what_the_functions_measure(drawn, capsys, tmp_path):
    few = ("--samples", "300", "--cache", tmp_path / "cache")
    table, counts, origin = evaluated(capsys, drawn / "gan.keras", *few)
    gan = load(drawn / "gan.keras")
    images = gan.sample(300, seed=0)
    generated = features.extract(images, image_range=(-1, 1))
    real = features.extract(customstep.read_images(split="test").images)
    train = features.extract(customstep.read_images().images)
    expected = evaluation.evaluate(generated, real, train=train, labels=np.arange(300) % 10)
    assert set(table) == {name.replace("_", " ") for name in expected.logs()}
    for name, value in expected.logs().items():
        assert table[name.replace("_", " ")] == pytest.approx(value, rel=1e-3), name
    assert "class accuracy" in table
    assert counts == "of 300 generated, 2,000 real, 10,000 training images"
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert origin == (
        "gan.keras, seed 0, temperature 1, best of 1, beside fashion_mini, test in features of "
        "the bundled network: not the FID of papers"
    )
    assert evaluated(capsys, drawn / "gan.keras", *few) == (table, counts, origin)


class Painter(keras.Model):
    """The least that `evaluate` asks for: it knows no temperature."""

    image_range = (0, 1)

    def latents(self, n, seed=None):
        return np.random.default_rng(seed).uniform(size=(n, 28, 28, 1)).astype("float32")

    def generate(self, latents, labels=None):
        return latents

    def sample(self, n, *, seed=None, labels=None):
        return self.latents(n, seed)


@pytest.mark.filterwarnings("always:There are few images")
def test_evaluate_takes_what_makes_images_and_warns_in_a_line(drawn, capsys, monkeypatch):
    keras.saving.register_keras_serializable("tests")(Painter)
    painter = Painter()
    painter.built = True
    painter.save(drawn / "painter.keras")
    main(["evaluate", str(drawn / "painter.keras"), "--samples", "20", "--split", "test[:100]"])
    text, warned = capsys.readouterr()
    assert "precision" in text
    assert warned.startswith("customstep evaluate: warning: There are few images")
    assert warned.count("\n") == 1


@pytest.mark.filterwarnings("ignore:There are few images")
def test_evaluate_takes_a_network_of_ones_own(drawn, capsys):
    options = "--samples 50 --split train[:60] --network".split()
    table, counts, _ = evaluated(capsys, drawn / "gan.keras", *options, drawn / "features.keras")
    assert counts == "of 50 generated, 60 real images"
    assert "largest class" in table
    assert "class accuracy" not in table  # its three classes are others
    assert "memorization" not in table


@pytest.mark.parametrize(
    "model, options, line",
    [
        ("nothing.keras", "", "There is no model .*received a path that does not exist"),
        ("features.keras", "", "makes no images. Expected.*received Functional. Pass"),
        ("gan.keras", "--samples 5", "argument --samples: expected.*at least 6; received '5'"),
        ("gan.keras", "--split nothing", "no images in the split 'nothing'"),
        ("gan.keras", "--train-split nothing", "no images in the split 'nothing'"),
        ("gan.keras", "--dataset nothing", "no data set 'nothing'"),
        ("gan.keras", "--network gan.keras", "network cannot take these images. Expected.*Pass"),
        ("gan.keras", "--network no.keras", "There is no model .*received a path that does not"),
    ],
)
def test_mistake_of_evaluate_is_one_line(drawn, capsys, monkeypatch, model, options, line):
    monkeypatch.chdir(drawn)
    error = mistake(capsys, "evaluate", model, *options.split())
    assert error.startswith("customstep evaluate: error: ")
    assert re.search(line, error)
