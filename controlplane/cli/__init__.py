"""The ``troupe`` command: ``serve`` and ``demo`` start processes, everything else speaks HTTP to a running server."""

from controlplane.cli.entry import main

__all__ = ["main"]
