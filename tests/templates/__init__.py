"""Tests of the shipped templates: against what a real ComfyUI says of its nodes, and on one."""
