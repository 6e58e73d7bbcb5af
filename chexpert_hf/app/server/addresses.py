"""Network addresses of the server, and HTTP clients without proxies."""

import errno
import os
import socket
import sys
from contextlib import AbstractContextManager
from ipaddress import ip_address

from chexpert_hf.app.server.temporary import environment
from chexpert_hf.errors import InputError

_FIRST_PORT, _NUM_PORTS, _MAX_PORT = 7860, 100, 65_535  # the first one is the port that Spaces expect


def listening_socket(host: str, port: int | None = None) -> socket.socket:
    """Open a socket that listens at an IPv4 or IPv6 address, with or without brackets, or a host name.

    Without a `port`, take the port `GRADIO_SERVER_PORT` (7860 if unset) or, if that is taken, the next free one, which
    is then printed on standard error.

    Raises:
        InputError: If no interface of this machine has the address, the port is taken, or `GRADIO_SERVER_PORT` is no
            port.
    """
    plain, problem = host.strip("[]"), None
    first = _first_port()
    for number in range(first, min(first + _NUM_PORTS, _MAX_PORT + 1)) if port is None else [port]:
        try:
            family = socket.getaddrinfo(plain, number, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((plain, number), family=family, backlog=2048)
            # Accepted sockets inherit it. Without it, an answer in two packets waits for a delayed acknowledgement.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if port is None and number != first:  # a program that expects the usual port would reach another server
                print(f"Port {first} is taken; using port {number} instead.", file=sys.stderr)
            return listener
        except (OSError, UnicodeError, OverflowError) as error:
            problem = error
            if not isinstance(error, OSError) or error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise InputError(
                    f"Expected an address of this machine for --host, got {host!r} ({error}); leave it out for "
                    "127.0.0.1, or use 0.0.0.0 (IPv4) or :: (IPv6) for all networks."
                ) from error
    tried = port or f"{first} to {number}"
    raise InputError(f"The page cannot be served at {host}, port {tried}: {problem}. Pass another --port.") from problem


def _first_port() -> int:
    text = os.environ.get("GRADIO_SERVER_PORT", str(_FIRST_PORT))
    if not text.isdecimal() or not 0 < int(text) <= _MAX_PORT:
        raise InputError(f"Expected a port from 1 to {_MAX_PORT} as GRADIO_SERVER_PORT, got {text!r}; correct it.")
    return int(text)


def url_of(host: str, listener: socket.socket) -> str:
    """Return the URL at which a browser on this machine reaches a socket that listens at `host`."""
    plain = {"0.0.0.0": "localhost", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    return f"http://{f'[{plain}]' if ':' in plain else plain}:{listener.getsockname()[1]}/"


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def without_proxies() -> AbstractContextManager[None]:
    """Make HTTP clients ignore the proxies that environment variables name, within this context.

    The import of Gradio needs this, since it creates an HTTP client. With a SOCKS proxy, httpx fails even for an
    address that `no_proxy` names; only `no_proxy=*` switches proxies off.
    """
    return environment(no_proxy="*", NO_PROXY="*")
