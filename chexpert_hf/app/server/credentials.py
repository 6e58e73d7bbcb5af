"""User names and passwords, from a file or the environment: an argument would show them to all users of a machine."""

import stat
from pathlib import Path

from chexpert_hf.errors import InputError

MIN_LENGTH = 8


def read_credentials(file: Path | None, variable: str | None) -> list[tuple[str, str]]:
    """The users who may open the page.

    Args:
        file: A line `user:password` for each; others than its owner may not read it.
        variable: The value of an environment variable, `user:password`.

    Returns:
        (user, password) of each; empty for a page that is open.

    Raises:
        InputError: If a line is not `user:password`, a password is short, or others may read the file.
    """
    lines: list[str] = []
    if file is not None:
        try:
            if stat.S_IMODE(file.stat().st_mode) & 0o077:
                raise InputError(f"Others may read {file}, expected a file for its owner alone; chmod 600 {file}.")
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read, expected lines of user:password; check it.") from error
        if not lines:
            raise InputError(f"{file} is empty, expected lines of user:password.")
    elif variable:
        lines = [variable]
    return [_credential(line) for line in lines]


def _credential(line: str) -> tuple[str, str]:
    user, separator, password = line.strip().partition(":")
    if not user or not separator or len(password) < MIN_LENGTH:
        raise InputError(f"Expected user:password with a password of at least {MIN_LENGTH} characters, got another.")
    return user, password
