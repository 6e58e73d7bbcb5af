"""What a check of a model folder found, line by line."""

from dataclasses import asdict, dataclass
from typing import Any

OK, FAILED, LEFT_OUT = "ok", "FAILED", "left out"


@dataclass(frozen=True)
class CheckLine:
    """One thing that was looked at.

    Attributes:
        subject: What.
        result: "ok", "FAILED", or "left out" for a runtime that does not take this model, which is then not used for it
            and is no fault of the folder.
        text: What was found.
    """

    subject: str
    result: str
    text: str


@dataclass(frozen=True)
class CheckReport:
    """What `check_folder` found.

    Attributes:
        folder: The model folder.
        lines: In the order in which they were looked at.
    """

    folder: str
    lines: list[CheckLine]

    @property
    def is_ok(self) -> bool:
        """Whether nothing failed."""
        return all(line.result != FAILED for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {"is_ok": self.is_ok, **asdict(self)}

    def as_table(self) -> str:
        """A line for each thing that was looked at."""
        width = max(len(line.subject) for line in self.lines)
        return "\n".join(f"{line.subject:<{width}}  {line.result:<8}  {line.text}" for line in self.lines)


class FailedCheckError(Exception):
    """What a check found wrong, in a line."""


class LeftOutError(Exception):
    """Why a runtime does not take this model, in a line."""
