"""`doctor`: what is on this machine, and which of the guide's rows it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafarm import terminal
from llamafarm.commands.options import PrintsJson, set_mode

if TYPE_CHECKING:
    from llamafarm.hardware.device import Device
    from llamafarm.hardware.libraries import Tool
    from llamafarm.hardware.machine import Machine


def doctor(prints_json: PrintsJson = False) -> None:
    """Tell what is on this machine: devices, precision, memory, disk, libraries, tools, environment."""
    from dataclasses import asdict

    from llamafarm.hardware.environment import show_environment
    from llamafarm.hardware.libraries import find_tools, installed_versions
    from llamafarm.hardware.machine import read_machine

    set_mode(prints_json=prints_json)
    machine = read_machine()
    devices = [_describe(device) for device in _devices_of(machine)]
    tools = find_tools()
    if prints_json:
        terminal.result_json(
            {
                "machine": {**asdict(machine), "cpu_flags": sorted(machine.cpu_flags)},
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
            ("memory", f"{_gib(machine.memory_bytes)}, {_gib(machine.available_bytes)} of it to be had"),
            *((f"disk for {place}", f"{_gib(free)} free") for place, free in _free_on_disk().items()),
        ],
    )
    for device in devices:
        facts = [(key, text) for key, text in device.items() if key != "device"]
        _print_part(f"device {device['device']}", facts)
    _print_part("versions", list(installed_versions().items()))
    _print_part("tools", [(tool.name, _show_tool(tool)) for tool in tools])
    _print_part("environment", [(name, f"{value}  ({effect})") for name, value, effect in show_environment()])


def _devices_of(machine: Machine) -> list[Device]:
    from llamafarm.hardware.device import find_device

    words = dict.fromkeys("rocm" if gpu.is_rocm else gpu.kind for gpu in machine.gpus)
    return [find_device(word, machine) for word in (*words, "cpu")]


def _describe(device: Device) -> dict[str, Any]:
    """Return what a device can do, and the guide's row for it."""
    from llamafarm.hardware.precision import PrecisionWishes, choose_precision
    from llamafarm.hardware.speed import measure_matmul_flops
    from llamafarm.planning.guide.match import describe_device_row

    chosen = choose_precision(device, PrecisionWishes())
    able = ["fp32", *(["bf16"] if device.gpu is None or device.gpu.has_bf16 else [])]
    able += ["fp16"] if device.kind == "cuda" else []
    speeds = (f"{name} {measure_matmul_flops(device.kind, name) / 1e9:,.0f} GFLOP/s" for name in able)
    return {
        "device": device.description,
        "precision": f"{chosen.name}: {chosen.why}",
        "products": ", ".join(speeds),
        "guide": describe_device_row(device.kind, device.name, device.memory_gb),
    }


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
