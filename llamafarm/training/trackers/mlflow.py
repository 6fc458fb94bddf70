"""MLflow: a run at `MLFLOW_TRACKING_URI`, or in a database of its own in the run's `logs/mlflow/`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any

from llamafarm.training.trackers.base import TrackedRun, install_remedy, load_library

DATABASE = "mlflow.db"
# What MLflow's servers take at once, and in the oldest ones the longest value.
_MOST_PARAMS = 100
_MOST_CHARACTERS = 500
# MLflow's own patience with a server that is gone is minutes, in which training would stand still.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class MLflow:
    """A run of MLflow, through its client and without its global state."""

    def __init__(self) -> None:
        self._client: Any = None
        self._run_id = ""

    def check(self) -> None:
        """Raise `MachineError` without the library, or without what a database on this machine needs."""
        _load()
        if not _address():
            for name in ("sqlalchemy", "alembic"):
                load_library(name, install_remedy("mlflow"), tracker="mlflow")

    def start(self, run: TrackedRun) -> None:
        """Create a run, in an experiment that is made where it is not there yet."""
        mlflow = _load()
        address, artifacts = _address(), None
        if not address:
            folder = (run.folder / "mlflow").absolute()
            folder.mkdir(parents=True, exist_ok=True)
            address, artifacts = _sqlite_uri(folder / DATABASE), (folder / "artifacts").as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=address)
        experiment = self._client.get_experiment_by_name(run.project)
        experiment_id = (
            self._client.create_experiment(run.project, artifact_location=artifacts)
            if experiment is None
            else experiment.experiment_id
        )
        self._run_id = self._client.create_run(experiment_id, run_name=run.name).info.run_id
        entities = load_library("mlflow.entities", install_remedy("mlflow"), tracker="mlflow")
        params = [
            entities.Param(path, str(value)[:_MOST_CHARACTERS])
            for path, value in run.settings.items()
            if value is not None
        ]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + _MOST_PARAMS])

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Write the metrics of a step in one request."""
        entities = load_library("mlflow.entities", install_remedy("mlflow"), tracker="mlflow")
        now = int(time() * 1000)
        self._client.log_batch(
            self._run_id, [entities.Metric(name, value, now, step) for name, value in metrics.items()]
        )

    def finish(self, *, succeeded: bool) -> None:
        """End the run, as failed unless it succeeded."""
        self._client.set_terminated(self._run_id, "FINISHED" if succeeded else "FAILED")


def _address() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip()


def _sqlite_uri(database: Path) -> str:
    # By SQLAlchemy's own hand, for the sake of folders with a ? or a % in their names.
    engine = load_library("sqlalchemy.engine", install_remedy("mlflow"), tracker="mlflow")
    return str(engine.URL.create("sqlite", database=str(database)).render_as_string(hide_password=False))


def _load() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    mlflow = load_library("mlflow", install_remedy("mlflow"), tracker="mlflow")
    # It tells of each table that it makes.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow
