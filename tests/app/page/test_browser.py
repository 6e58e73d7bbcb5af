"""The whole page in a headless Chromium, without an error in its console or a request to anyone else."""

import base64
import csv
import io
import re
import zipfile
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from chexpert_hf import DISCLAIMER, OBSERVATIONS, CheXpertClassifier
from chexpert_hf.app.demo import build_demo, look
from chexpert_hf.app.page.html import clinical_order
from chexpert_hf.app.server.launch import serving
from tests.app.page.conftest import (
    BROKEN_PNG,
    EMPTY,
    EXAMPLES,
    JUDGED,
    REFUSAL,
    SLOW,
    WARNING,
    encoded,
    phantom_gray,
    zipped,
)
from tests.radiographs.test_dicom import NAME, NUMBER, make_dicom

pytestmark = pytest.mark.browser

SINGLE, STUDY = "#single-result", "#study-result"


def upload(page: Any, field: str, *contents: tuple[str, bytes]) -> None:
    page.locator(f"#{field} input[type=file]").wait_for(state="attached")
    page.set_input_files(
        f"#{field} input[type=file]",
        [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in contents],
    )


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def wait_for_result(page: Any, place: str = SINGLE) -> str:
    """Until the map of a result is drawn; its mark, which tells it from others."""
    page.wait_for_function(
        "place => document.querySelector(place + ' .heat')?.dataset.drawn && "
        "document.querySelector(place + ' .thumbnail-note')?.textContent",
        arg=place,
    )
    return drawn(page, place)


def drawn(page: Any, place: str = SINGLE) -> str:
    return page.locator(f"{place} .heat").get_attribute("data-drawn")


def wait_for_other(page: Any, mark: str, place: str = SINGLE) -> str:
    page.wait_for_function(
        "([place, old]) => (document.querySelector(place + ' .heat')?.dataset.drawn ?? old) !== old", arg=[place, mark]
    )
    return wait_for_result(page, place)


def shown_scores(page: Any, place: str = SINGLE) -> dict[str, str]:
    names = page.locator(f"{place} .score-name").all_inner_texts()
    return dict(zip(names, page.locator(f"{place} .score-value").all_inner_texts(), strict=True))


def rounded(probabilities: Any) -> dict[str, str]:
    return {name: f"{score:.3f}" for name, score in probabilities.items()}


def heat_pixels(page: Any, place: str = SINGLE) -> np.ndarray:
    """The drawn map, `(height, width, 4)`."""
    url = page.evaluate("place => document.querySelector(place + ' .heat').toDataURL()", place)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))


def no_request(page: Any) -> list[str]:
    """Grows by each request from now on."""
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if request.url.startswith("http") else None)
    return requests


# One image


def test_upload_shows_all_scores_of_predict(page: Any, classifier: CheXpertClassifier, phantom_png: bytes) -> None:
    upload(page, "file", ("IM0001", phantom_png))  # no suffix, as on the CDs of hospitals
    wait_for_result(page)
    expected = classifier.predict(phantom_png)
    assert shown_scores(page) == rounded(expected.probabilities)
    shown = list(shown_scores(page).values())
    assert shown == sorted(shown, reverse=True)
    assert DISCLAIMER in page.inner_text(SINGLE)
    assert "Not scored by this model: Pleural Other, Fracture." in page.inner_text(SINGLE)
    assert "IM0001" not in page.content()
    page.get_by_label("Clinical order").check()
    assert tuple(shown_scores(page)) == JUDGED == tuple(clinical_order(JUDGED))
    page.get_by_label("By probability").check()
    assert list(shown_scores(page).values()) == shown


