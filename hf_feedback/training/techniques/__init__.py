"""What the training arguments add to the loss of the task, and how: adversarial training, objectives, classes."""
