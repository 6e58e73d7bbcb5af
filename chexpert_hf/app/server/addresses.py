"""Network addresses of the server: which one it listens at, and how the process reaches itself."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from chexpert_hf.errors import InputError

_NO_PROXY = ("no_proxy", "NO_PROXY")


def listening_address(host: str) -> str:
    """Check that the server can listen at an address.

    Args:
        host: IPv4 or IPv6 address, with or without brackets, or a host name.

    Returns:
        The address as Gradio expects it: an IPv6 address in brackets.

    Raises:
        InputError: If no interface of this machine has the address.
    """
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(plain, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"Expected an address of this machine for --host, got {host!r} ({error}); leave it out for 127.0.0.1, or "
            "use 0.0.0.0 (IPv4) or :: (IPv6) for all networks."
        ) from error
    return f"[{plain}]" if ":" in plain else plain


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def without_proxies() -> Iterator[None]:
    """Make HTTP clients ignore the proxies that environment variables name.

    For the import of Gradio, which creates a client, and for its start, which asks its own server whether it answers.
    A SOCKS proxy makes httpx fail even for an address that `no_proxy` excludes by name; only `*` switches proxies off.
    """
    before = {name: os.environ.get(name) for name in _NO_PROXY}
    os.environ.update(dict.fromkeys(_NO_PROXY, "*"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
