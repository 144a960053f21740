"""Prometheus text: how many requests, how long they took, and the state of jobs and pods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
"""Upper bounds of the latency histogram, seconds."""
OUTCOMES = ("delivered", "failed", "given_up")


@dataclass
class RequestMetrics:
    """Counts since the process started. Touched from the event loop only."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    seconds: Counter[tuple[str, str]] = field(default_factory=Counter)
    buckets: Counter[tuple[str, str, float]] = field(default_factory=Counter)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request of a route pattern."""
        self.requests[method, route, status] += 1
        self.seconds[method, route] += seconds  # type: ignore[assignment]  # a Counter adds floats as well
        for bound in BUCKETS:
            if seconds <= bound:
                self.buckets[method, route, bound] += 1

    def lines(self) -> Iterable[str]:
        """The exposition lines of what was counted."""
        yield from _header("troupe_http_requests_total", "counter", "Requests answered.")
        totals: Counter[tuple[str, str]] = Counter()
        for (method, route, status), count in sorted(self.requests.items()):
            totals[method, route] += count
            yield _line("troupe_http_requests_total", {"method": method, "route": route, "status": str(status)}, count)
        name = "troupe_http_request_seconds"
        yield from _header(name, "histogram", "Time from the request's head to the end of its answer.")
        for (method, route), count in sorted(totals.items()):
            labels = {"method": method, "route": route}
            for bound in BUCKETS:
                yield _line(f"{name}_bucket", {**labels, "le": f"{bound:g}"}, self.buckets[method, route, bound])
            yield _line(f"{name}_bucket", {**labels, "le": "+Inf"}, count)
            yield _line(f"{name}_sum", labels, float(self.seconds[method, route]))
            yield _line(f"{name}_count", labels, count)


def exposition(
    requests: RequestMetrics,
    jobs: Mapping[str, int],
    ended: Mapping[str, int],
    pods: Mapping[str, int],
    deliveries: int,
    sent: Mapping[str, int],
) -> str:
    """The whole page, in Prometheus' text format 0.0.4; ``deliveries`` wait, ``sent`` are attempts by outcome."""
    lines = [*requests.lines(), *_header("troupe_jobs", "gauge", "Jobs that are not over, by status.")]
    lines += [_line("troupe_jobs", {"status": status}, count) for status, count in sorted(jobs.items())]
    name = "troupe_jobs_ended_total"
    lines += _header(name, "counter", "Jobs that this process brought to their end, by status.")
    lines += [_line(name, {"status": status}, count) for status, count in sorted(ended.items())]
    lines += _header("troupe_pods", "gauge", "Pods by state.")
    lines += [_line("troupe_pods", {"state": state}, count) for state, count in sorted(pods.items())]
    lines += _header("troupe_webhook_deliveries_waiting", "gauge", "Webhook deliveries that wait for their next try.")
    lines.append(_line("troupe_webhook_deliveries_waiting", {}, deliveries))
    name = "troupe_webhook_attempts_total"
    lines += _header(name, "counter", "Webhook attempts of this process by outcome.")
    lines += [_line(name, {"outcome": outcome}, sent.get(outcome, 0)) for outcome in OUTCOMES]
    return "\n".join(lines) + "\n"


def _header(name: str, kind: str, description: str) -> list[str]:
    return [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {value:.15g}" if pairs else f"{name} {value:.15g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
