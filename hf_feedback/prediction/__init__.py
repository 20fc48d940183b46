"""A trained model of any task, and its predictions for files of rows."""
