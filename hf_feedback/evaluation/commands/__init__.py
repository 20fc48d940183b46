"""The commands that compare and report."""
