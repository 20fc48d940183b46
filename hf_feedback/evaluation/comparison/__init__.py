"""Matched comparisons: arms, their runs, and the statistics of the differences."""
