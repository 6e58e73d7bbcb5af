"""What the server says in more than one place."""

from pathlib import Path

DISCLAIMER = "Research software, not a medical device: not for diagnosis."

STOPPING = "The server is stopping; try again in a minute."


def public_name(place: str) -> str:
    """A model as its repository or its folder is called, never where on this machine it lies.

    Args:
        place: A repository's id or a folder's path; empty for a model from neither.
    """
    return Path(place).resolve().name if place and Path(place).is_dir() else place
