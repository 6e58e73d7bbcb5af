"""Errors about a user's input: data, files, recipes, model folders."""


class InputError(ValueError):
    """Wrong input. The message is one line: what was expected, what was given, what to do."""


class ModelFolderError(InputError):
    """A model folder or repository that this package cannot use, with the reason and what to do."""


def printable(text: object) -> str:
    """A text as one line for a terminal: characters that are not printable are escaped."""
    return "".join(mark if mark.isprintable() else f"\\x{ord(mark):02x}" for mark in str(text))
