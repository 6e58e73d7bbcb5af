"""User names and passwords, from a file or the environment: all users of a machine can see command-line arguments."""

import base64
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from chexpert_hf.errors import InputError

_MIN_LENGTH = 8


def read_credentials(file: Path | None, variable: str | None) -> list[tuple[str, str]]:
    """Return the users who may open the page, as (user, password); empty for a page without login.

    Args:
        file: Lines `user:password`; only its owner may have access to it.
        variable: The value of an environment variable, `user:password`; ignored if there is a file.

    Raises:
        InputError: If a line is not `user:password`, a password is short, or others may read the file.
    """
    lines = [variable] if variable and file is None else []
    if file is not None:
        try:
            if stat.S_IMODE(file.stat().st_mode) & 0o077:
                raise InputError(f"Others may read {file}, expected a file for its owner alone; chmod 600 {file}.")
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read, expected lines of user:password; check it.") from error
        if not lines:
            raise InputError(f"{file} is empty, expected lines of user:password.")
    return [_credential(line) for line in lines]


def is_authorized(header: str, users: Sequence[tuple[str, str]]) -> bool:
    """Whether an `Authorization` header (Basic) names a user with the right password, compared in constant time."""
    scheme, _, encoded = header.partition(" ")
    try:
        given = base64.b64decode(encoded, validate=True) if scheme.lower() == "basic" else b""
    except ValueError:
        return False
    return any(secrets.compare_digest(given, f"{user}:{password}".encode()) for user, password in users)


def _credential(line: str) -> tuple[str, str]:
    user, separator, password = line.strip().partition(":")
    if not user or not separator or len(password) < _MIN_LENGTH:
        raise InputError(f"Expected user:password with a password of at least {_MIN_LENGTH} characters, got another.")
    return user, password
