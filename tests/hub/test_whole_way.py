"""The whole way in processes of their own: the command line sends a model, others load it, online and offline."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chexpert_hf import OBSERVATIONS, CheXpertClassifier

from .stand_in import TOKEN, Hub, running_hub

WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["chexpert_hf"] = None  # any import of it fails
from transformers import pipeline
repo_id, revision, image = sys.argv[1:]
classify = pipeline("image-classification", repo_id, trust_remote_code=True, revision=revision)
print(json.dumps({score["label"]: score["score"] for score in classify(image, top_k=14)}))
"""

WITH_THE_PACKAGE = """
import json, sys
from pathlib import Path
from huggingface_hub import hf_hub_download
from chexpert_hf import CheXpertClassifier
from chexpert_hf.errors import InputError
repo_id, revision, image = sys.argv[1:]
scores = dict(CheXpertClassifier.from_pretrained(repo_id, revision=revision).predict(image).probabilities)
file = Path(hf_hub_download(repo_id, "config.json", revision=revision)).resolve()
file.write_text(file.read_text().replace('"bn_size"', ' "bn_size"'))
try:
    CheXpertClassifier.from_pretrained(repo_id, revision=revision)
except InputError as error:
    print(json.dumps([scores, str(error)]))
"""


@pytest.fixture
def process_hub() -> Iterator[Hub]:
    """The stand-in, for clients in other processes."""
    with running_hub() as hub:
        yield hub


def start(hub: Hub, home: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | settings | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def test_a_pushed_model_is_loaded_by_others_online_and_offline(
    saved_folder: Path, process_hub: Hub, tmp_path: Path
) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)).save(image)
    expected = CheXpertClassifier.from_pretrained(saved_folder).predict(image).probabilities
    pushed = json.loads(
        finish(start(process_hub, tmp_path, "-m", "chexpert_hf.cli", "push", str(saved_folder), "me/tiny", "--json"))
    )
    assert pushed["commit"] == process_hub.repo("me/tiny").refs["main"]
    process_hub.repo("me/tiny").commit({}, "a later commit, which is not asked for")

    load = ("-c", WITHOUT_THE_PACKAGE, "me/tiny", pushed["commit"], str(image))
    online = start(process_hub, tmp_path, *load)
    ours = start(process_hub, tmp_path / "other", "-c", WITH_THE_PACKAGE, *load[2:])
    scores = json.loads(finish(online).splitlines()[-1])
    assert sorted(scores) == sorted(OBSERVATIONS)
    assert scores == pytest.approx(dict(expected), abs=1e-6)

    offline = start(process_hub, tmp_path, *load, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    with_the_package, error = json.loads(finish(ours).splitlines()[-1])
    assert with_the_package == pytest.approx(dict(expected), abs=1e-6)
    assert "config.json is not as it was saved (checksums.json)" in error  # changed in the cache
    assert json.loads(finish(offline).splitlines()[-1]) == scores
