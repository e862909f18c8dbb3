"""Rewrite checkpoints at tensor level by weight maps; compare them tensor by tensor."""
