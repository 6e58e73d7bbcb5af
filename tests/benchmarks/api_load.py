"""The rate of the HTTP API under load, next to `predict` on the same radiographs in the same run.

    python -m tests.benchmarks.api_load MODEL RADIOGRAPHS [--clients 32 --requests 640]

`predict` runs before and after; clients and server share the processors. On a machine that does other work, too, the
processor times say more than the rates.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from chexpert_hf.radiographs.finding import find_radiographs
from tests.benchmarks.page_load import NUM_IMAGES, ApiClient, predict_rate, put_under_load
from tests.hostile.client import running_server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("radiographs")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=640)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    runtime = options.runtime, options.precision
    files = [str(file) for file in find_radiographs([options.radiographs]).files[:NUM_IMAGES]]
    images = [Path(file).read_bytes() for file in files]
    before, busy_before = predict_rate(options.model, files, 5, *runtime)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(options.model, Path(folder) / "tmp", *runtime) as server,
    ):
        alone = ApiClient(server.url)
        truth = [alone.score(image) for image in images]
        start = server.processor_seconds()
        load = put_under_load(server, images, truth, options.clients, options.requests, ApiClient)
        busy = (server.processor_seconds() - start) / options.requests
    after, busy_after = predict_rate(options.model, files, 5, *runtime)
    p50, p95 = np.quantile(load.latencies, [0.5, 0.95])
    print(f"predict: {before:.1f} radiographs a second before, {after:.1f} after; load {os.getloadavg()[0]:.1f}")
    print(
        f"HTTP API, {options.clients} clients: {load.rate:.1f} a second, {2 * load.rate / (before + after):.2f} of it"
    )
    print(
        f"processor time of a radiograph: predict {busy_before * 1000:.1f} ms before, {busy_after * 1000:.1f} after; "
        f"server {busy * 1000:.1f} ms"
    )
    print(f"lost {load.lost}, wrong {load.wrong}; p50 {p50:.2f} s, p95 {p95:.2f} s")


if __name__ == "__main__":
    main()
