"""Files of predictions: rows are read, a trained model of any task answers them, and the answers are written."""
