"""The proof of an export: what is served says what was trained, token for token.

Three things are shown. A conversation becomes the same token ids here and in llama.cpp. Along the way from
base and adapter to merged weights to the file, the next tokens stay what they were, within a limit for each
type. And the file is not the base: it answers, and stops, as the trained model does.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llamafarm.data.conversation import Conversation
from llamafarm.deploy.files import plan_file
from llamafarm.deploy.merge import MergedWeights
from llamafarm.deploy.parity import Distance, FileForm
from llamafarm.deploy.same_tokens import check_same_tokens
from llamafarm.deploy.source import Source
from llamafarm.deploy.trained import ANSWER_TOKENS, MOST_CONTEXT, TrainedModel
from llamafarm.errors import ModelError
from llamafarm.hardware.memory import read_main_memory
from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer

# A file of 16 bits is written beside a quantised one to tell their losses apart, if it is no larger.
_MOST_STEP_BYTES = 4 * 2**30
_FP32_BYTES = 4
_MERGED = "merged weights"
_UNQUANTISED = ("f32", "f16", "bf16")
# A divergence of the base, in nats, below which training changed nothing that could be seen, and one from
# which on it changed more than rounding does.
_NOTHING, _TELLING = 1e-5, 0.02


@dataclass(frozen=True, slots=True)
class Limit:
    """How far a form may be from what was trained."""

    least_agreement: float
    most_divergence: float


# By the name of a step, or how the name of a type begins.
LIMITS = {
    _MERGED: Limit(0.97, 0.002),
    "f32": Limit(0.97, 0.0005),
    "f16": Limit(0.97, 0.001),
    "bf16": Limit(0.97, 0.005),
    "q8": Limit(0.95, 0.02),
    "q6": Limit(0.92, 0.04),
    "q5": Limit(0.90, 0.08),
    "q4": Limit(0.80, 0.20),
    "q3": Limit(0.70, 0.50),
    "q2": Limit(0.50, 1.50),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One form on the way to what is served, and how far it is from what was trained."""

    name: str
    distance: Distance


@dataclass(frozen=True, slots=True)
class Verified:
    """What was shown; `steps` begin with the merged weights and end with what is served.

    `base_divergence` is how far the base is from what was trained, None for a model that has none beside it.
    Of merged weights alone no conversation and no answer is compared. Where the trained model does not fit
    the memory, nothing is but token ids, and `why_not_compared` says so.
    """

    trained_loss: float | None
    steps: tuple[Step, ...]
    base_divergence: float | None
    num_answers: int = 0
    num_trained_stopped: int = 0
    num_conversations: int = 0
    num_equal_answers: int = 0
    num_stopped: int = 0
    why_not_compared: str | None = None

    @property
    def is_lost_in_rounding(self) -> bool:
        """Return whether rounding changes the model more than training did."""
        base = self.base_divergence
        return base is not None and self.steps[-1].distance.divergence >= base

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    def rows(self) -> list[list[str]]:
        """Return the table of the steps, for people."""
        head = ["", "next token as trained", "divergence", "loss"]
        first = ["trained", "", "", "" if self.trained_loss is None else f"{self.trained_loss:.4f}"]
        steps = [
            [
                step.name,
                f"{step.distance.agreement:.1%}",
                f"{step.distance.divergence:.5f}",
                f"{step.distance.loss:.4f}",
            ]
            for step in self.steps
        ]
        return [head, first, *steps]


def verify_merged(source: Source, conversations: Sequence[Conversation] = ()) -> Verified | None:
    """Compare the merged weights of a source with base and adapter; None where nothing is merged.

    Raises `ModelError`, naming the first difference, if they are not the same model.
    """
    if source.adapter is None:
        return None
    if (reason := _why_not_compared(source)) is not None:
        return Verified(None, (), None, why_not_compared=reason)
    trained = TrainedModel(source, conversations)
    with trained.replaced_by(source.weights) as form:
        step = Step(_MERGED, trained.distance_of(form))
    _check_step(step, source.folder, trained)
    return Verified(trained.loss, (step,), trained.base_divergence)


def verify_file(
    source: Source, file: Path, quantization: str, conversations: Sequence[Conversation] = ()
) -> Verified:
    """Compare a GGUF file with the model that it was made of; `conversations` are the user's.

    Raises `ModelError`, naming the first difference, if the file is not the model, and `MachineError` where
    llama.cpp is not installed.
    """
    with _load(file, source) as server:
        num_conversations = check_same_tokens(source, server, conversations, file)
        if (reason := _why_not_compared(source)) is not None:
            return Verified(None, (), None, num_conversations=num_conversations, why_not_compared=reason)
        trained = TrainedModel(source, conversations)
        steps = _measure_steps(trained, server, file, quantization)
        num_equal, num_stopped = _compare_answers(trained, server)
    verified = Verified(
        trained.loss,
        tuple(steps),
        trained.base_divergence,
        len(trained.prompts),
        sum(answer.stopped_by_itself for answer in trained.answers),
        num_conversations,
        num_equal,
        num_stopped,
    )
    _check_is_not_base(verified, file)
    return verified


