"""`doctor`: what is on this machine, and which of the guide's rows it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafarm import terminal
from llamafarm.commands.options import PrintsJson, set_mode

if TYPE_CHECKING:
    from llamafarm.hardware.device import Device
    from llamafarm.hardware.libraries import Tool
    from llamafarm.hardware.machine import Machine
    from llamafarm.hardware.precision import Measure


def doctor(prints_json: PrintsJson = False) -> None:
    """Tell what is on this machine: devices, precision, memory, disk, libraries, tools, environment."""
    from dataclasses import asdict

    from llamafarm.hardware.environment import show_environment
    from llamafarm.hardware.libraries import find_tools, installed_versions
    from llamafarm.hardware.machine import read_machine, read_nvidia_driver

    set_mode(prints_json=prints_json)
    machine = read_machine()
    devices = describe_devices(machine)
    tools = find_tools()
    if prints_json:
        terminal.result_json(
            {
                "machine": {**asdict(machine), "cpu_flags": sorted(machine.cpu_flags)},
                "nvidia_driver": read_nvidia_driver(),
                "devices": devices,
                "disk_free_bytes": _free_on_disk(),
                "versions": installed_versions(),
                "tools": [asdict(tool) for tool in tools],
                "environment": {name: value for name, value, _ in show_environment()},
            }
        )
        return
    _print_part(
        "machine",
        [
            ("system", f"{machine.system} on {machine.architecture}"),
            ("processor", f"{machine.cpu_name}, {machine.num_cores} cores"),
            ("16-bit products", ", ".join(machine.bf16_flags) or "none that the processor names"),
            ("memory", f"{_gib(machine.memory_bytes)}, {_gib(machine.available_bytes)} of it to be had"),
            *([("NVIDIA driver", driver)] if (driver := read_nvidia_driver()) else []),
            *(_tell_trouble(machine)),
            *((f"disk for {place}", f"{_gib(free)} free") for place, free in _free_on_disk().items()),
        ],
    )
    for device in devices:
        facts = [(key, text) for key, text in device.items() if key != "device"]
        _print_part(f"device {device['device']}", facts)
    _print_part("versions", list(installed_versions().items()))
    _print_part("tools", [(tool.name, _show_tool(tool)) for tool in tools])
    _print_part("environment", [(name, f"{value}  ({effect})") for name, value, effect in show_environment()])


def describe_devices(machine: Machine, measure: Measure | None = None) -> list[dict[str, Any]]:
    """Return what each device of a machine can do, and the guide's row for it, in the order of `auto`.

    Only the first of a kind is measured: it is the one that a run would use.
    """
    from llamafarm.hardware.device import devices_of
    from llamafarm.hardware.speed import measure_matmul_flops

    described = []
    measured_kinds: set[str] = set()
    for device in devices_of(machine):
        is_first = device.kind not in measured_kinds
        measured_kinds.add(device.kind)
        described.append(_describe(device, machine, measure or measure_matmul_flops, is_first=is_first))
    return described


def _describe(device: Device, machine: Machine, measure: Measure, *, is_first: bool) -> dict[str, Any]:
    from llamafarm.hardware.device import available_memory_bytes
    from llamafarm.hardware.precision import PrecisionWishes, choose_precision
    from llamafarm.planning.guide.match import describe_device_row

    chosen = choose_precision(device, PrecisionWishes(), measure)
    able = ["fp32", *(["bf16"] if device.gpu is None or device.gpu.has_bf16 else [])]
    able += ["fp16"] if device.kind == "cuda" else []
    products = _measure_products(device.kind, able, measure) if is_first else ", ".join(able)
    return {
        "device": device.description,
        "word": device.word,
        "memory": f"{_gib(available_memory_bytes(device, machine))} to be had",
        **_capability(device),
        "precision": f"{chosen.name}: {chosen.why}",
        "products": products,
        **(_compiled_kernels(device.kind) if is_first else {}),
        "guide": describe_device_row(device.kind, device.name, device.memory_gb),
    }


def _capability(device: Device) -> dict[str, str]:
    if device.gpu is None or device.gpu.compute_capability is None or device.gpu.is_rocm:
        return {}
    return {"compute capability": ".".join(map(str, device.gpu.compute_capability))}


def _compiled_kernels(kind: str) -> dict[str, str]:
    """Return whether a run's kernels can be compiled for a kind of device, and why not."""
    from llamafarm.kernels.compiled import why_not_compiled

    if kind == "mps":
        return {}
    reason = why_not_compiled(kind)
    return {"kernels": f"torch's, slower: {reason}" if reason else "compiled for this machine"}


def _measure_products(kind: str, names: list[str], measure: Measure) -> str:
    each = " a core" if kind == "cpu" else ""
    try:
        return ", ".join(f"{name} {measure(kind, name) / 1e9:,.0f} GFLOP/s{each}" for name in names)
    except RuntimeError as error:  # a GPU that others fill: the rest is still worth telling
        return f"{', '.join(names)}; not measured: {str(error).partition(chr(10))[0]}"


def _tell_trouble(machine: Machine) -> list[tuple[str, str]]:
    trouble = machine.gpu_trouble
    return [("GPU", f"{trouble.problem}. {trouble.remedy}")] if trouble is not None else []


def _free_on_disk() -> dict[str, int]:
    import shutil
    from pathlib import Path

    from llamafarm.model.hub import hub_cache

    def free(folder: Path) -> int:
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    return {"runs": free(Path.cwd()), "downloaded models": free(hub_cache().absolute())}


def _show_tool(tool: Tool) -> str:
    shown = f"{tool.version or 'not there'}; for {tool.purpose}"
    return shown if tool.is_there else f"{shown}. {tool.remedy}"


def _print_part(title: str, rows: list[tuple[str, str]]) -> None:
    terminal.result(f"\n{title}")
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        terminal.result(f"  {name.ljust(width)}  {text}")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
