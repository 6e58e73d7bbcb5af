"""The root of this package's errors about what a user gave: data, files, recipes, model folders."""


class InputError(ValueError):
    """Something that was given is wrong. The message is one line: what was expected, what came, what to do."""


class ModelFolderError(InputError):
    """A model folder or repository that this package cannot use, with the reason and what to do."""
