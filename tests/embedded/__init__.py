"""Tests of what only the embedded pod promises: its token, its hardiness, its registration, its painting."""
