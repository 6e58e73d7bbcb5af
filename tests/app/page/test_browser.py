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
import pandas as pd
import pytest
from PIL import Image

from chexpert_hf import DISCLAIMER, OBSERVATIONS, CheXpertClassifier
from chexpert_hf.app.demo import appearance, build_demo
from chexpert_hf.app.page.html import asset
from chexpert_hf.app.server.launch import serving
from chexpert_hf.labels import CHEXPERT
from tests.app.page.conftest import (
    BROKEN_PNG,
    EMPTY,
    EXAMPLES,
    JUDGED,
    MAPS_NOTE,
    REFUSAL,
    SLOW,
    WARNING,
    encoded,
    phantom_gray,
    zipped,
)
from tests.radiographs.test_dicom import NAME, NUMBER, make_dicom

pytestmark = pytest.mark.browser

FINDINGS = [name for name in JUDGED if name != "No Finding"]


def upload(page: Any, *contents: tuple[str, bytes]) -> None:
    page.locator("#file input[type=file]").wait_for(state="attached")
    page.set_input_files(
        "#file input[type=file]",
        [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in contents],
    )


def wait_for_result(page: Any) -> str:
    """Until the map of a result is drawn; its mark, which tells it from others."""
    page.wait_for_function("document.querySelector('#result .heat')?.dataset.drawn")
    return drawn(page)


def drawn(page: Any) -> str:
    return page.locator("#result .heat").get_attribute("data-drawn")


def wait_for_other(page: Any, mark: str) -> str:
    page.wait_for_function("old => (document.querySelector('#result .heat')?.dataset.drawn ?? old) !== old", arg=mark)
    return wait_for_result(page)


def wait_for_list(page: Any, timeout: float = 15_000) -> None:
    """Until all rows of a list are scored and here."""
    page.wait_for_function(
        """() => {
            const summary = document.querySelector(".list-summary strong")?.textContent;
            const count = Number(summary?.split(" of ")[1].replace(",", ""));
            return document.querySelectorAll("#list tbody tr").length === count;
        }""",
        timeout=timeout,
    )


def names_in_list(page: Any) -> list[str]:
    return page.locator("#list tbody tr:visible :is(.row-open, .row-name)").all_text_contents()


def shown_scores(page: Any) -> dict[str, str]:
    names = page.locator("#result .score-name").all_inner_texts()
    return dict(zip(names, page.locator("#result .score-value").all_inner_texts(), strict=True))


def rounded(probabilities: Any) -> dict[str, str]:
    return {name: f"{score:.3f}" for name, score in probabilities.items()}


def thousand(image: bytes, size: tuple[int, int] = SLOW) -> bytes:
    """An archive with an image a thousand times; of the size SLOW, each takes `SLOW_SECONDS`."""
    small = encoded(np.asarray(Image.open(io.BytesIO(image)).resize(size)))
    return zipped({f"{number:04d}.png": small for number in range(1000)})


def canvas_pixels(page: Any, kind: str = "heat") -> np.ndarray:
    """The drawn map, or the radiograph in its gray window, `(height, width, 4)`."""
    url = page.evaluate(
        """kind => {
            const item = document.querySelector(`.viewer .${kind}`);
            const canvas = document.createElement("canvas");
            const { naturalWidth: width = item.width, naturalHeight: height = item.height } = item;
            Object.assign(canvas, { width, height });
            const context = canvas.getContext("2d");
            context.filter = getComputedStyle(item).filter;
            context.drawImage(item, 0, 0);
            return canvas.toDataURL();
        }""",
        kind,
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))


def no_request(page: Any) -> list[str]:
    """Grows by each request from now on."""
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if request.url.startswith("http") else None)
    return requests


# One image


def test_upload_shows_all_scores_of_predict(page: Any, classifier: CheXpertClassifier, phantom_png: bytes) -> None:
    upload(page, ("IM0001", phantom_png))  # no suffix, as on the CDs of hospitals
    wait_for_result(page)
    expected = classifier.predict(phantom_png)
    assert shown_scores(page) == rounded(expected.probabilities)
    *shown, none = shown_scores(page).values()
    assert shown == sorted(shown, reverse=True)
    assert list(shown_scores(page))[-1] == "No Finding"  # apart, at the end
    assert page.inner_text(".disclaimer") == DISCLAIMER
    assert "Not scored by this model: Pleural Other, Fracture." in page.inner_text("#result")
    page.get_by_label("Clinical order").check()
    order = [name for name in CHEXPERT.in_order(JUDGED) if name != "No Finding"]
    assert list(shown_scores(page)) == [*order, "No Finding"]
    page.get_by_label("By probability").check()
    assert list(shown_scores(page).values()) == [*shown, none]


def test_result_replaces_the_start_under_the_files_name_and_new_leads_back(page: Any, phantom_png: bytes) -> None:
    assert page.locator("#start").is_visible()
    upload(page, ("<i>film.png", phantom_png))
    wait_for_result(page)
    assert page.locator("#start").is_hidden()
    assert page.inner_text(".bar-name") == "<i>film.png"
    assert page.inner_text(".verdict").startswith("Above their thresholds: ")
    page.get_by_role("button", name="New radiograph").click()
    page.locator("#start").wait_for()
    assert page.locator("#result .score").count() == 0


def test_dicom_and_16_bit_files_are_scored_and_the_patient_appears_nowhere(
    page: Any, classifier: CheXpertClassifier, capfd: pytest.CaptureFixture[str]
) -> None:
    deep = phantom_gray().astype(np.uint16) * 16
    dicom = make_dicom(deep, BitsStored=12, PhotometricInterpretation="MONOCHROME1", AccessionNumber=NUMBER)
    assert NAME.encode() in dicom
    mark = ""
    for name, data in (("a.dcm", dicom), ("b", dicom[:-2] + b"\xff\x0f"), ("c.png", encoded(deep * 7))):
        upload(page, (name, data))
        mark = wait_for_other(page, mark) if mark else wait_for_result(page)
        assert shown_scores(page) == rounded(classifier.predict(data).probabilities)
        assert not any(word in page.content() for word in (NAME, NUMBER))  # "Doe" alone comes up in images
        assert "Doe" not in page.inner_text("body")
    log = "".join(capfd.readouterr())
    assert not any(word in log for word in ("Doe", NUMBER, "Traceback"))


def test_drawn_map_is_that_of_predict(page: Any, classifier: CheXpertClassifier, phantom_png: bytes) -> None:
    upload(page, ("a.png", phantom_png))
    wait_for_result(page)
    name = page.locator("#result .score[aria-pressed=true] .score-name").inner_text()
    levels = canvas_pixels(page)[..., 3]
    maps = classifier.predict(phantom_png, saliency=True).maps
    expected = maps.at_size((levels.shape[1], levels.shape[0]))[name] * 255
    assert levels.max() > 100
    np.testing.assert_allclose(levels, expected, atol=1.6)


