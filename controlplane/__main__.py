"""``python -m controlplane`` is ``troupe``."""

import sys

from controlplane.cli import main

sys.exit(main())
