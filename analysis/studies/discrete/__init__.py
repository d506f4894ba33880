"""The study discrete."""