def test_choices_redraw_without_asking_the_server(page: Any, phantom_png: bytes, forward_passes: list[int]) -> None:
    upload(page, ("a.png", phantom_png))
    mark = wait_for_result(page)
    scores, requests = shown_scores(page), no_request(page)
    page.locator("#result .score", has_text="Pleural Effusion").click()
    assert drawn(page) != mark
    assert page.inner_text("#result .map-text").startswith("Pleural Effusion. ")
    assert (
        page.locator(".score-about:visible")
        .all_inner_texts()[0]
        .startswith("Fluid between the lung and the chest wall.")
    )
    page.locator("#result .score", has_text=EMPTY).click()
    assert "The map is empty" in page.inner_text("#result .map-text")
    assert canvas_pixels(page)[..., 3].max() == 0
    assert not page.locator("#result .color-bar").is_visible()  # three times 0.00 otherwise
    page.locator("#result .score", has_text="Cardiomegaly").click()
    assert canvas_pixels(page)[..., 3].max() >= 250  # each map on its own scale
    assert 0 < float(page.locator(".color-bar b").first.inner_text()) < 1
    page.get_by_label("Own scale").uncheck()
    assert canvas_pixels(page)[..., 3].max() < 250
    assert page.locator(".color-bar b").all_inner_texts() == ["1.00", "0.50", "0.00"]
    page.get_by_label("Opacity of the map").fill("90")
    assert page.locator("#result .heat").evaluate("heat => heat.style.opacity") == "0.54"  # below: fainter
    assert shown_scores(page) == scores
    assert requests == []
    assert forward_passes == [1]


def test_rows_show_how_well_their_observation_is_told_on_hover_and_focus(page: Any, phantom_png: bytes) -> None:
    upload(page, ("a.png", phantom_png))
    wait_for_result(page)
    row = page.locator("#result .score", has_text="Cardiomegaly")
    about = page.locator("#result li", has_text="Cardiomegaly").locator(".score-about")
    page.mouse.move(0, 0)
    assert about.is_hidden()
    row.hover()
    assert "The heart is enlarged" in about.inner_text()
    page.mouse.move(0, 0)
    page.locator("#result .score").first.focus()
    while page.evaluate("document.activeElement.innerText").split("\n")[0] != "Cardiomegaly":
        page.keyboard.press("Tab")
    assert about.is_visible()
    assert row.get_attribute("aria-describedby") == about.get_attribute("id")


def test_calls_come_with_how_often_they_were_right_when_tested(
    page: Any, classifier: CheXpertClassifier, phantom_png: bytes
) -> None:
    upload(page, ("a.png", phantom_png))
    wait_for_result(page)
    positives = classifier.predict(phantom_png).positives
    above = [place for place, name in enumerate(JUDGED, start=1) if positives[name] and name != "No Finding"]
    assert len(above) > 1
    shares = [(f"{2000 / (20 + 3 * place):.0f} ({JUDGED[place - 1]})") for place in (above[-1], above[0])]
    tested = f"When tested on 100 studies, {' to '.join(shares)} of 100 such calls were right"
    assert page.inner_text(".verdict").endswith(f"{tested}; where findings are rarer, fewer are.")
    name = JUDGED[above[0] - 1]
    page.locator("#result .score", has_text=name).hover()
    about = page.locator("#result li", has_text=name).locator(".score-about").inner_text()
    assert "Called above: 20 of those with it (sensitivity 0.80, " in about
    assert f"{3 * above[0]} of those without (specificity {1 - 3 * above[0] / 75:.2f}, " in about
    assert "Reference standard: radiologists (phantoms)." in about


def test_film_and_sentence_under_it_say_how_far_to_believe_each_map(page: Any, phantom_png: bytes) -> None:
    upload(page, ("a.png", phantom_png))
    wait_for_result(page)
    for row in page.locator("#result .score").all():
        row.click()
        assert page.locator("#result .maps-note").is_visible()
        assert page.inner_text("#result .maps-note") == MAPS_NOTE
        is_below = "is-below" in row.get_attribute("class").split()
        assert ("below its operating point" in page.inner_text(".stage-name >> nth=0")) is is_below


# The viewer


def transforms(page: Any) -> set[str]:
    return set(page.locator(".viewer .layers").evaluate_all("items => items.map(item => item.style.transform)"))


def scale(page: Any) -> float:
    (transform,) = transforms(page)
    return float(re.search(r"scale\((.*)\)", transform)[1])  # type: ignore[index]


@pytest.fixture
def viewer(page: Any) -> Any:
    """The viewer's module alone, showing a ramp of 200 x 100 pixels and a map of 2 x 2 cells over its right half."""
    page.goto("about:blank")
    page.set_content(f"<style>{asset('page.css')}</style><main></main>")
    source = base64.b64encode(asset("viewer.js").encode()).decode()
    page.evaluate(
        """async (source) => {
            const { Viewer } = await import(`data:text/javascript;base64,${source}`);
            const colors = Uint8Array.from({ length: 768 }, (_, at) => Math.floor(at / 3));
            window.viewer = new Viewer(colors);
            document.querySelector("main").append(viewer.root);
            viewer.root.style.width = "800px";
            document.addEventListener("keydown", (event) => viewer.key(event));
            const canvas = document.createElement("canvas");
            Object.assign(canvas, { width: 200, height: 100 });
            const context = canvas.getContext("2d");
            for (let x = 0; x < 200; x++) {
              context.fillStyle = `rgb(${x},${x},${x})`;
              context.fillRect(x, 0, 1, 100);
            }
            window.ramp = new Image();
            ramp.src = canvas.toDataURL();
            await ramp.decode();
            viewer.show(ramp, "Ramp");
            const levels = Uint8Array.from([0, 128, 0, 128]);
            viewer.setMap({ levels, grid: [2, 2], box: [100, 0, 200, 100], name: "X", text: "" });
        }""",
        source,
    )
    return page


def gray(page: Any) -> np.ndarray:
    return canvas_pixels(page, "film")[50, :, 0].astype(float)


def test_viewer_is_a_module_that_knows_nothing_of_the_page(viewer: Any) -> None:
    np.testing.assert_array_equal(gray(viewer), np.arange(200))
    levels = canvas_pixels(viewer)
    assert levels.shape == (448, 448, 4)
    assert levels[:, -1, 3].min() == 255  # on its own scale
    viewer.get_by_label("Own scale").uncheck()
    assert canvas_pixels(viewer)[:, -1, 3].max() == 128
    source = asset("viewer.js")
    assert not re.search(r"\b(trigger|watch|gradio|fetch|result)\b", source)


def test_map_of_weak_evidence_or_below_its_operating_point_is_fainter_and_the_film_says_so(viewer: Any) -> None:
    def opacity(peak: int, is_faint: bool) -> float:
        viewer.evaluate(
            """([peak, isFaint]) => viewer.setMap({
                levels: Uint8Array.from([0, peak, 0, peak]), grid: [2, 2], box: [100, 0, 200, 100], name: "X", text: "",
                note: "hardly any", isFaint,
            })""",
            [peak, is_faint],
        )
        return float(viewer.locator(".heat").evaluate("heat => heat.style.opacity"))

    assert opacity(255, False) == 0.35  # as the slider says
    assert 0.35 > opacity(100, False) > opacity(5, False) >= 0.15  # still to be seen
    assert canvas_pixels(viewer)[..., 3].max() == 255  # with the colours of its own scale
    assert opacity(255, True) < opacity(255, False)
    assert opacity(100, True) < opacity(100, False)
    assert viewer.inner_text(".stage-name").split("\n") == ["Map of X", "hardly any"]
    viewer.keyboard.press("m")
    assert "hardly any" not in viewer.inner_text(".stage-name")
    viewer.keyboard.press("m")
    viewer.get_by_label("Own scale").uncheck()
    assert opacity(5, False) == 0.35  # its alpha is the evidence


