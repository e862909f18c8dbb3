"""Measure whether a candidate may stand for its reference, and report it."""
