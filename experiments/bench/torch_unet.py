"""The U-Net of `diffax.models.unet` in PyTorch, to be timed beside it: the same layers under the same names.

    twin = torch_unet.Twin(shape, **options)        # those of models.unet(shape, **options)
    torch_unet.load(twin, params)

Images are [batch, channels, height, width]; `memory_format=torch.channels_last` lays them out as diffax does. Of the
conditions there is the class. PyTorch's own layers are used throughout (scaled_dot_product_attention, group_norm).
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffax.models.unet import DIFFAX, Style

__all__ = ["Twin", "load", "runs"]


def load(network: nn.Module, params: Mapping[str, Any]) -> None:
    """Gives a twin diffax's parameters."""
    state = {}
    for name, tensor in network.state_dict().items():
        *path, leaf = name.split(".")
        here: Any = params
        for part in path:
            here = here[part]
        array = np.asarray(here["bias"] if leaf == "bias" else here.get("kernel", here.get("scale")))
        array = np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array
        state[name] = torch.tensor(array).reshape(tensor.shape)
    network.load_state_dict(state)


class Twin(nn.Module):
    """Takes the arguments of `diffax.models.unet` that concern images and their class.

    forward(x [batch, channels, height, width], embedded [batch, width], label [batch, num_classes] or None), where
    embedded is the noise level as style.noise gives it, and a label a row with a 1.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        head_channels: int = 32,
        heads: int | None = None,
        num_classes: int | None = None,
        out_channels: int | None = None,
        dropout: float = 0.0,
        style: Style = DIFFAX,
    ):
        super().__init__()
        if style.image_skips or style.blur:
            raise ValueError("style: the PyTorch twin has no image skips and no blurred resampling")
        height, _, image_channels = shape
        self.style, self.blocks, self.levels = style, blocks, range(len(multipliers))
        width, noise_width = 4 * channels, style.noise_width * channels
        layers: dict[str, nn.Module] = {"dense0": nn.Linear(noise_width, width), "dense1": nn.Linear(width, width)}
        if num_classes is not None:
            early = style.label == "noise"
            layers["label"] = nn.Linear(num_classes, noise_width if early else width, bias=early)
        self.embedding = nn.ModuleDict(layers)

        def block(name: str, into: int, out: int, how: str | None = None) -> None:
            self.add_module(name, ResBlock(into, out, width, how, style, dropout))

        def attend(name: str, size: int) -> None:
            count = heads or math.gcd(size, max(size // head_channels, 1))
            self.add_module(name, Attention(size, count, style))

        def change(name: str, size: int, how: str) -> None:
            if style.strided is None:
                block(name, size, size, how)
            else:
                self.add_module(
                    name, nn.Conv2d(size, size, 3, stride=2 if how == "down" else 1, padding=int(how == "up"))
                )

        self.conv_in = nn.Conv2d(image_channels, channels, 3, padding=1)
        skips, here = [channels], channels
        for level in self.levels:
            if level:
                change(f"down{level}_resample", here, "down")
                skips.append(here)
            for i in range(blocks):
                block(f"down{level}_block{i}", here, channels * multipliers[level])
                here = channels * multipliers[level]
                skips.append(here)
                if height >> level in attention:
                    attend(f"down{level}_attention{i}", here)
        block("middle_block0", here, here)
        attend("middle_attention", here)
        block("middle_block1", here, here)
        for level in reversed(self.levels):
            for i in range(blocks + 1):
                block(f"up{level}_block{i}", here + skips.pop(), channels * multipliers[level])
                here = channels * multipliers[level]
                if height >> level in attention and (i == blocks or not style.last_only):
                    attend(f"up{level}_attention{i}", here)
            if level:
                change(f"up{level}_resample", here, "up")
        self.norm_out = group_norm(here, style)
        self.conv_out = nn.Conv2d(here, out_channels or image_channels, 3, padding=1)

    def forward(self, x: Tensor, embedded: Tensor, label: Tensor | None = None) -> Tensor:
        """F, as diffax's network gives it."""
        layers, early = self.embedding, self.style.label == "noise"
        e = embedded
        if label is not None and early:
            e = e + layers["label"](label)
        e = layers["dense1"](F.silu(layers["dense0"](e)))
        if label is not None and not early:
            e = e + layers["label"](label)
        e = F.silu(e)
        h = self.conv_in(x)
        skips = [h]
        for level in self.levels:
            if level:
                h = self._change(f"down{level}_resample", h, e, "down")
                skips.append(h)
            for i in range(self.blocks):
                h = self._step(f"down{level}", i, h, e)
                skips.append(h)
        h = self.middle_block1(self.middle_attention(self.middle_block0(h, e)), e)
        for level in reversed(self.levels):
            for i in range(self.blocks + 1):
                h = self._step(f"up{level}", i, torch.cat([h, skips.pop()], dim=1), e)
            if level:
                h = self._change(f"up{level}_resample", h, e, "up")
        return self.conv_out(F.silu(self.norm_out(h)))

    def _step(self, where: str, i: int, h: Tensor, e: Tensor) -> Tensor:
        h = getattr(self, f"{where}_block{i}")(h, e)
        attend = getattr(self, f"{where}_attention{i}", None)
        return h if attend is None else attend(h)

    def _change(self, name: str, h: Tensor, e: Tensor, how: str) -> Tensor:
        layer = getattr(self, name)
        if self.style.strided is None:
            return layer(h, e)
        if how == "up":
            return layer(F.interpolate(h, scale_factor=2, mode="nearest"))
        return layer(F.pad(h, self.style.strided * 2))


