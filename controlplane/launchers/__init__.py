"""Launchers: rent and end pods at a provider, one file each."""
