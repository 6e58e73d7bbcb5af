"""Which uploads are written in the loop, and that all of them arrive whole."""

from pathlib import Path

import pytest
import starlette.datastructures

from chexpert_hf.serving.small_uploads import IN_LOOP_BYTES


@pytest.fixture
def threads(monkeypatch):
    """The file methods that were called in a thread."""
    called = []
    in_thread = starlette.datastructures.run_in_threadpool

    async def counted(method, *arguments):
        called.append(method.__name__)
        return await in_thread(method, *arguments)

    monkeypatch.setattr(starlette.datastructures, "run_in_threadpool", counted)
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
