"""Quality: distances between features of real and generated images."""

from .common import Timed


class Distance(Timed):
    """FID and KID between two sets of features."""

    param_names = ["distance", "dimensions", "samples"]
    params = (["fid", "kid"], [64, 256], [1000])

    def prepare(self, distance, dimensions, samples):
        import numpy as np

        from harness.metrics.fid import FeatureStatistics, frechet_distance, kernel_distance

        generator = np.random.default_rng(0)
        a, b = (generator.normal(mean, 1.0, (samples, dimensions)) for mean in (0.0, 0.1))
        if distance == "kid":
            return lambda: kernel_distance(a, b)
        return lambda: frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))


class Features(Timed):
    """Features of images by the network shipped for the digits."""

    param_names = ["samples"]
    params = ([256],)

    def prepare(self, samples):
        from harness.datasets import load_dataset
        from harness.metrics.features import shipped_network

        images, network = load_dataset("digits", "train").scaled(slice(samples)), shipped_network("digits")
        return lambda: network(images)