def verify_adapter(source: Source, file: Path, conversations: Sequence[Conversation] = ()) -> Verified:
    """Compare an adapter's GGUF file, laid over its base in 16 bits, with the trained model.

    Raises `ModelError`, naming the first difference, if they are not the same model.
    """
    assert isinstance(source.weights, MergedWeights)
    if (reason := _why_not_compared(source)) is not None:
        return Verified(None, (), None, why_not_compared=reason)
    trained = TrainedModel(source, conversations)
    with tempfile.TemporaryDirectory(prefix="llamafarm-verify-") as folder:
        base = Path(folder) / "base.gguf"
        plan_file(replace(source, weights=source.weights.base, adapter=None), "f16").write(base, "base")
        with _load(base, source, adapter=file) as server:
            distance = trained.distance_of(FileForm(server, source.num_embeddings))
    step = Step("f16 base with the adapter", distance)
    _check_step(step, file, trained)
    verified = Verified(trained.loss, (step,), trained.base_divergence)
    _check_is_not_base(verified, file)
    return verified


def _why_not_compared(source: Source) -> str | None:
    """Return why the trained model cannot be loaded beside the file; None if it can."""
    needed = sum(math.prod(entry.shape) for entry in source.weights.entries.values()) * _FP32_BYTES
    _, available = read_main_memory()
    if needed <= available:
        return None
    return (
        f"next tokens are not compared: the trained model takes {needed / 2**30:.1f} GiB in fp32, and "
        f"{available / 2**30:.1f} GiB can be had"
    )


def _load(file: Path, source: Source, adapter: Path | None = None) -> LlamaServer:
    context = min(int(source.config.max_position_embeddings), MOST_CONTEXT)
    return LlamaServer(file, LlamaOptions(context, is_exact=True, adapter=adapter))


def _measure_steps(trained: TrainedModel, server: LlamaServer, file: Path, quantization: str) -> list[Step]:
    """Return every form on the way to the file, each within its limit."""
    source, steps = trained.source, []

    def add(name: str, distance: Distance) -> None:
        steps.append(Step(name, distance))
        _check_step(steps[-1], file, trained)

    vocab_size = source.num_embeddings
    if source.adapter is not None:
        with trained.replaced_by(source.exact_weights) as form:
            add(_MERGED, trained.distance_of(form))
    if quantization not in _UNQUANTISED and source.num_bytes <= _MOST_STEP_BYTES:
        with tempfile.TemporaryDirectory(prefix="llamafarm-verify-") as folder:
            wider = Path(folder) / "f16.gguf"
            plan_file(source, "f16").write(wider, "f16")
            with _load(wider, source) as other:
                add("f16", trained.distance_of(FileForm(other, vocab_size)))
    add(quantization, trained.distance_of(FileForm(server, vocab_size)))
    return steps


def limit_of(name: str) -> Limit:
    """Return how far a form may be from what was trained."""
    begins = next(known for known in LIMITS if name.startswith(known))
    return LIMITS[begins]


def _check_step(step: Step, file: Path, trained: TrainedModel) -> None:
    limit, found = limit_of(step.name), step.distance
    if found.agreement >= limit.least_agreement and found.divergence <= limit.most_divergence:
        return
    where = ""
    if (first := found.first_difference) is not None:
        decode = trained.source.tokenizer.decode
        before = decode(trained.passages[first.passage].token_ids[: first.place][-12:])
        where = f"; first after {before!r}: {decode([first.found])!r} and not {decode([first.expected])!r}"
    raise ModelError(
        f"{step.name} is not the trained model: {found.agreement:.1%} of next tokens are the same (at least "
        f"{limit.least_agreement:.0%}), divergence {found.divergence:.4f} (at most "
        f"{limit.most_divergence}){where}",
        where=str(file),
        remedy="Choose a quantization with more bits, such as q8_0 or f16; if f16 fails too, report it.",
    )


def _compare_answers(trained: TrainedModel, server: LlamaServer) -> tuple[int, int]:
    """Return how many greedy answers of the file are those of the trained model, and how many end."""
    source = trained.source
    num_equal = num_stopped = 0
    for prompt, answer in zip(trained.prompts, trained.answers, strict=True):
        text = source.template.render(prompt, add_generation_prompt=True)
        ids = source.tokenizer(text, add_special_tokens=False)["input_ids"]
        found, has_stopped = server.continue_greedily(ids, ANSWER_TOKENS)
        num_stopped += has_stopped
        num_equal += source.tokenizer.decode(found, skip_special_tokens=True).strip() == answer.text
    return num_equal, num_stopped


def _check_is_not_base(verified: Verified, file: Path) -> None:
    """Raise `ModelError` if what was trained got lost: the file is the base, or no longer stops."""
    base = verified.base_divergence
    first, last = verified.steps[0].distance, verified.steps[-1].distance
    if base is not None and base > _NOTHING and first.divergence > base / 2:
        raise ModelError(
            f"{verified.steps[0].name} is the base and not what was trained: its divergence is "
            f"{first.divergence:.5f}, the base's {base:.5f}",
            where=str(file),
            remedy="Report it with the adapter's configuration: merging it did nothing.",
        )
    if base is not None and base > _TELLING and last.divergence >= base:
        raise ModelError(
            f"the file is as far from what was trained as the base is (divergence {last.divergence:.4f}, the "
            f"base {base:.4f})",
            where=str(file),
            remedy="Choose a quantization with more bits, such as q8_0.",
        )
    if 2 * verified.num_trained_stopped > verified.num_answers and not verified.num_stopped:
        raise ModelError(
            f"none of {verified.num_answers} answers of the file ends by itself, and the trained model's do",
            where=str(file),
            remedy="Choose a quantization with more bits, such as q8_0.",
        )
