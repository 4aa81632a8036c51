"""What only real hardware can tell, as a table of checks: see `run --help`."""
