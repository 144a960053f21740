"""Nouns and rules of the product, pure: no input, no output, no clock."""
