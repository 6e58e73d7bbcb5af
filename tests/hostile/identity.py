"""G9: a planted name and number turn up nowhere, and nothing asks for anything outside of this machine."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
from PIL import Image

from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.publishing.publish import stage_model
from tests.hostile.attacks import NAME, NUMBER, Attack, identities
from tests.hostile.client import JANITOR_SECONDS, RefusedError, Visitor, as_upload, ask, connect, served, upload
from tests.hostile.load import files_left
from tests.hostile.promises import Figure, Settings, judged
from tests.hostile.runs import WholeRun
from tests.hostile.watched import watch

PATIENT = "47110815"
"""Of a planted patient, in the names of files, as CheXpert numbers patients."""


def look_for_identity(settings: Settings) -> Iterator[Figure]:
    """Uploads, a list on the command line, and a training run whose model is staged for the Hub."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        outside = scratch / "outside.log"
        outside.touch()
        watch(outside)  # this process trains
        places, left = _ask_server(settings, outside)
        places |= {"command line": _score_files(settings, scratch, outside)}
        places |= {"folder to be pushed": _train_and_stage(scratch)}
        requests = outside.read_text().splitlines()
    for line in requests:
        print(line, file=sys.stderr)
    hits = {where: sum(_is_hit(where, text) for text in texts) for where, texts in places.items()}
    yield judged(
        f"a planted name and number in {len(list(identities()))} files (tags, EXIF, text, comment, file name) and in a "
        "data set to train on; hits",
        {
            **{f"in {where} ({len(places[where])})": count for where, count in hits.items()},
            f"files left after {JANITOR_SECONDS} s": left,
            "addresses outside asked": len(requests),
        },
        {
            **{f"no hit in {where}": count == 0 for where, count in hits.items()},
            "something looked at in each": all(places.values()),
            "no file left": left == 0,
            "nothing asked outside": not requests,
        },
    )


def _is_hit(where: str, text: str) -> bool:
    found = [text.index(word) for word in (NAME, NUMBER, PATIENT, NAME.replace("^", " ")) if word in text]
    for place in found[:1]:
        print(f"G9 in {where}: ...{text[max(0, place - 80) : place + 40]!r}...", file=sys.stderr)
    return bool(found)


def _ask_server(settings: Settings, outside: Path) -> tuple[dict[str, list[str]], int]:
    with served(settings, keep_seconds=JANITOR_SECONDS, outside=outside) as server:
        with connect(server.url, 60) as http:
            uploads = [(attack, upload(http, attack.data, attack.name)) for attack in identities()]
            endpoints = [text for attack, path in uploads for text in _endpoints(http, path)]
            page = [text for attack, _ in uploads for text in _page(http, attack)]
            sent = {path for _, path in uploads}
            made = [path for path in server.files() if str(path) not in sent]
            files = [f"{path.name} {_latin(path.read_bytes())}" for path in made]
            left = files_left(server)
            names = [str(path.relative_to(server.folder)) for path in server.folder.rglob("*")]
        log = server.log.read_text()
    return {
        "answers": endpoints,
        "the page": page,
        "files made": files,
        "the log": [log],
        "the temporary folder afterwards": names,
    }, left


def _endpoints(http: httpx.Client, path: str) -> Iterator[str]:
    for endpoint, arguments in (
        ("predict", [{"path": path}]),
        ("saliency", [{"path": path}, "Edema", 0.5, False]),
        ("batch", [[{"path": path}]]),
    ):
        try:
            answer = ask(http, endpoint, *arguments)
        except RefusedError as error:
            yield str(error)
            continue
        if endpoint == "batch":  # names in an archive are the sender's own, and name the rows of the answer
            answer = {"rows": [{**row, "name": None} for row in answer]}
        yield json.dumps(answer)
        if endpoint == "saliency":
            yield _latin(http.get(answer["url"]).content)  # type: ignore[index]


def _page(http: httpx.Client, attack: Attack) -> Iterator[str]:
    """What a visitor is shown; the list shows a visitor's own names, so the file has another there."""
    visitor, path = Visitor(http), upload(http, attack.data, attack.name)
    single = visitor.act("file", "upload", [as_upload(path, attack.name)])
    yield from single.values()
    if 'data-action="override"' in single.get("message", ""):
        single = visitor.act("message", "override", None)
        yield from single.values()
    if single.get("result"):
        yield from visitor.act("result", "report", None, event_data={"observation": 0}).values()
        yield from visitor.act("result", "activations", None, event_data={"view": 0}).values()
    if attack.name.endswith(".zip"):
        return
    yield from visitor.act("file", "upload", [as_upload(path, "film")] * 2).values()
    yield visitor.scored_list()
    for event in ("study", "csv", "parquet", "overlays"):
        yield from visitor.act("list-status", event, None, event_data={"hidden": []}).values()


def _score_files(settings: Settings, scratch: Path, outside: Path) -> list[str]:
    folder, output, overlays = scratch / "films", scratch / "scores.csv", scratch / "overlays"
    folder.mkdir()
    for number, attack in enumerate(identities()):
        if not attack.name.endswith(".zip"):  # the paths in it are the user's own, and are written
            (folder / f"film{number}{Path(attack.name).suffix}").write_bytes(attack.data)
    command = [sys.executable, "-m", "tests.hostile.watched", str(outside), "chexpert_hf.cli", "predict", str(folder)]
    command += ["--model", settings.model, "--output", str(output), "--saliency", str(overlays)]
    command += ["--runtime", settings.runtime, "--precision", settings.precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: some could not be read
        raise RuntimeError(done.stderr[-500:])
    return [done.stdout, done.stderr, output.read_text(), *_contents(overlays)]


def _train_and_stage(scratch: Path) -> list[str]:
    """What would be pushed of a model that has seen the patient; where its data lay does not go with it, either."""
    root = scratch / f"{NAME}_{NUMBER}" / "films"
    write_phantoms(root, num_studies=40, seed=5, valid_fraction=0.4)
    for split in ("train", "valid"):
        patient = sorted((root / split).iterdir())[0]
        planted = patient.with_name(f"patient{PATIENT}{split == 'valid':d}")
        patient.rename(planted)
        for file in planted.rglob("*.jpg"):
            with Image.open(file) as image:
                exif = image.getexif()
                exif[0x010E], exif[0x013B] = NAME, NUMBER
                image.save(file, exif=exif, comment=f"{NAME} {NUMBER}".encode())
        for table in root.glob("*.csv"):
            table.write_text(table.read_text().replace(f"{split}/{patient.name}/", f"{split}/{planted.name}/"))
    run, staging = scratch / "run", scratch / "staging"
    WholeRun(root).train(run, workers=0, resume=False, say=lambda line: None)
    staging.mkdir()
    stage_model(run, "somebody/something", staging)
    shutil.rmtree(root)
    return _contents(staging)


def _contents(folder: Path) -> list[str]:
    files: Iterable[Path] = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [f"{path.relative_to(folder)} {_latin(path.read_bytes())}" for path in files]


def _latin(content: bytes) -> str:
    return content.decode("latin-1")
