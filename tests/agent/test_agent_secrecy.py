"""Whether a process of the same user, such as a node in ComfyUI, can read the agent's secrets in /proc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SECRECY = Path(__file__).resolve().parents[2] / "pod_images" / "agent" / "secrecy.py"
# The child reads its parent, as ComfyUI could.
PARENT = """
import os, subprocess, sys
exec(sys.argv[1])
if sys.argv[2] == "hidden":
    assert hide_from_own_user()
done = subprocess.run(["cat", f"/proc/{os.getpid()}/environ"], capture_output=True, text=True)
print("KEPT=secret" in done.stdout, done.returncode)
"""


def seen_by_a_child(how: str) -> str:
    # Root reads everything, so the test does not run as root.
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    interpreter = os.path.realpath(sys.executable)
    done = subprocess.run(
        [*prefix, interpreter, "-I", "-c", PARENT, SECRECY.read_text(), how],
        env={"KEPT": "secret", "PATH": os.defpath}, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "failed to execute" in done.stderr:
        pytest.skip(f"{interpreter} cannot be run by another user than root")
    return done.stdout.strip() or done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc")
@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="runs as root, and has no setpriv")
def test_nodes_cannot_read_the_agents_secrets_in_proc() -> None:
    assert (seen_by_a_child("open"), seen_by_a_child("hidden")) == ("True 0", "False 1")
