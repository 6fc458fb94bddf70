"""The guide's tables in the package against the guide itself, cell for cell, both ways; and the look-ups."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.planning import guide
from llamafarm.planning.guide.machines import largest_gpu_row_within
from llamafarm.strategy.document import parse_document
from llamafarm.strategy.spelling import MOVED, all_paths

TEXT = (Path(__file__).parents[1] / "guide" / "pytorch-fine-tuning-guide.md").read_text(encoding="utf-8")
TITLES = [table.title for table in guide.TABLES]


def printed_tables() -> dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Return the columns and rows of every Markdown table, by the heading above it."""
    tables: dict[str, list[tuple[str, ...]]] = {}
    heading = ""
    for line in TEXT.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
            tables.setdefault(heading, []).append(cells)
    return {title: (rows[0], rows[2:]) for title, rows in tables.items()}


def yaml_block_below(heading: str) -> str:
    found = re.search(rf"^#+ (?:\d\. )?{re.escape(heading)}\n.*?```yaml\n(.*?)```", TEXT, re.M | re.S)
    assert found, heading
    return found[1]


def test_every_table_of_the_guide_is_here_and_no_other() -> None:
    assert list(printed_tables()) == TITLES


@pytest.mark.parametrize("table", guide.TABLES, ids=TITLES)
def test_every_cell_is_the_guides(table: guide.Table) -> None:
    columns, rows = printed_tables()[table.title]
    assert table.columns == columns
    assert [row.cells for row in table.rows] == rows


