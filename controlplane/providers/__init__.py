"""Adapters that run a bound graph somewhere, one file each."""
