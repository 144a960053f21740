"""Verbs: the only writers of state."""