class ResBlock(nn.Module):
    """As `diffax.models.unet.ResBlock`."""

    def __init__(self, into: int, out: int, embedding: int, how: str | None, style: Style, dropout: float):
        super().__init__()
        self.how, self.style = how, style
        self.norm0, self.norm1 = group_norm(into, style), group_norm(out, style)
        self.conv0, self.conv1 = (nn.Conv2d(size, out, 3, padding=1) for size in (into, out))
        self.modulation = nn.Linear(embedding, out * (2 if style.modulation == "scale_shift" else 1))
        self.dropout = nn.Dropout(dropout)
        self.widen = nn.Conv2d(into, out, 1) if into != out or (how and style.widen_resampled) else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h, x = self._resample(F.silu(self.norm0(x))), self._resample(x)
        h, by = self.conv0(h), self.modulation(e)[:, :, None, None]
        if self.style.modulation == "scale_shift":
            scale, shift = by.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + by)
        h = self.conv1(self.dropout(F.silu(h)))
        return (self.widen(x) + h) * self.style.skip_scale

    def _resample(self, x: Tensor) -> Tensor:
        if self.how == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.how == "up" else x


class Attention(nn.Module):
    """As `diffax.models.unet.Attention`, over space."""

    def __init__(self, channels: int, heads: int, style: Style):
        super().__init__()
        self.heads, self.style = heads, style
        self.norm = group_norm(channels, style)
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        h = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (a.unflatten(2, (self.heads, -1)).transpose(1, 2) for a in self.qkv(h).chunk(3, dim=2))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (x + self.project(h).transpose(1, 2).unflatten(2, (height, width))) * self.style.skip_scale


def group_norm(channels: int, style: Style) -> nn.GroupNorm:
    """As many groups as diffax takes."""
    groups = style.groups or math.gcd(min(32, max(channels // 4, 1)), channels)
    return nn.GroupNorm(groups, channels, eps=style.epsilon)


def runs(
    shape: Sequence[int], options: dict[str, Any], params: Any, count: int, nfe: int, half: bool
) -> dict[str, dict[str, Callable[[], Any]]]:
    """{task: {"torch" or "torch.compile": run()}} for the forward pass, train step and sampler of count images.

    half: autocast to bfloat16. A run waits for its end. Raises ValueError for an architecture that the twin lacks.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = Twin(shape, **options)
    load(network, params)
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    average = [p.detach().clone() for p in network.parameters()]
    classes = options.get("num_classes")
    x = torch.randn(count, shape[2], shape[0], shape[1], device=device).to(memory_format=torch.channels_last)
    width = options.get("channels", 64) * network.style.noise_width
    embedded = torch.randn(count, width, device=device)
    label = None if classes is None else F.one_hot(torch.randint(0, classes, (count,)), classes)
    label = None if label is None else label.float().to(device)
    cast = functools.partial(torch.autocast, device, dtype=torch.bfloat16, enabled=half)

    def wait(value: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        return value

    def denoise(network: Any, y: Any, sigma: Any) -> Any:
        scale = (sigma**2 + 0.25) ** -0.5
        with cast():
            out = network(scale * y, embedded, label)
        return 0.25 * scale**2 * y + 0.5 * sigma * scale * out.float()

    def forward(network: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad(), cast():
                return wait(network(x, embedded, label)).shape

        return run

    def train(network: Any) -> Callable[[], Any]:
        def run() -> Any:
            noise = torch.randn_like(x)
            sigma = torch.exp(1.2 * torch.randn(count, 1, 1, 1, device=device) - 1.2)
            weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
            error = (weight * (denoise(network, x + sigma * noise, sigma) - x) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            error.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            torch._foreach_lerp_(average, [p.detach() for p in network.parameters()], 1e-3)
            return float(error.detach())

        return run

    def sample(network: Any) -> Callable[[], Any]:
        sigmas = np.append(np.geomspace(80, 0.002, nfe), 0)

        def run() -> Any:
            with torch.no_grad():
                y = 80 * x
                for here, after in itertools.pairwise(sigmas):
                    level = torch.full((count, 1, 1, 1), float(here), device=device)
                    clean = denoise(network, y, level)
                    y = clean + (y - clean) * float(after / here)
                return wait(y).shape

        return run

    whole = torch.compile(network)
    tasks = {"forward": forward, "train step": train, "sampler": sample}
    return {task: {"torch": make(network), "torch.compile": make(whole)} for task, make in tasks.items()}
