"""`python -m pod_images.agent`: runs one ComfyUI as a pod until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from .life import CANNOT_START, Agent, CannotStartError
from .log_tail import RedactingFormatter, Redactor
from .options import Options, parse
from .secrecy import hide_from_own_user

BROKE_DOWN = 70
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def main() -> int:
    hide_from_own_user()
    options = parse()
    given = options.secrets
    redactor = Redactor((given.pod_token, given.join_token, given.runpod_key))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter(LOG_FORMAT, redactor))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        return asyncio.run(_run(options, redactor))
    except CannotStartError as error:
        logging.getLogger("agent").error("%s", error)
        return CANNOT_START
    except Exception:  # the log takes secrets out of the traceback; the interpreter's own end does not
        logging.getLogger("agent").exception("the agent broke down")
        return BROKE_DOWN


async def _run(options: Options, redactor: Redactor) -> int:
    return await Agent(options, redactor).run()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # A download of a model file may still run in a thread of its own; it goes on at the next start.
    os._exit(code)
