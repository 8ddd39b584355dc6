"""The command line in parts: options, printing, stopping, and a file a group of commands. No heavy import here."""
