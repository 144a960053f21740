"""Addresses that clients name: which of them we may dial."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

AddressRule = Callable[[str], bool]
"""Whether an IP address may be dialled."""

_CARRIERS = (IPv6Network("64:ff9b::/96"), IPv6Network("::/96"), IPv6Network("::ffff:0:0:0/96"))
"""NAT64, and two old ways to write an IPv4 address as one of IPv6: the IPv4 address is at the end."""
_INSIDE = (IPv6Network("64:ff9b:1::/48"), IPv6Network("fec0::/10"))
"""NAT64 inside a network, and site-local addresses, which Python takes for public ones."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet: not loopback, private, link-local or reserved.

    An IPv6 address that stands for an IPv4 one is judged by that.
    """
    found = ip_address(address.split("%")[0])
    if any(found in network for network in _INSIDE):
        return False
    meant = _embedded(found) or found
    return meant.is_global and not meant.is_multicast


def any_address(address: str) -> bool:
    """Every address, our own network included: for development."""
    return True


def is_disguised(host: str) -> bool:
    """Whether a host is an IPv4 address in one of its old forms, such as 127.1, which checks of addresses overlook."""
    try:
        ip_address(host)
    except ValueError:
        return host.replace(".", "").isdigit()
    return False


def url_fault(url: str, *, private: bool) -> str:
    """Why we would not send anything to a URL, "" where we would; a name is only judged when it is resolved.

    ``private`` allows our own network and unencrypted connections.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "it is not a web address"
    if parts.scheme not in ("https", "http") or not host or port == 0:
        return "it is not a web address"
    if parts.username is not None or parts.password is not None:
        return "it holds a user name"
    if is_disguised(host):
        return "its host is neither a name nor an address as they are written today"
    if parts.scheme == "http" and not private:
        return "it is not https"
    try:
        inside = not is_public(host)
    except ValueError:
        return ""
    return "its host is not on the public internet" if inside and not private else ""


def _embedded(found: IPv4Address | IPv6Address) -> IPv4Address | None:
    if isinstance(found, IPv4Address):
        return None
    if any(found in carrier for carrier in _CARRIERS):
        return IPv4Address(found.packed[-4:])
    teredo = found.teredo[1] if found.teredo is not None else None
    return found.ipv4_mapped or found.sixtofour or teredo
