"""Does feedback help? Matched comparisons, their statistics, and reports on trained models."""
