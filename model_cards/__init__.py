"""Write and check model cards from manifest and records."""
