"""The small networks that ours is set beside, each with its source and its published number of parameters.

All take images in [0, 1] and give logits of ten classes. CCT's dropout and stochastic depth are left out.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from harness import hw
from torch import nn
from torch.nn import functional as F


class Normalized(nn.Sequential):
    """Layers on images that are normalised as ours are."""

    def __init__(self, *layers):
        super().__init__(*layers)
        for name in ("mean", "std"):
            self.register_buffer(name, getattr(hw.myViT(), name), persistent=False)

    def forward(self, x):
        return super().forward((x - self.mean) / self.std)


def conv(before, after, side=3, stride=1, **k):
    return nn.Conv2d(before, after, side, stride, side // 2, **dict(bias=False) | k)


def initialized(network):
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return network


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads with zero channels (option A of He et al. 2015)."""

    def __init__(self, before, after):
        super().__init__()
        self.layers = nn.Sequential(
            conv(before, after, stride=1 if before == after else 2), nn.BatchNorm2d(after), nn.ReLU(),
            conv(after, after), nn.BatchNorm2d(after))
        self.extra = after - before

    def forward(self, x):
        shortcut = F.pad(x[:, :, ::2, ::2], 4 * (0,) + 2 * (self.extra // 2,)) if self.extra else x
        return F.relu(self.layers(x) + shortcut)


def resnet20():
    return Normalized(*initialized(nn.Sequential(
        conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(),
        *(ResidualBlock(*widths) for widths in pairwise(4 * [16] + 3 * [32] + 3 * [64])),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))))


class EncoderLayer(nn.Module):
    """The plain Transformer layer of ViT. With `gelu`, CCT's: its second norm is on the residual stream itself."""

    def __init__(self, dim, heads, mlp_dim, gelu=False):
        super().__init__()
        self.attention = hw.myMultiHeadAttention(dim, heads, dim // heads)
        self.ffn = (nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim)) if gelu
                    else hw.myFFN(dim, mlp_dim))
        self.norm1, self.norm2, self.of_stream = nn.LayerNorm(dim), nn.LayerNorm(dim), gelu

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        normed = self.norm2(x)
        return (normed if self.of_stream else x) + self.ffn(normed)


class PlainViT(nn.Module):
    """The course template's network with plain Transformer layers: patches of 4 pixels, a class token."""

    def __init__(self, dim=96, layers=3, heads=3, mlp_dim=192):
        super().__init__()
        self.tokenization = hw.myTokenization(dim, 4, 3)
        self.class_token, self.position = (nn.Parameter(torch.randn(1, n, dim)) for n in (1, 65))
        self.layers = nn.Sequential(*(EncoderLayer(dim, heads, mlp_dim) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 10))

    def forward(self, x):
        x = torch.cat([self.class_token.expand(len(x), -1, -1), self.tokenization(x)], dim=1) + self.position
        return self.head(self.layers(x)[:, 0])


class CCT(nn.Module):
    """Compact Convolutional Transformer: two pooled convolutions make 64 tokens, an attention pools them at the end."""

    def __init__(self, dim=128, layers=2, heads=2):
        super().__init__()
        self.tokenizer = nn.Sequential(
            conv(3, 64), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv(64, dim), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.position = nn.Parameter(0.2 * torch.randn(1, 64, dim))
        self.layers = nn.Sequential(*(EncoderLayer(dim, heads, dim, gelu=True) for _ in range(layers)))
        self.norm, self.pool, self.head = nn.LayerNorm(dim), nn.Linear(dim, 1), nn.Linear(dim, 10)
        for module in initialized(self).modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias) if module.bias is not None else None

    def forward(self, x):
        x = rearrange(self.tokenizer(x), "b d h w -> b (h w) d") + self.position
        x = self.norm(self.layers(x))
        return self.head((self.pool(x).softmax(dim=1) * x).sum(dim=1))


def bsconv(before, after, stride=1):
    """In place of a 3x3 convolution: two 1x1 with a quarter of the channels between them, then a depthwise 3x3."""
    middle = min(before, max(4, -(-before // 4)))
    return nn.Sequential(conv(before, middle, 1), nn.BatchNorm2d(middle), conv(middle, after, 1),
                         nn.BatchNorm2d(after), conv(after, after, stride=stride, groups=after))


class PreActivationBlock(nn.Module):
    """A block of a wide ResNet with BSConv-S."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.layers = nn.Sequential(bsconv(before, after, stride), nn.BatchNorm2d(after), nn.ReLU(),
                                    bsconv(after, after))
        self.shortcut = conv(before, after, 1, stride) if (before, stride) != (after, 1) else None

    def forward(self, x):
        ready = self.first(x)
        return self.layers(ready) + (self.shortcut(ready) if self.shortcut else x)


def wrn28_3_bsconv():
    widths = [16] + [width for width in (48, 96, 192) for _ in range(4)]
    return initialized(nn.Sequential(
        nn.BatchNorm2d(3), bsconv(3, 16),
        *(PreActivationBlock(a, b, 2 if a != b and a > 16 else 1) for a, b in pairwise(widths)),
        nn.BatchNorm2d(192), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 10)))


class ChannelNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MultiScaleBlock(nn.Module):
    """Quarters of the channels at four scales, then a gated feed-forward layer; the residual is scaled by channel."""

    def __init__(self, dim):
        super().__init__()
        part = dim // 4
        self.near, self.far = (conv(part, part, side, groups=part, bias=True) for side in (3, 7))
        self.farthest = nn.Conv2d(part, part, 7, padding=9, dilation=3, groups=part)
        self.norm, self.expand = ChannelNorm(dim), conv(dim, 2 * dim, 1, bias=True)
        self.project, self.scale = conv(dim, dim, 1, bias=True), nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x):
        same, near, far, farthest = x.chunk(4, dim=1)
        smooth = F.avg_pool2d(farthest, 3, 1, 1)
        mixed = torch.cat([same, self.near(near), self.far(far), self.farthest(smooth)], dim=1)
        gate, value = self.expand(self.norm(mixed)).chunk(2, dim=1)
        return self.scale * x + self.project(gate * gate.clamp(max=5).exp().tanh() * value)


def tiniest():
    return Normalized(
        conv(3, 48, bias=True), ChannelNorm(48), *(MultiScaleBlock(48) for _ in range(3)),
        nn.Conv2d(48, 80, 4, 2, 1, groups=16), ChannelNorm(80), *(MultiScaleBlock(80) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, 10))


@dataclass(frozen=True)
class Network:
    make: object
    optimizers: tuple  # of harness.py
    published: str     # number of parameters, as the source gives it


NETWORKS = {
    "ours": Network(lambda: hw.myViT(both_views=False), ("Muon 0.02 + AdamW 0.002", "AdamW 0.001"), "244,010"),
    "ResNet-20": Network(resnet20, ("SGD 0.2", "AdamW 0.001"), "0.27 M"),  # He et al. 2015
    "CCT-2/3x2": Network(lambda: Normalized(CCT()), ("AdamW 0.001", "Muon 0.02 + AdamW 0.002"), "0.28 M"),  # Hassani
    "template's ViT": Network(PlainViT, ("AdamW 0.001", "Muon 0.02 + AdamW 0.002"), "235,786"),  # counted by us
    "Tiniest": Network(tiniest, ("AdamW 0.02", "SGD 0.2"), "97,530"),  # xvel/cifar10-tiniest
    "WRN-28-3 BSConv-S": Network(wrn28_3_bsconv, ("SGD 0.2", "AdamW 0.001"), "0.24 M"),  # Haase and Amthor 2020
}