def test_dragging_changes_window_and_level_and_reset_undoes_it(viewer: Any) -> None:
    box = viewer.locator(".stage").first.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(x: float, y: float) -> None:
        viewer.mouse.move(*middle)
        viewer.mouse.down()
        viewer.mouse.move(middle[0] + x, middle[1] + y)
        viewer.mouse.up()
        viewer.evaluate("() => new Promise(requestAnimationFrame)")

    drag(-400, 0)  # half of the stage: the window is half as wide
    state = viewer.inner_text(".stage-state")
    assert state.startswith("W 128 L 128")
    expected = np.clip((np.arange(200) - 127.5) / 127.5 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(gray(viewer), expected, atol=1)
    drag(0, 100)
    assert gray(viewer).sum() < expected.sum()  # a higher level is darker
    viewer.keyboard.press("r")
    viewer.keyboard.press("i")
    np.testing.assert_array_equal(gray(viewer), 255 - np.arange(200))
    viewer.keyboard.press("r")
    np.testing.assert_array_equal(gray(viewer), np.arange(200))


def test_zoom_keeps_the_point_under_the_pointer_and_is_bounded(viewer: Any) -> None:
    box = viewer.locator(".stage").first.bounding_box()
    fitted = scale(viewer)
    assert fitted == pytest.approx(min(box["width"] / 200, box["height"] / 100), rel=1e-3)
    at = box["x"] + 300, box["y"] + box["height"] / 2 + 40

    def under_pointer() -> list[float]:
        return viewer.evaluate(
            """([x, y]) => {
                const box = document.querySelector(".film").getBoundingClientRect();
                return [(x - box.left) / box.width, (y - box.top) / box.height];
            }""",
            at,
        )

    is_kept = """() => {
        const away = new WheelEvent("wheel", { deltaY: 200, bubbles: true, cancelable: true });
        document.querySelector(".stage").dispatchEvent(away);
        return away.defaultPrevented;
    }"""
    pinch = is_kept.replace("deltaY: 200", "deltaY: 200, ctrlKey: true")
    assert viewer.evaluate(pinch) is True  # else the browser would zoom the page
    assert viewer.evaluate(is_kept) is False  # fitted, there is nothing to zoom out of: the page scrolls
    before = under_pointer()
    viewer.mouse.move(*at)
    viewer.mouse.wheel(0, -200)
    viewer.wait_for_function("fitted => viewer.zoom.scale > fitted * 1.3", arg=fitted)
    assert under_pointer() == pytest.approx(before, abs=0.01)
    assert viewer.evaluate(is_kept) is True
    viewer.keyboard.press("1")
    assert scale(viewer) == pytest.approx(max(1, fitted))
    for _ in range(40):
        viewer.keyboard.press("+")
    assert scale(viewer) == pytest.approx(fitted * 12)
    viewer.mouse.move(*at)
    viewer.keyboard.down("Shift")
    viewer.mouse.down()
    viewer.mouse.move(at[0] + 5000, at[1] + 5000)
    viewer.mouse.up()
    viewer.keyboard.up("Shift")
    (corner,) = transforms(viewer)
    assert corner.startswith("translate(0px, 0px)")  # no further than the corner of the image
    viewer.keyboard.press("f")
    assert scale(viewer) == pytest.approx(fitted)


def test_two_fingers_zoom(viewer: Any) -> None:
    fitted = scale(viewer)
    viewer.evaluate(
        """() => {
            const stage = document.querySelector(".stage");
            stage.setPointerCapture = () => {};
            const send = (kind, id, x) => stage.dispatchEvent(
              new PointerEvent(kind, { pointerId: id, pointerType: "touch", clientX: x, clientY: 200, bubbles: true }));
            send("pointerdown", 1, 300);
            send("pointerdown", 2, 400);
            send("pointermove", 2, 500);
        }"""
    )
    assert scale(viewer) == pytest.approx(2 * fitted, rel=1e-3)


def test_map_is_toggled_outlined_and_shown_side_by_side(viewer: Any) -> None:
    heat, outline = viewer.locator(".heat"), viewer.locator(".outline path").last
    viewer.keyboard.press("m")
    assert heat.is_hidden()
    assert viewer.locator(".color-bar").is_hidden()
    viewer.keyboard.press("m")
    assert heat.is_visible()
    assert outline.get_attribute("d") == ""
    viewer.keyboard.press("c")
    places = [float(x) for x, _ in re.findall(r"([\d.-]+) ([\d.-]+)", outline.get_attribute("d"))]
    assert min(places) == pytest.approx(50, abs=1)  # half of the peak lies midway between the cells' centres
    viewer.get_by_label("Threshold of the contour").fill("75")
    places = [float(x) for x, _ in re.findall(r"([\d.-]+) ([\d.-]+)", outline.get_attribute("d"))]
    assert min(places) == pytest.approx(62.5, abs=1)
    assert viewer.locator(".stage:visible").count() == 1
    viewer.keyboard.press("s")
    assert viewer.locator(".stage:visible").count() == 2
    assert len(transforms(viewer)) == 1  # both show the same part
    assert viewer.locator(".stage").nth(1).locator(".heat").count() == 1
    np.testing.assert_array_equal(canvas_pixels(viewer, "stage:nth-child(2) .film")[50, :, 0], np.arange(200))


def test_the_browsers_menu_on_a_radiograph_is_that_of_an_image(viewer: Any) -> None:
    box = viewer.locator(".stage").first.bounding_box()
    at = [box["x"] + 500, box["y"] + box["height"] / 2]  # under the map
    assert viewer.evaluate("([x, y]) => document.elementFromPoint(x, y).className", at) == "film"


def test_keys_are_listed_under_the_question_mark_and_stay_away_from_fields(viewer: Any) -> None:
    viewer.keyboard.press("?")
    text = viewer.get_by_role("dialog", name="Keys and mouse").inner_text()
    for item in viewer.locator(".viewer-bar [aria-keyshortcuts]").all():
        assert item.get_attribute("title").rpartition(" (")[0] in text
        label, word = item.get_attribute("aria-label"), item.inner_text()
        assert label is None or not word.isalnum() or word in label  # who says "click Contour" finds it
    viewer.keyboard.press("Escape")
    viewer.evaluate("document.body.insertAdjacentHTML('beforeend', '<input>')")
    viewer.locator("body > input").focus()
    viewer.keyboard.press("i")
    np.testing.assert_array_equal(gray(viewer), np.arange(200))
    viewer.get_by_label("Own scale").focus()
    viewer.keyboard.press("i")
    np.testing.assert_array_equal(gray(viewer), 255 - np.arange(200))


def test_another_map_does_not_flicker(page: Any, phantom_png: bytes) -> None:
    upload(page, ("a.png", phantom_png))
    wait_for_result(page)
    nodes = "[...document.querySelectorAll('.film, .heat, .stage')]"
    page.evaluate(f"window.before = {nodes}")
    page.keyboard.press("+")
    zoomed = transforms(page)
    page.locator("#result .score", has_text="Cardiomegaly").click()
    assert page.evaluate(f"{nodes}.every((node, at) => node === window.before[at])")
    assert transforms(page) == zoomed


def test_activations_come_when_asked_for(page: Any, phantom_png: bytes) -> None:
    upload(page, ("a.png", phantom_png))
    wait_for_result(page)
    assert page.locator(".activations").count() == 0
    page.get_by_role("button", name="Show feature activations").click()
    page.locator("#activations .stage-row").first.wait_for()
    assert "dense block 2" in page.inner_text("#activations")
    upload(page, ("broken.png", BROKEN_PNG))
    page.get_by_role("alert").wait_for()
    assert page.locator(".activations").count() == 0  # not beside another radiograph


def test_report_has_the_viewer_and_prints_on_one_page(
    page: Any, chromium: Any, phantom_png: bytes, tmp_path: Any
) -> None:
    upload(page, ("doe_jane.png", phantom_png))
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
    logged, asked = [], []
    paper.on("console", lambda message: logged.append(message.text))
    paper.on("pageerror", lambda error: logged.append(str(error)))
    paper.on("request", lambda request: asked.append(request.url))
    paper.goto((tmp_path / "report.html").as_uri())
    for row in (paper.locator(".score").nth(2), paper.locator(".score").first):
        row.click()
        name = row.locator(".score-name").inner_text()
        assert paper.inner_text(".stage-name").startswith(f"Map of {name}")
        assert paper.inner_text(".map-text").startswith(f"{name}.")
    before = paper.locator(".stage").first.screenshot()
    paper.keyboard.press("i")
    assert paper.locator(".stage").first.screenshot() != before  # inverted, in spite of the page's policy
    assert paper.locator(".stills").is_hidden()
    assert logged == []
    assert asked == [paper.url]
    paper.emulate_media(media="print")
    assert paper.locator(".stills figure img").first.is_visible()
    assert paper.locator(".score-name:visible").count() == len(JUDGED)
    assert paper.locator(":is(.viewer, .score-about, .segments):visible").count() == 0
    for size in ("A4", "Letter"):
        assert len(re.findall(rb"/Type\s*/Page[^s]", paper.pdf(format=size, print_background=True))) == 1
    paper.close()
    silent = chromium.new_context(java_script_enabled=False).new_page()
    silent.goto((tmp_path / "report.html").as_uri())
    assert silent.locator(".stills figure").count() > 1
    assert silent.locator(".stills").is_visible()
    assert silent.locator(":is(.viewer, .segments, .skip):visible").count() == 0
    silent.context.close()


def test_broken_file_gets_one_line_and_the_page_goes_on(
    page: Any, phantom_png: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    upload(page, ("a.png", phantom_png))
    mark = wait_for_result(page)
    upload(page, ("doe_jane.png", BROKEN_PNG))
    page.get_by_role("alert").wait_for()
    assert re.fullmatch(r"doe_jane\.png: The PNG image is damaged.*\.", page.get_by_role("alert").inner_text())
    assert page.locator(".score").count() == 0  # no scores of the file before beside it
    upload(page, ("a.png", phantom_png))
    assert wait_for_other(page, mark)
    assert page.get_by_role("alert").count() == 0
    log = "".join(capfd.readouterr())
    assert "Traceback" not in log
    assert "doe_jane" not in log


def test_refused_image_is_scored_on_request_and_warnings_stand_above(
    page: Any, blank_png: bytes, warned_png: bytes
) -> None:
    upload(page, ("cat.png", blank_png))
    page.get_by_role("alert").wait_for()
    assert page.inner_text("#message").startswith(f"cat.png: {REFUSAL}")
    assert page.locator(".score").count() == 0
    page.get_by_role("button", name="Score it anyway").click()
    mark = wait_for_result(page)
    assert REFUSAL in page.inner_text("#result .notes")
    assert page.locator("#result .notes").bounding_box()["y"] < page.locator(".verdict").bounding_box()["y"]
    upload(page, ("b.png", warned_png))
    wait_for_other(page, mark)
    assert WARNING in page.inner_text("#result .notes")
    assert page.locator("#message").is_hidden()


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
    upload(page, ("a.png", phantom_png))
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
    wait_for_result(page)
    page.keyboard.press("m")
    assert page.locator("#result .heat").is_hidden()
    page.keyboard.press("m")
    tab_to("stage")
    fitted = scale(page)
    page.keyboard.press("+")
    assert scale(page) == pytest.approx(1.5 * fitted)
    before = transforms(page)
    page.keyboard.press("ArrowRight")
    assert transforms(page) != before
    tab_to("BUTTON score")
    page.keyboard.press("Tab")
    mark = drawn(page)
    page.keyboard.press("Enter")
    assert drawn(page) != mark
    mark = drawn(page)
    page.keyboard.press("ArrowDown")
    assert drawn(page) != mark
    assert "score" in focused()
    tab_to("link")
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog", name="The model").is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog", name="The model").is_hidden()


# The frame


def drop(page: Any, place: str, script: str, *arguments: str) -> None:
    """Drops on a place what a script puts into a DataTransfer named `transfer`."""
    transfer = page.evaluate_handle(
        "async arguments => { const transfer = new DataTransfer();" + script + "; return transfer; }", list(arguments)
    )
    page.locator(place).dispatch_event("drop", {"dataTransfer": transfer, "bubbles": True})


ADD_FILE = """const content = Uint8Array.from(atob(arguments[0]), letter => letter.charCodeAt(0));
    transfer.items.add(new File([content], arguments[1]))"""


def test_files_are_dropped_anywhere_also_on_a_result(page: Any, phantom_png: bytes, other_png: bytes) -> None:
    drop(page, "h1", ADD_FILE, base64.b64encode(phantom_png).decode(), "first")
    mark = wait_for_result(page)
    drop(page, ".viewer .stage >> nth=0", ADD_FILE, base64.b64encode(other_png).decode(), "second")
    wait_for_other(page, mark)
    assert page.inner_text(".bar-name") == "second"


def test_files_dropped_while_a_list_runs_get_a_message(page: Any, phantom_png: bytes) -> None:
    upload(page, ("many.zip", thousand(phantom_png)))
    page.get_by_role("button", name="Stop").wait_for()
    drop(page, "h1", ADD_FILE, base64.b64encode(phantom_png).decode(), "other")
    page.get_by_text("A list is being scored; stop it before you give other files.").wait_for()


def test_footer_leads_to_the_api_and_says_how_programs_reach_this_server(page: Any, address: str) -> None:
    page.get_by_role("button", name="Use from Python or curl").click()
    sheet = page.get_by_role("dialog", name="Use from Python or curl")
    assert f'Client("{address.rstrip("/")}")' in sheet.inner_text()
    assert f"{address}api/v1/predict" in sheet.inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="HTTP API").click()
    page.get_by_role("heading", name="chexpert-hf: HTTP API").wait_for()


