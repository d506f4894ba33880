"""The study tau."""
