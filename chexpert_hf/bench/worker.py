"""The process of one contender: it waits for a line, does what it says, and answers with a line of JSON.

`python -m chexpert_hf.bench.worker SPEC`, with the spec as JSON; started by `chexpert_hf.bench.measure`.
"""

import contextlib
import json
import resource
import sys
import time
from typing import Any

from chexpert_hf.bench.contenders import CONTENDERS, Contender, Spec

_KIB_PER_MIB = 1024


def main() -> None:
    """Serves until the input ends."""
    spec = Spec(**json.loads(sys.argv[1]))
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints is no answer
        contender = CONTENDERS[spec.kind](spec)
        contender.forward_batches(1)
        contender.forward(1)
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(contender, json.loads(line))), file=answers, flush=True)


def _answer(contender: Contender, request: dict[str, Any]) -> dict[str, Any]:
    what = request["what"]
    if what == "scores":
        scores = contender.score(request["paths"])
        return {"scores": None if scores is None else scores.tolist()}
    if what == "files":
        start = time.perf_counter()
        contender.score(request["paths"])
        return {"seconds": time.perf_counter() - start}
    if what == "batches":
        start = time.perf_counter()
        contender.forward_batches(request["count"])
        return {"seconds": time.perf_counter() - start}
    if what == "latencies":
        return {"seconds": [_timed(contender) for _ in range(request["count"])]}
    if what == "memory":
        return {"mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_MIB}
    raise ValueError(f"Unknown request {what!r}.")


def _timed(contender: Contender) -> float:
    start = time.perf_counter()
    contender.forward(1)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
