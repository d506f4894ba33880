"""What FID and KID compare: features of images, by Inception where its weights are at hand, else by a shipped network.

Features of different networks are never comparable, so each extractor has a name that identifies its very weights, and
that name is stored beside every distance.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from harness.datasets import dataset_fingerprint, to_pixels, to_unit
from harness.errors import HarnessError
from harness.files import cache_folder, fetch, not_as, read_safetensors, shown
from harness.metrics.networks import NetworkConfig, network_from
from harness.metrics.torchvision_compat import declare_missing_operators
from harness.options import reason

ASSETS = Path(str(files("harness.metrics"))) / "assets"
INCEPTION_FILE = "inception-2015-12-05.pt"
CLEANFID_FOLDER = Path("./" if sys.platform == "win32" else "/tmp")
"""Where clean-fid downloads Inception's weights to."""


class FeatureExtractor(Protocol):
    """Images to features."""

    name: str
    """Names the network and its weights: what `fid_features` holds."""
    digest: str
    """SHA-256 of the weights: two files may share a name."""
    dim: int
    image_shape: tuple[int, int, int] | None
    """(C, H, W) of the images that it was made for, or None where it resizes all alike."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1] to (B, dim) float32 on the CPU, as if the images had been saved in 8 bits."""
        ...


def feature_extractor(
    dataset: str,
    inception_weights: Path | str | None = None,
    allow_download: bool = False,
    device: str | torch.device = "cpu",
    root: Path | str | None = None,
) -> FeatureExtractor:
    """The features that a dataset's images are compared by.

    Inception as clean-fid runs it, from the weights named, from those clean-fid or this harness downloaded earlier, or
    from a download where that is allowed; else the small network shipped for the dataset.

    Raises:
        HarnessError: the weights named are not there or no such network, or nothing is shipped for the dataset, or what
            the user trained for it learned other images than those under `root`.
    """
    weights = _inception_weights(inception_weights, allow_download)
    return shipped_network(dataset, device, root) if weights is None else InceptionFeatures(weights, device)


def shipped_network(
    dataset: str, device: str | torch.device = "cpu", root: Path | str | None = None
) -> NetworkFeatures:
    """The small network shipped for a dataset, or one that the user trained for it, on the very images under `root`.

    Folders of images share the name ``imagefolder``, so a network of one would pass for that of another.
    """
    for folder in (ASSETS, own_networks()):
        for path in sorted(folder.glob("features-*.safetensors")):
            extractor = NetworkFeatures(path, device)
            if dataset in extractor.datasets:
                if folder != ASSETS:
                    _require_same_images(extractor, path, dataset, root)
                return extractor
    raise HarnessError(
        f"no feature network is shipped for '{dataset}'; give Inception's weights ({INCEPTION_FILE}) with "
        "--inception-weights, or train a network with 'harness train-features'"
    )


def _require_same_images(extractor: NetworkFeatures, path: Path, dataset: str, root: Path | str | None) -> None:
    if (trained_on := extractor.metadata.get("images")) is None:  # of a network that was stored before they were noted
        return
    try:
        here = dataset_fingerprint(dataset, "train", root)
    except HarnessError:  # no images are at hand, so nothing is compared with them
        return
    if trained_on != here:
        raise HarnessError(
            f"the feature network '{shown(path)}' was trained on other images of '{dataset}' than those given; "
            f"'harness train-features {dataset}' with their --data-root trains one on these, in its place"
        )


class NetworkFeatures:
    """Features of a small network written by `harness train-features`; a `HarnessError` for any other file."""

    def __init__(self, path: Path, device: str | torch.device = "cpu") -> None:
        try:
            state, metadata = read_safetensors(path)
            self.network = network_from(state, TypeAdapter(NetworkConfig).validate_json(metadata["config"]))
            self.datasets = TypeAdapter(list[str]).validate_json(metadata.get("datasets", "[]"))
        except (KeyError, ValueError) as error:
            raise HarnessError(f"'{path}' is not a feature network: {reason(error)}") from error
        self.network.to(device)
        self.metadata, self.device, self.dim = metadata, device, self.network.config.dim
        self.digest = _digest_of_network(state, metadata["config"])
        self.name = f"{path.stem}@{self.digest[:12]}"
        size = self.network.config.image_size
        self.image_shape: tuple[int, int, int] | None = (self.network.config.image_channels, size, size)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        expected = self.network.config.image_channels
        if images.ndim != 4 or images.shape[1] != expected:
            raise HarnessError(f"'{self.name}' takes images of shape (B, {expected}, H, W), got {tuple(images.shape)}")
        return self.network.features(to_unit(to_pixels(images.to(self.device)))).cpu()


class InceptionFeatures:
    """The 2048 Inception features of FID, with clean-fid's resizing (Parmar et al., arXiv 2104.11222).

    `weights` is the torchscript file ``inception-2015-12-05.pt``, a `HarnessError` where it is none.
    """

    dim = 2048
    image_shape: tuple[int, int, int] | None = None

    def __init__(self, weights: Path, device: str | torch.device = "cpu") -> None:
        declare_missing_operators()
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        self.resize = build_resizer("clean")
        self.device = device
        try:
            # clean-fid takes the folder and insists on the file's name, so any other file is linked to from one.
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / INCEPTION_FILE).symlink_to(weights.resolve())
                self.network = InceptionV3W(folder, download=False, resize_inside=False).to(device).eval()
        except (RuntimeError, OSError, AttributeError) as error:
            what = getattr(error, "strerror", None) or not_as(weights, "a TorchScript archive")
            raise HarnessError(f"'{weights}' cannot be read as Inception's torchscript weights: {what}") from error
        with weights.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.name = f"inception-v3-clean@{self.digest[:12]}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = to_pixels(images).cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
        resized = np.stack([self.resize(image) for image in pixels])
        return self.network(torch.from_numpy(resized).permute(0, 3, 1, 2).to(self.device)).float().cpu()


def own_networks() -> Path:
    """Where the feature networks that a user trained are kept, beside those that are shipped."""
    return cache_folder() / "features"


def _inception_weights(named: Path | str | None, allow_download: bool) -> Path | None:
    if named is not None:
        path = Path(named).expanduser()
        if not path.is_file():
            raise HarnessError(f"there are no Inception weights at '{path}'; expected the file {INCEPTION_FILE}")
        return path
    own = cache_folder() / INCEPTION_FILE
    for path in (own, CLEANFID_FOLDER / INCEPTION_FILE):
        if path.is_file():
            return path
    if not allow_download:
        return None
    declare_missing_operators()
    from cleanfid.downloads_helper import inception_url

    return fetch(inception_url, own)


def _digest_of_network(state: dict[str, Tensor], config: str) -> str:
    """Of weights and shape, not of the file: the order of a safetensors file's metadata is not fixed."""
    sha = hashlib.sha256(config.encode())
    for name in sorted(state):
        sha.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return sha.hexdigest()