# A study


def test_study_shows_the_decisive_view_of_each_observation_and_the_map_there(
    page: Any, classifier: CheXpertClassifier, phantom_png: bytes, other_png: bytes
) -> None:
    upload(page, ("jane1.png", phantom_png), ("jane2.png", BROKEN_PNG), ("jane3.png", other_png))
    wait_for_list(page)
    page.get_by_role("button", name="These are views of one study").click()
    wait_for_result(page)
    first, third = (classifier.predict(data).probabilities for data in (phantom_png, other_png))
    decisive = {name: (min if name == "No Finding" else max)(first[name], third[name]) for name in JUDGED}
    assert shown_scores(page) == rounded(decisive)
    origins = dict(
        zip(
            page.locator("#result .score-name").all_inner_texts(),
            page.locator("#result .score-view").all_inner_texts(),
            strict=True,
        )
    )
    assert origins == {name: "View 1" if first[name] == decisive[name] else "View 3" for name in JUDGED}
    assert "View 2 (jane2.png) has no scores: The PNG image is damaged" in page.inner_text("#result")
    assert page.inner_text("#result").count("jane") == 1
    pressed = page.locator("#result .view[aria-pressed=true]")
    for name in (next(name for name in JUDGED if origins[name] == view) for view in ("View 1", "View 3")):
        page.locator("#result .score", has=page.get_by_text(name, exact=True)).click()
        assert pressed.inner_text() == origins[name]
    mark = drawn(page)
    page.locator("#result .view", has_text="View 1").click()
    assert drawn(page) != mark
    assert f"View 1: {first[name]:.3f}" in page.inner_text("#result .map-text")
    assert page.locator("#list").is_hidden()
    page.get_by_role("button", name="List").click()
    page.locator("#list").wait_for()


