"""The study reconstruction."""
