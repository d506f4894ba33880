"""The study redundancy."""
