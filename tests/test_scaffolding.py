"""`customstep new`: what it writes runs, is tested, and takes the place of nothing."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from customstep import cli
from customstep.scaffolding import KINDS, write_scaffold


def imported(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_scaffold_runs_and_its_test_passes(kind, tmp_path, monkeypatch):
    script, test = write_scaffold(tmp_path / f"{kind}_of_mine.py", kind)
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert "my_model" not in text + test.read_text(encoding="utf-8")
    assert f"python {script.name} --smoke" in text
    monkeypatch.setitem(sys.modules, script.stem, imported(script))
    [run] = (value for name, value in vars(imported(test)).items() if name.startswith("test_"))
    run(tmp_path)
    assert (tmp_path / "model.keras").exists()


def test_command_writes_a_script_that_runs_from_anywhere(tmp_path):
    def run(*command):
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    customstep = pathlib.Path(sys.executable).with_name("customstep")
    done = run(customstep, "new", "mine.py", "--from", "step")
    assert done.returncode == 0, done.stderr
    assert "python mine.py --smoke" in done.stdout
    done = run(sys.executable, "mine.py", "--smoke")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mine_smoke" / "model.keras").exists()


@pytest.mark.parametrize(
    "name, message",
    [
        ("mine.txt", "Expected the name of a Python module, such as my_model.py; received 'mine"),
        ("my-model.py", "Use letters, digits and underscores"),
        ("class.py", "received 'class.py'"),
        ("keras.py", "would hide another module.*such as my_keras.py"),
        ("random.py", "would hide another module"),
        ("taken.py", "taken.py' exists already.*left as it is"),
        ("tested.py", "test_tested.py' exists already"),
    ],
)
def test_mistakes_change_nothing(name, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for file in ("taken.py", "test_tested.py"):
        (tmp_path / file).write_text("kept")
    with pytest.raises(SystemExit) as error:
        cli.main(["new", name, "--from", "gan"])
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "taken.py": "kept",
        "test_tested.py": "kept",
    }


def test_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected one of gan, classifier, auxiliary, frozen, st"):
        write_scaffold(tmp_path / "mine.py", "transformer")
