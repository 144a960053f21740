"""Alembic's environment and, in ``versions``, every step the tables have taken."""
