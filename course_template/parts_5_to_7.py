# ruff: noqa: F821  (names that the notebook's cells define)
"""Part 7 for a course that locks all but Parts 5 to 7: a myTransformer that makes up for what is locked.

Runs after the notebook's cells of Parts 4 to 7 and the one that defines `orthogonalize`, and replaces their
`myTransformer`. Shapes in the comments are those of the course's template: 64 patches of 4x4 pixels, 96 features.
"""

import copy
import math

import torch
from einops import rearrange
from torch import nn


class myRetokenization(nn.Module):
    """Tokens of raw patches -> better tokens: (b, 1 + n, dim) or (b, n, dim) -> (b, n, dim), n a square number.

    patch_size: side of the patches that the tokens were cut from, an even number. A class token before them is left
    out. What is trained on n tokens takes no other number. Raises ValueError for an odd patch_size or such tokens.
    """

    def __init__(self, dim, patch_size, picture_dim=6, fine_dim=64, mlp_dim=128, depth=3):
        super().__init__()
        check_positive(dim=dim, patch_size=patch_size)
        if patch_size % 2:
            raise ValueError(f"patch_size is {patch_size}; it must be an even number")
        self.patch_size = patch_size
        self.register_buffer("mean", torch.zeros(64, dim))  # of each place; the first batch may ask for more or fewer
        self.register_buffer("batches", torch.zeros(()))
        self.to_picture = nn.Linear(dim, patch_size * patch_size * picture_dim, bias=False)
        self.stem = nn.Sequential(
            nn.Conv2d(picture_dim, fine_dim, kernel_size=3, stride=patch_size // 2, padding=1, bias=False),
            nn.BatchNorm2d(fine_dim),
            nn.ReLU())
        self.blocks = nn.Sequential(*(myTransformerBlock(fine_dim, 0, 1, mlp_dim) for _ in range(depth)))
        self.to_tokens = myTokenization(dim, 2, fine_dim)

    def forward(self, x):
        side = math.isqrt(x.shape[1])
        class_tokens = x.shape[1] - side * side
        if class_tokens > 1:
            raise ValueError(f"x has {x.shape[1]} tokens; they must be a square grid, or one more")
        x = self.hide(self.centred(x[:, class_tokens:]))          # (b, 8 * 8, 96)
        p = self.patch_size
        x = rearrange(self.to_picture(x), "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", h=side, p1=p, p2=p)
        x = rearrange(self.stem(x), "b d h w -> b (h w) d")       # (b, 6, 32, 32) -> (b, 16 * 16, 64)
        x = rearrange(self.blocks(x), "b (h w) d -> b d h w", h=2 * side)
        return self.to_tokens(x)                                  # (b, 64, 16, 16) -> (b, 8 * 8, 96)

    def centred(self, x):
        """Tokens (b, n, dim), of any floating type, less the running mean of their place."""
        if x.shape[1] != len(self.mean):
            if self.batches:
                raise ValueError(f"x has {x.shape[1]} tokens on the grid; the training had {len(self.mean)}")
            self.mean = self.mean.new_zeros(x.shape[1:])
        if self.training:
            self.batches += 1
            mean = x.detach().to(self.mean.dtype).mean(dim=0)
            self.mean.lerp_(mean, 1 / self.batches.clamp(max=100).item())
        return x - self.mean

    def hide(self, x):
        """In training, one token in ten is zero."""
        return x * (torch.rand(*x.shape[:2], 1, device=x.device) > 0.1) if self.training else x


def orthogonal_gradient(mean: torch.Tensor, momentum: float = 0.9, largest: float = 100.0):
    """A hook for a matrix: gradient -> orthogonalized running mean of the gradients, which starts at `mean`.

    For float16, where a GradScaler multiplies the loss and, after this hook, divides the gradients by its scale:
    - A gradient that is not finite is handed on as it is, so that the GradScaler sees it and leaves out the step. It
      does not enter the running mean.
    - A running mean of a norm above `largest` is one of scaled gradients. The result then grows with that norm, and so
      with the scale. Else the division would leave less than Adam's eps. Unscaled gradients stay far below `largest`.
    - A change of the scale needs nothing more: the mean forgets the old scale within some ten steps.
    """
    def hook(gradient):
        nonlocal mean
        finite = gradient.isfinite().all()
        mean, new = mean.to(gradient.device), gradient.to(mean.dtype)
        mean = torch.where(finite, mean.lerp(new, 1 - momentum), mean)
        ahead = new.lerp(mean, momentum)  # Nesterov's look ahead
        result = orthogonalize(ahead) * (ahead.norm() / largest).clamp(min=1)
        return torch.where(finite, result.to(gradient.dtype), gradient)
    return hook


class mySelfAveraging(nn.Module):
    """A module that in eval mode, and where torch.save stores it, is the running average of itself.

    In training, forward must call `observe()` once; from then on the gradients of all matrices are orthogonalized, too.
    Keep all parameters and BatchNorms in submodules: a copy of those is what is saved. load_state_dict starts anew.
    """

    average = None  # a plain attribute, so that it counts neither as parameters nor as buffers

    def averaged(self):
        statistics = [b for name, b in self.named_buffers() if name.endswith(("running_mean", "running_var"))]
        return [*self.parameters(), *statistics]

    @torch.no_grad()
    def observe(self, keep=0.9995):
        if self.average is None:
            self.average, self.steps = [t.float().clone() for t in self.averaged()], 0
            for matrix in (p for p in self.parameters() if p.ndim == 2 and not p._backward_hooks):
                matrix.register_hook(orthogonal_gradient(torch.zeros_like(matrix, dtype=torch.float32)))
        self.steps += 1
        keep = min(keep, self.steps / (self.steps + 9))  # short memory at first: the initial weights are no use
        for average, value in zip(self.average, self.averaged()):
            average.lerp_(value.to(average.dtype), 1 - keep)

    @torch.no_grad()
    def exchange(self):
        for average, value in zip(self.average, self.averaged()):
            last = value.clone()
            value.copy_(average)
            average.copy_(last)

    def train(self, mode=True):
        if mode != self.training and self.average is not None:
            self.exchange()
        return super().train(mode)

    def __getstate__(self):
        if self.average is None or not self.training:
            return {**self.__dict__, "average": None}
        self.exchange()
        try:
            return {**self.__dict__, "average": None, "_modules": copy.deepcopy(self._modules)}
        finally:
            self.exchange()

    def _apply(self, fn, recurse=True):  # .to(device) and the like
        self.average = self.average and [fn(t).float() for t in self.average]
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self.average = None
        super()._load_from_state_dict(*args, **kwargs)


class myTransformer(mySelfAveraging):
    """myRetokenization, then `depth` blocks: tokens (b, n, dim) -> (b, n, dim); a class token becomes their mean.

    patch_size: side of the patches that the tokens were cut from. Raises ValueError if x is not (batch, tokens, dim).
    """

    def __init__(self, dim, heads, dim_head, mlp_dim, depth=3, patch_size=4):
        super().__init__()
        check_positive(depth=depth)
        self.dim = dim
        self.retokenize = myRetokenization(dim, patch_size)
        self.blocks = nn.Sequential(*(myTransformerBlock(dim, heads, dim_head, mlp_dim) for _ in range(depth)))
        with torch.no_grad():
            for weight in (p for p in self.parameters() if p.ndim > 1):
                weight *= 0.6  # Adam moves each entry by about the same step: a larger share of a smaller weight

    def forward(self, x):
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, tokens, {self.dim})")
        grid = self.blocks(self.retokenize(x))                    # (b, 64, 96): without a class token
        if self.training and torch.is_grad_enabled():
            self.observe()
        mean = grid.mean(dim=1, keepdim=True)                     # (b, 1, 96)
        return torch.cat([mean, grid], dim=1) if x.shape[1] > grid.shape[1] else grid
