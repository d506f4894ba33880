"""Which features are used, what they are called, and what they are of."""

import hashlib
import re

import pytest
import torch
from safetensors.torch import save, save_file

from harness.datasets import load_dataset
from harness.errors import HarnessError
from harness.files import read_safetensors
from harness.metrics import features
from harness.metrics.features import InceptionFeatures, NetworkFeatures, feature_extractor, shipped_network
from harness.metrics.torchvision_compat import declare_missing_operators

# clean-fid's Inception is a torchscript file, a format that torch is about to retire.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Layers(torch.nn.Module):
    """Stands in for Inception: takes (B, 3, 299, 299) and gives 2048 numbers; it remembers nothing but its input."""

    def forward(self, x):
        assert x.shape[1:] == (3, 299, 299)
        return x.mean(dim=(2, 3)).repeat(1, 683)[:, :2048]


class StandIn(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x, return_features: bool = False):
        return self.layers(x)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No weights that happen to be on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "CLEANFID_FOLDER", tmp_path)


@pytest.fixture
def inception(tmp_path):
    path = tmp_path / "any-name.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path


def test_digits_have_a_shipped_network():
    extractor = feature_extractor("digits")
    images = load_dataset("digits", "test").scaled()
    found = extractor(images[:5])
    assert extractor.name.startswith("features-digits@")
    assert found.shape == (5, extractor.dim)
    assert 64 <= extractor.dim <= 256
    torch.testing.assert_close(found[2:3], extractor(images[2:3]), rtol=1e-4, atol=1e-5)  # no sample sees another


def test_the_shipped_network_is_as_accurate_as_its_card_says():
    extractor = feature_extractor("digits")
    test = load_dataset("digits", "test")
    accuracy = (extractor.network(test.scaled()).argmax(1) == test.labels).float().mean().item()
    assert accuracy == pytest.approx(float(extractor.metadata["held_out_accuracy"]), abs=0.003)
    assert accuracy > 0.97


def test_features_are_of_the_image_as_it_would_be_saved():
    extractor = feature_extractor("digits")
    images = load_dataset("digits", "test").scaled()[:4]
    outside = images * 3
    torch.testing.assert_close(extractor(outside), extractor(outside.clamp(-1, 1)))
    torch.testing.assert_close(extractor(images + 1e-4), extractor(images), rtol=0, atol=0)


def test_inception_takes_cleanfids_resizing(inception):
    extractor = feature_extractor("digits", inception_weights=inception)
    images = load_dataset("digits", "test").scaled()[:3]
    found = extractor(images)
    assert isinstance(extractor, InceptionFeatures)
    assert extractor.name.startswith("inception-v3-clean@")
    assert found.shape == (3, 2048)
    declare_missing_operators()
    from cleanfid.resize import make_resizer

    pixels = ((images + 1) * 127.5).round().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).byte().numpy()
    resized = make_resizer("PIL", False, "bicubic", (299, 299))(pixels[1])
    expected = (torch.from_numpy(resized).mean(dim=(0, 1)) - 128) / 128
    torch.testing.assert_close(found[1, :3], expected, rtol=1e-5, atol=1e-5)


def test_other_weights_have_another_name(inception, tmp_path):
    class Other(StandIn):
        def forward(self, x, return_features: bool = False):
            return self.layers(x) * 2

    path = tmp_path / "other.pt"
    torch.jit.script(Other()).save(str(path))
    here, there = InceptionFeatures(inception), InceptionFeatures(path)
    assert here.name != there.name
    assert here.digest == hashlib.sha256(inception.read_bytes()).hexdigest() != there.digest


def test_other_weights_of_the_same_file_name_have_another_digest(tmp_path):
    shipped = shipped_network("digits")
    state = shipped.network.state_dict()
    paths = [tmp_path / folder / "features-digits.safetensors" for folder in ("same", "other")]
    for path, gain in zip(paths, (1, 2), strict=True):
        path.parent.mkdir()
        save_file(state | {"head.bias": state["head.bias"] * gain}, path, shipped.metadata)
    same, other = map(NetworkFeatures, paths)
    assert same.digest == shipped.digest != other.digest
    assert len(same.digest) == 64 and same.name == f"features-digits@{same.digest[:12]}"


@pytest.mark.parametrize("folder", ["cache_folder", "CLEANFID_FOLDER"])
def test_downloaded_weights_are_found(inception, folder):
    where = features.cache_folder() if folder == "cache_folder" else features.CLEANFID_FOLDER
    target = where / features.INCEPTION_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(inception.read_bytes())
    assert isinstance(feature_extractor("digits"), InceptionFeatures)


def test_weights_are_downloaded_only_when_allowed(inception, monkeypatch):
    declare_missing_operators()
    monkeypatch.setattr("cleanfid.downloads_helper.inception_url", inception.as_uri())
    assert isinstance(feature_extractor("digits"), NetworkFeatures)
    assert isinstance(feature_extractor("digits", allow_download=True), InceptionFeatures)
    monkeypatch.setattr("cleanfid.downloads_helper.inception_url", "file:///nowhere")
    (features.cache_folder() / features.INCEPTION_FILE).unlink()
    with pytest.raises(HarnessError, match=f"cannot download .*put it at .*{features.INCEPTION_FILE}"):
        feature_extractor("digits", allow_download=True)


def test_bad_weights_are_one_sentence(tmp_path):
    with pytest.raises(HarnessError, match="no Inception weights at"):
        feature_extractor("digits", inception_weights=tmp_path / "absent.pt")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not torchscript")
    with pytest.raises(HarnessError, match="cannot be read as Inception"):
        feature_extractor("digits", inception_weights=broken)
    with pytest.raises(HarnessError, match="is not a feature network"):
        NetworkFeatures(broken)


def test_a_dataset_without_a_network_says_what_would_help():
    with pytest.raises(HarnessError, match="no feature network is shipped for 'unheard-of'.*--inception-weights"):
        feature_extractor("unheard-of")


def test_images_of_other_channels_are_refused():
    with pytest.raises(HarnessError, match=r"takes images of shape \(B, 1, H, W\)"):
        feature_extractor("digits")(torch.zeros(2, 3, 8, 8))


def test_a_feature_network_that_is_none_says_what_it_is(tmp_path):
    good, path = sorted(features.ASSETS.glob("features-*.safetensors"))[0], tmp_path / "features-x.safetensors"
    state, metadata = read_safetensors(good)
    state = {name: tensor.clone() for name, tensor in state.items()}
    name = next(iter(state))

    def of(tensors=state, **facts):
        return save(tensors, {**metadata, **facts})

    for content, words in (
        (b"<html>Sign in", "it is a web page"),
        (good.read_bytes()[:200], "damaged or cut short"),
        (save(state), "'config' is missing"),
        (of(config="{"), "no JSON"),
        (of(config=metadata["config"].replace('"image_channels"', '"channels"')), "'image_channels' is missing"),
        (of(config=re.sub(r'"outputs": \d+', f'"outputs": {1 << 40}', metadata["config"])), "shape"),
        (of(datasets="1"), "no JSON"),
        (of({n: t for n, t in state.items() if n != name}), f"'{name}' is missing"),
        (of(state | {name: state[name][:1]}), f"'{name}' is missing, or not of the shape"),
        (of(state | {name: torch.full_like(state[name], float("nan"))}), f"'{name}' is not finite"),
    ):
        path.write_bytes(content)
        with pytest.raises(HarnessError, match=f"is not a feature network: .*{words}") as caught:
            NetworkFeatures(path)
        assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)
