"""The commands of `hf-feedback`, each in a module of its own with a function `run`."""
