"""G4: whoever asks, and however, is told the same of a file, to the last bit; and what is shown is that, rounded."""

import base64
import csv
import inspect
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx

from chexpert_hf.app.demo import build_demo
from chexpert_hf.app.page.listing import ListState
from chexpert_hf.app.page.panel import ResultState
from chexpert_hf.app.server.scorer import SharedClassifier
from chexpert_hf.folders.scoring import score_files
from chexpert_hf.scoring.classifier import CheXpertClassifier
from tests.hostile.client import Scores, Visitor, as_upload, ask, connect, score, score_by_api, served, upload
from tests.hostile.promises import Figure, Settings, judged

NUM_FILES = 40
VIEWS = 4
"""Of a study."""

WRITTEN, SHOWN = 6, 3
"""Decimals: of what `predict` and the page's table and CSV write, and of what the viewer shows."""

_ROW = re.compile(r'class="score-name">(.*?)</span><span class="score-value">(.*?)</span>')
_CELL = re.compile(r'<td role="cell" data-value="([\d.]+)"')
_FILE = re.compile(r'href="data:text/csv;base64,([^"]*)"')


def scores_everywhere(settings: Settings) -> Iterator[Figure]:
    """A file through the endpoints, the handlers of the page's three tabs, a folder's scoring and the command line."""
    files = list(settings.radiographs[:NUM_FILES])
    with served(settings) as server, connect(server.url) as http:
        one = [score(http, file.read_bytes()) for file in files]
        batch = _of_rows(ask(http, "batch", [{"path": upload(http, file.read_bytes())} for file in files]))
        by_api = [score_by_api(http, file.read_bytes()) for file in files]
        visited = _visit(http, files, one)
    exact = {
        "/batch": batch,
        "HTTP API": by_api,
        **_by_handlers(settings, files),
        "folder scoring": _of_folder(settings, files),
    }
    studies = exact.pop("study")
    differing = {name: _num_different(one, scores) for name, scores in exact.items()}
    differing["study"] = _num_different(_decisive(one), studies)
    differing["command line, as written"] = _num_different(_rounded(one, WRITTEN), _of_command(settings, files))
    differing |= visited
    yield judged(
        f"{len(files)} files by /predict, and differing from it by any bit (or by what is written or shown of it)",
        differing,
        {f"{name} like /predict": count == 0 for name, count in differing.items()},
    )


def _by_handlers(settings: Settings, files: Sequence[Path]) -> dict[str, list[Scores]]:
    """What the page's handlers keep: the numbers that everything is drawn from."""
    classifier = SharedClassifier(_classifier(settings))
    demo = build_demo(classifier)
    uploads = [{"path": str(file), "orig_name": file.name} for file in files]
    try:
        single = [_scores(demo, "show_uploads", [one], ListState()) for one in uploads]
        listed = ListState()
        _call(demo, "show_uploads", uploads, listed)
        _call(demo, "_run", SimpleNamespace(id=listed.id), listed)
        _call(demo, "score_refused", listed)
        rows = listed.rows
        groups = [ListState(rows=rows[at : at + VIEWS]) for at in range(0, len(rows), VIEWS)]
        studies = [_scores(demo, "show_study", group) for group in groups]
    finally:
        classifier.close()
    return {
        "viewer": single,
        "study": studies,
        "list": [dict(row.prediction.probabilities) if row.prediction else {} for row in rows],
    }


def _scores(demo: gr.Blocks, handler: str, *arguments: Any) -> Scores:
    state = next(value for value in _states(_call(demo, handler, *arguments)) if not isinstance(value, ListState))
    if state is not None and state.study.missing():  # the gate took one for something else
        (state,) = _states(_call(demo, "score_anyway", state))
    return dict(state.study.prediction.probabilities) if isinstance(state, ResultState) else {}


