"""The server under cProfile: `BENCH_PROFILE=file python -m bench.profiled serve ...`; all threads, CPU time only.

The file holds the functions by own and by cumulative time, over all threads and of the event loop alone; it is written
when the server ends.
"""

from __future__ import annotations

import contextlib
import cProfile
import io
import os
import pstats
import threading
import time
from pathlib import Path

from controlplane.cli.entry import main as serve

ROWS = 60


def main() -> None:
    wanted = Path(os.environ["BENCH_PROFILE"])
    # CPU time of the thread: what merely waits counts nothing.
    profiles = [cProfile.Profile(time.thread_time)]
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        own = cProfile.Profile(time.thread_time)
        profiles.append(own)
        own.runcall(run, thread)

    threading.Thread.run = profiled  # type: ignore[method-assign,assignment]
    with contextlib.suppress(SystemExit):
        profiles[0].runcall(serve)
    wanted.write_text(_told(profiles), encoding="utf-8")


def _told(profiles: list[cProfile.Profile]) -> str:
    text = io.StringIO()
    for title, chosen in (("the event loop", profiles[:1]), ("all threads", profiles)):
        figures = pstats.Stats(chosen[0], stream=text)
        for one in chosen[1:]:
            one.create_stats()
            if one.stats:  # type: ignore[attr-defined]
                figures.add(one)
        for order in ("tottime", "cumulative"):
            text.write(f"\n===== {title}, by {order}\n")
            figures.sort_stats(order).print_stats(ROWS)
        text.write(f"\n===== {title}, our own functions by cumulative\n")
        figures.sort_stats("cumulative").print_stats("controlplane", ROWS)
    return text.getvalue()


if __name__ == "__main__":
    main()
