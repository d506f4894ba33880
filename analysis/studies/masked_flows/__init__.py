"""The study masked-flows."""
