"""Adapters that keep blobs, one file each."""
