"""The command line in this process."""

import pytest

from chexpert_hf.cli import main


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Runs a command; gives its exit code, and what went to standard output and standard error."""
    monkeypatch.setattr("sys.argv", ["chexpert-hf", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()
