"""Adversarial training, auxiliary losses, class weights and focal loss."""
