"""Tests of the node pack inside a real ComfyUI; they need COMFYUI_DIR and skip without it."""
