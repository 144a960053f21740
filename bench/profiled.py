"""The server under cProfile: `BENCH_PROFILE=file python -m bench.profiled serve ...`; all threads, one file of figures.

The file holds a text of the functions by own and by cumulative time, written when the server ends.
"""

from __future__ import annotations

import cProfile
import io
import os
import pstats
import threading
from pathlib import Path

ROWS = 45


def main() -> None:
    wanted = Path(os.environ["BENCH_PROFILE"])
    profiles = [cProfile.Profile()]
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        own = cProfile.Profile()
        profiles.append(own)
        own.runcall(run, thread)

    threading.Thread.run = profiled  # type: ignore[method-assign,assignment]
    from controlplane.cli.entry import main as serve

    try:
        profiles[0].runcall(serve)
    except SystemExit:
        pass
    finally:
        wanted.write_text(_told(profiles), encoding="utf-8")


def _told(profiles: list[cProfile.Profile]) -> str:
    text = io.StringIO()
    for title, chosen in (("all threads", profiles), ("the event loop", profiles[:1])):
        figures = pstats.Stats(chosen[0], stream=text)
        for one in chosen[1:]:
            one.create_stats()
            if one.stats:  # type: ignore[attr-defined]
                figures.add(one)
        for order in ("tottime", "cumulative"):
            text.write(f"\n===== {title}, by {order}\n")
            figures.sort_stats(order).print_stats(ROWS)
    return text.getvalue()


if __name__ == "__main__":
    main()
