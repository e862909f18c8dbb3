"""The local hub: one content-addressed store that speaks both hubs' dialects."""
