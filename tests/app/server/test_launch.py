"""Start and stop, in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import MagicMock

import gradio as gr
import httpx
import pytest

from chexpert_hf.app.server.addresses import is_loopback, listening_address
from chexpert_hf.app.server.launch import launch, stop
from chexpert_hf.app.server.shell import Limits, ShellState
from chexpert_hf.errors import InputError
from tests.app.server.conftest import png

SERVE = """
import sys, threading, torch, gradio as gr
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.app.server.endpoints import add_endpoints
from chexpert_hf.app.server.launch import launch
from chexpert_hf.app.server.scorer import SharedClassifier

classifier = SharedClassifier(CheXpertClassifier.from_pretrained(sys.argv[1]))
classifier.batch_size, predict = 1, classifier._classifier.predict_prepared

def slowly(*images, **options):
    threading.Event().wait(0.5)  # a pass takes long enough for others to wait
    return predict(*images, **options)

classifier._classifier.predict_prepared = slowly
with gr.Blocks(analytics_enabled=False) as demo:
    add_endpoints(classifier)
launch(demo, on_stop=classifier.close)
"""
CLIENTS = 20


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


def test_from_the_moment_of_the_stop_on_nobody_is_let_in():
    state = ShellState(Limits(), is_uploaded=lambda _: True, num_waiting=lambda: 0)
    demo, seen = MagicMock(), []
    demo._queue.__len__.return_value, demo._queue.active_jobs = 0, []
    stop(demo, state, on_stop=lambda: seen.append(state.is_stopping))
    assert seen == [True]
    demo.close.assert_called_once()


def test_an_address_that_others_reach_gets_a_warning_unless_there_is_a_password(capsys, monkeypatch):
    monkeypatch.setattr(gr.Blocks, "launch", lambda *_, **__: (None, "http://x/", None))
    for host, auth, is_warned in (("0.0.0.0", (), True), ("0.0.0.0", [("a", "b")], False), ("127.0.0.1", (), False)):
        demo = gr.Blocks(analytics_enabled=False)
        launch(demo, host=host, auth=auth, prevent_thread_lock=True)
        demo.close()
        assert ("without a password" in capsys.readouterr().err) is is_warned


def test_with_a_password_nothing_is_answered_without_it(classifier):
    from chexpert_hf.app.server.endpoints import add_endpoints

    with gr.Blocks(analytics_enabled=False) as demo:
        add_endpoints(classifier)
    url = launch(demo, auth=[("ada", "correct horse")], prevent_thread_lock=True).rstrip("/")
    try:
        with httpx.Client(base_url=url) as http:
            for path in ("/config", "/gradio_api/info", "/gradio_api/call/predict/x", "/gradio_api/queue/data"):
                assert http.get(path).status_code == 401
            assert http.post("/gradio_api/upload", files={"files": ("a", b"a")}).status_code == 401
            assert http.post("/gradio_api/call/predict", json={"data": []}).status_code == 401
            wrong = http.post("/login", data={"username": "ada", "password": "wrong"})
            assert wrong.status_code == 400
            right = http.post("/login", data={"username": "ada", "password": "correct horse"})
            assert right.status_code == 200
            http.cookies.update(right.cookies)
            assert http.get("/config").status_code == 200
    finally:
        demo.close(verbose=False)


def test_without_the_extra_mcp_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio.mcp", None)
    with pytest.raises(InputError, match=r"pip install 'chexpert-hf\[mcp\]'"):
        launch(gr.Blocks(analytics_enabled=False), mcp=True)


def test_a_port_that_is_taken_is_one_line_and_leaves_no_folder(server, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with gr.Blocks(analytics_enabled=False) as demo:
        pass
    with pytest.raises(InputError, match="The page cannot be served at"):
        launch(demo, port=int(server.url.split(":")[-1].strip("/")))
    assert list(tmp_path.iterdir()) == []


def test_files_of_components_that_were_made_before_lie_in_the_private_folder(server):
    folder = os.environ["GRADIO_TEMP_DIR"]
    assert Path(server.upload(png(1))).is_relative_to(folder)
    with gr.Blocks(analytics_enabled=False) as demo:
        text = gr.Textbox()
    text.GRADIO_CACHE = "elsewhere"
    from chexpert_hf.app.server.launch import _keep_files_in

    _keep_files_in(demo, Path(folder))
    assert folder == text.GRADIO_CACHE


def test_loopback_is_what_stays_on_this_machine():
    hosts = ("127.0.0.1", "::1", "[::1]", "localhost", "0.0.0.0", "::", "192.168.1.2", "example.org")
    assert [is_loopback(host) for host in hosts] == [True, True, True, True, False, False, False, False]


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no such host", "a..b"])
def test_an_address_of_another_machine_is_one_line_at_once(host):
    begin = time.monotonic()
    with pytest.raises(InputError, match=f"Expected an address of this machine for --host, got '{host}'"):
        listening_address(host)
    assert time.monotonic() - begin < 5


PROXIES = {
    "http_proxy": "http://127.0.0.1:9",  # nothing answers at the port "discard"
    "https_proxy": "http://127.0.0.1:9",
    "all_proxy": "socks5://127.0.0.1:9",  # httpx has no SOCKS unless an extra is installed
}
OPEN = """
import os, sys
from chexpert_hf.app.server.addresses import without_proxies
with without_proxies():
    import gradio as gr
    import httpx
from chexpert_hf.app.server.launch import launch
for host in sys.argv[1:]:
    with gr.Blocks(analytics_enabled=False) as demo:
        gr.Textbox()
    url = launch(demo, host=host, prevent_thread_lock=True)
    print(url, httpx.Client(trust_env=False).get(url).status_code)
    demo.close(verbose=False)
print([os.environ.get(name) for name in ("no_proxy", "NO_PROXY")])
"""


def test_the_page_starts_at_each_own_address_whatever_the_proxies():
    hosts = ["127.0.0.1", "localhost", "::1", "[::1]", "::", "0.0.0.0"]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | PROXIES
    command = [sys.executable, "-c", OPEN, *hosts]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    *pages, variables = [line for line in done.stdout.splitlines() if not line.startswith("The page is at")]
    shown = ["127.0.0.1", "localhost", "[::1]", "[::1]", "[::1]", "localhost"]
    assert [re.sub(r":\d+/", "/", page) for page in pages] == [f"http://{host}/ 200" for host in shown]
    assert variables == "[None, None]"


def test_what_gradio_would_record_is_off(server):
    config = server.http.get("/config").json()
    assert json.dumps(config).count("huggingface.co") == 0
    assert config["analytics_enabled"] is False
    assert server.http.get("/gradio_api/runs").status_code == 404
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_fastapi_tells_no_collector_of_a_request(classifier):
    provider = Recorder()
    with gr.Blocks(analytics_enabled=False) as demo:
        gr.Textbox()
    url = launch(demo, prevent_thread_lock=True)
    settings = getattr(demo.app, "_telemetry", None)
    if settings is None:
        pytest.skip("this FastAPI has no telemetry")
    settings["tracer_provider"] = settings["meter_provider"] = settings["logger_provider"] = provider
    assert httpx.get(url).status_code == 200
    demo.close(verbose=False)
    assert provider.asked == []


class Recorder:
    """A provider of traces, measures and logs that keeps what it is asked for."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        self.asked.append(name)
        raise AttributeError(name)
