"""One engine: a matrix, a probe or a request for samples becomes units, workers measure them, rows are stored."""
