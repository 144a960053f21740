"""Which headers a proxy passes on, in both directions."""

from __future__ import annotations

from collections.abc import Mapping

from multidict import CIMultiDict

HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
# The pod token is the agent's. Host and Origin would make ComfyUI compare two addresses of which it knows neither,
# and later versions refuse what a browser calls cross-site; who holds the token may ask from anywhere.
NOT_FOR_COMFYUI = frozenset({"authorization", "cookie", "expect", "host", "origin", "referer"})
BROWSERS_OWN = "sec-"


def for_comfyui(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers of a request as ComfyUI gets them."""
    kept = _end_to_end(headers)
    for name in set(kept):
        if name.lower() in NOT_FOR_COMFYUI or name.lower().startswith(BROWSERS_OWN):
            kept.popall(name, None)
    return kept


def for_caller(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers of an answer as the caller gets them."""
    return _end_to_end(headers)


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    named = {part.strip().lower() for part in headers.get("Connection", "").split(",")}
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        if name.lower() not in HOP_BY_HOP and name.lower() not in named:
            kept.add(name, value)
    return kept
