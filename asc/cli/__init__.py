"""The `asc` command: a file a subcommand, which parses, calls and prints."""
