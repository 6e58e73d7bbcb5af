"""What Gradio hands to a thread although the handing over takes longer, done where it comes up instead.

Of 4.5 ms of a core that a score took beside the network and its gate, these threads were .7.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi.dependencies import utils as fastapi_dependencies
from gradio import route_utils
from starlette.concurrency import run_in_threadpool

IN_LOOP_BYTES = 1_000_000
"""Of a file, up to which its parts are written in Gradio's loop."""

Result = TypeVar("Result")


def spare_threads() -> None:
    """Makes Gradio's loop write small uploads and look up who has logged in by itself, in this whole process."""
    route_utils.GradioUploadFile = _UploadFile
    fastapi_dependencies.run_in_threadpool = _solve  # type: ignore[assignment]


class _UploadFile(route_utils.GradioUploadFile):
    """Tells Starlette that a small file is in memory, where it writes and seeks without threads."""

    @property
    def _in_memory(self) -> bool:
        return (self.size or 0) <= IN_LOOP_BYTES

    def _will_roll(self, size_to_add: int) -> bool:
        return not self._in_memory


async def _solve(dependency: Callable[..., Result], **values: Any) -> Result:
    """What a request depends on, in a thread unless it is the look at whether somebody has logged in."""
    if getattr(dependency, "__qualname__", "").endswith("create_app.<locals>.login_check"):
        return dependency(**values)
    return await run_in_threadpool(dependency, **values)
