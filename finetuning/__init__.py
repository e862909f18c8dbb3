"""Reserved: make new weights from conversations; empty until its issue lands."""
