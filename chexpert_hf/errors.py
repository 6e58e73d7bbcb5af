"""Errors about a user's input: data, files, recipes, model folders."""


class InputError(ValueError):
    """The user's input is wrong. The message is one line: what was expected, what was given, what to do."""


class ModelFolderError(InputError):
    """A model folder or repository cannot be used; the message gives the reason and what to do."""


class NotANumberError(ModelFolderError):
    """A model's scores are not numbers (NaN)."""


def printable(text: object) -> str:
    """Return a text as one line for a terminal, with characters that are not printable escaped."""
    return "".join(mark if mark.isprintable() else f"\\x{ord(mark):02x}" for mark in str(text))
