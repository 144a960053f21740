"""The sketch base: a small text-to-image model trained on portraits that this package draws itself."""
