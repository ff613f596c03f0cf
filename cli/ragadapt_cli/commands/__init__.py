"""One file for each command; its function is <name>_command."""