def test_dicom_and_16_bit_files_are_scored_and_the_patient_appears_nowhere(
    page: Any, classifier: CheXpertClassifier, capfd: pytest.CaptureFixture[str]
) -> None:
    deep = phantom_gray().astype(np.uint16) * 16
    dicom = make_dicom(deep, BitsStored=12, PhotometricInterpretation="MONOCHROME1", AccessionNumber=NUMBER)
    assert NAME.encode() in dicom
    mark = ""
    for name, data in ((f"{NAME}.dcm", dicom), (NAME, dicom[:-2] + b"\xff\x0f"), (f"{NAME}.png", encoded(deep * 7))):
        upload(page, "file", (name, data))
        mark = wait_for_other(page, mark) if mark else wait_for_result(page)
        assert shown_scores(page) == rounded(classifier.predict(data).probabilities)
        assert not any(word in page.content() for word in (NAME, NUMBER))  # "Doe" alone comes up in images
        assert "Doe" not in page.inner_text("body")
    log = "".join(capfd.readouterr())
    assert not any(word in log for word in ("Doe", NUMBER, "Traceback"))


def test_drawn_map_is_that_of_predict(page: Any, classifier: CheXpertClassifier, phantom_png: bytes) -> None:
    upload(page, "file", ("a.png", phantom_png))
    wait_for_result(page)
    name = page.locator(f"{SINGLE} .score[aria-pressed=true] .score-name").inner_text()
    levels = heat_pixels(page)[..., 3]
    maps = classifier.predict(phantom_png, saliency=True).maps
    expected = maps.at_size((levels.shape[1], levels.shape[0]))[name] * 255
    assert levels.max() > 100
    np.testing.assert_allclose(levels, expected, atol=1.6)


def test_choices_redraw_without_asking_the_server(page: Any, phantom_png: bytes, forward_passes: list[int]) -> None:
    upload(page, "file", ("a.png", phantom_png))
    mark = wait_for_result(page)
    scores, requests = shown_scores(page), no_request(page)
    page.locator(f"{SINGLE} .score", has_text="Pleural Effusion").click()
    assert drawn(page) != mark
    assert page.locator("#single-observation").input_value() == str(JUDGED.index("Pleural Effusion"))
    assert "Fluid between the lung and the chest wall." in page.inner_text(f"{SINGLE} .map-text")
    page.locator("#single-observation").select_option(label=EMPTY)
    assert page.locator(f"{SINGLE} .score[aria-pressed=true] .score-name").inner_text() == EMPTY
    assert "The map is empty" in page.inner_text(f"{SINGLE} .map-text")
    assert heat_pixels(page)[..., 3].max() == 0
    page.locator(f"{SINGLE} .thumbnail", has_text="Cardiomegaly").click()
    assert page.locator(f"{SINGLE} .score[aria-pressed=true] .score-name").inner_text() == "Cardiomegaly"
    assert "empty map" in page.locator(f"{SINGLE} .thumbnail", has_text=EMPTY).inner_text()
    weak = heat_pixels(page)[..., 3].max()
    page.get_by_label("Each map on its own scale").check()
    assert heat_pixels(page)[..., 3].max() >= 250 > weak
    page.locator("#single-opacity").fill("90")
    assert page.locator(f"{SINGLE} .heat").evaluate("heat => heat.style.opacity") == "0.9"
    assert page.inner_text(f"{SINGLE} .opacity-value") == "90 %"
    assert shown_scores(page) == scores
    assert requests == []
    assert forward_passes == [1]


def test_both_images_zoom_together(page: Any, phantom_png: bytes) -> None:
    upload(page, "file", ("a.png", phantom_png))
    wait_for_result(page)

    def transforms() -> set[str]:
        return set(page.locator(f"{SINGLE} .layers").evaluate_all("items => items.map(item => item.style.transform)"))

    (fitted,) = transforms()
    page.get_by_role("button", name="Zoom in").click()
    (zoomed,) = transforms()
    assert "scale(1.5)" in zoomed
    box = page.locator(f"{SINGLE} .original .stage").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 80)
    page.mouse.up()
    (moved,) = transforms()
    assert moved != zoomed
    assert "scale(1.5)" in moved
    page.get_by_role("button", name="Fit the image").click()
    assert transforms() == {fitted}


