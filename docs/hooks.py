"""Writes the reference of the command line into the page that asks for it."""

from collections.abc import Iterator

from typer.main import get_command

from chexpert_hf.cli import app


def on_page_markdown(markdown: str, **_: object) -> str:
    """Puts every command's help in the place of `::cli::`."""
    return markdown.replace("::cli::", "\n\n".join(_commands())) if "::cli::" in markdown else markdown


def _commands() -> Iterator[str]:
    group = get_command(app)
    whole = group.make_context("chexpert-hf", [], resilient_parsing=True)
    for name in group.list_commands(whole):
        command = group.get_command(whole, name)
        context = command.make_context(name, [], parent=whole, resilient_parsing=True)
        yield f"## {name}\n\n{command.help}\n\n```text\n{command.get_usage(context)}\n```"
        rows = [record for parameter in command.params if (record := parameter.get_help_record(context))]
        if rows:
            yield "| | |\n| --- | --- |\n" + "\n".join(f"| `{_cell(left)}` | {_cell(right)} |" for left, right in rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
