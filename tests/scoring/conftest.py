"""What tests of inference share."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """As the decoding threads compute: PyTorch's sums have other last bits with as many threads as there are cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