def test_activations_come_when_asked_for(page: Any, phantom_png: bytes) -> None:
    upload(page, "file", ("a.png", phantom_png))
    wait_for_result(page)
    assert page.locator(".activations").count() == 0
    page.get_by_role("button", name="Show feature activations").click()
    page.locator("#single-activations .stage-row").first.wait_for()
    assert "dense block 2" in page.inner_text("#single-activations")
    upload(page, "file", ("broken.png", BROKEN_PNG))
    page.get_by_role("alert").wait_for()
    assert page.locator(".activations").count() == 0  # not beside another radiograph


def test_report_prints_on_one_page(page: Any, chromium: Any, phantom_png: bytes, tmp_path: Any) -> None:
    upload(page, "file", ("doe_jane.png", phantom_png))
    wait_for_result(page)
    for _ in range(2):
        with page.expect_download() as download:
            page.get_by_role("button", name="Download a report").click()
        assert download.value.suggested_filename == "report.html"
    download.value.save_as(tmp_path / "report.html")
    report = (tmp_path / "report.html").read_text()
    assert DISCLAIMER in report
    assert "doe_jane" not in report
    paper = chromium.new_page()
    paper.goto((tmp_path / "report.html").as_uri())
    for size in ("A4", "Letter"):
        assert len(re.findall(rb"/Type\s*/Page[^s]", paper.pdf(format=size, print_background=True))) == 1
    paper.close()


