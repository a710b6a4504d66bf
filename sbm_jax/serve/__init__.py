"""The explorer of a finished run: a read-only server on this machine, and the pages and scripts that it serves."""
