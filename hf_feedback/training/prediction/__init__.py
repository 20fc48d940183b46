"""Trained models of any task applied to files of rows: predictions that are written as they come."""
