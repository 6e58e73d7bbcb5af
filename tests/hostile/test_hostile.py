"""A quick sample of the attacks through the reader and through a running page; `python -m tests.hostile` runs all."""

import io
import re
import resource
import time
import zipfile
from html import unescape

import pytest

from chexpert_hf.app.page.listing import MAX_VIEWS
from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from tests.hostile.attacks import NAME, NUMBER, Attack, mutants, valid_files
from tests.hostile.client import RefusedError, Visitor, as_upload, ask, score, upload, upload_all
from tests.hostile.reading import MAX_LINE

AT_ONCE = 25
MAX_SECONDS, MAX_MIB = 10, 400
SINGLY = 4
"""Of so many files, one is also sent alone."""

ROW_ERROR = re.compile(r'<td role="cell" class="row-error" colspan="\d+">(.*?)</td>')
ALERT = re.compile(r'<div class="error-line" role="alert">\s*<div>(.*?)</div>', re.DOTALL)


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
    assert set(image.info) <= {"original_size", "notes"}
    assert all(is_one_line(note) for note in image.info.get("notes", ()))
    return ""


def peak() -> float:
    """The most memory that this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def uploaded(page, chosen: list[Attack]) -> list[tuple[Attack, str]]:
    """Sent as one upload where the server takes that, and one by one where it refuses something of it."""
    try:
        paths = upload_all(page.http, [(attack.name, attack.data) for attack in chosen])
    except RefusedError as refused:
        if not str(refused).startswith(("400 ", "413 ")):
            raise
        return [pair for attack in chosen for pair in uploaded(page, [attack])] if len(chosen) > 1 else []
    return list(zip(chosen, paths, strict=True))


def groups(items: list, size: int) -> list[list]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def lists(sent: list[tuple[Attack, str]]) -> list[list[tuple[Attack, str]]]:
    """Files together, and each archive alone, since the number of radiographs in a list is bounded."""
    archives = [pair for pair in sent if pair[0].kind == "archive"]
    return groups([pair for pair in sent if pair not in archives], AT_ONCE) + [[pair] for pair in archives]


@pytest.fixture(scope="module")
def sent(page, sample) -> list[tuple[Attack, str]]:
    """All of the sample as uploads."""
    return [pair for group in groups(sample, AT_ONCE) for pair in uploaded(page, group)]


@pytest.fixture
def still_right(page, capfd):
    """Whatever a test does to the page, it is right afterwards, kept within bounds, and has logged nothing of it."""
    before = peak()
    yield
    good = valid_files()["gray.png"]
    assert score(page.http, good) == page.alone.predict(good).probabilities
    assert peak() - before < MAX_MIB
    log = "".join(capfd.readouterr())
    assert "Traceback" not in log
    assert NAME not in log
    assert NUMBER not in log


def lines_of(html: str) -> list[str]:
    """What the page says was wrong, each view of a study for itself."""
    alerts = "".join(ALERT.findall(html)).replace('<b class="given"></b>', "")
    found = [*re.findall(r"<p>(.*?)</p>", alerts), *re.findall(r"View \d+ has no scores: (.*?)</li>", html)]
    lines = [unescape(line) for line in found]
    return [part for line in lines for part in re.split(r" ?View \d+ \(film\) has no scores: ", line) if part]


class Clock:
    """Processor time of this process, in which the server runs; a busy machine makes nothing slow."""

    def __enter__(self) -> None:
        self.start = time.process_time()

    def __exit__(self, *_: object) -> None:
        assert time.process_time() - self.start < MAX_SECONDS


def test_the_sample_is_large_and_the_same_every_time(sample, sent):
    assert len(sample) >= len(sent) >= 300
    assert list(mutants(0, 30)) == list(mutants(0, 30)) == sample[-250:-220]
    assert list(mutants(1, 30)) != list(mutants(0, 30))


def test_what_the_attacks_are_made_of_is_read():
    for data in valid_files().values():
        assert read_radiograph(data).size == (48, 48)


def test_the_reader_refuses_in_one_line_or_reads_and_stays_small(sample):
    before = peak()
    refusals = []
    for attack in sample:
        with Clock():
            message = refusal(attack)
        if message:
            refusals.append(message)
            assert is_one_line(message), (attack.kind, attack.name, message)
    assert len(refusals) > len(sample) // 3
    assert peak() - before < MAX_MIB


@pytest.mark.parametrize("kind", ["bomb", "not an image"])
def test_bombs_and_what_is_no_image_are_refused(sample, kind):
    found = [attack for attack in sample if attack.kind.startswith(kind)]
    assert len(found) > 10
    for attack in found:
        with pytest.raises(RadiographError, match=r"^[^\n]{20,200}$"):
            read_radiograph(attack.data)


@pytest.mark.usefixtures("still_right")
def test_every_attack_is_a_row_or_one_line_at_the_batch_endpoint(page, sent):
    num_refused = 0
    for group in lists(sent):
        with Clock():
            try:
                rows = ask(page.http, "batch", [{"path": path} for _, path in group])
            except RefusedError as refused:
                rows = [{"file": 1, "error": str(refused), "observations": None}]
        assert {row["file"] for row in rows} == set(range(1, len(group) + 1))
        for row in rows:
            assert (row["error"] is None) != (row["observations"] is None)
            assert row["error"] is None or is_one_line(row["error"]), group[row["file"] - 1][0]
        num_refused += sum(row["error"] is not None for row in rows)
    assert num_refused > len(sent) // 3


@pytest.mark.usefixtures("still_right")
def test_every_attack_is_a_row_or_one_line_in_the_pages_list(page, sent):
    num_refused = 0
    visitor = Visitor(page.http)
    for group in lists(sent):
        with Clock():
            shown = visitor.act("file", "upload", [as_upload(path, "film") for _, path in group])
            table = visitor.scored_list() if shown.get("list") else ""
        errors = [unescape(text) for text in ROW_ERROR.findall(table)] or lines_of(shown.get("message", ""))
        assert table.count(" data-place=") >= len(group) or errors or shown["result"]
        assert all(map(is_one_line, errors)), errors
        num_refused += len(errors)
    assert num_refused > len(sent) // 3


@pytest.mark.usefixtures("still_right")
def test_every_attack_is_a_view_or_one_line_in_the_pages_study(page, sent):
    visitor = Visitor(page.http)
    for group in groups(sent, MAX_VIEWS):
        if len(group) == 1 or any(attack.kind == "archive" for attack, _ in group):
            continue  # of an archive there may be more views than a study takes
        with Clock():
            visitor.act("file", "upload", [as_upload(path, "film") for _, path in group])
            shown = visitor.act("list-status", "study", None)
        text = " ".join(shown.values())
        assert NAME not in text
        assert NUMBER not in text
        lines = lines_of(text)
        assert all(map(is_one_line, lines)), (group, lines)
        assert len(lines) == len(group) or shown["result"]


def chosen_singly(sent: list[tuple[Attack, str]]) -> list[tuple[Attack, str]]:
    return [pair for number, pair in enumerate(sent) if pair[0].kind == "identity" or number % SINGLY == 0]


@pytest.mark.usefixtures("still_right")
def test_attacks_one_by_one_are_scores_or_one_line_at_the_endpoint(page, sent):
    for attack, path in chosen_singly(sent):
        with Clock():
            try:
                answer = str(ask(page.http, "predict", {"path": path}))
            except RefusedError as refused:
                answer = str(refused)
                assert is_one_line(answer), (attack.kind, attack.name, answer)
        assert NAME not in answer
        assert NUMBER not in answer


@pytest.mark.usefixtures("still_right")
def test_attacks_one_by_one_are_scores_or_one_line_in_the_pages_viewer(page, sent):
    visitor = Visitor(page.http)
    for attack, path in chosen_singly(sent):
        with Clock():
            shown = visitor.act("file", "upload", [as_upload(path, attack.name)])
        if shown["list"]:
            continue  # an archive of several
        lines = lines_of(shown["message"])
        assert len(lines) == (0 if shown["result"] else 1)
        assert all(map(is_one_line, lines)), (attack.kind, attack.name, lines)
        text = " ".join(shown.values())
        assert NAME not in text
        assert NUMBER not in text


@pytest.mark.usefixtures("still_right")
def test_a_batch_of_attacks_is_a_row_each_and_the_good_ones_are_scored(page, sample):
    buffer = io.BytesIO()
    chosen = [attack for attack in sample if attack.kind.startswith(("mutant", "odd"))][:60]
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, attack in enumerate(chosen):
            archive.writestr(f"{number:03d}.bad", attack.data)
        archive.writestr("999.png", valid_files()["gray.png"])
    rows = ask(page.http, "batch", [{"path": upload(page.http, buffer.getvalue())}])
    assert len(rows) == 61
    assert rows[-1]["observations"]
    assert all((row["error"] is None) != (row["observations"] is None) for row in rows)
