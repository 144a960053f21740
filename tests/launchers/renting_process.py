"""A control-plane process that asks for one pod; a test kills it on the way."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from controlplane.launchers.runpod_wire import Timing
from tests.launchers.renting import office

PATIENT = Timing(answer=60.0, creation=60.0, pause=1.0, patience=60.0, renting=60.0)


async def main(folder: Path, url: str) -> None:
    """Rent one pod with the database in ``folder``."""
    async with office(folder, url, PATIENT) as opened:
        await opened.rent()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
