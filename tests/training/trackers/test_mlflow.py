"""MLflow's runs, read back by its own client: from a database in the run's folder, and elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafarm.errors import MachineError
from llamafarm.training.trackers.base import TrackedRun
from llamafarm.training.trackers.mlflow import MLflow


def track(tracked: TrackedRun, *, succeeded: bool = True) -> None:
    tracker = MLflow()
    tracker.check()
    tracker.start(tracked)
    tracker.log(3, {"train_loss": 2.5, "tokens": 7})
    tracker.log(5, {"train_loss": 1.5})
    tracker.finish(succeeded=succeeded)


def runs_at(address: str, project: str) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name(project)
    return client, list(client.search_runs([experiment.experiment_id]))


@pytest.mark.parametrize(("succeeded", "status"), [(True, "FINISHED"), (False, "FAILED")])
def test_a_run_is_in_a_database_in_its_own_folder(
    tracked: TrackedRun, sent: list[object], capfd: pytest.CaptureFixture[str], succeeded: bool, status: str
) -> None:
    pytest.importorskip("mlflow.tracking")
    track(tracked, succeeded=succeeded)
    assert sent == []
    assert tuple(capfd.readouterr()) == ("", "")
    assert list(Path.cwd().iterdir()) == [], "nothing is written beside the run"

    client, (run,) = runs_at(f"sqlite:///{tracked.folder / 'mlflow' / 'mlflow.db'}", "medical")
    assert (run.info.run_name, run.info.status) == ("asthma-run", status)
    assert run.info.artifact_uri.startswith((tracked.folder / "mlflow" / "artifacts").as_uri())
    assert run.data.params == {"method.r": "16", "training_args.learning_rate": "0.0002"}
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(3, 2.5), (5, 1.5)]
    assert run.data.metrics["tokens"] == 7


def test_the_environment_says_where_else_and_an_experiment_is_taken_again(
    tracked: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow.tracking")
    address = f"sqlite:///{tmp_path / 'shared.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    track(tracked)
    track(tracked)
    assert not tracked.folder.exists()
    assert len(runs_at(address, "medical")[1]) == 2


def test_many_and_long_settings_are_all_written(tracked: TrackedRun) -> None:
    pytest.importorskip("mlflow.tracking")
    settings = {f"section.setting_{number}": "x" * 9000 for number in range(250)}
    folder = tracked.folder.parent / "who? 100%"
    track(TrackedRun("long", "medical", settings, folder))
    import sqlite3

    with sqlite3.connect(folder / "mlflow" / "mlflow.db") as database:
        ((number, longest),) = database.execute("select count(*), max(length(value)) from params")
    assert (number, longest) == (250, 500)


def test_a_database_here_needs_more_than_a_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow.tracking")
    import sys

    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(MachineError, match="sqlalchemy"):
        MLflow().check()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    MLflow().check()
