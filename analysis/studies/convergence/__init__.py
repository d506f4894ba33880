"""The study convergence."""
