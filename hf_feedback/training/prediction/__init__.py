"""Predictions of a trained model of any task for files of rows."""
