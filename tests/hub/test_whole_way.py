"""The whole way: a model is pushed, and loaded by others without this package, online and offline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image

from chexpert_hf import OBSERVATIONS, CheXpertClassifier
from chexpert_hf.publishing.publish import push_model

from .stand_in import TOKEN, Hub

# The first process comes from one that has imported the libraries and nothing else: what it loads, the code of the
# repository among it, the other one has to load again, from the cache. HF_HUB_OFFLINE is read into the constant.
OTHERS = """
import json, os, sys
sys.modules["chexpert_hf"] = None  # any import of it fails
from huggingface_hub import constants
from transformers import pipeline

def score(repo_id, revision, image):
    classify = pipeline("image-classification", repo_id, trust_remote_code=True, revision=revision)
    print(json.dumps({score["label"]: score["score"] for score in classify(image, top_k=14)}), flush=True)

child = os.fork()
if child == 0:
    score(*sys.argv[1:])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
constants.HF_HUB_OFFLINE = True
score(*sys.argv[1:])
"""


@pytest.mark.slow
def test_a_pushed_model_is_loaded_by_others_online_and_offline(
    saved_folder: Path, hub: Hub, api: HfApi, tmp_path: Path
) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)).save(image)
    expected = dict(CheXpertClassifier.from_pretrained(saved_folder).predict(image).probabilities)
    commit = push_model(saved_folder, "me/tiny", api=api).commit
    hub.repo("me/tiny").commit({}, "a later commit, which is not asked for")
    hub.requests.clear()
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", OTHERS, "me/tiny", str(commit), str(image)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    online, offline = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted(online) == sorted(OBSERVATIONS)
    assert online == pytest.approx(expected, abs=1e-6)
    assert offline == online
    weights = [request for request in hub.requests if request.endswith(f"/{commit}/model.safetensors")]
    assert sorted(request.split()[0] for request in weights) == ["GET", "HEAD"]  # once, by the first of them
