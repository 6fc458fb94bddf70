"""Each YAML block that the guide prints loads as it is printed, and means what it says."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import indent

import pytest

from llamafarm.strategy.document import Node, parse_document
from llamafarm.strategy.load import LoadedStrategy, load_strategy
from llamafarm.strategy.schema import EpochRange, walk_leaves

GUIDE = Path(__file__).parents[1] / "guide" / "pytorch-fine-tuning-guide.md"


def blocks_of(text: str) -> dict[str, str]:
    """Return the YAML blocks by the heading that each stands under, numbered where that has several."""
    blocks: dict[str, str] = {}
    heading, lines = "", text.splitlines()
    starts = [number for number, line in enumerate(lines) if line == "```yaml"]
    for number, line in enumerate(lines):
        if line.startswith("#") and not any(start < number < lines.index("```", start) for start in starts):
            heading = line.lstrip("# ")
        elif number in starts:
            block = "\n".join(lines[number + 1 : lines.index("```", number)]) + "\n"
            name = heading if heading not in blocks else f"{heading} 2"
            assert name not in blocks
            blocks[name] = block
    return blocks


BLOCKS = blocks_of(GUIDE.read_text(encoding="utf-8"))
# Blocks that begin with a strategy's name; the others are fragments of one.
WHOLE = {
    "Strategy Structure for PyTorch Training": "strategy_name",
    "1. Medical Domain Adaptation (demo3_training_optimized)": "demo3_training_optimized",
    "2. High-Performance GPU Training": "training_cuda_datacenter",
    "3. Apple Silicon Optimized": "training_mps_apple",
}


def load_block(heading: str, folder: Path) -> LoadedStrategy:
    """Load a block as it is printed; a fragment below a strategy's name."""
    key = WHOLE.get(heading, "s")
    text = BLOCKS[heading] if heading in WHOLE else f"s:\n{indent(BLOCKS[heading], '  ')}"
    (folder / "f.yaml").write_text(text, encoding="utf-8")
    return load_strategy(key, file=folder / "f.yaml")


def written_values(node: Node) -> list[tuple[str, Node]]:
    """Return the settings of a block by the line that each is written in."""
    if not isinstance(node.value, dict):
        return [("", node)]
    return [(rest or key, leaf) for key, child in node.value.items() for rest, leaf in written_values(child)]


def test_every_block_of_the_guide_is_found() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert len(BLOCKS) == text.count("```yaml") == 19
    assert "\n".join(BLOCKS.values()).count("learning_rate:") == text.count("learning_rate:")
    assert set(WHOLE) <= set(BLOCKS)


@pytest.mark.parametrize("heading", BLOCKS)
def test_every_block_loads_and_every_line_of_it_arrives(heading: str, tmp_path: Path) -> None:
    found = load_block(heading, tmp_path)
    values = dict(walk_leaves(found.strategy))
    by_line: dict[str, list[str]] = {}
    for path, origin in found.origins.items():
        by_line.setdefault(origin.where, []).append(path)
    for retired in found.retired:
        by_line.setdefault(retired.origin.where, []).append(retired.path)
    tree = parse_document((tmp_path / "f.yaml").read_text(), "strategy file", str(tmp_path / "f.yaml"))
    num_checked = 0
    for key, node in written_values(tree):
        if node.value is None or (key == "type" and node.value == "pytorch"):
            continue
        paths = by_line.get(node.origin.where, [])
        assert paths, f"{key} in line {node.origin.where} went nowhere"
        for path in (set(paths) & set(values)) - {retired.path for retired in found.retired}:
            value = list(values[path]) if isinstance(values[path], tuple) else values[path]
            assert value == node.plain() or str(value) == str(node.value), path
            num_checked += 1
    assert num_checked


