"""What the reader makes of many files; apart from the rest, so that a process for it starts without torch."""

import resource
import sys
import time
import warnings

from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from tests.hostile.attacks import NAME, NUMBER, Attack, valid_files

MAX_LINE = 200


def read_all(found: "list[Attack]") -> dict[str, float]:
    """Counts of what the reader makes of files; in a process of its own, whose death is a figure, too."""
    warnings.simplefilter("ignore")
    read_radiograph(valid_files()["j2k.dcm"])  # what is imported on first use is no growth
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = refused = bad_lines = crashes = 0
    slowest = 0.0
    for attack in found:
        start = time.process_time()
        try:
            read_radiograph(attack.data)
            read += 1
        except RadiographError as error:
            refused += 1
            line = str(error)
            bad_lines += len(line) > MAX_LINE or "\n" in line or "/tmp" in line or NAME in line or NUMBER in line
        except BaseException as error:  # noqa: BLE001 - that is what is looked for
            crashes += 1
            print(f"{attack.kind}, {attack.name}: {type(error).__name__}", file=sys.stderr)
        slowest = max(slowest, time.process_time() - start)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "files": len(found),
        "read": read,
        "refused": refused,
        "bad lines": bad_lines,
        "crashes": crashes,
        "slowest, s": round(slowest, 3),
        "growth, MiB": round(growth),
    }
