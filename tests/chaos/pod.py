"""An embedded pod that paints no picture before it calls itself ready: in a chaos run no graph uses a model."""

from __future__ import annotations

import logging
import os
import sys

from pod_images.embedded import __main__ as embedded
from pod_images.embedded.pod import Pod


def no_probe(self: Pod, timeout: float = 0.0) -> None:
    """Trying the model is most of a pod's start, and would be most of a chaos run."""


if __name__ == "__main__":
    Pod.probe = no_probe  # type: ignore[method-assign]
    code = embedded.main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # as the pod itself ends
