"""The command quickstart: the first minutes with the package."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryFile
from threading import Thread
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from typer import Option

from chexpert_hf.cli import options
from chexpert_hf.cli.app import START, app, hide_bars, load_classifier, progress_bar, say, show
from chexpert_hf.cli.predicting import serve_page
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError
from chexpert_hf.files import require_empty

if TYPE_CHECKING:
    from chexpert_hf.evaluation.metrics import Evaluation

_FOLDER = Path("chexpert-quickstart")
_SERVE = "Open the app: at once with the bundled model, at the end with the new one."
_BAR = "{desc} {percentage:3.0f} % |{bar}| {remaining} left"


@app.command(rich_help_panel=START, epilog="Example: chexpert-hf quickstart")
def quickstart(
    output: Annotated[Path, options.output("New or empty folder for everything.")] = _FOLDER,
    serve: Annotated[bool, Option("--serve/--no-serve", help=_SERVE)] = True,
    as_json: options.AsJson = False,
) -> None:
    """Open the app with the bundled model, and train, evaluate and save a model on synthetic radiographs."""
    if serve and as_json:
        raise InputError("--json needs --no-serve: the app runs until it is told to stop.")
    require_empty(output, "choose another with --output")
    with ExitStack() as stack:
        if serve:
            say("Starting the app with the bundled model ...")
            address = stack.enter_context(_bundled_page())
            say(f"The page is at {address}; meanwhile a model of your own is trained, for some minutes.")
        _show(output, _make(output), as_json)
        classifier = load_classifier([str(output / "model")])  # shows its warnings
        if serve:
            say("Restarting the app with the new model ...")
            serve_page(classifier, ready=stack.close, port=urlsplit(address).port)


def _show(output: Path, evaluation: "Evaluation", as_json: bool) -> None:
    from chexpert_hf.evaluation.report.report import as_table
    from chexpert_hf.evaluation.tables import aligned

    folders = {name: str(output / name) for name in ("model", "overlays", "phantoms", "unseen")}
    text = f"{as_table(evaluation)}\n\n{aligned([*map(list, folders.items())])}"
    show({**folders, **evaluation.to_dict()}, text, as_json)


def _make(output: Path) -> "Evaluation":
    """Draw phantoms, train and evaluate a model and write everything to `output`; return the evaluation.

    Progress is shown as a bar or, without a terminal, as a line per stage.
    """
    from chexpert_hf.quickstart import run_quickstart

    hide_bars()
    with progress_bar(1, bar_format=_BAR, smoothing=0) as bar:
        seen: list[str] = []

        def report(stage: str, done: float) -> None:
            if stage not in seen:
                seen.append(stage)
                bar.set_description_str(stage)
                if bar.disable:
                    say(f"{stage} ...")
            bar.update(done - bar.n)

        return run_quickstart(output, report)


@contextmanager
def _bundled_page() -> Iterator[str]:
    """Serve the app with the bundled model from another process while this context is open; yield its URL.

    The server is not in this process, since training forks this process, and a fork is unsafe while a server's threads
    run. The server's process has a session of its own, so that Ctrl-C does not reach it. It ends when this process
    ends.
    """
    command = [sys.executable, "-c", f"from {__name__} import serve_bundled_model as serve; serve()"]
    with TemporaryFile("w+", encoding="utf-8") as log:
        page = Popen(
            command, stdin=DEVNULL, stdout=PIPE, stderr=log, text=True, encoding="utf-8", start_new_session=True
        )
        try:
            import chexpert_hf.quickstart  # noqa: F401  # while the page starts, which takes as long

            line = page.stdout.readline() if page.stdout else ""
            if not line:
                log.seek(0)
                raise InputError(f"The app did not start: {(log.read().splitlines() or ['it gave no reason'])[-1]}")
            yield line.split()[-1]
        finally:
            page.terminate()
            page.wait()


def serve_bundled_model() -> None:
    """Serve the app with the bundled model until the process is told to stop, or its parent process has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=watch, daemon=True).start()
    try:
        serve_page(load_classifier([str(DEFAULT_MODEL)]), reloads=True)
    except InputError as error:
        sys.exit(str(error))
