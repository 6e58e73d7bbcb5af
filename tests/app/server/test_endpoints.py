"""The endpoints behind the whole shell, as programs reach them."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from chexpert_hf.app.server.answers import MAX_BATCH
from chexpert_hf.app.server.blocks import uploaded_path
from chexpert_hf.app.server.launch import serving
from chexpert_hf.errors import InputError
from chexpert_hf.folders.score_run import batch_size_for
from chexpert_hf.folders.scoring import score_files
from chexpert_hf.gate import Verdict
from chexpert_hf.radiographs.radiograph import read_radiograph
from chexpert_hf.scoring.saliency import overlay
from tests.app.server.conftest import StubGate, page_of, png
from tests.dicom_files import dicom_without_pixels
from tests.radiographs.test_dicom import FILM, make_dicom

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "serve.md"


def data_of(events: str):
    return json.loads(events.split("data: ")[1])


def test_a_file_gives_the_scores_that_predict_gives_to_the_last_bit(server, classifier, tmp_path):
    for seed in range(3):
        path = tmp_path / f"{seed}.png"
        path.write_bytes(png(seed))
        (answer,) = data_of(server.result("predict", {"path": server.upload(path.read_bytes())}))
        scores = {name: score["probability"] for name, score in answer["observations"].items()}
        (row,) = score_files(classifier, [path], batch_size=batch_size_for([path], 16))
        assert scores == row.prediction.probabilities == classifier.predict(path).probabilities
        points = {name: score["operating_point"] for name, score in answer["observations"].items()}
        assert points == classifier.operating_points
        assert {n: s["is_positive"] for n, s in answer["observations"].items()} == row.prediction.positives
        assert "not a medical device" in answer["disclaimer"]


def test_the_log_of_what_nobody_expected_has_its_kind_and_not_its_text(server, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("PLANTED^NAME")

    monkeypatch.setattr(server.classifier.scheduler, "submit", fail)
    answer = server.result("predict", {"path": server.upload(png())})
    assert "The server could not answer this" in answer
    log = "".join(capsys.readouterr())
    assert "A request failed: RuntimeError" in log
    assert "PLANTED" not in log + answer


def test_what_the_gate_of_a_model_says_is_in_the_answer(server, monkeypatch):
    path = server.upload(png())
    assert data_of(server.result("predict", {"path": path}))[0]["gate"] is None  # this model has none
    verdict = Verdict(False, "This does not look like a chest radiograph.", ("It may be inverted.",), 3.0)
    monkeypatch.setattr(server.classifier.members[0], "gate", StubGate(lambda image: verdict))
    expected = {
        "is_chest_radiograph": False,
        "reason": "This does not look like a chest radiograph.",
        "warnings": ["It may be inverted."],
    }
    assert data_of(server.result("predict", {"path": path}))[0]["gate"] == expected
    assert data_of(server.result("batch", [{"path": path}]))[0][0]["gate"] == expected


def test_what_was_supplied_or_ignored_in_a_file_is_in_the_answers(server):
    files = (make_dicom(FILM, RescaleSlope=0, RescaleIntercept=0), make_dicom(FILM), b"")
    paths = [server.upload(data, "film.dcm") for data in files]
    notes = [*read_radiograph(files[0]).info["notes"]]
    assert [data_of(server.result("predict", {"path": path}))[0]["notes"] for path in paths[:2]] == [notes, []]
    (rows,) = data_of(server.result("batch", [{"path": path} for path in paths]))
    assert [row["notes"] for row in rows] == [notes, [], []]


def test_a_model_is_named_by_its_config_or_repository_and_never_by_where_it_lies(server, monkeypatch, tmp_path):
    file, config = {"path": server.upload(png(1))}, server.classifier.members[0].model.config

    def shown():
        return data_of(server.result("predict", file))[0]["model"]

    monkeypatch.setattr(config, "name_or_path", str(tmp_path))
    assert shown() == "unnamed"
    monkeypatch.setattr(config, "name_or_path", "someone/chexpert")
    assert shown() == "someone/chexpert"
    monkeypatch.setattr(config, "model_name", "lungs")
    assert shown() == "lungs"


def test_maps_are_drawn_over_the_radiograph_or_given_alone(server, classifier):
    path, name = server.upload(png(5)), classifier.observations[3]
    film, values = Image.open(io.BytesIO(png(5))), classifier.predict(png(5), saliency=True).maps[name]
    for arguments, expected in (
        ((name, 0.3), overlay(film, values, 0.3)),
        ((name, 0.5, True), Image.fromarray((values * 255).round().astype(np.uint8))),
    ):
        (drawn,) = data_of(server.result("saliency", {"path": path}, *arguments, *(0.5, False)[len(arguments) - 1 :]))
        answer = server.http.get(drawn["url"])
        assert answer.headers["cache-control"] == "no-store"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), np.asarray(expected))


def test_a_batch_is_a_row_for_each_radiograph_and_for_each_in_an_archive(server, classifier):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("scans\\b.png", png(2))
        archive.writestr("a.txt", "no image")
        archive.writestr("DICOMDIR", dicom_without_pixels("1.2.840.10008.1.3.10"))
        for name in ("__MACOSX/scans/._b.png", "scans/.DS_Store", "Thumbs.db", "desktop.ini"):
            archive.writestr(name, png(2))
    paths = [server.upload(data) for data in (png(1), buffer.getvalue(), b"", b"PK\x03\x04 no archive", png(3))]
    (rows,) = data_of(server.result("batch", [{"path": path} for path in paths]))
    assert [(row["file"], row["member"], row["name"], row["error"] is None) for row in rows] == [
        (1, None, None, True),
        (2, 1, "a.txt", False),
        (2, 2, "scans/b.png", True),
        (3, None, None, False),
        (4, None, None, False),
        (5, None, None, True),
    ]
    for row, data in zip([row for row in rows if row["observations"]], (png(1), png(2), png(3)), strict=True):
        scores = {name: score["probability"] for name, score in row["observations"].items()}
        assert scores == classifier.predict(data).probabilities


def test_too_many_in_one_batch_are_refused_before_any_is_read(server):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(MAX_BATCH + 1):
            archive.writestr(f"{number}.png", b"")
    assert f"at most {MAX_BATCH} radiographs" in server.result("batch", [{"path": server.upload(buffer.getvalue())}])


def test_many_clients_at_once_get_each_its_own_answer(server, classifier):
    def ask(seed):
        (answer,) = data_of(server.result("predict", {"path": server.upload(png(seed))}))
        return {name: score["probability"] for name, score in answer["observations"].items()}

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(ask, range(64)))
    assert answers == [classifier.predict(png(seed)).probabilities for seed in range(64)]


def test_null_for_an_optional_argument_means_its_default(server):
    file = {"path": server.upload(png(4))}

    def picture(*arguments):
        (answer,) = data_of(server.result("saliency", file, "Edema", *arguments))
        return server.http.get(answer["url"]).content

    assert picture(None, None) == picture(0.5, False)
    assert picture(0.9, None) != picture(None, None) != picture(None, True)


@pytest.mark.parametrize(
    ("endpoint", "arguments", "reason"),
    [
        ("predict", ["/etc/passwd"], "was uploaded to this server"),
        ("predict", [7], "was uploaded to this server"),
        ("predict", [], "could not answer"),
        ("saliency", [{"path": "UPLOADED"}, "Hernia", 0.5, False], "an observation of this model"),
        ("saliency", [{"path": "UPLOADED"}, ["Edema"], 0.5, False], "an observation of this model"),
        ("saliency", [{"path": "UPLOADED"}, "Edema", 7, False], "an opacity from 0 to 1"),
        ("saliency", [{"path": "UPLOADED"}, "Edema", "a", False], "an opacity from 0 to 1"),
        ("batch", ["x"], "a list of files"),
        ("batch", [["x"]], "was uploaded to this server"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_the_log_has_no_traceback(server, capfd, endpoint, arguments, reason):
    path = server.upload(png(1), "Doe^Jane.png")
    arguments = [{"path": path} if item == {"path": "UPLOADED"} else item for item in arguments]
    answer = server.result(endpoint, *arguments)
    assert answer.startswith("event: error")
    message = data_of(answer)["error"]
    assert reason in message
    assert "\n" not in message
    log = "".join(capfd.readouterr())
    assert "Traceback" not in log
    assert "Doe" not in log


def test_no_file_outside_the_uploads_is_read_and_no_address_fetched(server, tmp_path):
    uploaded = server.upload(png(1))
    (tmp_path / "x.png").write_bytes(png(2))
    for path in (
        str(tmp_path / "x.png"),
        f"{uploaded}/../../../../etc/passwd",
        "http://127.0.0.1:9/x.png",
        "/dev/zero",
    ):
        for file in ({"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}}):
            for endpoint in ("predict", "batch"):
                answer = server.result(endpoint, file if endpoint == "predict" else [file])
                assert "was uploaded to this server" in answer
        assert server.http.get(f"/gradio_api/file={path}").status_code in (403, 404)
    link = Path(uploaded).with_name("link.png")
    link.symlink_to(tmp_path / "x.png")
    assert "was uploaded to this server" in server.result("predict", {"path": str(link)})


def test_an_endpoint_takes_the_path_of_an_upload_and_no_other_even_by_itself(tmp_path, monkeypatch):
    uploads, outside = tmp_path / "uploads", tmp_path / "outside.png"
    uploads.mkdir()
    outside.write_bytes(png(1))
    (uploads / "film.png").write_bytes(png(1))
    (uploads / "link.png").symlink_to(outside)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    assert uploaded_path({"path": str(uploads / "film.png")}) == uploads / "film.png"
    for path in (outside, uploads / "link.png", uploads / ".." / "outside.png", uploads, "\0", 7, None):
        with pytest.raises(InputError, match="was uploaded to this server"):
            uploaded_path({"path": str(path) if isinstance(path, Path) else path})
    with pytest.raises(InputError, match="has been deleted since"):
        uploaded_path({"path": str(uploads / "gone.png")})


def test_limits_hold_on_the_running_server(server):
    assert server.http.post("/gradio_api/upload", files={"files": ("x", b"0" * 3_100_000)}).status_code == 413
    assert server.call("predict", "x" * 200_000).status_code == 413
    assert server.http.get("/monitoring").status_code == 404
    assert server.http.get("/").headers["x-content-type-options"] == "nosniff"


def test_no_name_of_a_file_is_in_an_answer(server):
    for data in (png(9), b"no image", b""):
        path = server.upload(data, "Doe^Jane.png")
        assert "Doe" not in server.result("predict", {"path": path})
        assert "Doe" not in server.result("batch", [{"path": path}])
        assert "Doe" not in server.result("saliency", {"path": path}, "Edema", 0.5, False)


def test_clients_are_told_what_goes_in_and_comes_out(server):
    info = server.http.get("/gradio_api/info").json()["named_endpoints"]
    assert set(info) == {"/predict", "/saliency", "/batch"}
    client = Client(server.url, verbose=False)
    answer = client.predict(handle_file(save(png(4))), api_name="/predict")
    assert set(answer["observations"]) == set(server.classifier.observations)


def save(data: bytes) -> str:
    path = Path(os.environ["GRADIO_TEMP_DIR"]) / "client.png"
    path.write_bytes(data)
    return str(path)


def test_the_examples_of_the_readme_run(server, tmp_path):
    section = GUIDE.read_text(encoding="utf-8").partition("## From programs\n")[2].partition("\n## ")[0]
    assert section
    (tmp_path / "radiograph.dcm").write_bytes(png(4))
    (tmp_path / "other.png").write_bytes(png(5))
    examples = re.findall(r"```(python|bash)\n(.*?)```", section, re.DOTALL)
    runnable = [(kind, code) for kind, code in examples if "http://127.0.0.1:7860" in code]
    assert {kind for kind, _ in runnable} == {"python", "bash"}
    for kind, code in runnable:
        code = code.replace("http://127.0.0.1:7860/", server.url).replace(
            "http://127.0.0.1:7860", server.url.rstrip("/")
        )
        command = [sys.executable, "-c", code] if kind == "python" else ["bash", "-euo", "pipefail", "-c", code]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path}
        )
        assert done.returncode == 0, done.stderr
        assert "Edema" in done.stdout


def test_endpoints_take_a_classifier_that_shares_no_batches(classifier):
    with (
        serving(page_of(classifier), classifier) as url,
        httpx.Client(base_url=url.rstrip("/"), timeout=30) as http,
    ):
        (row,) = http.post("/api/v1/predict", files={"files": png(3)}).json()
    assert row["probabilities"] == classifier.predict(png(3)).probabilities
