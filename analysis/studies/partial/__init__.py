"""The study partial."""
