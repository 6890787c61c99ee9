"""The 15 corruptions of CIFAR-10-C (Hendrycks and Dietterich 2019) in five severities, and everyday changes.

Definitions and constants are those the published CIFAR-10-C was made with; the random numbers are ours, so the images
are others of the same distribution. `corrupt(images, name, severity)` takes and gives uint8 (n, 32, 32, 3). Frost needs
the photographs that the package imagecorruptions carries: pip install --no-deps imagecorruptions.
"""

import importlib.util
import io
import math
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance

SIDE = 32


def convolve(x, kernel, mode="reflect"):
    """Each channel of x (n, c, h, w) with one kernel (k, k), borders as `mode` says."""
    pad = kernel.shape[-1] // 2
    weight = kernel.to(x).expand(x.shape[1], 1, *kernel.shape)
    return F.conv2d(F.pad(x, [pad] * 4, mode=mode), weight, groups=x.shape[1])


def gaussian_kernel(sigma, radius):
    g = torch.exp(-torch.arange(-radius, radius + 1) ** 2 / (2 * max(sigma, 1e-6) ** 2)).double()
    g /= g.sum()
    return torch.outer(g, g).float()


def gaussian_blur(x, sigma, mode="replicate", truncate=4):
    return convolve(x, gaussian_kernel(sigma, max(int(truncate * sigma + 0.5), 0)), mode) if sigma else x


def clipped_zoom(x, factor):
    """The middle of x, enlarged bilinearly to the size of x."""
    crop = math.ceil(SIDE / factor)
    top = (SIDE - crop) // 2
    big = F.interpolate(x[..., top:top + crop, top:top + crop], size=round(crop * factor), mode="bilinear",
                        align_corners=True)
    trim = (big.shape[-1] - SIDE) // 2
    return big[..., trim:trim + SIDE, trim:trim + SIDE]


def motion_blur(x, radius, sigma, degrees):
    """A one-sided Gaussian trail of 2 radius + 1 nearest pixels, at an angle (n,) of its own for each image."""
    width = 2 * radius + 1
    weights = torch.exp(-torch.arange(width) ** 2 / (2 * sigma**2))
    weights /= weights.sum()
    angle = torch.deg2rad(degrees)
    rows, columns = torch.arange(SIDE)[:, None], torch.arange(SIDE)[None, :]
    image = torch.arange(len(x))[:, None, None]
    out = torch.zeros_like(x)
    for i, weight in enumerate(weights):
        dy = -torch.ceil(i * torch.sin(angle) - 0.5).long()[:, None, None]
        dx = -torch.ceil(i * torch.cos(angle) - 0.5).long()[:, None, None]
        moved = x.permute(0, 2, 3, 1)[image, (rows - dy).clamp(0, SIDE - 1), (columns - dx).clamp(0, SIDE - 1)]
        out += weight * moved.permute(0, 3, 1, 2)
    return (out * 255).round() / 255  # the published images were 8-bit files here


def plasma(n, decay, random):
    """Cloud-like height maps (n, 32, 32) from 0 to 1, by the diamond-square algorithm on a torus."""
    grid, step, wobble = np.zeros((n, SIDE, SIDE)), SIDE, 100.0

    def around(total):
        return total / 4 + wobble * random.uniform(-wobble, wobble, total.shape)

    while step >= 2:
        half = step // 2
        corners = grid[:, ::step, ::step]
        total = corners + np.roll(corners, -1, axis=1)
        total += np.roll(total, -1, axis=2)
        grid[:, half::step, half::step] = around(total)
        middles, corners = grid[:, half::step, half::step], grid[:, ::step, ::step]
        vertical, horizontal = middles + np.roll(middles, 1, axis=1), corners + np.roll(corners, -1, axis=2)
        grid[:, ::step, half::step] = around(vertical + horizontal)
        vertical, horizontal = corners + np.roll(corners, -1, axis=1), middles + np.roll(middles, 1, axis=2)
        grid[:, half::step, ::step] = around(vertical + horizontal)
        step, wobble = half, wobble / decay
    grid -= grid.min(axis=(1, 2), keepdims=True)
    return torch.from_numpy(grid / grid.max(axis=(1, 2), keepdims=True)).float()


def gaussian_noise(x, severity, random):
    scale = [0.04, 0.06, 0.08, 0.09, 0.10][severity]
    return x + torch.from_numpy(random.normal(scale=scale, size=x.shape)).float()


def shot_noise(x, severity, random):
    c = [500, 250, 100, 75, 50][severity]
    return torch.from_numpy(random.poisson(x.numpy() * c) / c).float()


def impulse_noise(x, severity, random):
    hit = torch.from_numpy(random.random(x.shape)) < [0.01, 0.02, 0.03, 0.05, 0.07][severity]
    salt = torch.from_numpy(random.random(x.shape)) < 0.5
    return torch.where(hit, salt.float(), x)


