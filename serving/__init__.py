"""Reserved: show weights to people; empty until its issue lands."""
