"""The study which-layers."""
