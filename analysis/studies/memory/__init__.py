"""The study memory."""
