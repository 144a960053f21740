"""A folder laid out as in the image, with the real start script and, on request, a stand-in for the agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "pod_images" / "comfyui" / "start.sh"
WAIT_SECONDS = 60
SECRET = "join-secret-of-the-test"

# Writes down how it was started and then waits for SIGTERM, as the agent does.
STAND_IN = """
import json, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
started = {"argv": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid(), "uid": os.getuid(),
           "gid": os.getgid(), "cwd": os.getcwd()}
with open(os.path.join(os.environ["TROUPE_DATA"], "started.part"), "w") as file:
    json.dump(started, file)
os.rename(file.name, file.name[:-5])
signal.pause()
"""


@dataclass
class Layout:
    """The image's folders under one root, and the environment that names them."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def volume(self) -> Path:
        return self.root / "workspace"

    @property
    def data(self) -> Path:
        return self.root / "data"

    def run(
        self, changes: Mapping[str, str | None], arguments: Sequence[str] = (), shell: Sequence[str] = ("sh",)
    ) -> subprocess.Popen[str]:
        """Start the script; what `changes` maps to None is not in its environment."""
        environment = {**self.environment, **changes}
        return subprocess.Popen(
            [*shell, str(SCRIPT), *arguments],
            env={name: value for name, value in environment.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def started(self, process: subprocess.Popen[str]) -> dict[str, object]:
        """What the stand-in wrote down."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if (self.data / "started").exists():
                found: dict[str, object] = json.loads((self.data / "started").read_text())
                return found
            time.sleep(0.02)
        raise AssertionError(f"the agent did not start: {process.communicate()}")


def lay_out(root: Path, agent: Path | None = None) -> Layout:
    """Make the folders; `agent` is the folder with the real package, without it the stand-in is put there."""
    comfyui = root / "ComfyUI"
    comfyui.mkdir(parents=True)
    (comfyui / "main.py").write_text("import time; time.sleep(600)\n")
    (root / "workspace").mkdir()
    app = agent or root / "app"
    if agent is None:
        package = app / "pod_images" / "agent"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(STAND_IN)
        (app / "pod_images" / "comfyui").mkdir()
        (app / "pod_images" / "comfyui" / "models.yaml").write_text("[]\n")
    return Layout(
        root,
        {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "TROUPE_APP": str(app),
            "TROUPE_AGENT_PYTHON": sys.executable if agent else _python_for_everybody(),
            "TROUPE_VOLUME": str(root / "workspace"),
            "TROUPE_DATA": str(root / "data"),
            "TROUPE_RUN_AS": "",
            "TROUPE_CONTROL_PLANE_URL": "http://127.0.0.1:1",
            "TROUPE_JOIN_TOKEN": SECRET,
            "TROUPE_POD_URL": "http://127.0.0.1:8188",
            "COMFYUI_DIR": str(comfyui),
            "COMFYUI_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        },
    )


def _python_for_everybody() -> str:
    """An interpreter that another user may run too; one's own may lie in a home folder that is closed to others."""
    system = Path("/usr/bin/python3")
    return str(system) if system.exists() else sys.executable
