"""The study breaks."""
