"""What every package shares: the model interface, errors, logging, parsers and child processes."""
