"""Commands that score radiographs, on the command line and in the app: predict, demo."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option, echo

from chexpert_hf.cli import options
from chexpert_hf.cli.app import DISCLAIMER, START, app, load_classifier, progress_bar, say
from chexpert_hf.errors import InputError, printable
from chexpert_hf.folders.score_rows import RowFormat, study_of
from chexpert_hf.folders.score_table import GateMode

if TYPE_CHECKING:
    from tqdm import tqdm

    from chexpert_hf.folders.readers import Workers
    from chexpert_hf.folders.score_output import ScoreOutput
    from chexpert_hf.folders.score_run import ScoreSummary
    from chexpert_hf.folders.scoring import FileResult
    from chexpert_hf.radiographs.archives import RadiographFile
    from chexpert_hf.scoring.classifier import CheXpertClassifier

_OUTPUT = ".csv, .jsonl or .parquet; if none, CSV on standard output, with --json JSON Lines."
_PATHS = "Radiographs, folders, ZIP archives, or quoted patterns."
_LIST = "Text file: a path per line, relative to the current folder."
_STUDY = "A row per study, a folder such as patient00001/study1: maximum over its views; No Finding: minimum."
_POSITIVES = "Add columns of calls at the operating points: 1 positive, 0 negative."
_MAPS = "With --saliency, only the map of this observation; may be repeated."
_BATCH = "Radiographs at once."
_GATE = "Images that do not look like chest radiographs: flag them, refuse to score them, or do not check."
REPORT_SECONDS = 30
"""Time between two lines about progress where standard error is no terminal."""


@app.command(rich_help_panel=START, epilog="Example: chexpert-hf predict radiographs/ --output scores.csv")
def predict(
    model: options.Models,
    paths: Annotated[list[str] | None, Argument(metavar="PATHS", help=_PATHS)] = None,
    output: Annotated[Path | None, options.output(_OUTPUT)] = None,
    listed: Annotated[Path | None, Option("--list", help=_LIST)] = None,
    resume: Annotated[bool, Option("--resume", help="Resume an interrupted run.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Overwrite an output that exists.")] = False,
    study: Annotated[bool, Option("--study", help=_STUDY)] = False,
    num_shards: Annotated[int | None, Option(min=1, help="Number of runs that divide the radiographs.")] = None,
    shard: Annotated[int | None, Option(min=0, help="Number of this run, from 0.")] = None,
    saliency: Annotated[Path | None, Option(help="Folder for overlays, a PNG per observation.")] = None,
    maps: Annotated[list[str] | None, Option("--map", metavar="OBSERVATION", help=_MAPS)] = None,
    positives: Annotated[bool, Option("--positives", help=_POSITIVES)] = False,
    gate: Annotated[GateMode | None, Option(help=_GATE, show_default="flag if the model has a gate, else off")] = None,
    batch_size: Annotated[int | None, Option(min=1, help=_BATCH, show_default="16, on a CUDA GPU 256")] = None,
    workers: options.NumWorkers = "auto",
    runtime: options.RuntimeName = "auto",
    precision: options.PrecisionName = "auto",
    autotune: options.Autotune = True,
    follow_links: options.FollowLinks = True,
    as_json: options.AsJson = False,
) -> None:
    """Score radiographs: the probability of each observation.

    Exit code 1 if a file has no scores: it was skipped, could not be read, or was refused by the gate. In processes of
    torchrun or accelerate it is 0, since these would stop the other processes.
    """
    from chexpert_hf.radiographs.finding import find_radiographs, read_list

    if not paths and listed is None:
        raise InputError("Expected radiographs, folders, ZIP archives, patterns, or a --list of them; got none.")
    (index, count), suffix = _shard(num_shards, shard, study)
    target = _output(output, suffix, study, resume, overwrite, saliency)
    if target is None and count > 1:
        raise InputError("Expected --output with several shards; say where scores go.")
    if maps and saliency is None:
        raise InputError("--map needs --saliency, the folder for the maps.")
    found = find_radiographs(paths or [], read_list(listed) if listed else [], follow_links=follow_links)
    for note in found.notes():
        say(note)
    if study and (alone := sum(study_of(name) == name for name in map(str, found.files))):
        say(
            f"{alone:,} of {len(found.files):,} radiographs are in no folder like patient00001/study1 or "
            "p10000032/s50414267; each of them is a study of its own."
        )
    for path in paths or []:
        if saliency and os.path.isdir(path) and saliency.resolve().is_relative_to(Path(path).resolve()):
            raise InputError(f"{saliency} is in {path}, where the overlays would be scored next time; choose another.")
    from chexpert_hf.folders.score_run import Shard, score_to_file  # torch, only after wrong paths are refused

    if target is not None:  # a resumed run's bytes are those of one that was not interrupted
        runtime, precision = target.runtime_of_resumed_run(runtime, precision)
    classifier = load_classifier(model, runtime, precision, autotune=autotune)
    gate = gate or (GateMode.FLAG if classifier.has_gate else GateMode.OFF)
    if gate is not GateMode.OFF and not classifier.has_gate:
        raise InputError(
            f"--gate {gate.value} needs a model with a gate, {', '.join(model)} has none; fit one with "
            "`chexpert-hf gate DATA --model MODEL`, or use --gate off."
        )
    if unknown := [name for name in maps or () if name not in classifier.observations]:
        raise InputError(f"--map is {unknown[0]!r}, expected one of {', '.join(classifier.observations)}.")
    rows = RowFormat(classifier.observations, gate, positives, classifier.labels.none_of_these)
    speed: dict[str, Any] = {"batch_size": batch_size or classifier.batch_size, "workers": workers, "maps": maps}
    begin = time.monotonic()
    with progress_bar(0, "radiographs") as bar:
        watcher = _Progress(bar)
        if target is None:
            summary = _to_standard_output(classifier, rows, found.files, study, saliency, as_json, watcher, **speed)
        else:
            target, part = replace(target, gate=rows.gate, positives=positives), Shard(index, count)
            summary = score_to_file(classifier, found.files, target, shard=part, models=model, watch=watcher, **speed)
    scored, doubtful = summary.radiographs - summary.failed, summary.not_radiographs
    others = f" {doubtful:,} {'does' if doubtful == 1 else 'do'} not look like a chest radiograph." if doubtful else ""
    if warned := summary.with_warning:
        others += f" The gate warns of {warned:,}: see gate_reason."
    where = f" Scores in {target.path}." if target else ""
    say(f"{scored:,} of {summary.radiographs:,} radiographs scored.{others}{where} {DISCLAIMER}")
    if as_json and target is not None:
        result = {"output": str(target.path), **asdict(summary), "scored": scored, "gate": rows.gate.value}
        seconds = round(time.monotonic() - begin, 3)
        echo(json.dumps({**result, "seconds": seconds, "operating_points": classifier.operating_points}))
    in_several_processes = bool(suffix)  # an exit code of 1 would make the launcher stop those that still score
    if (summary.failed or found.num_outside) and not in_several_processes:
        raise Exit(1)


@app.command(rich_help_panel=START, epilog="Example: chexpert-hf demo --model runs/mine --port 8000")
def demo(
    model: options.Models,
    host: Annotated[str, Option(help="Address to listen at; 127.0.0.1 is this machine only.")] = "127.0.0.1",
    port: Annotated[int | None, Option(min=1, max=65535, help="Port; the first free one from 7860 on.")] = None,
    auth_file: Annotated[
        Path | None, Option(help="Lines of user:password who may open the page; for its owner alone (mode 600).")
    ] = None,
    mcp: Annotated[bool, Option("--mcp", help="Also serve the endpoints as tools for agents (MCP).")] = False,
    runtime: options.RuntimeName = "auto",
    precision: options.PrecisionName = "auto",
    autotune: options.Autotune = True,
) -> None:
    """Open the app: upload a radiograph, see scores and maps. CHEXPERT_HF_AUTH=user:password asks for a password."""
    from chexpert_hf.app.server.credentials import read_credentials

    users = read_credentials(auth_file, os.environ.get("CHEXPERT_HF_AUTH"))
    say("Starting the app ...")
    classifier = load_classifier(model, runtime, precision, autotune=autotune)
    serve_page(classifier, host=host, port=port, auth=users, mcp=mcp)


def serve_page(classifier: "CheXpertClassifier", *, ready: Callable[[], None] = lambda: None, **settings: Any) -> None:
    """Serve the app until SIGINT or SIGTERM, then end the process; `ready` is called just before the server starts.

    `settings` are those of `app.demo.launch`.
    """
    from chexpert_hf.app.server.addresses import without_proxies

    with without_proxies():
        from chexpert_hf.app.demo import launch
    from chexpert_hf.app.page.start import find_examples
    from chexpert_hf.app.server.scorer import SharedClassifier
    from chexpert_hf.publishing.card import project_path

    shared = SharedClassifier(classifier)
    examples = find_examples(project_path("space") / "examples", shared)
    ready()
    launch(shared, examples, **settings)


def _shard(count: int | None, index: int | None, by_study: bool) -> tuple[tuple[int, int], str]:
    """Return ((index, count) of this run's shard, suffix for the name of its output).

    `count` and `index` are the options --num-shards and --shard. If both are None and a launcher such as torchrun
    started this process, the launcher's environment variables give their values. If it started several processes, each
    uses one of the GPUs, and has a suffix such as "-00001-of-00004". In all other cases the suffix is empty. A run that
    is not divided is shard (0, 1).

    Raise InputError for options that do not fit together, such as `by_study` with several shards.
    """
    suffix = ""
    if count is None and index is None and {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        import torch

        count, index = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        suffix = f"-{index:05d}-of-{count:05d}" if count > 1 else ""
        if count > 1 and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if (count is None) != (index is None) or (count is not None and index is not None and index >= count):
        raise InputError(f"Expected --num-shards N with --shard from 0 to N - 1, got {count} and {index}.")
    if by_study and (count or 1) > 1:
        raise InputError("The views of a study may fall into different shards; score --study in one run, or drop it.")
    return (index or 0, count or 1), suffix


def _output(
    path: Path | None, suffix: str, by_study: bool, resume: bool, overwrite: bool, overlays: Path | None
) -> "ScoreOutput | None":
    from chexpert_hf.folders.score_output import Existing, ScoreOutput

    if resume and overwrite:
        raise InputError("Expected one of --resume and --overwrite, got both.")
    if overlays is not None and overlays.exists() and not overlays.is_dir():
        raise InputError(f"{overlays} is a file; expected a folder for the overlays.")
    if path is None:
        if resume or overwrite:
            raise InputError("Expected --output with --resume and --overwrite; say which file.")
        return None
    existing = Existing.RESUME if resume else Existing.OVERWRITE if overwrite else Existing.REFUSE
    return ScoreOutput(path.parent / f"{path.stem}{suffix}{path.suffix}", by_study, existing, overlays)


def _to_standard_output(
    classifier: "CheXpertClassifier",
    rows: RowFormat,
    files: "Sequence[RadiographFile]",
    by_study: bool,
    overlays: Path | None,
    as_json: bool,
    progress: "_Progress",
    *,
    batch_size: int,
    workers: "Workers",
    maps: list[str] | None,
) -> "ScoreSummary":
    from chexpert_hf.folders.score_run import ScoreSummary, batch_size_for, score_with_overlays
    from chexpert_hf.folders.score_table import CsvLines, JsonLines
    from chexpert_hf.folders.scoring import common_folder

    size, form = batch_size_for(files, batch_size), JsonLines if as_json else CsvLines
    lines = form(rows.columns(by_study=by_study))
    common = common_folder(files) if overlays else None  # files on two drives of Windows have none
    results = score_with_overlays(classifier, files, overlays, common, size, rows.gate, workers, maps)
    views = rows.rows(progress(results, 0, len(files)))
    sys.stdout.write(lines.header().decode())
    for row in rows.study_rows(views) if by_study else views:
        sys.stdout.write(lines.line(row).decode())
        sys.stdout.flush()
    return ScoreSummary(len(files), progress.failed, 0, progress.not_radiographs, progress.with_warning)


class _Progress:
    """Shows progress on standard error, as a bar or, without a terminal, as lines.

    Each file that cannot be scored, and each image that the gate flags, gets a line with the reason.
    """

    def __init__(self, bar: "tqdm") -> None:
        self._bar = bar
        self._count = self.failed = self.not_radiographs = self.with_warning = 0

    def __call__(self, results: "Iterable[FileResult]", resumed: int, radiographs: int) -> "Iterator[FileResult]":
        if resumed:
            say(f"{resumed:,} of {radiographs:,} radiographs are there already.")
        self._bar.total = radiographs - resumed
        self._bar.refresh()
        self._start = self._reported = time.monotonic()
        for result in results:
            self._show(result)
            yield result

    def _show(self, result: "FileResult") -> None:
        self._count += 1
        self.failed += result.error is not None
        self.not_radiographs += result.is_no_radiograph
        self.with_warning += result.has_warning
        self._bar.update()
        if result.error is not None or result.is_no_radiograph:
            reason = result.error or (result.gate and result.gate.reason)
            self._bar.write(f"{printable(result.path)}: {reason}", file=sys.stderr)
        if self._bar.disable and time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            rate = self._count / (self._reported - self._start)
            left = (self._bar.total - self._count) / rate
            say(f"{self._count:,} of {self._bar.total:,}, {rate:.1f} a second, {left:,.0f} s left")
