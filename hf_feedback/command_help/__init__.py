"""Help and shell completion of the commands, from a stored list of their options."""