def defocus_blur(x, severity, random):
    radius, alias = [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)][severity]
    span = torch.arange(-8, 9)
    disk = (span[:, None] ** 2 + span**2 <= radius**2).float()
    disk = convolve(disk[None, None] / disk.sum(), gaussian_kernel(alias, 1))[0, 0]
    return convolve(x, disk)


def glass_blur(x, severity, random):
    sigma, delta, times = [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)][severity]
    pixels = (gaussian_blur(x, sigma) * 255).byte().permute(0, 2, 3, 1)
    image = torch.arange(len(x))
    for _ in range(times):
        for row in range(SIDE - delta, delta, -1):
            for column in range(SIDE - delta, delta, -1):
                dx, dy = torch.from_numpy(random.integers(-delta, delta, size=(2, len(x))))
                pixels[:, row, column] = pixels[image, row + dy, column + dx]  # published so: copied, not exchanged
    return gaussian_blur(pixels.permute(0, 3, 1, 2) / 255, sigma)


def motion(x, severity, random):
    radius, sigma = [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)][severity]
    return motion_blur(x, radius, sigma, torch.from_numpy(random.uniform(-45, 45, len(x))))


def zoom_blur(x, severity, random):
    factors = np.arange(1, [1.06, 1.11, 1.16, 1.21, 1.26][severity], 0.01)
    return (x + sum(clipped_zoom(x, f) for f in factors)) / (len(factors) + 1)


def snow(x, severity, random):
    mean, std, zoom, threshold, radius, sigma, keep = [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)][severity]
    layer = torch.from_numpy(random.normal(mean, std, (len(x), 1, SIDE, SIDE))).float()
    layer = clipped_zoom(layer, zoom)
    layer = (layer.where(layer >= threshold, torch.tensor(0.0)).clamp(0, 1) * 255).floor() / 255
    layer = motion_blur(layer, radius, sigma, torch.from_numpy(random.uniform(-135, -45, len(x))))
    grey = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    x = keep * x + (1 - keep) * torch.maximum(x, grey * 1.5 + 0.5)
    return x + layer + layer.flip(2, 3)


def frost(x, severity, random):
    own, ice = [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)][severity]
    spec = importlib.util.find_spec("imagecorruptions")
    if spec is None:
        raise FileNotFoundError("frost needs photographs: pip install --no-deps imagecorruptions")
    folder = Path(spec.submodule_search_locations[0]) / "frost"
    photos = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(folder.glob("frost[1-5].*"))]
    photos = [torch.from_numpy(p.copy()).permute(2, 0, 1) / 255 for p in photos]
    photos = [F.interpolate(p[None], scale_factor=0.2, mode="bilinear")[0] for p in photos]
    pieces = []
    for i in random.integers(5, size=len(x)):
        top, left = (random.integers(0, size - SIDE) for size in photos[i].shape[1:])
        pieces.append(photos[i][:, top:top + SIDE, left:left + SIDE])
    return own * x + ice * torch.stack(pieces)


def fog(x, severity, random):
    amount, decay = [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)][severity]
    peak = x.amax(dim=(1, 2, 3), keepdim=True)
    return (x + amount * plasma(len(x), decay, random)[:, None]) * peak / (peak + amount)


def brightness(x, severity, random):
    value = x.amax(dim=1, keepdim=True)  # of hue, saturation and value
    brighter = (value + [0.05, 0.1, 0.15, 0.2, 0.3][severity]).clamp(0, 1)
    return torch.where(value > 0, x * brighter / value.clamp(min=1e-6), brighter)


def contrast(x, severity, random):
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * [0.75, 0.5, 0.4, 0.3, 0.15][severity] + mean


def elastic_transform(x, severity, random):
    strength, smooth, affine = [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
                                (0.1, 0.03, 0.03)][severity]
    n = len(x)
    # the affine map that takes three points, moved at random, back to where they were
    source = torch.tensor([[26.0, 26], [26, 6], [6, 6]])
    target = source + torch.from_numpy(random.uniform(-affine * SIDE, affine * SIDE, (n, 3, 2))).float()
    back = torch.linalg.solve(torch.cat([target, torch.ones(n, 3, 1)], dim=2), source.expand(n, 3, 2))   # (n, 3, 2)
    y, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    places = torch.stack([column, y, torch.ones_like(y)], dim=-1).float()                                # (h, w, 3)
    x = sample(x, torch.einsum("hwi,nij->nhwj", places, back))
    if strength:
        shifts = torch.from_numpy(random.uniform(-1, 1, (n, 2, SIDE, SIDE))).float()
        radius = int(3 * smooth * SIDE + 0.5)
        mirror = (torch.arange(-radius, SIDE + radius) + 0.5).abs()  # scipy's borders: the edge pixel comes twice
        mirror = torch.where(mirror > SIDE, 2 * SIDE - mirror, mirror).long()
        shifts = gaussian_blur(shifts[..., mirror, :][..., mirror], smooth * SIDE, "reflect", truncate=3)
        shifts = shifts[..., radius:radius + SIDE, radius:radius + SIDE] * strength * SIDE
        x = sample(x, places[..., :2] + shifts.permute(0, 2, 3, 1), twice=True)
    return x


