"""HTTP: one file per noun, one route table, one error middleware."""
