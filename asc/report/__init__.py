"""Reports: what was found, for people to read."""
