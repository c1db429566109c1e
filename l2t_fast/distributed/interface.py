"""Which network interface reaches the other machines of a job.

gloo takes the one that this machine's own name resolves to, which is the loopback on many machines (Debian's /etc/hosts
says 127.0.1.1): its address means nothing to the others.
"""

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterator

#: Environment variable of gloo: the interface's name.
INTERFACE = "GLOO_SOCKET_IFNAME"

_SIOCGIFADDR, _SIOCGIFFLAGS = 0x8915, 0x8913  # Linux
_UP, _LOOPBACK = 0x1, 0x8

#: An address of no machine (RFC 5737), which packets would leave for by the default route.
_ELSEWHERE = "203.0.113.1"


def interface_towards(address: str, *, leaves_machine: bool) -> str | None:
    """Name of the interface whose own address this machine shows to ``address``; None if it cannot be told.

    Args:
        address: name or IPv4 address of a machine, which may be this one.
        leaves_machine: other machines take part, so that the loopback will not do: where ``address`` is this machine
            itself under its own name, it is the interface of the default route, or the first other one that is up.
    """
    found = {own: (name, flags) for name, own, flags in _interfaces()}
    wanted = [address, _ELSEWHERE] if leaves_machine else [address]
    ways = [found[own] for own in map(_own_address, wanted) if own in found]
    if not leaves_machine:
        return ways[0][0] if ways else None
    return next((name for name, flags in [*ways, *found.values()] if flags & _UP and not flags & _LOOPBACK), None)


def _own_address(address: str) -> str | None:
    """The address that packets to ``address`` would carry as their sender; none is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return probe.getsockname()[0]
    return None


def _interfaces() -> Iterator[tuple[str, str, int]]:
    """(name, IPv4 address, flags) of each interface that has an address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # it has no IPv4 address
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, request)
                (flags,) = struct.unpack_from("H", fcntl.ioctl(asking, _SIOCGIFFLAGS, request), 16)
                yield name, socket.inet_ntoa(answer[20:24]), flags
