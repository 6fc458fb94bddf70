"""Going on with a run that did not end: what it was, whether this is the same one, and from where.

What a run's mathematics follows from is its identity, kept in `run.json` from its first moment on. A run goes
on only where that is the same; what changes no result (batch split, device, what is logged and saved) may
change.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafarm import terminal
from llamafarm.errors import InputError, OutputError
from llamafarm.model.hub import fingerprint_of
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.schema import walk_leaves
from llamafarm.training.checkpoint import (
    best_step_of,
    checkpoint_folder,
    checkpoints_in,
    is_checkpoint_name,
    is_whole,
    remove_checkpoints_after,
    remove_folder,
    step_of,
)
from llamafarm.training.preparation.prepare import Preparation
from llamafarm.training.record import (
    CHECKPOINTS_FOLDER,
    FINAL_MODEL_FOLDER,
    METRICS_FILE,
    RUN_FILE,
    check_output_dir,
    refuse_links,
)

NEVER, AUTO = "never", "auto"

# Settings that change no result, or that the identity has in another form.
_FREE = (
    "name", "description", "hardware.", "monitoring.", "export.", "generation.", "model_app.",
    "prompt_template.", "base_model.", "method.", "dataset.train_file", "dataset.eval_file", "dataset.allow",
    "data_preprocessing.cache_dir", "training_args.output_dir", "training_args.save_",
    "training_args.logging_steps", "training_args.per_device_", "training_args.gradient_accumulation_steps",
    "training_args.dataloader_num_workers", "training_args.eval_on_start", "training_args.on_nonfinite",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run that did not end, or a checkpoint that was named: `folder` is the run's, `record` its `run.json`.

    `checkpoint` is the one named; None takes the newest whole one.
    """

    folder: Path
    record: Mapping[str, Any]
    checkpoint: Path | None = None

    @property
    def precision(self) -> str | None:
        """Return what the run computes in."""
        identity = self.record.get("identity")
        return identity.get("precision") if isinstance(identity, dict) else None


def find_unfinished(folder: Path, resume: str) -> Unfinished | None:
    """Return the run to go on with: that of the checkpoint which `resume` names, else one in `folder`.

    Raises `InputError` for a name that is no checkpoint, `OutputError` where going on from it would cost
    another run, or the end of its own, and where a folder of the run in `folder` is a link.
    """
    if resume == NEVER:
        return None
    refuse_links(folder)
    if resume == AUTO:
        record = _read_run(folder)
        return (
            Unfinished(folder, record) if record and "identity" in record and "result" not in record else None
        )
    checkpoint = Path(resume).resolve()
    run = checkpoint.parent.parent
    record = _read_run(run)
    is_named_so = is_checkpoint_name(checkpoint.name)
    if not is_named_so or not is_whole(checkpoint) or record is None or "identity" not in record:
        raise InputError(
            f"{resume!r} is no whole checkpoint of a run",
            where="--resume",
            remedy="Name a folder such as RUN/checkpoints/step-00000120, or write --resume auto.",
        )
    if run != folder.resolve():
        check_output_dir(folder, overwrite=False)
    elif "result" in record:
        raise OutputError(
            f"the run in this folder has ended, and going on from {checkpoint.name} would remove its end",
            where=str(folder),
            remedy="Choose another --output-dir to go on from there.",
        )
    return Unfinished(run, record, checkpoint)


def identity_of(loaded: LoadedStrategy, preparation: Preparation) -> dict[str, Any]:
    """Return what the result of a run follows from, each by the name that a message gives it."""
    tree: dict[str, Any] = loaded.strategy.model_dump(mode="json")
    settings = {
        path: _at(tree, path) for path, _ in walk_leaves(loaded.strategy) if not path.startswith(_FREE)
    }
    weights = loaded.strategy.dataset.train_file
    template = preparation.template
    return {
        "base model": fingerprint_of(preparation.base.source, preparation.base.cache_dir),
        "tokenizer": _hash(_tokenizer_text(preparation.tokenizer)),
        "template": _hash(json.dumps([template.source, template.end_of_turn, template.joiner])),
        "precision": preparation.precision.name,
        "rows in a step": preparation.plan.rows_per_step,
        "data": [file.sha256 for file in preparation.data_files],
        "weights of the files": None if isinstance(weights, str) else _at(tree, "dataset.train_file"),
        "method": preparation.method.model_dump(mode="json"),
        **settings,
    }


def check_same_run(unfinished: Unfinished, identity: Mapping[str, Any]) -> None:
    """Raise `OutputError` that names what is other than when the run began."""
    before = unfinished.record["identity"]
    # As JSON has it, in which lists and tuples are one.
    now = json.loads(json.dumps(identity))
    others = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not others:
        return
    shown = "; ".join(f"{name} {_show_change(before.get(name), now.get(name))}" for name in others[:5])
    raise OutputError(
        f"the output folder holds an unfinished run of something else: {shown}",
        where=str(unfinished.folder),
        remedy="Make that what it was to go on, or start anew: --overwrite, or another --output-dir.",
    )


