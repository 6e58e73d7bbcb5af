"""Start and stop, in a process of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import httpx
import pytest

from chexpert_hf import CheXpertImageProcessor
from chexpert_hf.app.server.addresses import is_loopback, listening_socket
from chexpert_hf.app.server.blocks import Page
from chexpert_hf.app.server.launch import serving
from chexpert_hf.errors import InputError
from tests.app.server.conftest import empty_page, page_of, png

SERVE = """
import sys, threading
from tests.app.server.conftest import page_of
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.app.server.launch import launch
from chexpert_hf.app.server.scorer import SharedClassifier

class Slow:
    # Batches take long enough for others to wait.
    name, precision, reason, is_on_cpu, is_slow = "slow", "fp32", "", True, False
    def __init__(self, runtime):
        self.runtime, self.device = runtime, runtime.device
    def __call__(self, pixel_values, *, saliency=False):
        threading.Event().wait(0.5 * self.is_slow)
        return self.runtime(pixel_values, saliency=saliency)
    def side_by_side(self):
        return [self]

alone = CheXpertClassifier.from_pretrained(sys.argv[1])
slow = Slow(alone.runtime)
shared = SharedClassifier(CheXpertClassifier(alone.model, alone.processor, runtime=slow))
slow.is_slow = True
launch(page_of(shared), shared)
"""
CLIENTS = 20
USERS = [("ada", "correct horse")]


@pytest.fixture
def process(tiny_folder, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "temporary").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tiny_folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        yield process
        process.kill()


@pytest.mark.slow
def test_on_sigterm_each_who_waits_is_told_nothing_is_left_and_the_exit_is_clean(process, tmp_path):
    url = process.stdout.readline().split()[-1].rstrip("/")

    def ask(number):
        with httpx.Client(base_url=url, timeout=30) as http:
            (path,) = http.post("/gradio_api/upload", files={"files": ("Doe^Jane.png", png(number))}).json()
            event = http.post("/gradio_api/call/predict", json={"data": [{"path": path}]}).json()["event_id"]
            with http.stream("GET", f"/gradio_api/call/predict/{event}") as answer:
                asked.append(number)
                return "".join(answer.iter_text())

    asked: list[int] = []
    folder = tmp_path / "temporary"
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = [clients.submit(ask, number) for number in range(CLIENTS)]
        while len(asked) < CLIENTS and not any(answer.done() and answer.exception() for answer in answers):
            time.sleep(0.01)
        assert any(folder.iterdir())
        process.send_signal(signal.SIGTERM)
        texts = [answer.result(30) for answer in answers]
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    told = [text for text in texts if "is stopping" in text]
    scored = [text for text in texts if text.startswith("event: complete")]
    assert len(told) + len(scored) == CLIENTS
    assert told
    assert not list(folder.glob("chexpert-hf-*"))
    assert "Doe" not in output + errors
    assert "Traceback" not in errors


def test_an_address_that_others_reach_gets_a_warning_unless_there_is_a_password(classifier, capsys):
    for host, auth, is_warned in (("0.0.0.0", (), True), ("0.0.0.0", USERS, False), ("127.0.0.1", (), False)):
        with serving(empty_page, classifier, host=host, auth=auth):
            assert ("without a password" in capsys.readouterr().err) is is_warned


def test_with_a_password_nothing_is_answered_without_it(classifier):
    closed = ("/config", "/gradio_api/info", "/gradio_api/call/predict/x", "/gradio_api/queue/data")
    with (
        serving(page_of(classifier), classifier, auth=USERS) as url,
        httpx.Client(base_url=url.rstrip("/")) as http,
    ):
        for path in (*closed, "/api/v1/model", "/api/v1/docs", "/api/v1/openapi.json"):
            assert http.get(path).status_code == 401
        assert http.post("/gradio_api/upload", files={"files": ("a", b"a")}).status_code == 401
        assert http.post("/gradio_api/call/predict", json={"data": []}).status_code == 401
        assert http.get("/api/v1/health").status_code == 200
        for auth, status in ((None, 401), (("ada", "wrong"), 401), (USERS[0], 200)):
            assert http.post("/api/v1/predict", files={"files": png()}, auth=auth).status_code == status
        for header in ("Basic", "Basic ***", "Bearer YWRhOmNvcnJlY3QgaG9yc2U="):
            assert http.get("/api/v1/model", headers={"Authorization": header}).status_code == 401
        wrong = http.post("/login", data={"username": "ada", "password": "wrong"})
        assert wrong.status_code == 400
        right = http.post("/login", data={"username": "ada", "password": "correct horse"})
        assert right.status_code == 200
        http.cookies.update(right.cookies)
        assert http.get("/config").status_code == 200


def test_without_the_extra_mcp_is_one_line(classifier, monkeypatch):
    for name in ("mcp", "mcp.server"):
        monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(InputError, match=r"pip install 'chexpert-hf\[mcp\]'"),
        serving(empty_page, classifier, mcp=True),
    ):
        pass


def test_a_port_that_is_taken_is_one_line_and_leaves_no_folder(server, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    port = int(server.url.split(":")[-1].strip("/"))
    with (
        pytest.raises(InputError, match=rf"cannot be served at 127\.0\.0\.1, port {port}: .* Pass another --port"),
        serving(empty_page, classifier, port=port),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_without_a_port_the_next_free_one_is_taken_and_said(classifier, capsys):
    with serving(empty_page, classifier) as first:
        capsys.readouterr()
        with serving(empty_page, classifier) as second:
            assert first != second
            assert [httpx.get(f"{url}api/v1/health").json() for url in (first, second)] == [{"status": "ok"}] * 2
            number = second.split(":")[-1].strip("/")
            assert f"Port 7860 is taken; using port {number} instead." in capsys.readouterr().err


def test_files_of_components_lie_in_the_private_folder(classifier):
    pages = []

    def build():
        with Page() as page:
            gr.File()
        pages.append(page)
        return page

    with serving(build, classifier) as url, httpx.Client(base_url=url.rstrip("/")) as http:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        (path,) = http.post("/gradio_api/upload", files={"files": ("film.png", png(1))}).json()
        assert Path(path).is_relative_to(folder)
        assert all(Path(block.GRADIO_CACHE) == folder for block in pages[0].blocks.values())
    assert not folder.exists()


def test_loopback_is_what_stays_on_this_machine():
    hosts = ("127.0.0.1", "::1", "[::1]", "localhost", "0.0.0.0", "::", "192.168.1.2", "example.org")
    assert [is_loopback(host) for host in hosts] == [True, True, True, True, False, False, False, False]


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no such host", "a..b"])
def test_an_address_of_another_machine_is_one_line_at_once(host):
    begin = time.monotonic()
    with pytest.raises(InputError, match=f"Expected an address of this machine for --host, got '{host}'"):
        listening_socket(host)
    assert time.monotonic() - begin < 5


def test_answers_are_sent_at_once_and_do_not_wait_for_acknowledgements():
    with listening_socket("127.0.0.1") as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


PROXIES = {
    "http_proxy": "http://127.0.0.1:9",  # nothing answers at the port "discard"
    "https_proxy": "http://127.0.0.1:9",
    "all_proxy": "socks5://127.0.0.1:9",  # httpx has no SOCKS unless an extra is installed
}
ALONE = """
import json, os, sys
from chexpert_hf.app.server.addresses import without_proxies
with without_proxies():
    import gradio as gr
    import httpx
