"""Asks whether this container's agent answers: exit code 0 where it does, 1 and a sentence where it does not."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

SECONDS = 5


def main() -> int:
    port = os.environ.get("TROUPE_POD_PORT") or "8188"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://127.0.0.1:{port}/troupe/agent", timeout=SECONDS).close()
    except urllib.error.HTTPError as answer:
        # Without the pod's token every route says 401, and to say so it must be alive.
        if answer.code == 401:
            return 0
        sys.stderr.write(f"the agent answers {answer.code}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"the agent does not answer on port {port}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
