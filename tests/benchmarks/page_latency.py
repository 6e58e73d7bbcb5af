"""From choosing a file to all scores and the map, in a headless Chromium: median, 95th percentile, and where it goes.

    python -m tests.benchmarks.page_latency MODEL RADIOGRAPH...

The clock is the browser's, from the change of the file field to the drawn map; the server is in another process, as it
is in use. Each radiograph is uploaded in turn, after some that are not counted.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from chexpert_hf.app.model_facts import facts_of
from chexpert_hf.app.page.reading import Item, Study, bytes_of, decode, encode, read, shown_image
from chexpert_hf.app.page.result import result_html
from chexpert_hf.scoring.classifier import CheXpertClassifier

WARM_UP = 5

_WATCH = """() => {
  window.times = [];
  let start = 0;
  // On the document: the field is another one after each upload.
  document.addEventListener("change", (event) => {
    if (event.target.matches("#file input[type=file]")) start = performance.now();
  }, { capture: true });
  let last = "";
  new MutationObserver(() => {
    const mark = document.querySelector("#result .heat")?.dataset.drawn;
    if (mark && mark !== last) {
      last = mark;
      // The frame after the one that shows it.
      requestAnimationFrame(() => setTimeout(() => window.times.push(performance.now() - start)));
    }
  }).observe(document.body, { subtree: true, childList: true, attributes: true });
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("radiographs", nargs="+", type=Path)
    parser.add_argument("-n", type=int, default=30, help="uploads that are counted")
    parser.add_argument("--runtime", default="auto")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "chexpert_hf.cli", "demo", "--model", arguments.model]
    command += ["--runtime", arguments.runtime]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
        times = in_browser(address, arguments.radiographs, arguments.n)
    finally:
        server.terminate()
        server.wait(20)
    ordered = sorted(times)
    result = {
        "uploads": len(times),
        "median_ms": round(statistics.median(times)),
        "p95_ms": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]),
        "server_ms": on_server(arguments.model, arguments.runtime, arguments.radiographs),
    }
    print(json.dumps(result, indent=2))


def in_browser(address: str, radiographs: list[Path], count: int) -> list[float]:
    """Milliseconds of each upload."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium") or driver.chromium.executable_path,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.locator("#file input[type=file]").wait_for(state="attached")
        page.evaluate(_WATCH)
        for number in range(WARM_UP + count):
            page.set_input_files("#file input[type=file]", radiographs[number % len(radiographs)])
            page.wait_for_function("count => window.times.length >= count", arg=number + 1)
            page.locator("#file input[type=file]").wait_for(state="attached")
        times: list[float] = page.evaluate("window.times")
        browser.close()
    return times[WARM_UP:]


def on_server(model: str, runtime: str, radiographs: list[Path]) -> dict[str, float]:
    """Median milliseconds of each step of the handler, alone in this process."""
    classifier = CheXpertClassifier.from_pretrained(model, runtime=runtime, precision="auto")
    facts = facts_of(classifier)
    steps: dict[str, list[float]] = {}
    for number in range(WARM_UP + 20):
        path = radiographs[number % len(radiographs)]
        marks = [time.perf_counter()]
        data = bytes_of(path)
        source = decode(classifier, data)
        classifier.predict(source, saliency=True)
        marks.append(time.perf_counter())
        shown = shown_image(source)
        marks.append(time.perf_counter())
        encode(shown)
        marks.append(time.perf_counter())
        study = Study([read(classifier, Item(path))])
        marks.append(time.perf_counter())
        result_html(study, facts, classifier.operating_points)
        marks.append(time.perf_counter())
        if number >= WARM_UP:
            names = ("gate, scores and maps", "image to show", "its JPEG", "all of these at once", "HTML")
            for name, begin, end in zip(names, marks, marks[1:], strict=False):
                steps.setdefault(name, []).append(1000 * (end - begin))
    return {name: round(statistics.median(values), 1) for name, values in steps.items()}


if __name__ == "__main__":
    main()
