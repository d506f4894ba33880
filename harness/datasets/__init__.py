"""Where real images come from."""

from harness.datasets.base import Dataset, dataset_fingerprint, datasets, load_dataset
from harness.datasets.images import Images, to_pixels, to_unit

__all__ = ["Dataset", "Images", "dataset_fingerprint", "datasets", "load_dataset", "to_pixels", "to_unit"]