def test_the_browsers_button_leads_back_within_the_page(page: Any, phantom_png: bytes, other_png: bytes) -> None:
    def back() -> None:
        page.evaluate("history.back()")

    upload(page, ("a.png", phantom_png))
    mark = wait_for_result(page)
    back()
    page.locator("#start").wait_for()
    upload(page, ("a.png", phantom_png), ("b.png", other_png))
    wait_for_list(page)
    for _ in range(2):
        page.locator(".row-open").first.click()
        wait_for_result(page)
        back()
        page.locator("#result").wait_for(state="hidden")
        assert len(names_in_list(page)) == 2
    page.locator(".row-open").first.click()
    wait_for_other(page, mark)
    page.get_by_role("button", name="New radiograph").click()
    page.locator("#start").wait_for()
    page.wait_for_function("history.state.depth === 0")
    page.evaluate(
        "history.forward()"
    )  # what "New" has discarded is not shown again, and the page does not hang between
    page.wait_for_function("history.state.depth === 0")
    assert page.locator("#start").is_visible()


def test_the_browsers_button_leads_forward_again(page: Any, phantom_png: bytes, other_png: bytes) -> None:
    def go(steps: int) -> None:
        page.evaluate("steps => history.go(steps)", steps)

    upload(page, ("a.png", phantom_png))
    mark = wait_for_result(page)
    go(-1)
    page.locator("#start").wait_for()
    assert page.locator("#result .score").first.is_hidden()
    assert page.locator("#bar .bar").is_hidden()
    go(1)
    page.locator("#start").wait_for(state="hidden")
    assert page.locator("#result .score").first.is_visible()
    assert drawn(page) == mark
    go(-1)
    page.locator("#start").wait_for()
    upload(page, ("a.png", phantom_png), ("b.png", other_png))  # shown, whatever was hidden before
    wait_for_list(page)
    assert page.locator("#start").is_hidden()
    for opener, title in ((".row-open >> nth=1", "b.png"), ("[data-action=study]", "A study of 2 views")):
        page.locator(opener).click()
        mark = wait_for_other(page, mark)
        go(-1)
        page.locator("#result").wait_for(state="hidden")
        go(1)
        mark = wait_for_other(page, mark)
        assert page.inner_text(".bar-name") == title
        page.keyboard.press("Escape")
        page.locator("#result").wait_for(state="hidden")
        page.wait_for_function("history.state.depth === 1")
    go(-1)
    page.locator("#start").wait_for()
    go(1)
    page.locator("#list").wait_for()
    assert len(names_in_list(page)) == 2


def test_a_running_list_stops_when_the_visitor_goes_back_and_is_there_again_forward(
    page: Any, phantom_png: bytes
) -> None:
    upload(page, ("many.zip", thousand(phantom_png)))
    page.locator(".row-open").first.wait_for()
    page.evaluate("history.back()")
    page.locator("#start").wait_for()
    page.locator("#list-stop").wait_for(state="detached")
    page.evaluate("history.forward()")
    page.locator("#list").wait_for()
    wait_for_list(page)
    assert 0 < len(names_in_list(page)) < 1000


def test_a_list_that_follows_at_once_on_one_that_was_left_holds_its_own_files(
    page: Any, phantom_png: bytes, other_png: bytes
) -> None:
    upload(page, ("many.zip", thousand(phantom_png)))
    page.locator(".row-open").first.wait_for()
    page.evaluate("history.back()")
    page.locator("#start").wait_for()
    upload(page, ("a.png", phantom_png), ("b.png", other_png))
    page.wait_for_function("document.querySelectorAll('#list tbody tr').length === 2")
    page.wait_for_timeout(700)  # what was still being scored would have come meanwhile
    assert page.inner_text(".list-summary strong") == "2 of 2"
    assert names_in_list(page) == ["a.png", "b.png"]


@pytest.mark.slow
def test_a_row_that_is_still_being_opened_stays_closed_once_the_visitor_has_left_it(
    page: Any, phantom_png: bytes, other_png: bytes
) -> None:
    upload(page, ("a.png", phantom_png), ("b.png", other_png))
    wait_for_list(page)
    for leave, place in (("back", "#list"), ("new", "#start")):
        page.locator(".row-open").first.click()
        mark = wait_for_result(page)
        page.evaluate(
            """leave => {
                document.querySelector('[data-step="1"]').click();
                document.querySelector(`[data-action="${leave}"]`).click();
            }""",
            leave,
        )
        page.locator("#result").wait_for(state="hidden")
        page.wait_for_timeout(1500)  # the other row would have come meanwhile
        assert page.locator("#result").is_hidden()
        assert page.locator(place).is_visible()
        if leave == "back":  # rows open as before
            page.locator(".row-open").last.click()
            wait_for_other(page, mark)
            page.keyboard.press("Escape")
            page.locator("#result").wait_for(state="hidden")


def test_the_browsers_button_closes_a_dialog_and_nothing_else(page: Any, phantom_png: bytes, other_png: bytes) -> None:
    def open_model() -> Any:
        page.get_by_role("button", name="The model").last.click()
        return page.get_by_role("dialog")

    dialog = open_model()
    page.evaluate("history.back()")
    dialog.wait_for(state="hidden")
    assert page.locator("#start").is_visible()
    upload(page, ("a.png", phantom_png), ("b.png", other_png))
    wait_for_list(page)
    dialog = open_model()
    page.evaluate("history.back()")
    dialog.wait_for(state="hidden")
    assert len(names_in_list(page)) == 2
    dialog = open_model()
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.wait_for_function("history.state.depth === 1 && !history.state.isDialog")
    assert len(names_in_list(page)) == 2
    page.evaluate("history.back()")
    page.locator("#start").wait_for()


