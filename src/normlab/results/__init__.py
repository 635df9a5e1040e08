"""What a run leaves behind: its schema, and how it is written and read."""
