"""The root of this package's errors about what a user gave: data, files, recipes, model folders."""


class InputError(ValueError):
    """Something that was given is wrong. The message is one line: what was expected, what came, what to do."""


class ModelFolderError(InputError):
    """A model folder or repository that this package cannot use, with the reason and what to do."""


def printable(text: object) -> str:
    """A text as one line that a terminal shows as it is: other characters are written as escapes."""
    return "".join(mark if mark.isprintable() else f"\\x{ord(mark):02x}" for mark in str(text))
