"""Files at rest: writes, digests, manifests, records, checkpoints; imports nothing of ours."""
