"""What can go wrong with the Hub, as one line each that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from chexpert_hf.errors import InputError

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"

_STATUS = {
    401: f"the token is not valid; {_LOG_IN} to another",
    402: "the account's quota is used up",
    403: "the token has no right to do that; it needs write access there",
    404: "there is no such repository, or this token may not see it",
    409: "somebody changed it at the same moment; repeat the command",
    412: "somebody changed it at the same moment; repeat the command",
    413: "the upload is larger than the account may store",
    429: "too many requests, or the quota is used up; repeat the command later",
}


class HubError(InputError):
    """What the Hub refused or could not do, with what to do."""


def expect_repo_id(repo_id: str) -> None:
    """Raises HubError unless this is an id of the form user/name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no id of a repository; expected user/name.") from error
    if repo_id.count("/") != 1:
        raise HubError(f"{repo_id!r} is no id of a repository; expected user/name.")


def expect_token(api: HfApi) -> None:
    """Raises HubError if nobody is logged in."""
    if not (api.token or get_token()):
        raise HubError(f"There is no token for the Hub: {_LOG_IN}.")


@contextmanager
def hub_errors(subject: str) -> Iterator[None]:
    """Turns what the Hub's client raises into HubError.

    Args:
        subject: The repository that it is about.
    """
    try:
        yield
    except GatedRepoError as error:
        raise HubError(f"{subject}: the repository is gated; ask for access on its page, then repeat.") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{subject}: there is no such branch, tag or commit.") from error
    except RepositoryNotFoundError as error:
        raise HubError(f"{subject}: {_STATUS[404]}; {_LOG_IN} if it is private.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = _STATUS.get(status, "the Hub has a problem of its own; repeat the command later")
        said = error.server_message
        raise HubError(f"{subject}: {reason} (HTTP {status}{f', {_line(said)}' if said else ''}).") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{subject}: the Hub cannot be reached, since HF_HUB_OFFLINE is set.") from error
    except HTTPError as error:
        raise HubError(
            f"{subject}: no answer from the Hub ({_line(error)}); what was sent is kept there, so repeat the command."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        # hf_xet raises RuntimeError, the client ValueError where the store refuses a file.
        if isinstance(error, InputError):
            raise
        raise HubError(f"{subject}: the upload did not succeed ({_line(error)}); repeat the command.") from error


def _line(error: object) -> str:
    """The first line of what was said, not too long."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:120]
