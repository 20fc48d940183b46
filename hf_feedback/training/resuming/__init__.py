"""Complete checkpoints, runs that resume exactly, and the record of what a result depends on."""
