"""The root of this package's errors about what a user gave: data, files, recipes, model folders."""


class InputError(ValueError):
    """Something that was given is wrong. The message is one line: what was expected, what came, what to do."""
