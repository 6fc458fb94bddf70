"""What `recommend` goes by: the model, the examples, the machine, and how each is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llamafarm.errors import DataError, InputError

if TYPE_CHECKING:
    from llamafarm.data.conversation import Conversation
    from llamafarm.hardware.machine import Machine
    from llamafarm.planning.recommend import Facts

_CHARACTERS_PER_TOKEN = 4
# `model.load` has this name too, and takes seconds to import.
_EMBEDDED = "cria-5m"
_ASSETS = Path(__file__).parent.parent / "assets"


class ModelFacts(NamedTuple):
    """A base model: what to call it in a strategy, its size, its folder if it is here, how that is known."""

    name: str | None
    num_parameters: float
    folder: Path | None
    source: str


class ExampleFacts(NamedTuple):
    """The examples: their file, number and longest one, as far as known, and how that is known."""

    train_file: str | None
    num_examples: int | None
    longest_tokens: int | None
    source: str


class MachineFacts(NamedTuple):
    """The device, its memory, and how that is known."""

    kind: str
    name: str
    memory_gb: float
    has_bf16: bool | None
    source: str


def join_facts(
    model: ModelFacts, examples: ExampleFacts, machine: MachineFacts, use_case: str | None
) -> tuple[Facts, dict[str, str]]:
    """Return the three as the facts of a recommendation, and how each is known."""
    from llamafarm.planning.recommend import Facts

    facts = Facts(
        num_parameters=model.num_parameters,
        device=machine.kind,
        memory_gb=machine.memory_gb,
        device_name=machine.name,
        has_bf16=machine.has_bf16,
        num_examples=examples.num_examples,
        longest_tokens=examples.longest_tokens,
        use_case=use_case,
        model=model.name,
        train_file=examples.train_file,
    )
    return facts, {"model": model.source, "examples": examples.source, "device": machine.source}


def find_model(model: str | None) -> ModelFacts:
    """Return what is known of a model: a size such as 3B, a folder, an id on the Hub, or None, the embedded.

    The size is counted where the weights are on this machine, else read from the name; raises `InputError` if
    that has none.
    """
    from llamafarm.planning.guide.numbers import is_size, read_num_parameters, show_parameters

    if model is not None and is_size(model):
        size = read_num_parameters(model)
        assert size is not None
        return ModelFacts(None, size, None, f"one of {show_parameters(size)} parameters, as given")
    name = model or _EMBEDDED
    folder = _find_folder(name)
    if folder is not None and (counted := _count_parameters(folder)):
        return ModelFacts(name, counted, folder, f"{name}, {show_parameters(counted)} parameters")
    if (read := read_num_parameters(name)) is not None:
        source = f"{name}, {show_parameters(read)} parameters by its name"
        return ModelFacts(name, read, folder, source)
    raise InputError(
        f"the size of {name!r} is not known: its weights are not on this machine, its name has none",
        where="--model",
        remedy="Give its size instead, such as --model 3B, and write its name into the strategy.",
    )


def _find_folder(name: str) -> Path | None:
    """Return a model's folder: the embedded one's, itself, or one in the Hub's cache."""
    if name == _EMBEDDED:
        return _ASSETS / name
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"there is no model folder {name!r}",
            where="--model",
            remedy="Check the path, or give an id on the Hub, or a size such as 3B.",
        )
    from llamafarm.model.hub import local_folder

    return local_folder(name)


def _count_parameters(folder: Path) -> int:
    """Count the numbers in a folder's weights, by their headers; 0 if there are none to be read."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    try:
        num_parameters = 0
        for path in sorted(path for path in folder.glob("*.safetensors") if path.is_file()):
            with safe_open(path, framework="numpy") as file:
                names = file.keys()  # it cannot be iterated itself
                num_parameters += sum(prod(file.get_slice(name).get_shape()) for name in names)
    except (OSError, SafetensorError):
        return 0
    return num_parameters


def find_examples(
    dataset: Path | None, num_examples: int | None, length: int | None, tokenizer_folder: Path | None
) -> ExampleFacts:
    """Return what is known of the examples: measured in the file, or as given.

    Lengths are counted with the model's tokenizer where it is on this machine, else a token is taken for four
    characters. Raises `InputError` if a file and figures are both given, `DataError` for a bad file.
    """
    if dataset is None:
        given = "not known" if num_examples is None else f"{num_examples:,}, as given"
        tokens = "" if length is None else f", the longest of {length} tokens, as given"
        return ExampleFacts(None, num_examples, length, given + tokens)
    if num_examples is not None or length is not None:
        raise InputError(
            "the examples are counted in the file, and their number or length is given as well",
            where="--dataset, --num-examples, --length",
            remedy="Give either the file or the figures.",
        )
    from llamafarm.data.reading.records import read_data_file

    rows = read_data_file(dataset).conversations
    longest, how = _longest(rows, tokenizer_folder)
    source = f"{len(rows):,} in {dataset}, the longest of about {longest} tokens ({how})"
    return ExampleFacts(str(dataset), len(rows), longest, source)


def _longest(rows: Sequence[Conversation], folder: Path | None) -> tuple[int, str]:
    texts = ["\n".join(f"{turn.content}\n{turn.input}".rstrip() for turn in row.messages) for row in rows]
    if folder is not None and (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # it raises Exception itself
            raise DataError(
                f"the tokenizer cannot be read: {str(error)[:120]}",
                where=str(folder / "tokenizer.json"),
                remedy="Name a model folder that is whole.",
            ) from None
        tokenizer.no_truncation()
        return max(len(encoded.ids) for encoded in tokenizer.encode_batch(texts)), "by the model's tokenizer"
    longest = max(map(len, texts))
    return -(-longest // _CHARACTERS_PER_TOKEN), "its characters / 4: the tokenizer is not on this machine"


def find_machine(wanted: str, memory_gb: float | None, machine: Machine | None = None) -> MachineFacts:
    """Return the device to recommend for: that of a machine, this one unless given, or any by its memory.

    Raises `InputError` if the device is not there and its memory is not given.
    """
    if wanted != "auto" and memory_gb is not None:
        kind = "cuda" if wanted == "rocm" else wanted
        return MachineFacts(kind, "", memory_gb, None, f"{wanted} with {memory_gb:g} GB, as given")
    from llamafarm.errors import MachineError
    from llamafarm.hardware.device import find_device
    from llamafarm.hardware.machine import read_machine

    machine = machine or read_machine()
    try:
        device = find_device(wanted, machine)
    except MachineError:
        raise InputError(
            f"there is no {wanted} device on this machine to ask for its memory",
            where="--device",
            remedy="Give its memory in GB, such as --memory-gb 16, or leave --device out.",
        ) from None
    has_bf16 = None if device.gpu is None else device.gpu.has_bf16
    # Apple's chips are sold, and listed in the guide, by the main memory that their GPU shares.
    own_gb = device.memory_gb if device.kind == "cuda" else machine.memory_bytes / 2**30
    memory, given = (own_gb, "") if memory_gb is None else (memory_gb, ", as given")
    return MachineFacts(device.kind, device.name, memory, has_bf16, f"{device.name}, {memory:.3g} GB{given}")
