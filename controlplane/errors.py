"""The one error tree: status and code live on the class, the docstring is the title a client reads."""

from __future__ import annotations

from typing import Any, ClassVar


class TroupeError(Exception):
    """Something went wrong on our side."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        detail: str = "",
        *,
        errors: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
        **extra: Any,
    ) -> None:
        """Make an error.

        ``detail`` says what happened and what to do; ``errors`` is a list of ``{"pointer", "detail"}`` (RFC 9457
        extension); ``headers`` are HTTP response headers; ``extra`` are further JSON members of the problem document.
        """
        self.detail = detail or self.title()
        self.errors = errors or []
        self.headers = headers or {}
        self.extra = extra
        super().__init__(self.detail)

    @classmethod
    def title(cls) -> str:
        """The one-line, class-wide description."""
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0]

    def as_problem(self) -> dict[str, Any]:
        """The body of an ``application/problem+json`` answer, without instance and request id."""
        body: dict[str, Any] = {
            "type": "about:blank" if self.code == "internal_error" else f"urn:troupe:problem:{self.code}",
            "title": self.title(),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.extra,
        }
        if self.errors:
            body["errors"] = self.errors
        return body


class BadRequest(TroupeError):
    """The request could not be read."""

    status = 400
    code = "bad_request"


class Unauthorized(TroupeError):
    """The request carries no valid credentials."""

    status = 401
    code = "unauthorized"


class BadJoinToken(Unauthorized):
    """The join token is not valid here."""

    code = "bad_join_token"


class BadTicket(Unauthorized):
    """The stream ticket is not valid here, or has expired."""

    code = "bad_ticket"


class Forbidden(TroupeError):
    """The credentials do not allow this."""

    status = 403
    code = "forbidden"


class LinkExpired(Forbidden):
    """The signed link is not valid or has expired."""

    code = "link_expired"


class NotFound(TroupeError):
    """There is no such thing here."""

    status = 404
    code = "not_found"


class CharacterNotFound(NotFound):
    """There is no such character."""

    code = "character_not_found"


class MethodNotAllowed(TroupeError):
    """This address does not answer that method."""

    status = 405
    code = "method_not_allowed"


class Conflict(TroupeError):
    """The state of the thing does not allow this now."""

    status = 409
    code = "conflict"


class CharacterNotReady(Conflict):
    """The character has no usable version yet."""

    code = "character_not_ready"


class StaleAttempt(Conflict):
    """This attempt is not the job's current attempt."""

    code = "stale_attempt"


class PayloadTooLarge(TroupeError):
    """The request is too large."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(TroupeError):
    """The request's media type is not understood here."""

    status = 415
    code = "unsupported_media_type"


class RangeNotSatisfiable(TroupeError):
    """The file has no such bytes."""

    status = 416
    code = "range_not_satisfiable"


class Unprocessable(TroupeError):
    """The request was understood, but its values are not acceptable."""

    status = 422
    code = "invalid_request"


class DatasetRejected(Unprocessable):
    """The images do not make a usable dataset."""

    code = "dataset_rejected"


class ContentRefused(Unprocessable):
    """This content is not made here."""

    code = "content_refused"


class BaseMismatch(Unprocessable):
    """The template is made for another base model than the character's version."""

    code = "base_mismatch"


class UnknownProtocol(Unprocessable):
    """The pod speaks another protocol version; upgrade the older side."""

    code = "unknown_protocol"


class InvalidTemplate(Unprocessable):
    """The workflow template does not fit together."""

    code = "invalid_template"


class IdempotencyMismatch(Unprocessable):
    """This Idempotency-Key was used before with another payload."""

    code = "idempotency_mismatch"


class DatabaseAway(TroupeError):
    """The database cannot be used just now; nothing was changed."""

    status = 503
    code = "database_away"


class CommitUnknown(DatabaseAway):
    """The database went away while this was being stored; repeat it with the same Idempotency-Key."""


class NoPods(TroupeError):
    """No pod is known that could do this work."""

    status = 503
    code = "no_pods"


class PodUnreachable(TroupeError):
    """The pod did not answer."""

    status = 502
    code = "pod_unreachable"


class PodRefused(TroupeError):
    """The pod refused the work."""

    status = 502
    code = "pod_refused"


class WebhookUnreachable(TroupeError):
    """The webhook's address did not answer."""

    status = 502
    code = "webhook_unreachable"


class StaleClaim(TroupeError):
    """Another process has claimed this job since."""

    status = 409
    code = "stale_claim"


class RentingImpossible(Unprocessable):
    """Pods cannot be rented as this server is set up."""

    code = "renting_impossible"


class SpendLimit(Conflict):
    """One more pod would exceed what may be spent."""

    code = "spend_limit"


class NoOffer(Conflict):
    """The provider rents out nothing that fits."""

    code = "no_offer"


class LauncherRefused(TroupeError):
    """The provider of pods refused."""

    status = 502
    code = "launcher_refused"


class LauncherUnpaid(TroupeError):
    """The balance at the provider of pods does not suffice."""

    status = 402
    code = "launcher_unpaid"


class LauncherUnreachable(TroupeError):
    """The provider of pods did not answer, or asks to wait."""

    status = 503
    code = "launcher_unreachable"
