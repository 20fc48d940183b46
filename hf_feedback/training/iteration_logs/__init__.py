"""What each iteration does during training: curves, and recorded messages."""