def test_broken_file_gets_one_line_and_the_page_goes_on(
    page: Any, phantom_png: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    upload(page, "file", ("a.png", phantom_png))
    mark = wait_for_result(page)
    upload(page, "file", ("doe_jane.png", BROKEN_PNG))
    page.get_by_role("alert").wait_for()
    assert re.fullmatch(r"The PNG image is damaged.*\.", page.get_by_role("alert").inner_text())
    assert page.locator(".score").count() == 0  # no scores of the file before beside it
    assert "doe_jane" not in page.content()
    upload(page, "file", ("a.png", phantom_png))
    assert wait_for_other(page, mark)
    assert page.get_by_role("alert").count() == 0
    log = "".join(capfd.readouterr())
    assert "Traceback" not in log
    assert "doe_jane" not in log


def test_refused_image_is_scored_on_request_and_warnings_stand_above(
    page: Any, blank_png: bytes, warned_png: bytes
) -> None:
    upload(page, "file", ("cat.png", blank_png))
    page.get_by_role("alert").wait_for()
    assert REFUSAL in page.inner_text("#single-message")
    assert page.locator(".score").count() == 0
    page.get_by_role("button", name="Score it anyway").click()
    mark = wait_for_result(page)
    assert REFUSAL in page.inner_text(f"{SINGLE} .notes")
    upload(page, "file", ("b.png", warned_png))
    wait_for_other(page, mark)
    assert WARNING in page.inner_text(f"{SINGLE} .notes")
    assert page.locator("#single-message").is_hidden()


def test_image_is_pasted_from_the_clipboard(page: Any, classifier: CheXpertClassifier, phantom_png: bytes) -> None:
    page.evaluate(
        """async data => {
            const blob = await (await fetch(data)).blob();
            await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }""",
        "data:image/png;base64," + base64.b64encode(phantom_png).decode(),
    )
    page.keyboard.press("Control+V")
    wait_for_result(page)
    # The clipboard encodes images anew, in colour and without loss.
    assert shown_scores(page) == rounded(classifier.predict(phantom_png).probabilities)


def test_file_is_dropped(page: Any, phantom_png: bytes) -> None:
    transfer = page.evaluate_handle(
        """data => {
            const transfer = new DataTransfer();
            const content = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
            transfer.items.add(new File([content], "IM0002"));
            return transfer;
        }""",
        base64.b64encode(phantom_png).decode(),
    )
    page.locator("#file button[aria-dropeffect]").dispatch_event("drop", {"dataTransfer": transfer})
    wait_for_result(page)


def test_example_goes_the_same_way_as_an_upload(page: Any, classifier: CheXpertClassifier) -> None:
    page.locator(".example", has_text=EXAMPLES[1].stem).click()
    wait_for_result(page)
    assert shown_scores(page) == rounded(classifier.predict(EXAMPLES[1].read_bytes()).probabilities)


def test_visitors_do_not_see_each_others_radiographs(page: Any, address: str, phantom_png: bytes) -> None:
    upload(page, "file", ("a.png", phantom_png))
    wait_for_result(page)
    scores = shown_scores(page)
    other = page.context.new_page()
    other.goto(address)
    other.locator(".example").first.click()
    wait_for_result(other)
    assert shown_scores(other) != scores
    assert shown_scores(page) == scores
    other.close()


def test_page_is_used_by_keyboard_alone(page: Any) -> None:
    def focused() -> str:
        return page.evaluate(
            """() => {
                const item = document.activeElement;
                return `${item.tagName} ${item.className} ${item.id}`;
            }"""
        )

    def tab_to(what: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if what in focused():
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"no focus to be seen on {focused()}"
                return
        pytest.fail(f"Tab never reaches {what}")

    tab_to("example")
    page.keyboard.press("Enter")
    mark = wait_for_result(page)
    tab_to("BUTTON score")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert drawn(page) != mark
    tab_to("single-observation")
    page.keyboard.press("ArrowDown")
    tab_to("single-opacity")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(f"{SINGLE} .opacity-value") == "55 %"
    tab_to("stage")
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    assert "scale(1.5)" in page.locator(f"{SINGLE} .layers").first.evaluate("item => item.style.transform")
    tab_to("own-scale")
    page.keyboard.press("Space")
    tab_to("thumbnail")
    mark = drawn(page)
    page.keyboard.press("Space")
    assert drawn(page) != mark
    page.get_by_role("tab", name="One image").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.get_by_role("tab", name="A study").get_attribute("aria-selected") == "true"


# A study


def test_study_shows_the_maximum_its_view_and_the_map_there(
    page: Any, classifier: CheXpertClassifier, phantom_png: bytes, other_png: bytes
) -> None:
    open_tab(page, "A study")
    upload(page, "study-files", ("jane1.png", phantom_png), ("jane2.png", BROKEN_PNG), ("jane3.png", other_png))
    wait_for_result(page, STUDY)
    first, third = (classifier.predict(data).probabilities for data in (phantom_png, other_png))
    assert shown_scores(page, STUDY) == rounded({name: max(first[name], third[name]) for name in JUDGED})
    origins = dict(
        zip(
            page.locator(f"{STUDY} .score-name").all_inner_texts(),
            page.locator(f"{STUDY} .score-view").all_inner_texts(),
            strict=True,
        )
    )
    assert origins == {name: "View 1" if first[name] >= third[name] else "View 3" for name in JUDGED}
    assert "View 2 has no scores: The PNG image is damaged" in page.inner_text(STUDY)
    assert "jane" not in page.content()
    pressed = page.locator(f"{STUDY} .view[aria-pressed=true]")
    for name in (next(name for name in JUDGED if origins[name] == view) for view in ("View 1", "View 3")):
        page.locator(f"{STUDY} .score", has=page.get_by_text(name, exact=True)).click()
        assert pressed.inner_text() == origins[name]
    mark = drawn(page, STUDY)
    page.locator(f"{STUDY} .view", has_text="View 1").click()
    assert drawn(page, STUDY) != mark
    assert f"View 1: {first[name]:.3f}" in page.inner_text(f"{STUDY} .map-text")


# Many images


def test_list_scores_sorts_opens_and_downloads(
    page: Any,
    classifier: CheXpertClassifier,
    phantom_png: bytes,
    other_png: bytes,
    blank_png: bytes,
    tmp_path: Any,
) -> None:
    open_tab(page, "Many images")
    archive = zipped({"z.png": phantom_png, "y.png": other_png})
    upload(page, "batch-files", ("my.zip", archive), ("<i>a.png", BROKEN_PNG), ("cat.png", blank_png))
    page.locator("#batch-table table").wait_for()

    def names() -> list[str]:
        return page.locator("#batch-table tbody .file-name > span:first-child").all_inner_texts()

    assert names() == ["my.zip/y.png", "my.zip/z.png", "<i>a.png", "cat.png"]
    assert "2 of 4 radiographs scored, 2 without scores" in page.inner_text("#batch-table")
    assert "The PNG image is damaged" in page.inner_text("#batch-table")
    assert REFUSAL in page.inner_text("#batch-table")
    page.get_by_role("button", name="File", exact=True).click()
    assert names() == sorted(names(), key=str.lower)
    assert page.locator("#batch-table th[aria-sort=ascending]").inner_text().startswith("File")
    scores = {
        f"my.zip/{letter}.png": classifier.predict(data)
        for letter, data in zip("zy", (phantom_png, other_png), strict=True)
    }
    page.get_by_role("button", name="Cardiomegaly", exact=True).click()
    by_score = sorted(scores, key=lambda name: -scores[name].probabilities["Cardiomegaly"])
    assert names()[:2] == by_score
    assert set(names()[2:]) == {"<i>a.png", "cat.png"}  # without scores, at the end
    page.get_by_role("button", name="Cardiomegaly", exact=True).click()
    assert names()[:2] == by_score[::-1]

    with page.expect_download() as download:
        page.get_by_role("button", name="Download scores (CSV)").click()
    assert download.value.suggested_filename == "scores.csv"
    download.value.save_as(tmp_path / "scores.csv")
    table = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert float(table[1]["Cardiomegaly"]) == pytest.approx(
        scores["my.zip/z.png"].probabilities["Cardiomegaly"], abs=1e-6
    )
    page.get_by_role("button", name="Prepare overlays (ZIP)").click()
    page.locator("#batch-archive").wait_for()
    with page.expect_download() as download:
        page.locator("#batch-archive").click()
    download.value.save_as(tmp_path / "overlays.zip")
    with zipfile.ZipFile(tmp_path / "overlays.zip") as overlays:
        assert overlays.testzip() is None
        assert {name.split("/")[0] for name in overlays.namelist()} == {"0001_y", "0002_z", "README.txt"}

    page.get_by_role("button", name="Open radiograph 2").click()
    wait_for_result(page)
    assert page.get_by_role("tab", name="One image").get_attribute("aria-selected") == "true"
    assert shown_scores(page) == rounded(scores["my.zip/z.png"].probabilities)


def test_csv_has_a_row_for_each_file_in_upload_order_whatever_the_table_is_sorted_by(
    page: Any, classifier: CheXpertClassifier, phantom_png: bytes, tmp_path: Any
) -> None:
    image = Image.open(io.BytesIO(phantom_png))
    contents = {
        f"{number * 7 % 24:02d}.png": encoded(np.asarray(image.resize((90 + number, 100)))) for number in range(24)
    }
    names = list(contents)
    contents[names[17]] = BROKEN_PNG
    open_tab(page, "Many images")
    upload(page, "batch-files", *contents.items())
    page.locator("#batch-table table").wait_for()
    page.get_by_role("button", name="File", exact=True).click()
    assert page.locator("#batch-table tbody .file-name > span:first-child").all_inner_texts() == sorted(names)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download scores (CSV)").click()
    download.value.save_as(tmp_path / "scores.csv")
    table = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [row["file"] for row in table] == names
    assert [number for number, row in enumerate(table) if row["error"].startswith("The PNG image is damaged")] == [17]
    last = classifier.predict(contents[names[-1]]).probabilities
    assert {name: float(table[-1][name]) for name in JUDGED} == pytest.approx(last, abs=1e-6)
    page.get_by_role("button", name="Open radiograph 24", exact=True).click()
    wait_for_result(page)
    assert shown_scores(page) == rounded(last)


def pixels_of(element: Any) -> np.ndarray:
    """What the browser draws of an element, `(height, width, 3)`."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB")).astype(int)


def is_blue(pixels: np.ndarray) -> np.ndarray:
    """Where the accent colour of the light or dark theme is drawn, `(height, width)`."""
    return pixels[..., 2] - pixels[..., 0] > 60


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_checkbox_shows_its_box_and_whether_it_is_checked(page: Any, phantom_png: bytes) -> None:
    upload(page, "file", ("a.png", phantom_png))
    wait_for_result(page)
    box = page.locator(f"{SINGLE} .check input")
    box.scroll_into_view_if_needed()
    unchecked = pixels_of(box)
    assert unchecked.std() > 5  # a frame, not the background alone
    assert is_blue(unchecked).mean() < 0.1
    box.check()
    assert is_blue(pixels_of(box)).mean() > 0.4


def test_arrows_of_sorted_columns_point_up_for_ascending_and_down_for_descending(
    page: Any, phantom_png: bytes, other_png: bytes
) -> None:
    open_tab(page, "Many images")
    upload(page, "batch-files", ("a.png", phantom_png), ("b.png", other_png))
    page.locator("#batch-table table").wait_for()
    for name in ("File", "Pneumonia"):
        button = page.locator("#batch-table thead button", has_text=name)
        for _ in range(2):
            button.click()
            page.mouse.move(0, 0)
            rows = np.flatnonzero(is_blue(pixels_of(button)).any(axis=1))
            widths = is_blue(pixels_of(button)).sum(axis=1)[rows[0] : rows[-1] + 1]
            is_up = bool(widths[: len(widths) // 2].sum() < widths[-(len(widths) // 2) :].sum())
            order = button.locator("xpath=..").get_attribute("aria-sort")
            assert is_up is (order == "ascending"), (name, order)


def test_of_several_files_one_is_scored_and_the_others_are_mentioned(
    page: Any, classifier: CheXpertClassifier, phantom_png: bytes, other_png: bytes
) -> None:
    upload(page, "file", ("<i>a.png", phantom_png), ("b.png", other_png), ("c.png", other_png))
    wait_for_result(page)
    assert shown_scores(page) == rounded(classifier.predict(phantom_png).probabilities)
    note = page.locator("#single-message .notes").inner_text()
    assert note.startswith("This tab scores one image: <i>a.png. 2 other files were not read;")
    upload(page, "file", ("b.png", other_png))
    page.locator("#single-message .notes").wait_for(state="hidden")


def test_images_that_the_gate_refuses_are_listed_with_scores_on_request(page: Any, blank_png: bytes) -> None:
    open_tab(page, "Many images")
    page.get_by_label("Also score images that do not look like chest radiographs").check()
    upload(page, "batch-files", ("cat.png", blank_png))
    page.locator("#batch-table table").wait_for()
    assert "1 of 1 radiographs scored" in page.inner_text("#batch-table")


def test_page_answers_while_a_long_list_runs_and_the_list_can_be_stopped(page: Any, phantom_png: bytes) -> None:
    open_tab(page, "Many images")
    small = encoded(np.asarray(Image.open(io.BytesIO(phantom_png)).resize(SLOW)))
    upload(page, "batch-files", ("many.zip", zipped({f"{number:04d}.png": small for number in range(1000)})))
    page.get_by_role("progressbar").wait_for()
    open_tab(page, "One image")
    page.locator(".example").first.click()
    wait_for_result(page)
    open_tab(page, "Many images")
    assert page.get_by_role("progressbar").is_visible()  # it has not ended meanwhile
    page.locator('[role="progressbar"]:not([aria-valuenow="0"])').wait_for()  # stopped before, it would show no table
    page.get_by_role("button", name="Stop").click()
    page.locator("#batch-table table").wait_for()
    assert 0 < page.locator("#batch-table tbody tr").count() < 1000


# The look


def violations(page: Any) -> list[str]:
    """What axe-core finds, from serious on, once nothing is half transparent any more, as it is while it is awaited."""
    page.wait_for_function(
        """() => {
            let item = document.querySelector(".activations");
            while (item && getComputedStyle(item).opacity === "1") item = item.parentElement;
            return item === null;
        }"""
    )
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{item['id']}: {item['nodes'][0]['html'][:200]}" for item in found if item["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_tab_has_a_serious_violation_of_accessibility(
    page: Any, theme: str, phantom_png: bytes, blank_png: bytes, warned_png: bytes
) -> None:
    axe = pytest.importorskip("axe_playwright_python")
    page.evaluate((resources.files(axe) / "axe.min.js").read_text())
    assert page.evaluate("document.body.classList.contains('dark')") is (theme == "dark")
    upload(page, "file", ("a.png", warned_png))
    wait_for_result(page)
    page.get_by_role("button", name="Show feature activations").click()
    page.locator(".stage-row").first.wait_for()
    assert violations(page) == []
    upload(page, "file", ("a.png", blank_png))
    page.get_by_role("alert").wait_for()
    assert violations(page) == []
    open_tab(page, "A study")
    upload(page, "study-files", ("a.png", phantom_png), ("b.png", BROKEN_PNG), ("c.png", blank_png))
    wait_for_result(page, STUDY)
    assert violations(page) == []
    open_tab(page, "Many images")
    upload(page, "batch-files", ("a.png", phantom_png), ("b.png", BROKEN_PNG))
    page.locator("#batch-table table").wait_for()
    assert violations(page) == []
    open_tab(page, "The model")
    page.locator(".about-table").wait_for()
    assert violations(page) == []


def test_page_fits_a_phone(page: Any, phantom_png: bytes) -> None:
    page.set_viewport_size({"width": 390, "height": 844})

    def width() -> int:
        return int(page.evaluate("document.documentElement.scrollWidth"))

    upload(page, "file", ("a.png", phantom_png))
    wait_for_result(page)
    assert width() <= 390
    bars = page.locator(f"{SINGLE} .score-bar")
    assert min(bars.nth(row).bounding_box()["width"] for row in range(len(JUDGED))) > 250
    open_tab(page, "A study")
    upload(page, "study-files", ("a.png", phantom_png), ("b.png", phantom_png))
    wait_for_result(page, STUDY)
    assert width() <= 390
    open_tab(page, "Many images")
    upload(page, "batch-files", (f"{'long_' * 30}.png", phantom_png), ("b.png", BROKEN_PNG))
    page.locator("#batch-table table").wait_for()
    assert width() <= 390
    open_tab(page, "The model")
    page.locator(".about-table").wait_for()
    assert width() <= 390
    assert all(name in page.inner_text(".about") for name in OBSERVATIONS)


def test_an_open_page_reloads_once_another_server_answers_where_it_came_from(chromium, classifier):
    build = lambda: build_demo(classifier)  # noqa: E731
    page = chromium.new_page()
    with serving(build, classifier, **look(reloads=True)) as first:
        page.goto(first)
        page.locator("#file input[type=file]").wait_for(state="attached")
        page.wait_for_timeout(2500)
        page.evaluate("window.isOld = true")
        page.wait_for_timeout(2500)
        assert page.evaluate("window.isOld")  # as long as the server is the same
    with serving(build, classifier, port=urlsplit(first).port, **look()) as second:
        page.wait_for_function("!window.isOld")
        assert page.url == second
    page.close()
