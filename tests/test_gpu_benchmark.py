"""The benchmark for GPUs, whose every section must work before somebody has one."""

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_every_section_of_the_gpu_benchmark_runs_on_a_cpu():
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--device", "cpu", "--quick"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    for title in ("reading processes", "predict, small JPEGs", "network alone, fp32", "train, batch 4", "CheXpert, 3"):
        assert re.search(rf"\| [^|]*{title}[^|]*\| +[\d,.]+ \|", found.stdout), found.stderr
    assert "failed" not in found.stdout
