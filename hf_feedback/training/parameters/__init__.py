"""Parts of a model and their parameters: freezing, learning rates, gradual unfreezing."""
