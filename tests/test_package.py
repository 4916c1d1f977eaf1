"""The package as a whole: its public names, its imports, its silence, its wheel."""

import ast
import importlib
import pathlib
import pkgutil
import subprocess
import sys
import zipfile

import pytest
from hatchling.builders.wheel import WheelBuilder

import customstep

FOLDER = pathlib.Path(customstep.__file__).parent
MODULES = [name for _, name, _ in pkgutil.walk_packages([str(FOLDER)], "customstep.")]
LEAVES = (
    "averages",
    "checks",
    "divergences",
    "evaluation",
    "features",
    "conditions",
    "files",
    "gradients",
    "grids",
    "latents",
    "layers",
    "losses",
    "noise",
    "nonfinite",
    "optimizers",
    "patches",
    "pictures",
    "processing",
    "replicas",
    "schedules",
    "scripts",
    "selection",
    "stateful",
    "variables",
)


@pytest.mark.parametrize("name", MODULES)
def test_public_names_exist_and_are_sorted(name):
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None)
    if names is not None:
        assert len(set(names)) == len(names)
        assert all(hasattr(module, public) for public in names)


def test_the_package_exports_what_it_says():
    assert all(hasattr(customstep, name) for name in customstep.__all__)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_modules_import_only_what_they_may(path):
    """Nothing reaches into Keras's private modules; nothing asserts; leaves know no step."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        assert not isinstance(node, ast.Assert)
    assert not [name for name in imported if name.startswith("keras.src")]
    if path.stem in LEAVES:
        upward = ("customstep.step", "customstep.templates", "customstep.callbacks")
        assert not [name for name in imported if name.startswith(upward)]


def test_import_and_embedded_images_print_nothing():
    result = subprocess.run(
        [sys.executable, "-c", "import customstep, keras; customstep.read_images(split='test')"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_failing_import_of_tensorflow_still_says_why(tmp_path):
    """What was swallowed comes out when the import fails."""
    (tmp_path / "tensorflow.py").write_text(
        "import os; os.write(2, b'the reason'); raise ImportError('broken')"
    )
    result = subprocess.run(
        [sys.executable, "-c", "import customstep"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": f"{tmp_path}:{FOLDER.parent}", "PATH": ""},
    )
    assert "the reason" in result.stderr and "broken" in result.stderr


def test_wheel_holds_images_and_network_and_works_from_any_folder(tmp_path):
    [wheel] = WheelBuilder(str(FOLDER.parent)).build(directory=str(tmp_path), versions=["standard"])
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"customstep"}
    script = (
        "import customstep as c; images = c.read_images(split='test').images\n"
        "print(c.__file__, images.shape, c.features.extract(images[:2]).values.shape)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": ""},
    )
    expected = f"{installed}/customstep/__init__.py (2000, 28, 28, 1) (2, 128)\n"
    assert result.stdout == expected, result.stderr
