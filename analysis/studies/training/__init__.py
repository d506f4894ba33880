"""The study training."""
