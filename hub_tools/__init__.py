"""Move bytes between hubs and disk: download, serve, publish."""
