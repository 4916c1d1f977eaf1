"""Files that appear whole or not at all."""

import os

import keras
import numpy as np
import pytest

from customstep import files


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


# `atomic_path`


def test_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_old_file_stays_whole_until_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", ["old", None])
def test_block_that_raises_leaves_what_was_there(tmp_path, error, before):
    path = tmp_path / "a.txt"
    if before:
        path.write_text(before)
    with pytest.raises(error, match="in the block"), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error("in the block")
    assert names(tmp_path) == (["a.txt"] if before else [])
    assert not before or path.read_text() == before


def test_block_that_writes_nothing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), files.atomic_path(path):
        pass
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_other_files_of_the_block_are_removed(tmp_path):
    with files.atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        temporary.with_name("scratch").write_text("scratch")
    assert names(tmp_path) == ["a.txt"]


def test_temporary_path_keeps_the_name_and_the_file_system(tmp_path):
    with files.atomic_path(tmp_path / "model.weights.h5") as temporary:
        temporary.write_text("new")
        assert temporary.name == "model.weights.h5"
        assert temporary.is_relative_to(tmp_path)
        assert temporary.stat().st_dev == tmp_path.stat().st_dev
        assert all(name.startswith(".") for name in os.listdir(tmp_path))  # hidden from globs


def test_missing_parents_are_made(tmp_path):
    path = tmp_path / "runs" / "first" / "a.txt"
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_text_and_relative_paths_are_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("a.txt", "runs/b.txt"):
        with files.atomic_path(path) as temporary:
            temporary.write_text("new")
    assert names(tmp_path) == ["a.txt", "b.txt", "runs"]


@pytest.mark.parametrize("path", ["runs", "runs/", "."])
def test_folder_is_refused_before_the_block_runs(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    message = r"Cannot write .*Expected the name of a file; received .*a folder\. Name a file in it"
    with pytest.raises(IsADirectoryError, match=message), files.atomic_path(path):
        pytest.fail("the block ran")
    assert names(tmp_path) == ["runs"]


def test_file_in_place_of_a_parent_is_an_os_error(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(OSError), files.atomic_path(tmp_path / "runs" / "a.txt"):
        pytest.fail("the block ran")
    assert (tmp_path / "runs").read_text() == "a file"


def test_two_writers_at_once_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "a.txt"
    with files.atomic_path(path) as outer:
        outer.write_text("outer")
        with files.atomic_path(path) as inner:
            inner.write_text("inner")
        assert path.read_text() == "inner"
    assert path.read_text() == "outer"
    assert names(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with files.atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_file_is_renamed_not_copied(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
        written = temporary.stat().st_ino
        assert path.stat().st_ino != written
    assert path.stat().st_ino == written  # so no moment shows half a file


def test_reader_of_the_old_file_keeps_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with open(path) as reader:
        with files.atomic_path(path) as temporary:
            temporary.write_text("new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


# `replaced`


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_new_model_file_is_written_atomically(tmp_path, name, overwrite):
    path = tmp_path / "runs" / name
    with files.replaced(path, overwrite) as temporary:
        temporary.write_text("new")
        assert temporary.name == name
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == [name]


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_failed_save_leaves_the_old_model_file(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), files.replaced(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert names(tmp_path) == [name]


def test_existing_file_goes_to_keras_to_ask_about_without_overwrite(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("old")
    with files.replaced(path, overwrite=False) as given:
        assert given == path
        assert path.read_text() == "old"
    assert names(tmp_path) == ["model.keras"]


@pytest.mark.parametrize("name", ["model", "model.h5", "model.weights.json"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_other_formats_are_left_to_keras(tmp_path, name, overwrite):
    with files.replaced(tmp_path / name, overwrite) as given:
        assert given == tmp_path / name
    assert names(tmp_path) == []


def test_folder_is_left_to_keras(tmp_path):
    path = tmp_path / "model.keras"
    path.mkdir()
    with files.replaced(path) as given:
        assert given == path
    assert path.is_dir()


def test_keras_writes_and_reads_through_it(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    path = str(tmp_path / "model.weights.h5")
    for kernel in ([[1.0], [2.0]], [[3.0], [4.0]]):
        model.layers[0].set_weights([np.array(kernel), np.zeros(1)])
        with files.replaced(path) as temporary:
            model.save_weights(temporary)
    model.layers[0].set_weights([np.zeros((2, 1)), np.zeros(1)])
    model.load_weights(path)
    np.testing.assert_array_equal(model.layers[0].kernel, [[3], [4]])
    assert names(tmp_path) == ["model.weights.h5"]
