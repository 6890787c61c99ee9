"""The block, the tokenization and the stem of the notebook in a training in bfloat16, each as one pass over memory.

g++ -O3 -march=native -shared -fPIC -std=c++17 -fopenmp kernels.cpp -o libkernels.so   # needs AVX512-BF16
"""

import ctypes
from pathlib import Path

import torch

L = ctypes.CDLL(str(Path(__file__).with_name("libkernels.so")))
V, I, N_ = ctypes.c_void_p, ctypes.c_int, ctypes.c_long


def p(t):
    return V(t.data_ptr() if t is not None else 0)


SHAPES = {(32, 64), (64, 128), (96, 160)}


class FFN(torch.autograd.Function):
    """y = [x +] relu(xh W1 + b1) W2 + b2, xh = (x-mean)*rstd if mean is given (gradient through the statistics)."""

    @staticmethod
    def forward(ctx, x, mean, rstd, W1, b1, W2, b2, res):
        D, H = W1.shape[1], W1.shape[0]
        n = x.numel() // D
        W1, b1, W2, b2 = (t.detach().float().contiguous() for t in (W1, b1, W2, b2))
        h = torch.empty(n, H, dtype=torch.bfloat16)
        y = torch.empty_like(x)
        assert x.is_contiguous() and x.dtype == torch.bfloat16
        assert 0 == L.ffn_fwd(I(D), I(H), N_(n), p(x), p(mean), p(rstd), p(W1), p(b1), p(W2), p(b2), p(h), p(y), I(res))
        ctx.save_for_backward(x, mean, rstd, W1, W2, h)
        ctx.res = res
        return y

    @staticmethod
    def backward(ctx, dy):
        x, mean, rstd, W1, W2, h = ctx.saved_tensors
        D, H = W1.shape[1], W1.shape[0]
        n = x.numel() // D
        dy = dy.contiguous()
        assert dy.dtype == torch.bfloat16
        dx = torch.empty_like(x)
        d1, d2 = torch.zeros(D, H), torch.zeros(D, H)
        db1, db2 = torch.zeros(H), torch.zeros(D)
        assert 0 == L.ffn_bwd(
            I(D), I(H), N_(n), p(x), p(mean), p(rstd), p(W1), p(W2), p(h), p(dy), p(dx), p(d1), p(db1), p(d2), p(db2)
        )
        if mean is not None:
            m1 = (db1 @ W1) / n
            m2 = (W1.t() * d1).sum(1) / n
            assert 0 == L.bn_bwd(
                I(D), N_(n), p(x), p(mean), p(rstd), p(m1.contiguous()), p(m2.contiguous()), p(dy), p(dx)
            )
        elif ctx.res:
            dx = dx + dy
        return dx, None, None, d1.t(), db1, d2, db2, None


def stats(x, eps):
    D = x.shape[-1]
    n = x.numel() // D
    s, ss = torch.zeros(D), torch.zeros(D)
    assert 0 == L.col_stats(I(D), N_(n), p(x), p(s), p(ss))
    mean = s / n
    var = (ss / n - mean * mean).clamp_min(0)
    return mean, var, n


class Loc(torch.autograd.Function):
    """x + depthwise(x) + bias, and the sums of the result and of its squares (no gradient)."""

    @staticmethod
    def forward(ctx, x, w, b):
        n, t, D = x.shape
        S = int(t**0.5)
        assert S * S == t and S <= 64 and x.dtype == torch.bfloat16
        x = x.contiguous()
        w9 = w.detach().view(D, 9).t().contiguous()
        y = torch.empty_like(x)
        s, ss = torch.zeros(D), torch.zeros(D)
        assert 0 == L.dw_fwd(I(D), N_(n), I(S), p(x), p(w9), p(b.detach()), p(y), p(s), p(ss))
        ctx.save_for_backward(x, w9)
        ctx.mark_non_differentiable(s, ss)
        return y, s, ss

    @staticmethod
    def backward(ctx, dy, *_):
        x, w9 = ctx.saved_tensors
        n, t, D = x.shape
        S = int(t**0.5)
        dy = dy.contiguous()
        assert dy.dtype == torch.bfloat16
        dx = torch.empty_like(x)
        flipped = w9.flip(0).contiguous()
        dw, db = torch.zeros(9, D), torch.zeros(D)
        assert 0 == L.dw_fwd(I(D), N_(n), I(S), p(dy), p(flipped), V(0), p(dx), V(0), V(0))
        assert 0 == L.dw_wgrad(I(D), N_(n), I(S), p(x), p(dy), p(dw), p(db))
        return dx, dw.t().reshape(D, 1, 3, 3), db


def bn_ffn(x, norm, ffn, sums):
    x = x.contiguous()
    with torch.no_grad():
        n = x.numel() // x.shape[-1]
        mean = sums[0] / n
        var = (sums[1] / n - mean * mean).clamp_min(0)
        rstd = (var + norm.eps).rsqrt()
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * n / (n - 1), norm.momentum)
    with torch.autocast("cpu", enabled=False):
        W1 = ffn.linear1.weight * norm.weight
        b1 = ffn.linear1.bias + ffn.linear1.weight @ norm.bias
        return FFN.apply(x, mean, rstd, W1, b1, ffn.linear2.weight, ffn.linear2.bias, 1)


