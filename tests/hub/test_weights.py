from urllib.error import URLError

import pytest
import torch
import torchvision
from torchvision.models import DenseNet121_Weights

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification
from chexpert_hf.modeling_chexpert import LAST_STAGE
from chexpert_hf.models.weights import WeightsError, imagenet_cache_path, imagenet_state_dict, load_imagenet_backbone

from ..conftest import TINY


def published_names(state_dict):
    """As in torchvision's file: 'denselayer1.norm.1.weight' for 'denselayer1.norm1.weight'."""
    renamed = {}
    for name, tensor in state_dict.items():
        for part in ("norm", "conv"):
            for number in "12":
                if "denselayer" in name:
                    name = name.replace(f".{part}{number}.", f".{part}.{number}.")
        renamed[name] = tensor
    return renamed


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """A file like the published one, put into the cache by hand."""
    torch.manual_seed(0)
    network = torchvision.models.densenet121().eval()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    path = imagenet_cache_path()
    path.parent.mkdir(parents=True)
    torch.save(published_names(network.state_dict()), path)
    return network


def test_weights_put_into_the_cache_by_hand_are_used(imagenet):
    model = CheXpertForImageClassification(CheXpertConfig()).eval()
    load_imagenet_backbone(model)
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = imagenet.features(pixel_values).relu().mean(dim=(2, 3))
        features = model.stages(pixel_values)[LAST_STAGE]
    torch.testing.assert_close(features.mean(dim=(2, 3)), expected, atol=1e-6, rtol=1e-5)


def test_files_from_before_batchnorm_counted_batches_are_taken(imagenet):
    state_dict = {
        name: tensor for name, tensor in published_names(imagenet.state_dict()).items() if "num_batches" not in name
    }
    torch.save(state_dict, imagenet_cache_path())
    model = CheXpertForImageClassification(CheXpertConfig())
    load_imagenet_backbone(model)
    assert torch.equal(model.features.norm5.running_var, imagenet.features.norm5.running_var)


def test_one_channel_gives_the_features_of_three_equal_ones(imagenet):
    model = CheXpertForImageClassification(CheXpertConfig(num_channels=1)).eval()
    load_imagenet_backbone(model)
    gray = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = imagenet.features(gray.expand(-1, 3, -1, -1)).relu()
        features = model.stages(gray)[LAST_STAGE]
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


def test_without_network_one_line_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))

    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(WeightsError, match=r"Put that file at .*densenet121-a639ec97.pth; or ") as caught:
        imagenet_state_dict()
    assert len(str(caught.value).splitlines()) == 1
    assert DenseNet121_Weights.IMAGENET1K_V1.url in str(caught.value)


def test_another_backbone_does_not_take_them():
    model = CheXpertForImageClassification(CheXpertConfig(**TINY))
    with pytest.raises(WeightsError, match=r"not for the model's backbone \(densenet\); use init random"):
        load_imagenet_backbone(model, torchvision.models.densenet121().state_dict())
