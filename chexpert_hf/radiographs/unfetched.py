"""Detects files whose content is missing: links and pointers of git-annex, Git LFS, DVC and the Hub's cache."""

import os

from chexpert_hf.radiographs.grey_levels import NotFetchedError

_POINTERS = {
    b"version https://git-lfs": "a Git LFS pointer; run 'git lfs pull' in its folder.",
    b"/annex/objects/": "a git-annex pointer; run 'datalad get' or 'git annex get' in its folder.",
}

_TARGETS = {
    "/annex/objects/": "The content of this git-annex link has not been fetched; run 'datalad get' in its folder.",
    "/.dvc/": "The content of this DVC link is not in the cache; run 'dvc pull' in its folder.",
    "/files/md5/": "The content of this DVC link is not in the cache; run 'dvc pull' in its folder.",
    "/blobs/": "The content of this link into the Hub's cache is gone; download the repository again.",
}


def why_missing(path: str | os.PathLike[str]) -> str | None:
    """Return a sentence on why a link's target is missing and how to get it back; None if the path is no link.

    Whether the target is really missing is not checked.
    """
    try:
        target = os.readlink(path).replace("\\", "/")
    except (OSError, ValueError):
        return None
    reason = "The target of this link is gone; restore it, or remove the link."
    return next((text for part, text in _TARGETS.items() if part in target), reason)


def refuse_pointer(head: bytes) -> None:
    """Raise NotFetchedError if a file that begins with `head` is a pointer of Git LFS or git-annex."""
    for start, text in _POINTERS.items():
        if head.startswith(start):
            raise NotFetchedError(f"Expected an image, the content has not been fetched: this is {text}")