RESOLVED: list[tuple[str, str, object]] = [
    ("Strategy Structure for PyTorch Training", "dataset.train_file", "path/to/train.jsonl"),
    ("Strategy Structure for PyTorch Training", "dataset.eval_split", 0.1),
    ("Strategy Structure for PyTorch Training", "export.to_gguf", True),
    ("Strategy Structure for PyTorch Training", "model_app.type", "ollama"),
    ("Strategy Structure for PyTorch Training", "prompt_template.format", None),
    ("NVIDIA GPU (CUDA) Configuration", "hardware.precision.cuda.use_tf32", True),
    ("NVIDIA GPU (CUDA) Configuration", "hardware.optimization.mixed_precision", "fp16"),
    ("Apple Silicon (MPS) Configuration", "hardware.optimization.mixed_precision", "no"),
    ("CPU-Only Configuration", "hardware.optimization.mixed_precision", "no"),
    ("CPU-Only Configuration", "training_args.gradient_accumulation_steps", 8),
    ("1. Quick Experimentation", "training_args.eval_strategy", "no"),
    ("1. Quick Experimentation", "training_args.save_strategy", "no"),
    ("2. Production Fine-Tuning", "training_args.eval_steps", 50),
    ("2. Production Fine-Tuning", "training_args.save_steps", 100),
    ("3. Small Dataset (<100 examples)", "training_args.num_train_epochs", EpochRange(minimum=5, maximum=10)),
    ("3. Small Dataset (<100 examples)", "training_args.eval_strategy", "epoch"),
    ("3. Small Dataset (<100 examples)", "training_args.save_strategy", None),
    ("4. Large Dataset (>10,000 examples)", "training_args.save_steps", 1000),
    ("5. Domain Adaptation (Medical, Legal, etc.)", "dataset.eval_split", 0.15),
    ("5. Domain Adaptation (Medical, Legal, etc.)", "data_preprocessing.filter_quality", True),
    ("6. Conversational AI", "generation.max_new_tokens", 150),
    ("6. Conversational AI", "generation.repetition_penalty", 1.1),
    ("6. Conversational AI", "prompt_template.stop_sequences", ("\nUser:", "\nAssistant:", "###")),
    ("Gradient Checkpointing", "hardware.optimization.gradient_checkpointing", True),
    ("Gradient Accumulation", "training_args.gradient_accumulation_steps", 8),
    ("Mixed Precision Training", "hardware.optimization.mixed_precision", "fp16"),
    ("Multi-GPU Training", "training_args.dataloader_num_workers", 4),
    ("Custom Scheduling", "training_args.lr_scheduler_type", "cosine"),
    ("Data Preprocessing", "data_preprocessing.seed", 42),
    (
        "1. Medical Domain Adaptation (demo3_training_optimized)",
        "training_args.gradient_accumulation_steps",
        4,
    ),
    ("2. High-Performance GPU Training", "base_model.torch_dtype", "bfloat16"),
    ("3. Apple Silicon Optimized", "hardware.device", "mps"),
]


@pytest.mark.parametrize(("heading", "path", "value"), RESOLVED)
def test_what_is_printed_means(heading: str, path: str, value: object, tmp_path: Path) -> None:
    assert dict(walk_leaves(load_block(heading, tmp_path).strategy))[path] == value


def test_every_block_has_a_meaning_that_is_asserted() -> None:
    assert {heading for heading, _, _ in RESOLVED} == set(BLOCKS)


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("Multi-GPU Training", {"training_args.ddp_find_unused_parameters", "training_args.fp16_backend"}),
        ("Strategy Structure for PyTorch Training", {"prompt_template.format"}),
    ],
)
def test_keys_without_a_meaning_are_told(heading: str, keys: set[str], tmp_path: Path) -> None:
    found = load_block(heading, tmp_path)
    assert {retired.path for retired in found.retired} == keys
    for retired in found.retired:
        assert retired.why and re.search(r"f\.yaml:\d+$", retired.origin.where)


@pytest.mark.parametrize("heading", list(WHOLE)[1:])
def test_the_guides_strategies_are_the_presets(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_block(heading, tmp_path).strategy == load_strategy(WHOLE[heading]).strategy


@pytest.mark.parametrize(
    ("heading", "key"),
    [
        ("1. Quick Experimentation", "quick_experiment"),
        ("2. Production Fine-Tuning", "production"),
        ("3. Small Dataset (<100 examples)", "small_dataset"),
        ("4. Large Dataset (>10,000 examples)", "large_dataset"),
        ("5. Domain Adaptation (Medical, Legal, etc.)", "domain_adaptation"),
        ("6. Conversational AI", "conversational"),
    ],
)
def test_the_guides_use_cases_are_presets(
    heading: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    block, preset = load_block(heading, tmp_path), load_strategy(key)
    values = dict(walk_leaves(preset.strategy))
    for path, value in walk_leaves(block.strategy):
        if block.origins[path].kind != "default":
            assert values[path] == value
    more = {path for path in values if preset.origins[path].kind != "default"}
    more -= {path for path in values if block.origins[path].kind != "default"}
    assert more <= {"name", "description", "dataset.eval_split"}


def test_every_strategy_that_the_guide_names_is_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = GUIDE.read_text(encoding="utf-8").partition("### Strategy Selection Guide")[2]
    names = re.findall(r"^\|[^|]*\| `(\w+)` \|", table, re.MULTILINE)
    assert len(names) == 7
    for name in names:
        assert load_strategy(name).key == name
