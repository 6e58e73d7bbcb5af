"""Time and memory that refusing a file takes."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

_TRIES = 3


def peak_growth_mb(function: Callable[[], object]) -> float:
    """Growth of this process's largest resident size by a call."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        pytest.skip("needs Linux's /proc to reset the peak")

    def read(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    reset.write_text("5")
    before = read("VmRSS:")
    function()
    return (read("VmHWM:") - before) / 1024


def takes_less_than(seconds: float, function: Callable[[], object]) -> bool:
    """Whether the quickest of several calls takes less CPU time of this thread; other threads slow a core down."""

    def measured() -> float:
        start = time.thread_time()
        function()
        return time.thread_time() - start

    return any(measured() < seconds for _ in range(_TRIES))
