"""Workflow templates are data; binding values to them is a pure function."""