def test_the_viewers_help_is_what_back_and_escape_close_first(page: Any, phantom_png: bytes, other_png: bytes) -> None:
    upload(page, ("a.png", phantom_png), ("b.png", other_png))
    wait_for_list(page)
    page.locator(".row-open").first.click()
    wait_for_result(page)
    dialog = page.get_by_role("dialog", name="Keys and mouse")
    for close in ("back", "Escape"):
        page.keyboard.press("?")
        dialog.wait_for()
        dialog.locator("h2").click()  # which takes the focus out of the dialog
        if close == "back":
            page.evaluate("history.back()")
        else:
            page.keyboard.press(close)
        dialog.wait_for(state="hidden")
        page.wait_for_function("history.state.depth === 2 && !history.state.isDialog")
        assert page.locator("#result .score").first.is_visible()
    page.evaluate("history.back()")
    page.locator("#result").wait_for(state="hidden")


def test_a_refused_row_that_is_scored_anyway_keeps_its_name_and_the_way_back(
    page: Any, phantom_png: bytes, blank_png: bytes
) -> None:
    upload(page, ("a.png", phantom_png), ("cat.png", blank_png))
    wait_for_list(page)
    page.locator(".row-open", has_text="cat.png").click()
    page.get_by_role("button", name="Score it anyway").click()
    wait_for_result(page)
    assert page.inner_text(".bar-name") == "cat.png"
    page.get_by_role("button", name="List").click()
    page.locator("#result").wait_for(state="hidden")
    assert len(names_in_list(page)) == 2


def test_a_radiograph_is_shown_in_full_resolution_once_it_is_zoomed(page: Any) -> None:
    fine = np.zeros((1500, 2000), np.uint8)
    fine[:, ::2] = 255  # lines of one pixel, which are gray in a smaller image
    fine[300:1200, 600:1400] = 90
    upload(page, ("fine.dcm", make_dicom(fine.astype(np.uint16), BitsStored=8)))
    wait_for_result(page)
    assert canvas_pixels(page, "film").shape[:2] == (768, 1024)
    fitted = scale(page)
    page.locator(".stage").first.hover()
    page.keyboard.press("1")
    page.wait_for_function("document.querySelector('.viewer .film').naturalWidth === 2000")
    assert scale(page) == pytest.approx(1)  # pixels of the file, whatever came first
    lines = canvas_pixels(page, "film")[50, :40, 0].astype(int)
    assert np.abs(np.diff(lines)).min() > 150
    page.keyboard.press("f")
    assert scale(page) == pytest.approx(fitted)


# Many images


