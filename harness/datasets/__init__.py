"""Where real images come from."""

from harness.datasets.base import Dataset, Images, datasets, load_dataset, to_pixels, to_unit

__all__ = ["Dataset", "Images", "datasets", "load_dataset", "to_pixels", "to_unit"]
