"""The machine that this runs on."""

import os
import platform
from pathlib import Path


def num_processors() -> int:
    """The number of processors that this process may use."""
    is_known = hasattr(os, "sched_getaffinity")  # on Linux
    return len(os.sched_getaffinity(0)) if is_known else os.cpu_count() or 1


def processor_name() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        models = [platform.processor()]
    return next(filter(None, models), platform.machine())
