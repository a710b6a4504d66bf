"""The command line: flags, messages and exit codes."""
