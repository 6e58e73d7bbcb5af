"""What runs in threads and what does not, and that all uploads arrive whole."""

from pathlib import Path

import anyio.to_thread
import pytest

from chexpert_hf.app.server.threads import IN_LOOP_BYTES
from tests.app.server.conftest import png

run_sync = anyio.to_thread.run_sync


@pytest.fixture
def threads(monkeypatch):
    """The names of what was called in threads."""
    called = []

    async def counted(function, *arguments, **options):
        called.append(getattr(function, "func", function).__name__)
        return await run_sync(function, *arguments, **options)

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    return called


@pytest.mark.parametrize(
    ("num_bytes", "in_threads"),
    [(0, set()), (100_000, set()), (IN_LOOP_BYTES, set()), (2 * IN_LOOP_BYTES, {"write", "seek"})],
)
def test_a_file_arrives_whole_and_only_a_large_one_takes_threads(server, threads, num_bytes, in_threads):
    data = bytes(range(256)) * (num_bytes // 256 + 1)
    path = server.upload(data[:num_bytes])
    assert Path(path).read_bytes() == data[:num_bytes]
    assert set(threads) == in_threads


def test_a_score_takes_one_thread(server, threads):
    path = server.upload(png())
    assert "event: complete" in server.result("predict", {"path": path})
    assert threads == ["predict"]