from tests.app.server.conftest import empty_page
from chexpert_hf.app.server.launch import serving
from chexpert_hf.scoring.classifier import CheXpertClassifier

class Recorder:
    asked = []
    def __getattr__(self, name):
        self.asked.append(name)
        raise AttributeError(name)

try:
    from opentelemetry import metrics, trace
    trace.set_tracer_provider(Recorder())
    metrics.set_meter_provider(Recorder())
except ImportError:
    Recorder.asked = None
classifier = CheXpertClassifier.from_pretrained(sys.argv[1])
pages = []
with httpx.Client(trust_env=False) as http:
    for host in sys.argv[2:]:
        with serving(empty_page, classifier, host=host) as url:
            pages.append([url, *(http.get(f"{url}{path}").status_code for path in ("", "api/v1/model"))])
variables = [os.environ.get(name) for name in ("no_proxy", "NO_PROXY")]
print(json.dumps({"pages": pages, "variables": variables, "telemetry": Recorder.asked}))
"""


@pytest.fixture(scope="module")
def alone(shared_tiny_model, tmp_path_factory):
    """The report of a process that opens the page at each own address, with proxies in its environment."""
    folder = tmp_path_factory.mktemp("alone") / "tiny"
    shared_tiny_model.save_pretrained(folder)
    CheXpertImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | PROXIES
    hosts = ["127.0.0.1", "localhost", "::1", "[::1]", "::", "0.0.0.0"]
    command = [sys.executable, "-c", ALONE, str(folder), *hosts]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_page_starts_at_each_own_address_whatever_the_proxies(alone):
    shown = ["127.0.0.1", "localhost", "[::1]", "[::1]", "[::1]", "localhost"]
    assert [[re.sub(r":\d+/", "/", url), *codes] for url, *codes in alone["pages"]] == [
        [f"http://{host}/", 200, 200] for host in shown
    ]
    assert alone["variables"] == [None, None]


def test_what_gradio_would_record_is_off(server):
    config = server.http.get("/config").json()
    assert json.dumps(config).count("huggingface.co") == 0
    assert config["analytics_enabled"] is False
    assert server.http.get("/gradio_api/runs").status_code == 404
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_fastapi_tells_no_collector_of_a_request(alone):
    pytest.importorskip("opentelemetry")
    assert alone["telemetry"] == []
