"""The command that predicts."""
