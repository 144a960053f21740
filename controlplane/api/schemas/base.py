"""What every schema shares: strictness, pages, links and the problem document."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Request(BaseModel):
    """A body or query that a client sends; a field that is not declared is refused by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)


class Reply(BaseModel):
    """A body that we send; it holds the declared fields and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoQuery(Request):
    """No query parameter is understood here."""


class PageQuery(Request):
    """One page of a list."""

    limit: int = Field(20, ge=1, le=100, description="At most this many items.")
    cursor: str | None = Field(None, max_length=400, description="`next_cursor` of the page before.")


class FieldProblem(Reply):
    """One thing that is wrong with the request."""

    pointer: str = Field(description="JSON pointer into the body, or `?name` for a query parameter.")
    detail: str


class Problem(BaseModel):
    """An RFC 9457 problem document; further members depend on `code`."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str | None = None
    request_id: str
    errors: list[FieldProblem] = Field(default_factory=list)


Priority = Annotated[
    int | None,
    Field(ge=-100, le=100, description="Among your own waiting jobs a higher one goes first; 0 is usual."),
]
DeadlineSeconds = Annotated[
    float | None,
    Field(
        ge=1,
        allow_inf_nan=False,
        description="After so many seconds, waiting included, the job is stopped and fails; the server sets a limit.",
    ),
]
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"}, description="RFC 3339, UTC.")]
Links = Annotated[dict[str, str], Field(description="Addresses relative to the server, by relation.")]
FreeJson = Annotated[dict[str, Any], Field(description="Free JSON object.")]


class AnyDocument(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="allow")


class FileQuery(Request):
    """The signature of a private link; public files need none."""

    exp: str | None = Field(None, description="When the link expires, seconds since the epoch.")
    sig: str | None = Field(None, description="HMAC-SHA256 over method, key and the other parameters.")


class UploadQuery(Request):
    """The signature of an upload link."""

    exp: str = Field(description="When the link expires, seconds since the epoch.")
    ct: str = Field(description="The media type that may be stored.")
    len: str = Field(description="The size that may be stored, bytes.")
    sig: str = Field(description="HMAC-SHA256 over method, key and the other parameters.")


class StoredFile(Reply):
    """What was stored."""

    key: str
    bytes: int
    sha256: str
