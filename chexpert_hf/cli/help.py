"""Prints `--help` of the commands. Typer's own tables cut long names of options and words in a narrow terminal."""

from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

if TYPE_CHECKING:
    from rich.text import Text

_NAMES_SHARE = 0.42  # the most of a table's width that names and types of the options take


class Command(TyperCommand):
    """A command whose help shows the names of all options uncut in a terminal of 80 columns and more."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print usage, description, a panel for each group of options, and the example (`epilog`)."""
        from rich.console import Console
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        console, groups = Console(highlight=False), dict[str, list[tuple[Any, tuple[str, str]]]]()
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                other = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panel = getattr(parameter, "rich_help_panel", None) or other
                groups.setdefault(panel, []).append((parameter, record))
        console.print(Text(f"\n{self.get_usage(ctx)}\n", style="bold"))
        console.print(_paragraphs(self.help or ""))
        for title, rows in groups.items():
            table = Table(box=None, show_header=False, expand=True, padding=(0, 1))
            table.add_column(style="cyan", overflow="fold", max_width=int(console.width * _NAMES_SHARE))
            table.add_column(overflow="fold", ratio=1)
            for parameter, (names, text) in rows:
                described = parameter.help or ""  # is markup, unlike what follows it: default, range and the like
                table.add_row(Text(names), Text.from_markup(described) + Text(text[len(described) :], style="dim"))
            console.print(Panel(table, title=title, title_align="left", border_style="dim"))
        if self.epilog:
            console.print(_paragraphs(self.epilog))


def _paragraphs(text: str) -> "Text":
    """Return a text in which only empty lines are line breaks."""
    from rich.text import Text

    return Text("\n\n".join(" ".join(part.split()) for part in text.split("\n\n")) + "\n")