def plain_ffn(x, xn, ffn):
    with torch.autocast("cpu", enabled=False):
        return x + FFN.apply(
            xn.to(torch.bfloat16).contiguous(),
            None,
            None,
            ffn.linear1.weight,
            ffn.linear1.bias,
            ffn.linear2.weight,
            ffn.linear2.bias,
            0,
        )


def install(hw):
    old = hw.myTransformerBlock.forward

    def forward(self, x):
        on = (
            self.training
            and torch.is_autocast_enabled("cpu")
            and x.shape[0] * x.shape[1] % 64 == 0
            and (x.shape[-1], self.ffn.linear1.out_features) in SHAPES
        )
        if not on:
            return old(self, x)
        dw = self.locality.depthwise
        with torch.autocast("cpu", enabled=False):
            x, *sums = Loc.apply(x.to(torch.bfloat16), dw.weight, dw.bias)
        if self.attention is not None:
            x = x + self.attention(self.attention_norm(x))
        x = x.to(torch.bfloat16)
        if isinstance(self.ffn_norm, hw.myBatchNorm):
            return bn_ffn(x, self.ffn_norm, self.ffn, sums)
        return plain_ffn(x, self.ffn_norm(x), self.ffn)

    hw.myTransformerBlock.forward = forward


class Tok(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, b):
        DO, DI = W.shape
        n = x.numel() // DI
        x = x.contiguous()
        W = W.detach().contiguous()
        y = torch.empty(*x.shape[:-1], DO, dtype=torch.bfloat16)
        assert x.dtype == torch.bfloat16
        assert 0 == L.tok_fwd(I(DI), I(DO), N_(n), p(x), p(W), p(b.detach().contiguous()), p(y))
        ctx.save_for_backward(x, W)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, W = ctx.saved_tensors
        DO, DI = W.shape
        n = x.numel() // DI
        dy = dy.contiguous()
        assert dy.dtype == torch.bfloat16
        dx = torch.empty_like(x)
        dW, db = torch.zeros(DI, DO), torch.zeros(DO)
        assert 0 == L.tok_bwd(I(DI), I(DO), N_(n), p(x), p(W), p(dy), p(dx), p(dW), p(db))
        return dx, dW.t(), db


class Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        n, t, D = x.shape
        S = int(t**0.5)
        x = x.contiguous()
        y = torch.empty(n, t // 4, D, dtype=torch.bfloat16)
        L.pool_fwd(I(D), N_(n), I(S), p(x), p(y))
        ctx.S = S
        return y

    @staticmethod
    def backward(ctx, dy):
        n, t, D = dy.shape
        dy = dy.contiguous()
        dx = torch.empty(n, 4 * t, D, dtype=torch.bfloat16)
        L.pool_bwd(I(D), N_(n), I(ctx.S), p(dy), p(dx))
        return dx


class BNReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma, beta, mean, rstd):
        n = x.numel() // 32
        a = (gamma * rstd).detach().contiguous()
        c = (beta.detach() - mean * a).contiguous()
        y = torch.empty_like(x)
        L.bnr_fwd(N_(n), p(x), p(a), p(c), p(y))
        ctx.save_for_backward(x, y, a, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, y, a, mean, rstd = ctx.saved_tensors
        n = x.numel() // 32
        dy = dy.contiguous()
        assert dy.dtype == torch.bfloat16
        s, sx = torch.zeros(32), torch.zeros(32)
        L.bnr_sums(N_(n), p(x), p(y), p(dy), p(mean), p(rstd), p(s), p(sx))
        dx = torch.empty_like(x)
        m1, m2 = s / n, sx / n
        L.bnr_bwd(N_(n), p(x), p(y), p(dy), p(mean), p(rstd), p(a), p(m1), p(m2), p(dx))
        return dx, sx, s, None, None


def bn_relu(x, norm):
    with torch.no_grad():
        mean, var, n = stats(x, norm.eps)
        rstd = (var + norm.eps).rsqrt()
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * n / (n - 1), norm.momentum)
    with torch.autocast("cpu", enabled=False):
        return BNReLU.apply(x, norm.weight, norm.bias, mean, rstd)


install_blocks = install


def install(hw):
    install_blocks(hw)
    old = hw.myViT.one_view

    def one_view(self, images):
        on = (
            self.training
            and torch.is_autocast_enabled("cpu")
            and images.shape[0] * images.shape[2] ** 2 % 1024 == 0
            and self.stem[0].out_channels == 32
            and self.arguments["patch_size"] == 1
        )
        if not on:
            return old(self, images)
        x = self.stem[0](((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last))
        t = x.permute(0, 2, 3, 1).flatten(1, 2)
        assert t.is_contiguous() and t.dtype == torch.bfloat16
        t = bn_relu(t, self.stem[1])
        for i, stage in enumerate(self.stages):
            if i:
                t = Pool.apply(t)
            _, norm, linear = stage[0].to_patch_tokens
            with torch.autocast("cpu", enabled=False):
                t = Tok.apply(t, linear.weight * norm.weight, linear.bias + linear.weight @ norm.bias)
            t = stage[1](t)
        return self.head(t.mean(dim=1))

    hw.myViT.one_view = one_view
