"""A list of 200 files in a headless Chromium: how long it takes, whether the page answers meanwhile, and other maps.

    python -m tests.benchmarks.page_batch [RADIOGRAPHS] [--model MODEL] [-n 200] [--archive]

RADIOGRAPHS is a folder; without one, phantoms are drawn. They are uploaded one by one, or as one ZIP archive. One of
the files is broken. While the list runs, a single radiograph is scored in another tab. `PerformanceObserver` says how
long the browser's main thread did not answer at most; the server is in a process of its own, whose peak of memory is
what the system says.
"""

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.phantoms import render_phantom

BROKEN = 17
"""The place of the broken file."""

_WATCH = """() => {
  window.longest = 0;
  const keep = (list) => (window.longest = Math.max(window.longest, ...list.getEntries().map((task) => task.duration)));
  new PerformanceObserver(keep).observe({ type: "longtask" });
}"""
_MAPS = """async () => {
  const times = [];
  for (const row of document.querySelectorAll("#result .score")) {
    const begin = performance.now();
    row.click();
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
    times.push(performance.now() - begin);
  }
  return times.sort((a, b) => a - b);
}"""
_DRAWN = "document.querySelector('#result .heat')?.dataset.drawn"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("radiographs", nargs="?", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--archive", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = copies(arguments.radiographs, Path(folder), arguments.n)
        command = [sys.executable, "-m", "chexpert_hf.cli", "demo", "--model", str(arguments.model)]
        server = subprocess.Popen([*command, "--runtime", arguments.runtime], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
            result = in_browser(address, files, Path(folder) / "scores.csv", arguments.archive)
            status = Path(f"/proc/{server.pid}/status").read_text()
            result["server_peak_mib"] = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024  # type: ignore[index]
        finally:
            server.terminate()
            server.wait(20)
    print(json.dumps(result, indent=2))


def copies(radiographs: Path | None, folder: Path, count: int) -> list[Path]:
    """Files to upload in a folder of their own, in an order that is not that of their names; one is broken."""
    if radiographs is None:
        sources = [folder / f"phantom{seed}.jpg" for seed in range(20)]
        for seed, path in enumerate(sources):
            Image.fromarray(render_phantom(seed).image).save(path, quality=90)
    else:
        sources = sorted(path for path in radiographs.rglob("*") if path.suffix in (".jpg", ".png", ".dcm"))
    files = []
    for number, source in enumerate(islice(cycle(sources), count)):
        files.append(folder / f"{number * 7919 % 1000:03d}_{number}{source.suffix}")
        if number == BROKEN:
            files[-1].write_bytes(b"no image")
        else:
            shutil.copy(source, files[-1])
    return files


def in_browser(address: str, files: list[Path], table: Path, is_archive: bool) -> dict[str, Any]:
    uploads = files
    if is_archive:
        uploads = [table.with_name("many.zip")]
        with zipfile.ZipFile(uploads[0], "w") as archive:
            for file in files:
                archive.write(file, file.name)
        files = sorted(files)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium") or driver.chromium.executable_path,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(300_000)
        page.goto(address)
        page.locator("#file input[type=file]").wait_for(state="attached")
        page.evaluate(_WATCH)
        begin = time.perf_counter()
        page.set_input_files("#file input[type=file]", uploads)
        page.get_by_role("progressbar").wait_for()
        result: dict[str, Any] = {"files": len(files), "until_progress_s": seconds_since(begin)}

        page.locator("#list .row-open").first.wait_for()
        result["until_first_row_s"] = seconds_since(begin)
        opened = time.perf_counter()
        page.locator("#list .row-open").nth(1).click()
        page.wait_for_function(_DRAWN)
        result["row_opens_while_others_are_scored_s"] = seconds_since(opened)
        page.keyboard.press("Escape")

        other = browser.new_page()
        other.goto(address)
        other.locator("#file input[type=file]").wait_for(state="attached")
        asked = time.perf_counter()
        other.set_input_files("#file input[type=file]", files[0])
        other.wait_for_function(_DRAWN)
        result["single_meanwhile_s"] = seconds_since(asked)
        other.close()
        result["list_still_ran"] = page.get_by_role("progressbar").is_visible()
        page.wait_for_function("count => document.querySelectorAll('#list tbody tr').length === count", arg=len(files))
        result["all_s"] = seconds_since(begin)
        result["longest_without_answer_while_scoring_ms"] = round(page.evaluate("window.longest"))

        page.evaluate("window.longest = 0")
        first = page.locator("#list .row-open")
        for _ in range(3):  # by names, from A at last; by CSS, since a search by role keeps the page busy itself
            page.locator("#list thead button").first.click()
            page.wait_for_timeout(500)
        result["longest_without_answer_while_sorting_ms"] = round(page.evaluate("window.longest"))
        names = first.all_text_contents()
        result["sorts"] = names == sorted(names)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download scores (CSV)").click()
        download.value.save_as(table)
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        result["csv_in_input_order"] = [Path(row["file"]).name for row in rows] == [file.name for file in files]
        result["csv_errors"] = [(number, row["error"][:60]) for number, row in enumerate(rows) if row["error"]]
        page.locator("#list .row-open").last.click()
        page.wait_for_function("name => document.querySelector('.bar-name').textContent === name", arg=names[-1])
        page.wait_for_function(_DRAWN)
        maps = page.evaluate(_MAPS)
        result["another_map_ms"] = {"median": round(maps[len(maps) // 2]), "longest": round(maps[-1])}
        browser.close()
    return result


def seconds_since(begin: float) -> float:
    return round(time.perf_counter() - begin, 2)


if __name__ == "__main__":
    main()
