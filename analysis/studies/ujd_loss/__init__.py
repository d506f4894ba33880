"""The study ujd-loss."""
