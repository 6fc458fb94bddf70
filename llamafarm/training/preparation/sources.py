"""The files that a strategy's rows come from: paths, lists of them with weights, data sets from the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.data.encoding.cache import default_folder
from llamafarm.data.reading.hub_datasets import fetch_dataset, may_be_hub_id
from llamafarm.errors import DataError, StrategyError
from llamafarm.strategy.load import LoadedStrategy, resolve_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HUB_FOLDER = "hub-datasets"


@dataclass(frozen=True, slots=True)
class Source:
    """A file or folder of training rows, and how often an epoch takes each of them."""

    path: Path
    weight: float = 1.0


def training_sources(loaded: LoadedStrategy, scratch_dir: Path | None) -> list[Source]:
    """Return where the training rows come from, in the order of the strategy.

    A data set of the Hub is fetched where it is not here yet; into `scratch_dir`, where that is given.
    Raises `StrategyError` if the strategy names none, `DataError` for what is not there.
    """
    named = loaded.strategy.dataset.train_file
    if named is None:
        raise StrategyError(
            "the strategy names no training data",
            where=f"{loaded.file or 'preset'}: {loaded.key}",
            remedy="Add dataset.train_file, or pass --train-dataset.",
        )
    if isinstance(named, str):
        return [Source(_find(named, loaded, scratch_dir))]
    return [Source(_find(each.file, loaded, scratch_dir), each.weight) for each in named]


def _find(name: str, loaded: LoadedStrategy, scratch_dir: Path | None) -> Path:
    try:
        return resolve_path(name, loaded)
    except DataError:
        if not may_be_hub_id(name):
            raise
    if scratch_dir is not None:
        return fetch_dataset(name, scratch_dir / _HUB_FOLDER, scratch_dir / "downloads")
    chosen = loaded.strategy.data_preprocessing.cache_dir
    return fetch_dataset(name, (Path(chosen).expanduser() if chosen else default_folder()) / _HUB_FOLDER)


def repeat_by_weight(places: NDArray[np.int64], weight: float, seed: int) -> NDArray[np.int64]:
    """Return places as often as an epoch takes them: whole times all of them, and a part drawn by `seed`.

    At least one is taken, if there is any. With a weight of 1 they are as they were.
    """
    num_times, share = divmod(weight, 1)
    num_drawn = round(share * len(places))
    if not num_times and not num_drawn:
        num_drawn = min(len(places), 1)
    drawn = np.random.default_rng([seed, 1]).permutation(len(places))[:num_drawn]
    return np.concatenate([np.tile(places, int(num_times)), places[np.sort(drawn)]])
