import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import CNN
from normlab.norms import BatchNorm2d


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm2d", [None, BatchNorm2d, nn.BatchNorm2d])
def test_cnn_equals_formula(norm2d):
    torch.manual_seed(0)
    model, x = CNN((2, 9, 7), 3, channels=[4, 5], norm2d=norm2d), inputs(6, 2, 9, 7)
    first = nn.functional.conv2d(x, model.hidden1.conv.weight, model.hidden1.conv.bias, padding=1)
    assert first.shape == (6, 4, 9, 7)
    h = (nn.BatchNorm2d(4)(first) if norm2d else first).relu()
    second = nn.functional.conv2d(h, model.hidden2.conv.weight, model.hidden2.conv.bias, stride=2, padding=1)
    assert second.shape == (6, 5, 5, 4)
    h = (nn.BatchNorm2d(5)(second) if norm2d else second).relu()
    assert_close(model(x), model.output(h.mean((2, 3))))


def test_weight_wrapper_applies_to_convolutions():
    wrapped = []
    CNN((1, 8, 8), 3, channels=[4, 5], weight=lambda layer: (wrapped.append(layer), layer)[1])
    assert [type(layer) for layer in wrapped] == [nn.Conv2d, nn.Conv2d]


def test_feature_map_may_shrink_to_one_pixel():
    assert CNN((1, 8, 8), 3, channels=[2] * 6)(inputs(4, 1, 8, 8)).shape == (4, 3)


@pytest.mark.parametrize("shape", [(3,), (8, 8)])
def test_non_image_input_raises(shape):
    with pytest.raises(
        ValueError, match=r"net=cnn takes images of shape \(channels, height, width\), an input of"
    ):
        CNN(shape, 3)


@pytest.mark.parametrize(
    ("channels", "message"), [([], "at least one number of channels"), ([4, 0], "at least 1")]
)
def test_invalid_channels_raise(channels, message):
    with pytest.raises(ValueError, match=f"net.channels must .*{message}"):
        CNN((1, 8, 8), 3, channels=channels)
