"""The figures, one file a family, in one style."""
