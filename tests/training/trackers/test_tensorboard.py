"""TensorBoard's event files, read back by its own reader."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llamafarm.training.trackers.base import TrackedRun
from llamafarm.training.trackers.tensorboard import TensorBoard


@pytest.mark.parametrize("succeeded", [True, False])
def test_metrics_and_settings_are_in_the_event_file(tracked: TrackedRun, succeeded: bool) -> None:
    tracker = TensorBoard()
    tracker.check()
    tracker.start(tracked)
    tracker.log(3, {"train_loss": 2.5, "tokens": 7})
    tracker.log(5, {"train_loss": 1.5})
    tracker.finish(succeeded=succeeded)

    events = EventAccumulator(str(tracked.folder))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["tokens", "train_loss"]
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(3, 2.5), (5, 1.5)]
    (text,) = events.Tensors("settings/text_summary")
    assert b'"method.r": 16' in text.tensor_proto.string_val[0]
