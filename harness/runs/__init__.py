"""The run folder: tidy tables, their schemas, where they were measured, stored baselines. Imports no torch."""
