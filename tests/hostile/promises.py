"""What stands in a row of the table, and what the rows are made with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the table is made with.

    Attributes:
        model: A model folder.
        radiographs: Files that the model's gate need not accept.
        mutants: How many mutants of valid files are read.
        requests: How many requests in a row a served page answers.
        kills: Random kills of each kind of training run.
        runtime: What computes.
        precision: In which it does.
    """

    model: str
    radiographs: tuple[Path, ...]
    mutants: int = 20_000
    requests: int = 2_000
    kills: int = 5
    runtime: str = "auto"
    precision: str = "auto"

    def images(self, count: int) -> list[bytes]:
        """The first radiographs as they lie on the disk."""
        return [path.read_bytes() for path in self.radiographs[:count]]


@dataclass(frozen=True)
class Figure:
    """A row.

    Attributes:
        tried: What was done.
        found: What came of it.
        broken: What was promised and is not so.
    """

    tried: str
    found: str
    broken: tuple[str, ...] = ()


def judged(tried: str, found: Mapping[str, object], promised: Mapping[str, bool]) -> Figure:
    """A row of named figures.

    Args:
        tried: What was done.
        found: The figures.
        promised: Whether each promise was kept.
    """
    text = ", ".join(f"{name} {value}" for name, value in found.items())
    return Figure(tried, text, tuple(name for name, is_kept in promised.items() if not is_kept))
