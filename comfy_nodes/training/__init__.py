"""Trainers as subprocesses: start one, follow its output, stop it for certain, and judge what it wrote."""
