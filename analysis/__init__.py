"""What the tables mean: figures, tables and a page from stored runs. Reads run folders; never runs a model."""
