"""Measurements: what the sketch base and a trained character can do, in figures anybody can reproduce."""
