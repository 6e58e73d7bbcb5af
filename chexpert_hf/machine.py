"""Number and name of this machine's processors."""

import os
import platform
from pathlib import Path


def num_processors() -> int:
    """Return the number of processors that this process may use."""
    is_known = hasattr(os, "sched_getaffinity")  # on Linux
    return len(os.sched_getaffinity(0)) if is_known else os.cpu_count() or 1


def processor_name() -> str:
    """Return the processor's name, or its architecture, such as "x86_64", if the name is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        models = [platform.processor()]
    return next(filter(None, models), platform.machine())
