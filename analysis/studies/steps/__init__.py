"""The study steps."""
