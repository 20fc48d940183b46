"""Reading data: files, their columns, labels, texts and media."""
