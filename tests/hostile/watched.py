"""Runs a module and writes down each address outside of this machine that it looks up or connects to.

    python -m tests.hostile.watched LOG MODULE ARGUMENT...

Python tells an audit hook of every look-up and connection that goes through its own sockets; what a compiled library
did by itself would not be seen.
"""

import runpy
import sys
from ipaddress import ip_address
from pathlib import Path

_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def watch(log: Path) -> None:
    """From now on, in this process, for good."""

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event not in _EVENTS:
            return
        host: object = arguments[0]
        if event in ("socket.connect", "socket.sendto"):
            address = arguments[1]
            if not isinstance(address, tuple):  # a path: a socket of this machine
                return
            host = address[0]
        if not is_here(host):
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{event} {host!r}\n")

    sys.addaudithook(note)


def is_here(host: object) -> bool:
    """Whether an address or a name is this machine's own."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        address = ip_address(str(name))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


if __name__ == "__main__":
    log_file, module, *rest = sys.argv[1:]
    watch(Path(log_file))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
