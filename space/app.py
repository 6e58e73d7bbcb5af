"""The Space: serves the page of chexpert-hf with a model: the one that `model.json` names, else the folder `model`.

Both are looked for beside this file; the variables MODEL_ID and MODEL_REVISION take precedence. Where the package
`spaces` is installed (ZeroGPU), each radiograph borrows a GPU; everywhere else the processor's cores compute.
"""

import json
import os
from pathlib import Path

from starlette.middleware import Middleware

from chexpert_hf.app.demo import appearance, build_demo, launch
from chexpert_hf.app.page.start import find_examples
from chexpert_hf.app.server.blocks import SESSIONS
from chexpert_hf.app.server.launch import PAGE_OPTIONS, queued
from chexpert_hf.app.server.scorer import SharedClassifier
from chexpert_hf.app.server.shell import Limits, Shell
from chexpert_hf.app.server.temporary import private_folder
from chexpert_hf.scoring.classifier import CheXpertClassifier

try:
    import spaces
except ImportError:
    spaces = None

HERE = Path(__file__).parent


def model_and_revision() -> tuple[str | Path, str | None]:
    """Return the model to show and its revision: from the environment, `model.json`, or the folder `model`."""
    if os.environ.get("MODEL_ID"):
        return os.environ["MODEL_ID"], os.environ.get("MODEL_REVISION")
    if (HERE / "model.json").is_file():
        named = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
        return named["model"], named["revision"]
    return HERE / "model", None


def main() -> None:
    """Serve the app."""
    model, revision = model_and_revision()
    classifier = CheXpertClassifier.from_pretrained(
        model,
        revision=revision,
        runtime="torch" if spaces else os.environ.get("CHEXPERT_HF_RUNTIME", "auto"),
        precision=os.environ.get("CHEXPERT_HF_PRECISION", "auto"),
    )
    # Under ZeroGPU nothing can be scored before the first request, and so no drawings be chosen.
    examples = find_examples(HERE / "examples", None if spaces else classifier)
    if spaces:
        classifier.predict = spaces.GPU(classifier.predict)
        middleware = PAGE_OPTIONS["app_kwargs"] | {"middleware": [Middleware(Shell)]}
        options = PAGE_OPTIONS | {"app_kwargs": middleware, "state_session_capacity": SESSIONS} | appearance()
        with private_folder():
            # ZeroGPU starts with Gradio's own launch, so that this server has no HTTP API beside it.
            queued(build_demo(classifier, examples, has_api=False), Limits()).launch(server_name="0.0.0.0", **options)
    else:
        launch(SharedClassifier(classifier), examples, host="0.0.0.0")


if __name__ == "__main__":
    main()