@pytest.mark.parametrize("group", (*guide.DEVICES, *guide.USE_CASES), ids=lambda group: group.key)
def test_settings_and_their_reasons_are_the_guides(group: guide.SettingGroup) -> None:
    text = yaml_block_below(group.title)
    printed = {}

    def walk(node: dict[str, object], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                printed[prefix + key] = tuple(value) if isinstance(value, list) else value

    walk(parse_document(text, "guide", "guide").plain(), "")
    assert {setting.path: setting.value for setting in group.settings} == printed
    assert [setting.path for setting in group.settings] == list(printed)
    comments = re.findall(r"^ *(\w+): .*?  # (.+)$", text, re.M)
    reasons = [(path.rpartition(".")[2], reason) for path, _, reason in group.settings if reason]
    assert reasons == comments
    if group in guide.USE_CASES:
        assert f"{group.title}\n\n**Goal**: {group.goal}\n" in TEXT


@pytest.mark.parametrize("group", (*guide.DEVICES, *guide.USE_CASES), ids=lambda group: group.key)
def test_the_paths_of_settings_are_known_to_the_strategy(group: guide.SettingGroup) -> None:
    assert {MOVED.get(setting.path, setting.path) for setting in group.settings} <= set(all_paths())


def test_the_overfitting_signs_are_the_guides() -> None:
    printed = re.findall(r"^\d\. \*\*(.+?)\*\*: (.+)$", TEXT, re.M)
    assert [(sign.name, sign.sign) for sign in guide.OVERFITTING] == printed


def test_the_checklist_is_the_guides() -> None:
    printed = []
    for line in TEXT.splitlines():
        if found := re.fullmatch(r"### (Before|During|After) Training", line):
            phase = found[1].lower()
        elif line.startswith("- [ ] "):
            printed.append((phase, line.removeprefix("- [ ] ")))
    assert [(item.phase, item.text) for item in guide.CHECKLIST] == printed


def test_the_environment_variables_are_the_guides() -> None:
    printed, library = [], ""
    block = re.search(r"## Environment Variables\n\n```bash\n(.*?)```", TEXT, re.S)
    assert block
    for line in block[1].splitlines():
        if line.startswith("# "):
            library = line[2:]
        elif found := re.fullmatch(r'export (\w+)="(.*?)"(?:  # (.*))?', line):
            printed.append((found[1], found[2], library, found[3] or ""))
    assert [(one.name, one.example, one.library, one.reason) for one in guide.ENVIRONMENT] == printed
    assert [one.name for one in guide.ENVIRONMENT if one.is_secret] == ["HF_TOKEN"]


def test_what_memory_saving_changes_is_a_setting_of_the_strategy() -> None:
    assert {row.setting for row in guide.OUT_OF_MEMORY} <= set(all_paths())


@pytest.mark.parametrize(
    ("billions", "size"),
    [(0.005, "<1B"), (0.99, "<1B"), (1, "1-3B"), (2.9, "1-3B"), (3.2, "3-7B"), (7, "7-13B"), (70, "7-13B")],
)
def test_the_lora_row_of_a_size(billions: float, size: str) -> None:
    assert guide.lora_row(billions * 1e9).size == size


@given(st.floats(0, 13e9, exclude_max=True))
def test_a_size_lies_in_its_lora_row(num_parameters: float) -> None:
    row = guide.lora_row(num_parameters)
    assert row.parameters.low <= num_parameters < row.parameters.high


@pytest.mark.parametrize(
    ("billions", "memory_gb"), [(0.005, 4), (1.2, 8), (3.2, 8), (7.6, 16), (8, 24), (13, 24), (30, None)]
)
def test_the_least_memory_of_a_size(billions: float, memory_gb: int | None) -> None:
    row = guide.model_size_row(billions * 1e9)
    assert (row and row.memory_gb) == memory_gb


@pytest.mark.parametrize(
    ("device_name", "memory_gb", "name"),
    [
        ("NVIDIA GeForce RTX 3060", 11.8, "RTX 3060"),
        ("NVIDIA GeForce RTX 3060", 8.0, None),  # the same name, another GPU
        ("NVIDIA GeForce RTX 3060 Ti", 8.0, None),
        ("NVIDIA GeForce RTX 3070", 7.8, "RTX 3070"),
        ("NVIDIA GeForce RTX 3070 Ti", 7.8, None),
        ("NVIDIA GeForce RTX 3080", 9.8, "RTX 3080"),
        ("NVIDIA GeForce RTX 3080", 12.0, None),
        ("NVIDIA GeForce RTX 3080 Ti", 11.8, None),
        ("NVIDIA GeForce RTX 3090", 23.7, "RTX 3090"),
        ("GeForce RTX3090", 25.8, "RTX 3090"),  # in units of 10^9 bytes
        ("NVIDIA GeForce RTX 3090 Ti", 23.7, None),
        ("NVIDIA GeForce RTX 4070", 11.8, None),
        ("NVIDIA GeForce RTX 4070 Ti", 11.8, "RTX 4070 Ti"),
        ("NVIDIA GeForce RTX 4070Ti", 11.8, "RTX 4070 Ti"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 15.7, None),
        ("NVIDIA GeForce RTX 4080", 15.7, "RTX 4080"),
        ("NVIDIA GeForce RTX 4080 SUPER", 15.7, None),
        ("NVIDIA GeForce RTX 4080 Laptop GPU", 11.8, None),
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 D", 23.6, None),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "A100"),
        ("NVIDIA A100 80GB PCIe", 79.2, "A100"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.8, None),
        ("NVIDIA A100X", 79.2, None),
        ("NVIDIA H100 80GB HBM3", 79.1, None),
        ("AMD Instinct MI300X", 191.0, None),
        ("", 24.0, None),
    ],
)
def test_which_row_a_gpu_is(device_name: str, memory_gb: float, name: str | None) -> None:
    row = guide.match_gpu_row(device_name, memory_gb)
    assert (row and row.name) == name


@pytest.mark.parametrize(
    ("chip_name", "memory_gb", "name", "notes"),
    [
        ("Apple M1", 8, "M1", "Basic fine-tuning"),
        ("Apple M1", 16, "M1", "Good for small models"),
        ("Apple M1 Pro", 32, "M1 Pro/Max", "Excellent performance"),
        ("Apple M1 Max", 32, "M1 Pro/Max", "Excellent performance"),
        ("Apple M1 Max", 64, None, None),
        ("Apple M1 Ultra", 32, None, None),
        ("Apple M2", 24, "M2", "20% faster than M1"),
        ("Apple M2 Max", 32, "M2 Pro/Max", "Best for development"),
        ("M3", 16, "M3", "Latest generation"),
        ("Apple M3 Max", 128, "M3 Pro/Max", "Production capable"),
        ("Apple M4", 16, None, None),
        ("Intel(R) Core(TM) i7", 16, None, None),
    ],
)
def test_which_row_an_apple_chip_is(
    chip_name: str, memory_gb: float, name: str | None, notes: str | None
) -> None:
    row = guide.match_apple_row(chip_name, memory_gb)
    assert ((row.name, row.notes) if row else (None, None)) == (name, notes)


@given(st.text(), st.floats(0, 1000))
def test_any_name_is_matched_or_not_without_a_fault(name: str, memory_gb: float) -> None:
    gpu = guide.match_gpu_row(name, memory_gb)
    chip = guide.match_apple_row(name, memory_gb)
    assert gpu is None or gpu in guide.CUDA_GPUS
    assert chip is None or chip in guide.APPLE_CHIPS


@pytest.mark.parametrize(
    ("memory_gb", "name"),
    [
        (4, None),
        (8, "RTX 3070"),
        (11, "RTX 3080"),
        (15.7, "RTX 4080"),
        (23.6, "RTX 3090"),
        (11.8, "RTX 3060"),
        (80, "A100"),
    ],
)
def test_the_largest_gpu_within_a_memory(memory_gb: float, name: str | None) -> None:
    row = largest_gpu_row_within(memory_gb)
    assert (row and row.name) == name
