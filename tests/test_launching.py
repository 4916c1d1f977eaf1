"""How workers share a machine, and what is said of a mistake; `test_workers` starts real ones."""

import json

import pytest
import tensorflow as tf

from customstep import cli, files, launching, replicas


@pytest.fixture
def launched(monkeypatch):
    """What `customstep launch` would start."""
    calls = []
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(launching, "launch", lambda *args: calls.append(args) or 0)
    return calls


def run(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["launch", *map(str, words)])
    return ended.value.code


def test_the_script_gets_all_words_after_it(launched, tmp_path):
    script = tmp_path / "train.py"
    script.touch()
    assert run("--workers", 3, "--max-restarts", 1, script, "--epochs", 2, "--workers") == 0
    assert launched == [(script, ["--epochs", "2", "--workers"], 3, 1)]


def test_two_workers_are_the_default(launched, tmp_path):
    script = tmp_path / "train.py"
    script.touch()
    run(script)
    assert launched == [(script, [], 2, 0)]


def test_a_missing_script_is_one_line(launched, capsys):
    assert run("nowhere.py") == 2
    assert "There is no script to run" in capsys.readouterr().err
    assert launched == []


def test_options_and_cluster_exclude_each_other(tmp_path, monkeypatch, capsys):
    script = tmp_path / "train.py"
    script.touch()
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert run("--workers", 2, script) == 2
    assert "chosen from two sides" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{}",
        "no JSON",
        json.dumps({"cluster": {"worker": ["a:1"]}}),
        json.dumps({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}),
        json.dumps({"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}),
        json.dumps({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "x"}}),
    ],
)
def test_a_cluster_without_this_worker_is_refused(config, tmp_path, monkeypatch, capsys):
    script = tmp_path / "train.py"
    script.touch()
    monkeypatch.setenv("TF_CONFIG", config)
    assert run(script) == 2
    assert "TF_CONFIG does not say which worker this is" in capsys.readouterr().err


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(launching.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert [e["TF_NUM_INTRAOP_THREADS"] for e in launching._environments(2, 0)] == ["4", "4"]
    assert launching._environments(9, 0)[0]["TF_NUM_INTRAOP_THREADS"] == "1"


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    visible = [e["CUDA_VISIBLE_DEVICES"] for e in launching._environments(2, 4)]
    assert visible == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    visible = [e["CUDA_VISIBLE_DEVICES"] for e in launching._environments(2, 3)]
    assert visible == ["3", "5,7"]
    with pytest.raises(ValueError, match="too few GPUs"):
        launching._environments(4, 3)


def test_a_process_that_trains_alone_is_the_chief(two_replicas):
    assert replicas.is_chief()
    assert replicas.is_chief(two_replicas)


def test_another_than_the_chief_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(replicas, "is_chief", lambda strategy=None: False)
    with files.atomic_path(tmp_path / "folder" / "grid.png") as path:
        path.write_bytes(b"picture")
        assert path.name == "grid.png"
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_steps_run_one_by_one_where_collectives_fail_in_loops(two_replicas):
    assert replicas.steps_per_execution(None, 4) == 4
    assert replicas.steps_per_execution(two_replicas, 4) == 4  # reduces to one device
    collective = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with pytest.warns(UserWarning, match="Steps are run one by one"):
        assert replicas.steps_per_execution(collective, 4) == 1
