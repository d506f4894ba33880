"""What is measured of a matrix, and of samples that are drawn: one task a file, each measures one thing alone."""
