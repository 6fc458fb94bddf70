"""How busy a GPU is, asked of nvidia-smi every few seconds while a run goes on."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

# Seconds between two samples: each is a mean over the last second or less, by NVIDIA's documentation.
_SECONDS = 5
# Seconds that the program has to end when it is asked to; one that hangs in the driver is killed.
_SECONDS_TO_END = 2


class UtilizationMeter:
    """Samples of a GPU's utilization, from 0 to 1, as a context; none where nvidia-smi is not to be had.

    A process beside ours samples and a thread reads what it prints, so that training waits for neither.
    """

    def __init__(self, gpu_uuid: str | None) -> None:
        self._gpu_uuid = gpu_uuid
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._sum = 0.0
        self.latest: float | None = None
        self.num_samples = 0

    @property
    def mean(self) -> float | None:
        """Return the mean of all samples, None before the first one."""
        return self._sum / self.num_samples if self.num_samples else None

    def __enter__(self) -> Self:
        program = shutil.which("nvidia-smi") if self._gpu_uuid is not None else None
        if program is not None:
            self._start([program])
        return self

    def _start(self, program: Sequence[str]) -> None:
        asked = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--loop={_SECONDS}"]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - a list, and nobody's input
                [*program, f"--id={self._gpu_uuid}", *asked],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except OSError:
            return
        self._thread = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._thread.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                sample = float(line) / 100
            except ValueError:  # "[N/A]", as on a GPU that is cut into parts
                continue
            if not 0 <= sample <= 1:
                continue
            self.latest = sample
            self._sum += sample
            self.num_samples += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, thread = self._process, self._thread
        if process is None or thread is None:
            return
        process.terminate()
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # of one stuck in the driver, a kill waits as well
                process.wait(_SECONDS_TO_END)
        thread.join(_SECONDS_TO_END)
        if process.stdout is not None and not thread.is_alive():
            process.stdout.close()


def uuid_of(device_kind: str) -> str | None:
    """Return the name by which nvidia-smi knows the GPU that a run uses; None where it is no NVIDIA one."""
    if device_kind != "cuda":
        return None
    import torch

    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    return None if uuid is None or torch.version.hip else f"GPU-{uuid}"
