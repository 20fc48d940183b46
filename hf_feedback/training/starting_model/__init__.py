"""The model that training starts from: its options, where it comes from, and how it is made."""