def sample(x, places, twice=False):
    """x (n, c, h, w) at places (n, h, w, 2), as (column, row), bilinearly, reflected with the edge once or twice."""
    places = (2 * places + 1) / SIDE - 1 if twice else 2 * places / (SIDE - 1) - 1
    return F.grid_sample(x, places, mode="bilinear", padding_mode="reflection", align_corners=not twice)


def one_by_one(change):
    def corruption(x, severity, random):
        pictures = [Image.fromarray(p) for p in (x * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()]
        return torch.from_numpy(np.stack([np.asarray(change(p, severity)) for p in pictures])).permute(0, 3, 1, 2) / 255
    return corruption


def pixelated(picture, severity):
    small = int(SIDE * [0.95, 0.9, 0.85, 0.75, 0.65][severity])
    return picture.resize((small, small), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BOX)


def jpeg(picture, quality):
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return Image.open(content)


CORRUPTIONS = {
    "gaussian_noise": gaussian_noise, "shot_noise": shot_noise, "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur, "glass_blur": glass_blur, "motion_blur": motion, "zoom_blur": zoom_blur,
    "snow": snow, "frost": frost, "fog": fog, "brightness": brightness, "contrast": contrast,
    "elastic_transform": elastic_transform, "pixelate": one_by_one(pixelated),
    "jpeg_compression": one_by_one(lambda picture, severity: jpeg(picture, [80, 65, 58, 50, 40][severity])),
}


def corrupt(images: torch.Tensor, name: str, severity: int, seed: int = 0) -> torch.Tensor:
    """uint8 images (n, 32, 32, 3), corrupted with severity 1 to 5; the same seed gives the same images."""
    if name not in CORRUPTIONS or severity not in range(1, 6):
        raise ValueError(f"corruption is {name!r}, severity {severity}; it must be one of {list(CORRUPTIONS)}, 1 to 5")
    random = np.random.default_rng([seed, zlib.crc32(name.encode()), severity])
    x = images.permute(0, 3, 1, 2).float() / 255
    x = CORRUPTIONS[name](x, severity - 1, random)
    return (x.clamp(0, 1) * 255 + 1e-3).byte().permute(0, 2, 3, 1).contiguous()


# everyday changes, of one picture each

R = Image.Resampling


def widened(p):
    return Image.fromarray(np.pad(np.asarray(p), ((16, 16), (16, 16), (0, 0)), mode="reflect"))


def resampled(side, there, back):
    return lambda p: p.resize((side, side), there).resize((32, 32), back)


def scaled(factor):
    return lambda p: widened(p).resize((32, 32), R.BICUBIC, (32 - 16 / factor,) * 2 + (32 + 16 / factor,) * 2)


def rotated(degrees):
    return lambda p: widened(p).rotate(degrees, R.BICUBIC).crop((16, 16, 48, 48))


def shifted(dx, dy):
    return lambda p: widened(p).crop((16 - dx, 16 - dy, 48 - dx, 48 - dy))


EVERYDAY = {
    **{f"JPEG quality {q}": lambda p, q=q: jpeg(p, q) for q in (90, 75, 50, 30, 10)},
    **{f"brightness x {f}": lambda p, f=f: ImageEnhance.Brightness(p).enhance(f) for f in (0.4, 0.7, 1.3, 1.6)},
    **{f"contrast x {f}": lambda p, f=f: ImageEnhance.Contrast(p).enhance(f) for f in (0.4, 0.7, 1.3, 1.6)},
    **{f"rotated by {d} degrees": rotated(d) for d in (-20, -15, -5, 5, 15, 20)},
    **{f"scaled by {f}": scaled(f) for f in (0.6, 0.8, 0.9, 1.1, 1.25, 1.6)},
    **{f"shifted by {n} pixels": shifted(n, -n) for n in (2, 4, 8)},
    "from 24 pixels, bilinear": resampled(24, R.BOX, R.BILINEAR),
    "from 24 pixels, Lanczos": resampled(24, R.LANCZOS, R.LANCZOS),
    "from 64 pixels, box": resampled(64, R.BICUBIC, R.BOX),
    "from 64 pixels, Lanczos": resampled(64, R.BILINEAR, R.LANCZOS),
}


def everyday(images: torch.Tensor, name: str) -> torch.Tensor:
    """uint8 images (n, 32, 32, 3), changed alike."""
    return torch.from_numpy(np.stack([EVERYDAY[name](Image.fromarray(x)).convert("RGB") for x in images.numpy()]))