def test_list_scores_sorts_and_downloads(
    page: Any,
    classifier: CheXpertClassifier,
    phantom_png: bytes,
    other_png: bytes,
    blank_png: bytes,
    tmp_path: Any,
) -> None:
    archive = zipped({"z.png": phantom_png, "y.png": other_png})
    upload(page, ("my.zip", archive), ("<i>a.png", BROKEN_PNG), ("cat.png", blank_png))
    wait_for_list(page)
    assert page.inner_text(".bar-name") == "3 files"
    assert names_in_list(page) == ["my.zip/y.png", "my.zip/z.png", "<i>a.png", "cat.png"]
    assert "2 of 4 radiographs scored, 2 without scores" in page.inner_text("#list-status")
    assert "The PNG image is damaged" in page.inner_text("#list")
    assert REFUSAL in page.inner_text("#list")
    page.get_by_role("button", name="File", exact=True).click()
    assert names_in_list(page) == sorted(names_in_list(page), key=str.lower)
    assert page.locator("#list th[aria-sort=ascending]").inner_text().startswith("File")
    scores = {
        f"my.zip/{letter}.png": classifier.predict(data)
        for letter, data in zip("zy", (phantom_png, other_png), strict=True)
    }
    page.get_by_role("button", name="Cardiomegaly", exact=True).click()
    by_score = sorted(scores, key=lambda name: -scores[name].probabilities["Cardiomegaly"])
    assert names_in_list(page)[:2] == by_score
    assert set(names_in_list(page)[2:]) == {"<i>a.png", "cat.png"}  # without scores, at the end
    page.get_by_role("button", name="Cardiomegaly", exact=True).click()
    assert names_in_list(page)[:2] == by_score[::-1]

    for kind in ("CSV", "Parquet"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download scores ({kind})").click()
        assert download.value.suggested_filename == f"scores.{kind.lower()}"
        download.value.save_as(tmp_path / f"scores.{kind.lower()}")
    table = list(csv.DictReader((tmp_path / "scores.csv").open()))
    expected = pytest.approx(scores["my.zip/z.png"].probabilities["Cardiomegaly"], abs=1e-6)
    assert float(table[1]["Cardiomegaly"]) == expected
    assert pd.read_parquet(tmp_path / "scores.parquet")["Cardiomegaly"][1] == expected
    page.get_by_role("button", name="Prepare overlays (ZIP)").click()
    page.locator("#list-archive").wait_for()
    with page.expect_download() as download:
        page.locator("#list-archive").click()
    download.value.save_as(tmp_path / "overlays.zip")
    with zipfile.ZipFile(tmp_path / "overlays.zip") as overlays:
        assert overlays.testzip() is None
        assert {name.split("/")[0] for name in overlays.namelist()} == {"0001_y", "0002_z", "README.txt"}


def test_rows_open_beside_the_list_and_keys_lead_to_the_next(
    page: Any, classifier: CheXpertClassifier, phantom_png: bytes, other_png: bytes, warned_png: bytes
) -> None:
    upload(page, ("a.png", phantom_png), ("b.png", BROKEN_PNG), ("c.png", other_png), ("d.png", warned_png))
    wait_for_list(page)
    page.locator("#list tbody tr", has_text="a.png").locator("td").last.click()  # the whole row opens
    mark = wait_for_result(page)
    assert page.inner_text(".bar-name") == "a.png"
    assert shown_scores(page) == rounded(classifier.predict(phantom_png).probabilities)
    assert page.locator("#list").is_visible()
    beside, result = page.locator("#list").bounding_box(), page.locator("#result").bounding_box()
    assert beside["x"] + beside["width"] <= result["x"]
    page.keyboard.press("n")  # over the row that cannot be read
    mark = wait_for_other(page, mark)
    assert page.inner_text(".bar-name") == "c.png"
    assert shown_scores(page) == rounded(classifier.predict(other_png).probabilities)
    page.get_by_role("button", name="Next row").click()
    mark = wait_for_other(page, mark)
    assert page.inner_text(".bar-name") == "d.png"
    assert page.locator("#list tr.is-open").inner_text().startswith("d.png")
    page.keyboard.press("b")
    mark = wait_for_other(page, mark)
    assert page.inner_text(".bar-name") == "c.png"
    page.keyboard.press("Escape")
    page.locator("#result").wait_for(state="hidden")
    assert len(names_in_list(page)) == 4


def test_list_is_filtered_by_call_and_by_the_gates_verdict(
    page: Any, classifier: CheXpertClassifier, phantom_png: bytes, other_png: bytes, blank_png: bytes
) -> None:
    upload(page, ("a.png", phantom_png), ("b.png", other_png), ("cat.png", blank_png), ("d.png", BROKEN_PNG))
    wait_for_list(page)
    calls = {"a.png": classifier.predict(phantom_png).positives, "b.png": classifier.predict(other_png).positives}
    name = next(name for name in JUDGED if calls["a.png"][name] != calls["b.png"][name])
    page.locator("#list select").first.select_option(label=f"above: {name}")
    assert names_in_list(page) == [file for file in calls if calls[file][name]]
    assert page.inner_text(".list-count") == "1 of 4 shown"
    page.locator("#list select").first.select_option(label="all")
    kinds = {"no chest radiograph": ["cat.png"], "unreadable": ["d.png"], "scored": ["a.png", "b.png"]}
    for label, names in kinds.items():
        page.locator("#list select").last.select_option(label=label)
        assert names_in_list(page) == names
        with page.expect_download() as download:
            page.get_by_role("button", name="Download scores (CSV)").click()
        assert [row["file"] for row in csv.DictReader(download.value.path().open())] == names  # the rows shown
    page.locator("#list select").last.select_option(label="any")
    page.locator("#list select").first.select_option(label="any finding above its threshold")
    assert names_in_list(page) == [file for file in calls if any(calls[file][each] for each in FINDINGS)]
    page.locator("#list select").first.select_option(label=f"above: {name}")
    mark = ""
    for observation in (name, "Cardiomegaly"):  # filtered by, then sorted by
        page.locator("#list .row-open:visible").first.click()
        mark = wait_for_other(page, mark) if mark else wait_for_result(page)
        assert page.inner_text("#result .score[aria-pressed=true] .score-name") == observation
        assert page.inner_text(".stage-name >> nth=0").startswith(f"Map of {observation}")
        page.keyboard.press("Escape")
        page.locator("#result").wait_for(state="hidden")
        page.locator("#list select").first.select_option(label="any finding above its threshold")
        page.get_by_role("button", name="Cardiomegaly", exact=True).click()
    page.get_by_role("button", name="Score 1 refused anyway").click()
    page.get_by_text("3 of 4 radiographs scored").wait_for()
    wait_for_list(page)
    page.locator("#list .row-open", has_text="cat.png").wait_for()


def test_a_list_of_a_thousand_rows_answers_at_once(
    page: Any, classifier: CheXpertClassifier, phantom_png: bytes
) -> None:
    upload(page, ("many.zip", thousand(phantom_png, (24, 24))))
    wait_for_list(page, 120_000)
    assert page.locator("#list tbody tr").count() == 1000
    for _ in range(2):
        page.locator("#list .file-head button").click()
    assert page.locator("#list .row-open").first.text_content() == "many.zip/0999.png"
    # Rows out of sight are not laid out.
    assert page.locator("#list tbody tr").last.evaluate("row => getComputedStyle(row).contentVisibility") == "auto"


def test_csv_has_a_row_for_each_file_in_upload_order_whatever_the_table_is_sorted_by(
    page: Any, classifier: CheXpertClassifier, phantom_png: bytes, tmp_path: Any
) -> None:
    image = Image.open(io.BytesIO(phantom_png))
    contents = {
        f"{number * 7 % 24:02d}.png": encoded(np.asarray(image.resize((90 + number, 100)))) for number in range(24)
    }
    names = list(contents)
    contents[names[17]] = BROKEN_PNG
    upload(page, *contents.items())
    wait_for_list(page)
    page.get_by_role("button", name="File", exact=True).click()
    assert names_in_list(page) == sorted(names)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download scores (CSV)").click()
    download.value.save_as(tmp_path / "scores.csv")
    table = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [row["file"] for row in table] == names
    calls = classifier.predict(contents[names[0]]).positives
    assert set(table[0]["above threshold"].split(", ")) == {name for name in FINDINGS if calls[name]} or {""}
    assert [number for number, row in enumerate(table) if row["error"].startswith("The PNG image is damaged")] == [17]
    last = classifier.predict(contents[names[-1]]).probabilities
    assert {name: float(table[-1][name]) for name in JUDGED} == pytest.approx(last, abs=1e-6)
    page.get_by_role("button", name=names[-1], exact=True).click()
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
    upload(page, ("a.png", phantom_png))
    wait_for_result(page)
    box = page.get_by_label("Own scale")
    box.uncheck()
    page.mouse.move(0, 0)
    unchecked = pixels_of(box)
    assert unchecked.std() > 5  # a frame, not the background alone
    assert is_blue(unchecked).mean() < 0.1
    box.check()
    assert is_blue(pixels_of(box)).mean() > 0.4


def test_arrows_of_sorted_columns_point_up_for_ascending_and_down_for_descending(
    page: Any, phantom_png: bytes, other_png: bytes
) -> None:
    upload(page, ("a.png", phantom_png), ("b.png", other_png))
    wait_for_list(page)
    for name in ("File", "Pneumonia"):
        button = page.locator("#list thead button", has_text=name)
        for _ in range(2):
            button.click()
            page.mouse.move(0, 0)
            rows = np.flatnonzero(is_blue(pixels_of(button)).any(axis=1))
            widths = is_blue(pixels_of(button)).sum(axis=1)[rows[0] : rows[-1] + 1]
            is_up = bool(widths[: len(widths) // 2].sum() < widths[-(len(widths) // 2) :].sum())
            order = button.locator("xpath=..").get_attribute("aria-sort")
            assert is_up is (order == "ascending"), (name, order)


def test_column_of_names_and_its_head_cover_the_columns_that_are_scrolled_under_them(
    page: Any, phantom_png: bytes, other_png: bytes
) -> None:
    upload(page, ("a.png", phantom_png), ("b.png", other_png))
    wait_for_list(page)
    page.locator("#list .table-scroll").evaluate("list => list.scrollBy(150, 0)")
    for cell in (page.locator("#list .file-head"), page.locator("#list .file-name").first):
        box = cell.bounding_box()
        point = [box["x"] + box["width"] - 20, box["y"] + box["height"] / 2]
        assert cell.evaluate("(cell, point) => cell.contains(document.elementFromPoint(...point))", point)


def test_no_finding_above_is_no_alarm_in_the_list_and_every_row_has_its_line(
    page: Any, classifier: CheXpertClassifier, phantom_png: bytes
) -> None:
    names = [f"{number}.png" for number in range(9)]
    upload(page, *((name, phantom_png) for name in names))
    wait_for_list(page)
    positives = classifier.predict(phantom_png).positives
    cells = page.locator("#list tbody tr").first.locator("td.is-above")
    assert cells.count() == sum(positives.values())
    page.mouse.move(0, 0)
    for cell in cells.all():
        colours = pixels_of(cell)[2, 2]
        is_none = "is-none" in cell.get_attribute("class").split()
        assert (colours[2] - colours[0] > 30) is not is_none
    assert positives["No Finding"] is (page.locator("#list tbody tr").first.locator(".is-none").count() == 1)
    column = pixels_of(page.locator("#list"))[:, -40].sum(axis=1)
    body = page.locator("#list tbody").bounding_box()
    top = round(body["y"] - page.locator("#list").bounding_box()["y"])
    is_line = np.abs(np.diff(column[top - 1 : top + round(body["height"]) + 1])) > 20
    assert (is_line[1:] & is_line[:-1]).sum() >= len(names) - 1  # a pixel between two others


def test_server_answers_others_while_a_long_list_runs_and_the_list_can_be_stopped(
    page: Any, address: str, phantom_png: bytes
) -> None:
    upload(page, ("many.zip", thousand(phantom_png)))
    page.get_by_role("progressbar").wait_for()
    other = page.context.new_page()
    other.goto(address)
    other.locator(".example").first.click()
    wait_for_result(other)
    other.close()
    page.locator('progress:not([value="0"])').wait_for()  # stopped before, it would show no table
    page.locator(".row-open").nth(1).click()  # rows open while the others are being scored
    wait_for_result(page)
    assert page.inner_text(".bar-name").startswith("many.zip/")
    assert page.get_by_role("progressbar").is_visible()
    page.get_by_role("button", name="Next row").click()
    page.keyboard.press("Escape")
    page.locator("#result").wait_for(state="hidden")
    assert page.get_by_text(re.compile(r"Scored: \d+ of 1,000, about .* left")).is_visible()
    page.get_by_role("button", name="Stop").click()
    wait_for_list(page)
    assert 0 < page.locator("#list tbody tr").count() < 1000


def test_a_running_list_ends_with_new(page: Any, phantom_png: bytes) -> None:
    upload(page, ("many.zip", thousand(phantom_png)))
    page.get_by_role("progressbar").wait_for()
    page.get_by_role("button", name="New radiograph").click()
    page.locator("#start").wait_for()
    page.get_by_role("progressbar").wait_for(state="hidden")
    upload(page, ("a.png", phantom_png))
    wait_for_result(page)


# The look


def violations(page: Any) -> list[str]:
    """What axe-core finds, from serious on, once nothing is half transparent any more, as it is while it is awaited."""
    page.wait_for_function(
        """() => {
            const isWhole = (item) => !item || (getComputedStyle(item).opacity === "1" && isWhole(item.parentElement));
            return [...document.querySelectorAll(".activations, .viewer, .plain-button:enabled")].every(isWhole);
        }"""
    )
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{item['id']}: {item['nodes'][0]['html'][:200]}" for item in found if item["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_has_a_serious_violation_of_accessibility(
    page: Any, theme: str, phantom_png: bytes, blank_png: bytes, warned_png: bytes
) -> None:
    axe = pytest.importorskip("axe_playwright_python")
    page.evaluate((resources.files(axe) / "axe.min.js").read_text())
    assert page.evaluate("document.body.classList.contains('dark')") is (theme == "dark")
    assert violations(page) == []
    for name in ("The model", "Use from Python or curl"):
        page.get_by_role("button", name=name).last.click()
        assert violations(page) == []
        page.keyboard.press("Escape")
    upload(page, ("a.png", warned_png))
    wait_for_result(page)
    page.get_by_role("button", name="Show feature activations").click()
    page.locator(".stage-row").first.wait_for()
    assert violations(page) == []
    with page.expect_download() as download:
        page.get_by_role("button", name="Download a report").click()
    report = page.context.new_page()
    report.set_content(download.value.path().read_text().replace("script-src", "script-src 'unsafe-eval'"))
    report.evaluate((resources.files(axe) / "axe.min.js").read_text())
    report.locator(".viewer").wait_for()
    assert violations(report) == []
    report.close()
    for key in "sc?":
        page.keyboard.press(key)
    assert violations(page) == []
    page.keyboard.press("Escape")
    upload(page, ("a.png", blank_png))
    page.get_by_role("alert").wait_for()
    assert violations(page) == []
    upload(page, ("a.png", phantom_png), ("b.png", BROKEN_PNG), ("c.png", blank_png))
    wait_for_list(page)
    assert violations(page) == []
    page.locator(".row-open").first.click()
    wait_for_result(page)
    assert violations(page) == []
    page.get_by_role("button", name="List").click()
    page.get_by_role("button", name="These are views of one study").click()
    wait_for_result(page)
    assert violations(page) == []


def test_page_fits_a_phone(page: Any, phantom_png: bytes) -> None:
    page.set_viewport_size({"width": 390, "height": 844})

    def width() -> int:
        return int(page.evaluate("document.documentElement.scrollWidth"))

    assert width() <= 390
    upload(page, ("a.png", phantom_png))
    wait_for_result(page)
    assert width() <= 390
    bars = page.locator("#result .score-bar")
    assert min(bars.nth(row).bounding_box()["width"] for row in range(len(JUDGED))) > 250
    # The verdict is first, and the map stays while rows are tapped.
    assert page.locator(".verdict").bounding_box()["y"] < page.locator(".viewer").bounding_box()["y"]
    page.locator("#result .score").last.evaluate("row => row.scrollIntoView({ block: 'end' })")
    viewer, row = page.locator(".viewer").bounding_box(), page.locator("#result .score").last.bounding_box()
    assert viewer["y"] >= 0
    assert viewer["y"] + viewer["height"] <= row["y"]
    sizes = [item.bounding_box() for item in page.locator(".viewer-bar button").all()]
    assert min(min(size["width"], size["height"]) for size in sizes) >= 40
    upload(page, (f"{'long_' * 30}.png", phantom_png), ("b.png", BROKEN_PNG))
    wait_for_list(page)
    assert width() <= 390
    for heading in page.locator("#list thead button").all():  # none reaches into the next
        assert heading.evaluate("item => item.getBoundingClientRect().width <= item.parentElement.clientWidth")
        assert heading.evaluate("item => item.scrollWidth <= item.clientWidth + 1")
    name, calls = (page.locator("#list tbody tr").first.locator(part) for part in (".row-open", ".row-calls span"))
    assert calls.inner_text()
    assert calls.inner_text() != "none"
    assert calls.bounding_box()["y"] > name.bounding_box()["y"]
    assert calls.bounding_box()["x"] + calls.bounding_box()["width"] < 390
    page.locator(".row-open").first.click()
    wait_for_result(page)
    assert width() <= 390
    page.get_by_role("button", name="The model").first.click()
    page.locator(".about-table").wait_for()
    assert width() <= 390
    assert all(name in page.inner_text(".about") for name in OBSERVATIONS)


@pytest.mark.slow
def test_an_open_page_reloads_once_another_server_answers_where_it_came_from(chromium, classifier):
    build = lambda: build_demo(classifier)  # noqa: E731
    page = chromium.new_page()
    with serving(build, classifier, **appearance(reloads=True)) as first:
        page.goto(first)
        page.locator("#file input[type=file]").wait_for(state="attached")
        page.wait_for_timeout(2500)
        page.evaluate("window.isOld = true")
        page.wait_for_timeout(2500)
        assert page.evaluate("window.isOld")  # as long as the server is the same
    with serving(build, classifier, port=urlsplit(first).port, **appearance()) as second:
        page.wait_for_function("!window.isOld")
        assert page.url == second
    page.close()
