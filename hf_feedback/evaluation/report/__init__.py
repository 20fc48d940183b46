"""Reports on what each iteration of a trained model does."""
