"""The start of the page: one field for all files, the examples, and the way from there to a result or a list.

Examples are real radiographs, and then synthetic ones (drawings) of findings that the model detects. A folder of them
holds radiographs as `*.jpg`, and drawings as `drawings/<observation>.jpg`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from chexpert_hf.app.model_facts import ModelFacts
from chexpert_hf.app.page.batch import MAX_FILES, find_items
from chexpert_hf.app.page.html import asset, data_url, message_html, render
from chexpert_hf.app.page.listing import Listing, ListState
from chexpert_hf.app.page.panel import PLAIN, QUIET, Panel, ResultState, Updates, bar_html
from chexpert_hf.app.page.reading import Item, Study, encode, shown_image
from chexpert_hf.app.page.text import BUSY, EMPTY_FOLDER
from chexpert_hf.errors import InputError
from chexpert_hf.labels import CHEXPERT
from chexpert_hf.radiographs.finding import Found
from chexpert_hf.scoring.classifier import CheXpertClassifier

DRAWINGS = "drawings"

_MAX_NAME = 200
_THUMBNAIL_SIZE = 240  # longest side in pixels: twice that on the page, for high-density screens


def find_examples(folder: Path, classifier: CheXpertClassifier | None) -> tuple[Path, ...]:
    """Return the files in a folder of examples: first the real radiographs, then the drawings (synthetic ones).

    A drawing is returned only if the classifier detects its observation (see `finds`), so none without a classifier.
    """
    radiographs = sorted(folder.glob("*.jpg"))
    if classifier is None:
        return tuple(radiographs)
    drawings = (drawing_of(observation, folder) for observation in CHEXPERT.in_order(classifier.observations))
    found = (path for path in drawings if path.is_file() and finds(classifier, path.stem, path.read_bytes()))
    return (*radiographs, *found)


def drawing_of(observation: str, folder: Path) -> Path:
    """Return the path of an observation's synthetic radiograph in a folder of examples; the file may be missing."""
    return folder / DRAWINGS / f"{observation}.jpg"


def finds(classifier: CheXpertClassifier, observation: str, image: bytes) -> bool:
    """Whether the gate accepts an image (a file's bytes) and the model calls the observation positive in it."""
    prediction = classifier.predict(image)
    is_accepted = prediction.gate is None or prediction.gate.is_chest_radiograph
    return is_accepted and prediction.positives[observation]


def title_of(path: Path) -> str:
    """Return the title of an example, such as "Drawing: Edema" or "Radiograph RG1", from its file's name."""
    return f"{'Drawing:' if path.parent.name == DRAWINGS else 'Radiograph'} {path.stem}"


def examples_html(paths: Sequence[Path]) -> str:
    """Return buttons with a thumbnail and a title; each carries the index of its example in `paths`."""
    images = [data_url(encode(shown_image(path.read_bytes(), _THUMBNAIL_SIZE))) for path in paths]
    is_drawn = [path.parent.name == DRAWINGS for path in paths]
    return render("examples.html", examples=list(zip(map(title_of, paths), images, is_drawn, strict=True)))


class Start:
    """The Gradio components at the start of the page: a line about the model, the field for files, and examples.

    `examples` are the files from `find_examples`, `count` is the number of observations of the model.

    Gradio's own preprocessing would leave an empty temporary file behind for each upload, so it is off. The field has
    no file types, since Gradio would drop the many DICOM files without a suffix, and takes several files, since the
    browser would otherwise drop all but the first without a message.
    """

    def __init__(self, facts: ModelFacts, count: int, examples: Sequence[Path]) -> None:
        self._examples = examples
        with gr.Column(elem_id="start"):
            gr.HTML(render("hero.html", facts=facts, count=count), **PLAIN)
            self._files = gr.File(
                label="Radiographs", show_label=False, file_count="multiple", height=170, elem_id="file"
            )
            gr.HTML(render("formats.html", max_files=MAX_FILES), **PLAIN)
            script, shown = asset("actions.js"), examples_html(examples)
            self._thumbnails = gr.HTML(shown, visible=bool(examples), js_on_load=script, **PLAIN)

    def connect(self, bar: gr.HTML, panel: Panel, listing: Listing) -> None:
        """Attach the event handlers, also those of `listing`: one radiograph opens in `panel`, several in `listing`.

        The button "New radiograph" in `bar` leads back to the start.
        """
        files = self._files

        def show_uploads(value: list[dict[str, Any]] | None, state: ListState) -> Updates:
            if not value:
                return {files: None}
            paths, found = [Path(file["path"]) for file in value], Found()
            names = [(file["orig_name"] or path.name)[:_MAX_NAME] for file, path in zip(value, paths, strict=True)]
            try:
                items = find_items(list(zip(names, paths, strict=True)), found)
            except InputError as error:
                message = message_html(str(error), is_of_file=True)
                return {files: None, **listing.replaced(state), **panel.cleared("", message)}
            if len(items) == 1:
                note = " ".join(found.notes())
                return {files: None, **listing.replaced(state), **panel.show(ResultState(Study(items)), note=note)}
            return {files: None, **panel.cleared(bar_html()), **listing.replaced(state, tuple(items), found.notes())}

        def show_example(event: gr.EventData, state: ListState) -> Updates:
            path = self._examples[int(event.index)]
            return {**listing.replaced(state), **panel.show(ResultState(Study([Item(path)]), bar_html(title_of(path))))}

        def start_over(state: ListState) -> Updates:
            return {files: None, **listing.replaced(state), **panel.cleared()}

        def explain(event: gr.EventData) -> Updates:
            return panel.explain(BUSY if event.is_busy else EMPTY_FOLDER)

        outputs = [files, *panel.outputs, *listing.outputs]
        busy = panel.busy | {"show_progress_on": [bar, files]}
        files.upload(show_uploads, [files, listing.state], outputs, preprocess=False, trigger_mode="multiple", **busy)
        self._thumbnails.example(show_example, [listing.state], outputs, **busy)
        listing.connect(bar, panel)
        bar.new(start_over, [listing.state], outputs, trigger_mode="multiple", **QUIET)
        bar.refused(explain, None, panel.outputs, **QUIET)