def _call(demo: gr.Blocks, handler: str, *arguments: Any) -> dict[Any, Any]:
    function = next(item.fn for item in demo.fns.values() if item.fn is not None and item.fn.__name__ == handler)
    answer = function(*arguments)
    if not inspect.isgenerator(answer):
        return dict(answer)
    merged: dict[Any, Any] = {}
    for update in answer:
        merged |= update
    return merged


def _states(answer: dict[Any, Any]) -> list[Any]:
    return [value for part, value in answer.items() if isinstance(part, gr.State)]


def _visit(http: httpx.Client, files: Sequence[Path], one: Sequence[Scores]) -> dict[str, int]:
    """How many files the page, asked as a browser asks it, shows otherwise than rounding would."""
    sent = [as_upload(upload(http, file.read_bytes()), file.name) for file in files]
    visitor = Visitor(http)
    single = [_viewer(visitor, visitor.act("file", "upload", [item])) for item in sent]
    studies = []
    for at in range(0, len(sent), VIEWS):
        visitor.act("file", "upload", sent[at : at + VIEWS])
        studies.append(_viewer(visitor, visitor.act("list-status", "study", None)))
    visitor.act("file", "upload", sent)
    visitor.scored_list()
    visitor.act("list-status", "override", None)
    table = visitor.list_rows()
    delivery = visitor.act("list-status", "table", None, event_data={"hidden": [], "name": "scores.csv"})["delivery"]
    found = _FILE.search(delivery)
    text = base64.b64decode(found[1]).decode() if found else ""
    lines = [{name: float(line[name] or "nan") for name in one[0]} for line in csv.DictReader(io.StringIO(text))]
    cells = [float(value) for value in _CELL.findall(table) if "." in value]
    expected = sorted(value for scores in _rounded(one, WRITTEN) for value in scores.values())
    return {
        "viewer, as shown": _num_different(_rounded(one, SHOWN), single),
        "study, as shown": _num_different(_rounded(_decisive(one), SHOWN), studies),
        "list's cells, as written": 0 if sorted(cells) == expected else len(cells),
        "list's CSV, as written": _num_different(_rounded(one, WRITTEN), lines),
    }


def _viewer(visitor: Visitor, answer: dict[str, str]) -> Scores:
    for place in ("message", "result"):  # score it anyway, if the gate took one for something else
        if 'data-action="override"' in answer.get(place, ""):
            answer = visitor.act(place, "override", None)
    return {unescape(row[0]): float(row[1]) for row in _ROW.findall(answer.get("result", ""))}


def _of_rows(rows: Any) -> list[Scores]:
    return [{name: item["probability"] for name, item in (row["observations"] or {}).items()} for row in rows]


def _of_folder(settings: Settings, files: Sequence[Path]) -> list[Scores]:
    results = score_files(_classifier(settings), files)
    return [dict(result.prediction.probabilities) if result.prediction else {} for result in results]


def _of_command(settings: Settings, files: Sequence[Path]) -> list[Scores]:
    command = [sys.executable, "-m", "chexpert_hf.cli", "predict", *map(str, files), "--model", settings.model]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "scores.jsonl"
        command += ["--output", str(output), "--runtime", settings.runtime, "--precision", settings.precision]
        subprocess.run(command, check=True, capture_output=True)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
    return [{name: value for name, value in line.items() if isinstance(value, float)} for line in lines]


def _classifier(settings: Settings) -> CheXpertClassifier:
    return CheXpertClassifier.from_pretrained(settings.model, runtime=settings.runtime, precision=settings.precision)


def _decisive(scores: Sequence[Scores]) -> list[Scores]:
    studies = [scores[at : at + VIEWS] for at in range(0, len(scores), VIEWS)]
    return [
        {name: (min if name == "No Finding" else max)(view[name] for view in study) for name in study[0]}
        for study in studies
    ]


def _rounded(scores: Sequence[Scores], decimals: int) -> list[Scores]:
    return [{name: round(value, decimals) for name, value in one.items()} for one in scores]


def _num_different(one: Sequence[Scores], other: Sequence[Scores]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))