def choose_checkpoint(unfinished: Unfinished) -> Path | None:
    """Return the checkpoint to go on from: the newest that is whole; None where none had been written yet.

    Where the final model is to be that of the best evaluation, the best one until then must be whole too.
    Raises `OutputError` where all there are, are damaged.
    """
    named = unfinished.checkpoint
    found = [named] if named is not None else checkpoints_in(unfinished.folder / CHECKPOINTS_FOLDER)
    needs_best = bool(unfinished.record["identity"].get("training_args.load_best_model_at_end"))
    for place, checkpoint in enumerate(found):
        damaged = _damaged_of(checkpoint, needs_best)
        if damaged is None:
            return checkpoint
        what = "it" if damaged == checkpoint else f"{checkpoint.name}, whose best it is,"
        then = f": the one before {what} is taken" if place + 1 < len(found) else ""
        terminal.warn(f"{damaged} is damaged or gone{then}")
    if found:
        raise OutputError(
            "the checkpoint to go on from is damaged, or the best one before it"
            if named is not None
            else f"all {len(found)} checkpoints of the unfinished run are damaged, or the best of each",
            where=str(unfinished.folder / CHECKPOINTS_FOLDER),
            remedy="Restore one of them, or start anew: --overwrite, or another --output-dir.",
        )
    return None


def _damaged_of(checkpoint: Path, needs_best: bool) -> Path | None:
    """Return which folder keeps a run from going on from a checkpoint: itself, or that of its best step."""
    if not is_whole(checkpoint):
        return checkpoint
    best = checkpoint_folder(checkpoint.parent, best_step_of(checkpoint))
    is_needed = needs_best and step_of(best) not in (0, step_of(checkpoint))
    return best if is_needed and not is_whole(best) else None


def say_resumed(unfinished: Unfinished, checkpoint: Path | None) -> None:
    """Say from where a run goes on."""
    if checkpoint is None:
        terminal.say(f"{'resume':<16}{unfinished.folder} began before and saved nothing yet: it starts again")
    else:
        terminal.say(f"{'resume':<16}goes on after step {step_of(checkpoint)}, from {checkpoint}")


def prepare_to_go_on(folder: Path, unfinished: Unfinished, step: int) -> None:
    """Make `folder` that of the run that goes on after `step`.

    What is newer than that is removed; of a run in another folder its checkpoint, the best one until then
    and its metrics are copied. Raises `OutputError` where that cannot be done.
    """
    try:
        remove_checkpoints_after(folder / CHECKPOINTS_FOLDER, step)
        # Of a run that was killed after it had written it, and before it said so.
        if (folder / FINAL_MODEL_FOLDER).is_dir():
            remove_folder(folder / FINAL_MODEL_FOLDER)
        if not step:
            (folder / METRICS_FILE).unlink(missing_ok=True)
        elif unfinished.checkpoint is not None and unfinished.folder != folder.resolve():
            _take_over(folder, unfinished.folder, unfinished.checkpoint)
    except OSError as error:
        raise OutputError(
            f"the run cannot go on in this folder: {error.strerror}",
            where=str(folder),
            remedy="Choose another training_args.output_dir.",
        ) from error


def _take_over(folder: Path, run: Path, checkpoint: Path) -> None:
    """Copy into `folder` what it takes to go on from a checkpoint of another run, now and after a kill."""
    best = checkpoint_folder(checkpoint.parent, best_step_of(checkpoint))
    for source in {checkpoint, best}:
        if source.is_dir():
            target = folder / CHECKPOINTS_FOLDER / source.name
            unfinished = target.with_name(target.name + ".unfinished")
            shutil.copytree(source, unfinished, copy_function=_link_or_copy)
            os.replace(unfinished, target)
    if (run / METRICS_FILE).is_file():
        shutil.copyfile(run / METRICS_FILE, folder / METRICS_FILE)


def _link_or_copy(source: str, target: str) -> None:
    """Give a file another name, else copy it: what a checkpoint holds is never written to again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _read_run(folder: Path) -> dict[str, Any] | None:
    if not (folder / RUN_FILE).is_file():
        return None
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _show_change(before: Any, now: Any) -> str:
    values = (before, now)
    if all(isinstance(value, int | float | str | None) and len(str(value)) <= 40 for value in values):
        return f"was {before} and is {now}"
    return "is not what it was"


def _at(tree: Mapping[str, Any], path: str) -> Any:
    value: Any = tree
    for key in path.split("."):
        value = value[key]
    return value


def _tokenizer_text(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.to_str())
    return json.dumps(sorted(tokenizer.get_vocab().items()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
