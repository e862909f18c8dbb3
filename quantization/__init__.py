"""Shrink a checkpoint to GPTQ integers with calibration samples."""
