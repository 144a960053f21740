"""The server: a REST API in front, a fleet of ComfyUI-speaking pods behind."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("troupe-studio")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
