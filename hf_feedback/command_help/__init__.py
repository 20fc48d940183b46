"""Help and shell completion of the commands, from a list of their options that is read in no time."""
