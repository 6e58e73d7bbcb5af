"""Accepts command lines of version 0.1, in which models and outputs were arguments, and prints them in today's form.

Version 0.3 will not accept them any more.
"""

import shlex
from pathlib import Path
from typing import Any

from typer import echo
from typer.core import TyperGroup

from chexpert_hf.default_model import DEFAULT_NAME

_FORMER = {
    "check": ("model",),
    "push": ("model", "repo_id"),
    "space": ("model", "space_id", "output"),
    "export": ("model",),
    "bench": ("model", "images"),
    "import": ("source", "output"),
    "phantom": ("output",),
}
"""The arguments that commands had in version 0.1, in their order; those that are options now have the same names."""


class _Word(str):
    """A word typed on the command line, as a class of its own to tell it from default values, which are plain strings.

    Words are compared by `is`, not by `==`: a user may type the same text twice, for two arguments.
    """


class Group(TyperGroup):
    """The group of all commands, which also accepts their arguments in the spelling of version 0.1."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command as Typer does, and rewrite its arguments if they are in the old spelling."""
        name, command, words = super().resolve_command(ctx, args)
        return name, command, _translate(command, ctx, words) if command and name in _FORMER else words


def _translate(command: Any, context: Any, words: list[str]) -> list[str]:
    """Rewrite the arguments of a version 0.1 command line as today's options, and print a note with the new line.

    Words that are not in the old spelling are returned as they are, without a note.
    """
    marked: list[str] = [_Word(word) for word in words]
    own = command.context_class(command, info_name=command.name, parent=context, resilient_parsing=True)
    values, excess, _ = command.make_parser(own).parse_args([*marked])
    arguments = {item.name: item.required for item in command.params if item.param_type_name == "argument"}
    given = [values[name] for name in arguments if isinstance(values.get(name), _Word)] + excess
    former = _FORMER[command.name]
    if len(given) == 3 and "--dry-run" in marked[:-1]:  # it used to be followed by the folder for a Space's files
        folder = marked[marked.index("--dry-run") + 1]
        given.sort(key=lambda word: word is folder)
    moved = {name: word for name, word in zip(former, given, strict=False) if name not in arguments}
    is_old = len(given) > len(arguments) or (bool(given) and not any(arguments.values()) and _is_model(given[0]))
    if not is_old or len(given) > len(former) or any(isinstance(values.get(name), str) for name in moved):
        return words
    rest = [word for word in marked if not any(word is one for one in moved.values())]
    today = [str(word) for word in rest] + [str(part) for name in moved for part in (f"--{name}", moved[name])]
    names = " and ".join(name.upper() for name in moved)
    manner = "an argument is" if len(moved) == 1 else "arguments are"
    line = shlex.join(["chexpert-hf", command.name, *today])
    echo(f"Note: {names} as {manner} deprecated and will stop working in version 0.3; use: {line}", err=True)
    return today


def _is_model(word: str) -> bool:
    return word == DEFAULT_NAME or (Path(word) / "config.json").is_file()
