"""Experiments on a layer rather than on a decoder, one a file."""
