"""A sender in a process of its own on the database of a folder; TROUPE_FAILPOINTS says at which step it dies."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from controlplane.services import webhook_sending

from .sending import room

LEASE_SECONDS = 1.0


async def main(folder: Path) -> None:
    """Send until killed."""
    webhook_sending.LEASE_SECONDS = LEASE_SECONDS
    webhook_sending.IDLE_SECONDS = 0.1
    async with room(folder) as here:
        here.start()
        print("ready", flush=True)  # noqa: T201
        await asyncio.sleep(300)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
