"""Download models from the Hub, with one-line errors that say what to do.

Source of the errors: `huggingface_hub.utils.hf_raise_for_status` and `huggingface_hub.errors`, 2.4.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, get_token, snapshot_download
from huggingface_hub.utils import validate_repo_id

from chexpert_hf.default_model import resolve_model
from chexpert_hf.errors import InputError, ModelFolderError
from chexpert_hf.files import first_line
from chexpert_hf.models.model_files import CHECKSUMS_FILE, EVALUATION_FILE, LOADED_FILES, NEEDED_FILES, TERMS_FILE

# Weights that `save_pretrained` of transformers divided (`max_shard_size`).
_SHARDS = ("model.safetensors.index.json", "model-*.safetensors")
SCORING_FILES = (*LOADED_FILES, *_SHARDS, CHECKSUMS_FILE, EVALUATION_FILE, TERMS_FILE)
"""Names or patterns of the files that scoring in PyTorch reads, and of those that describe the model."""

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_BILLING = "in its settings under Billing, then repeat the command"
_STORAGE = f"the account's storage is used up or blocked; make room, or ask for more {_BILLING}"
_HIDDEN = f"or this token has no access to it; {_LOG_IN} if it is private"
_NO_FOLDER = "there is no such folder"
_STATUS = {
    401: f"the token is not valid; {_LOG_IN} to another",
    402: f"the account's quota is used up; raise it {_BILLING}",
    404: f"there is no such repository, {_HIDDEN}",
    **dict.fromkeys((409, 412), "somebody changed it at the same moment; repeat the command"),
    413: _STORAGE,
}
_NO_ACCESS = {
    True: f"the token has no permission for that; it needs write access, so {_LOG_IN} to one that has",
    False: f"the token has no permission to read it; {_LOG_IN} to one that has",
}
_IS_ON_STORAGE = re.compile(r"\bstorage\b|\bquota\b", re.IGNORECASE)
_RETRY_AFTER = re.compile(r"Retry after (\d+) seconds")


class HubError(InputError):
    """The Hub refused a request or did not answer; the message says what to do."""


def expect_repo_id(repo_id: str) -> None:
    """Raise HubError unless `repo_id` has the form user/name."""
    try:
        validate_repo_id(repo_id)
        is_id = repo_id.count("/") == 1
    except errors.HFValidationError:
        is_id = False
    if not is_id:
        raise HubError(f"{repo_id!r} is not a repository id; expected user/name.")


def expect_token(api: HfApi) -> None:
    """Raise HubError if there is no token for the Hub, neither in `api` nor in HF_TOKEN nor from `hf auth login`."""
    if not (api.token or get_token()):
        raise HubError(f"There is no token for the Hub: {_LOG_IN}.")


def model_folder(
    model: str | Path,
    revision: str | None = None,
    *,
    files: Sequence[str] | None = SCORING_FILES,
) -> Path:
    """Return the local folder of a model; a repository of the Hub is downloaded unless it is in the cache.

    Args:
        model: Path of a folder, "nih" (the bundled model) or id of a repository.
        revision: Branch, tag or commit of a repository.
        files: Names or patterns of the files to download; everything if None.

    Raises:
        HubError: If the repository cannot be downloaded.
        ModelFolderError: If `model` is neither a folder nor a valid repository id, or the repository holds no model.
    """
    model = resolve_model(model)
    if Path(model).is_dir():
        return Path(model)
    try:
        expect_repo_id(str(model))
    except HubError as error:
        raise ModelFolderError(
            f"{str(model)!r} is neither a model folder nor the id of a repository. Expected a folder with config.json, "
            "or user/name."
        ) from error
    with hub_errors(str(model), is_upload=False):
        try:
            wanted = list(files) if files else None
            folder = Path(snapshot_download(str(model), revision=revision, allow_patterns=wanted))
        except errors.IncompleteSnapshotError as error:  # a partial download in the cache may be enough
            folder = Path(error.snapshot_path)
            if files is None or not all((folder / name).is_file() for name in NEEDED_FILES):
                raise
    if not (folder / "config.json").is_file():
        raise ModelFolderError(f"The repository {model} holds no config.json; expected one with a model.")
    return folder


@contextmanager
def hub_errors(subject: str, *, is_upload: bool = True) -> Iterator[None]:
    """Context manager: turn errors of the Hub's client into HubError.

    The message starts with `subject`, the repository's name, and gives advice for an upload or for a download.
    """
    try:
        yield
    except InputError:
        raise
    # hf_xet raises RuntimeError, and the client ValueError, if the store refuses a file.
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise HubError(f"{subject}: {_reason(subject, error, is_upload)}.") from error


def _reason(subject: str, error: BaseException, is_upload: bool) -> str:
    """Describe why a request to the Hub failed and what to do, without a final full stop.

    `subject` is the name of the repository.
    """
    cause: BaseException | None = error  # the first in the chain that says how the Hub answered, or did not
    while cause is not None and not isinstance(cause, (errors.HTTPError, errors.OfflineModeIsEnabled)):
        cause = cause.__cause__
    if isinstance(cause, errors.HfHubHTTPError):
        return _refusal(subject, cause, is_upload)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        offline = "the Hub cannot be reached, since HF_HUB_OFFLINE is set"
        return offline if is_upload else f"{_NO_FOLDER}; {offline}, and this is not complete in the cache; unset it"
    if cause is not None:
        kept = "what was sent is kept there, so " if is_upload else f"check the name ({_NO_FOLDER}), and "
        return f"no answer from the Hub ({_line(cause)}); {kept}repeat the command"
    if is_upload and _IS_ON_STORAGE.search(str(error)):
        return f"{_STORAGE} ({_line(error)})"
    return f"the {'upload' if is_upload else 'download'} did not succeed ({_line(error)}); repeat the command"


def _refusal(subject: str, error: errors.HfHubHTTPError, is_upload: bool) -> str:
    status, said = error.response.status_code, error.server_message or ""
    quoted = f" (HTTP {status}{f', {_line(said)}' if said else ''})"
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{subject}"
        return f"the repository is gated; ask for access at {page}, {_LOG_IN}, and repeat the command"
    if isinstance(error, errors.RevisionNotFoundError):
        return "there is no such branch, tag or commit; without a revision, the current state is used"
    if isinstance(error, errors.RepositoryNotFoundError):
        return _STATUS[404] if is_upload else f"{_NO_FOLDER}, and no such repository, {_HIDDEN}"
    if isinstance(error, errors.EntryNotFoundError):
        return f"a file is missing there; repeat the command{quoted}"
    if status == 403:
        return (_STORAGE if is_upload and _IS_ON_STORAGE.search(said) else _NO_ACCESS[is_upload]) + quoted
    if status == 429:
        wait = _RETRY_AFTER.search(str(error))
        return f"too many requests; repeat the command {f'in {wait[1]} seconds' if wait else 'later'}{quoted}"
    return _STATUS.get(status, "the Hub has a problem of its own; repeat the command later") + quoted


def _line(error: object) -> str:
    return first_line(error, 120).rstrip(".")
