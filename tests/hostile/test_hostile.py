"""A quick sample of the attacks through the reader and through a running server; `python -m tests.hostile` runs all."""

import io
import json
import resource
import time
import zipfile

import pytest

from chexpert_hf.data.radiograph import RadiographError, read_radiograph
from tests.hostile.attacks import NAME, NUMBER, Attack, attacks, mutants, valid_files
from tests.serving.conftest import classifier, server  # noqa: F401 - fixtures

MAX_LINE = 200


@pytest.fixture(scope="module")
def sample() -> list[Attack]:
    return list(attacks(seed=0, num_mutants=300))


def is_one_line(message: str) -> bool:
    """And no path in it."""
    is_short = 0 < len(message) <= MAX_LINE and "\n" not in message
    return is_short and not any(part in message for part in ("/tmp", "chexpert-hf-", NAME, NUMBER))


def refusal(attack: Attack) -> str:
    """What the reader says; nothing if it reads the file."""
    try:
        image = read_radiograph(attack.data)
    except RadiographError as error:
        return str(error)
    assert image.mode == "L"
    assert set(image.info) == {"original_size"}
    return ""


def test_the_sample_is_large_and_the_same_every_time(sample):
    assert len(sample) >= 400
    assert list(mutants(0, 30)) == list(mutants(0, 30)) == sample[-300:-270]
    assert list(mutants(1, 30)) != list(mutants(0, 30))


def test_what_the_attacks_are_made_of_is_read():
    for data in valid_files().values():
        assert read_radiograph(data).size == (48, 48)


def test_the_reader_refuses_in_one_line_or_reads_and_stays_small(sample):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusals = []
    for attack in sample:
        start = time.process_time()
        if message := refusal(attack):
            refusals.append(message)
            assert is_one_line(message), (attack.kind, attack.name, message)
        assert time.process_time() - start < 10, (attack.kind, attack.name)
    assert len(refusals) > len(sample) // 3
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 400


@pytest.mark.parametrize("kind", ["bomb", "not an image"])
def test_bombs_and_what_is_no_image_are_refused(sample, kind):
    found = [attack for attack in sample if attack.kind.startswith(kind)]
    assert len(found) > 10
    for attack in found:
        with pytest.raises(RadiographError, match=r"^[^\n]{20,200}$"):
            read_radiograph(attack.data)


def test_the_server_answers_each_attack_in_one_line_and_is_right_afterwards(server, sample, capfd):  # noqa: F811
    for number, attack in enumerate(sample):
        if attack.kind.startswith("mutant") and number % 4:
            continue
        answer = server.http.post("/gradio_api/upload", files={"files": (attack.name, attack.data)})
        if answer.status_code != 200:
            assert answer.status_code in (400, 413)
            continue
        (path,) = answer.json()
        text = server.result("batch" if attack.kind == "archive" else "predict", *arguments(attack, path))
        event, data = text.rsplit("data: ", 1)
        outcome = json.loads(data)
        if "event: error" in event:
            assert is_one_line(outcome["error"]), (attack.kind, attack.name, outcome["error"])
        elif attack.kind == "archive":
            assert all(row["error"] is None or is_one_line(row["error"]) for row in outcome[0])
        if attack.kind == "identity":
            assert NAME not in text
            assert NUMBER not in text
    good = valid_files()["gray.png"]
    (answer,) = json.loads(server.result("predict", {"path": server.upload(good)}).split("data: ")[1])
    scores = {name: score["probability"] for name, score in answer["observations"].items()}
    assert scores == server.classifier._classifier.predict(good).probabilities
    log = "".join(capfd.readouterr())
    assert "Traceback" not in log
    assert NAME not in log
    assert NUMBER not in log


def arguments(attack: Attack, path: str) -> list[object]:
    return [[{"path": path}]] if attack.kind == "archive" else [{"path": path}]


def test_a_batch_of_attacks_is_a_row_each_and_the_good_ones_are_scored(server, sample):  # noqa: F811
    buffer = io.BytesIO()
    chosen = [attack for attack in sample if attack.kind.startswith(("mutant", "odd"))][:60]
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, attack in enumerate(chosen):
            archive.writestr(f"{number:03d}.bad", attack.data)
        archive.writestr("999.png", valid_files()["gray.png"])
    text = server.result("batch", [{"path": server.upload(buffer.getvalue())}])
    (rows,) = json.loads(text.split("data: ")[1])
    assert len(rows) == 61
    assert rows[-1]["observations"]
    assert all((row["error"] is None) != (row["observations"] is None) for row in rows)
