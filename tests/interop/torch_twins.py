"""The networks of EDM and EDM2 in PyTorch, written from the papers: what diffax's are compared with.

Karras et al. 2022 (arXiv:2206.00364, appendix F.2, table 7) and Karras et al. 2024 (arXiv:2312.02696, figure 21 and
appendix B). Tensors have the names and shapes of NVlabs' snapshots, so that state dicts are exchangeable with theirs.
"""

import math

import torch
import torch.nn.functional as fn
from torch import nn

SIGMA_DATA = 0.5


class Preconditioned(nn.Module):
    """D(x, sigma) of equation 7 from a network of that name, for images [batch, channels, height, width].

    Labels are rows with a 1, or of zeros for "no label".
    """

    def __init__(self, name, network):
        super().__init__()
        self.name = name
        self.add_module(name, network)

    def forward(self, x, sigma, *conditions):
        c_noise, sigma = sigma.log() / 4, sigma[:, None, None, None]
        scale = torch.sqrt(sigma**2 + SIGMA_DATA**2)
        output = getattr(self, self.name)(x / scale, c_noise, *conditions)
        return (SIGMA_DATA / scale) ** 2 * x + sigma * SIGMA_DATA / scale * output


def edm(**sizes):
    return Preconditioned("model", EdmUnet(**sizes))


def edm2(**sizes):
    network = Preconditioned("unet", Edm2Unet(**sizes))
    # the head that weighs the levels in training: stored, and of no use afterwards
    network.logvar_fourier, network.logvar_linear = Waves(16, phases=True), Weight(1, 16)
    return network


def sides_of(side, levels):
    return [side >> level for level in range(levels)]


# ---- EDM ------------------------------------------------------------------------------------------------------------


class EdmUnet(nn.Module):
    """kind: "ddpm++" or "ncsn++" (Song et al. 2021), or "adm" (Dhariwal & Nichol 2021)."""

    def __init__(self, kind, side, channels, multipliers, blocks, attention, labels=0, augment=0, image=3):
        super().__init__()
        self.kind, self.channels, self.blocks = kind, channels, blocks
        self.sides, widths = sides_of(side, len(multipliers)), [channels * m for m in multipliers]
        adm, emb, noise = kind == "adm", 4 * channels, channels * (2 if kind == "ncsn++" else 1)
        if kind == "ncsn++":
            self.map_noise = Waves(noise // 2)
        if labels:
            self.map_label = nn.Linear(labels, emb if adm else noise, bias=not adm)
        if augment:
            self.map_augment = nn.Linear(augment, noise, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(noise, emb), nn.Linear(emb, emb)

        def block(ins, outs, how=None, attends=False):
            return EdmBlock(kind, emb, ins, outs, how, attends)

        self.enc, self.dec, kept = nn.ModuleDict(), nn.ModuleDict(), [channels]
        width = channels
        self.enc[f"{side}x{side}_conv"] = Conv(image, channels, 3)
        for level, (s, wider) in enumerate(zip(self.sides, widths, strict=True)):
            if level:
                self.enc[f"{s}x{s}_down"] = block(width, width, "down")
                if kind == "ncsn++":
                    self.enc[f"{s}x{s}_aux_residual"] = Conv(image, width, 3, "down after", kind)
                    image = width
                kept.append(width)
            for i in range(blocks):
                self.enc[f"{s}x{s}_block{i}"] = block(width, wider, None, s in attention)
                width = wider
                kept.append(width)
        self.dec[f"{s}x{s}_in0"], self.dec[f"{s}x{s}_in1"] = block(width, width, None, True), block(width, width)
        for level, s in reversed(list(enumerate(self.sides))):
            for i in range(blocks + 1):
                attends = s in attention and (adm or i == blocks)
                self.dec[f"{s}x{s}_block{i}"] = block(width + kept.pop(), widths[level], None, attends)
                width = widths[level]
            if level:
                self.dec[f"{2 * s}x{2 * s}_up"] = block(width, width, "up")
        if adm:
            self.out_norm, self.out_conv = norm(kind, width), Conv(width, 3, 3)
        else:
            self.dec[f"{side}x{side}_aux_norm"] = norm(kind, width)
            self.dec[f"{side}x{side}_aux_conv"] = Conv(width, 3, 3)

    def embedding(self, c_noise, label, augment):
        adm, half = self.kind == "adm", self.channels // 2
        if self.kind == "ncsn++":
            angle = 2 * math.pi * c_noise[:, None] * self.map_noise.freqs
        else:
            angle = c_noise[:, None] * 10_000 ** -(torch.arange(half) / (half - (0 if adm else 1)))
        e = torch.cat([angle.cos(), angle.sin()] if adm else [angle.sin(), angle.cos()], 1)
        if augment is not None:
            e = e + self.map_augment(augment)
        if label is not None and not adm:
            e = e + self.map_label(label * math.sqrt(label.shape[1]))
        e = self.map_layer1(fn.silu(self.map_layer0(e)))
        if label is not None and adm:
            e = e + self.map_label(label)
        return fn.silu(e)

    def forward(self, x, c_noise, label=None, augment=None):
        e, first = self.embedding(c_noise, label, augment), self.sides[0]
        h = self.enc[f"{first}x{first}_conv"](x)
        kept = [h]
        for s in self.sides:
            if s != first:
                h = self.enc[f"{s}x{s}_down"](h, e)
                if self.kind == "ncsn++":
                    h = x = (h + self.enc[f"{s}x{s}_aux_residual"](x)) / math.sqrt(2)
                kept.append(h)
            for i in range(self.blocks):
                h = self.enc[f"{s}x{s}_block{i}"](h, e)
                kept.append(h)
        h = self.dec[f"{s}x{s}_in1"](self.dec[f"{s}x{s}_in0"](h, e), e)
        for s in reversed(self.sides):
            for i in range(self.blocks + 1):
                h = self.dec[f"{s}x{s}_block{i}"](torch.cat([h, kept.pop()], 1), e)
            if s != first:
                h = self.dec[f"{2 * s}x{2 * s}_up"](h, e)
        if self.kind == "adm":
            return self.out_conv(fn.silu(self.out_norm(h)))
        return self.dec[f"{s}x{s}_aux_conv"](fn.silu(self.dec[f"{s}x{s}_aux_norm"](h)))


class EdmBlock(nn.Module):
    def __init__(self, kind, emb, ins, outs, how, attends):
        super().__init__()
        self.adm = kind == "adm"
        self.heads = (outs // 64 if self.adm else 1) if attends else 0
        self.norm0, self.conv0 = norm(kind, ins), Conv(ins, outs, 3, how, kind)
        self.affine = nn.Linear(emb, 2 * outs if self.adm else outs)
        self.norm1, self.conv1 = norm(kind, outs), Conv(outs, outs, 3)
        if how or ins != outs:
            self.skip = Conv(ins, outs, 0 if self.adm and ins == outs else 1, how, kind)
        if attends:
            self.norm2, self.qkv, self.proj = norm(kind, outs), Conv(outs, 3 * outs, 1), Conv(outs, outs, 1)

    def forward(self, x, e):
        scale = 1 if self.adm else math.sqrt(0.5)
        h, by = self.conv0(fn.silu(self.norm0(x))), self.affine(e)[..., None, None]
        if self.adm:
            stretch, shift = by.chunk(2, 1)
            h = self.norm1(h) * (1 + stretch) + shift
        else:
            h = self.norm1(h + by)
        h = self.conv1(fn.silu(h))
        x = (h + (self.skip(x) if hasattr(self, "skip") else x)) * scale
        if self.heads:
            q, k, v = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (self.heads, -1, 3)).unbind(3)
            weights = torch.softmax(q.transpose(2, 3) @ k / math.sqrt(q.shape[2]), -1)  # [batch, head, query, key]
            x = (x + self.proj((v @ weights.transpose(2, 3)).reshape(x.shape))) * scale
        return x


class Conv(nn.Module):
    """how: None, "up" or "down" before it, "down after" it; size 0: only that."""

    def __init__(self, ins, outs, size, how=None, kind="ddpm++"):
        super().__init__()
        self.how, self.size = how, size
        if size:
            self.weight, self.bias = nn.Parameter(torch.empty(outs, ins, size, size)), nn.Parameter(torch.empty(outs))
        if how:
            taps = torch.tensor([1.0, 3.0, 3.0, 1.0] if kind == "ncsn++" else [1.0, 1.0])
            self.register_buffer("resample_filter", torch.outer(taps, taps)[None, None] / taps.sum() ** 2)

    def forward(self, x):
        if self.how == "up":  # zeros between the samples, then the filter, at the same mean
            channels, pad = x.shape[1], (self.resample_filter.shape[-1] - 1) // 2
            taps = 4 * self.resample_filter.repeat(channels, 1, 1, 1)
            x = fn.conv_transpose2d(x, taps, stride=2, padding=pad, groups=channels)
        pad = (self.resample_filter.shape[-1] - 1) // 2 if self.how and "down" in self.how else 0
        x = self.halved(x, pad) if self.how == "down" else x
        if not self.size:
            return x
        if self.how == "down after":  # all zeros around the image stand before the convolution
            return self.halved(fn.conv2d(x, self.weight, self.bias, padding=self.size // 2 + pad), 0)
        return fn.conv2d(x, self.weight, self.bias, padding=self.size // 2)

    def halved(self, x, padding):
        taps = self.resample_filter.repeat(x.shape[1], 1, 1, 1)
        return fn.conv2d(x, taps, stride=2, padding=padding, groups=x.shape[1])


class Waves(nn.Module):
    """Frequencies, and phases, that are drawn once and stored."""

    def __init__(self, count, phases=False):
        super().__init__()
        generator = torch.Generator().manual_seed(count)
        freqs = torch.randn(count, generator=generator)
        self.register_buffer("freqs", freqs * (2 * math.pi if phases else 16))
        if phases:
            self.register_buffer("phases", 2 * math.pi * torch.rand(count, generator=generator))


def norm(kind, channels):
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-5 if kind == "adm" else 1e-6)


# ---- EDM2 -----------------------------------------------------------------------------------------------------------


class Edm2Unet(nn.Module):
    def __init__(self, side, channels, multipliers, blocks, attention, labels=0):
        super().__init__()
        self.blocks, self.sides = blocks, sides_of(side, len(multipliers))
        widths = [channels * m for m in multipliers]
        emb = max(widths)
        self.emb_fourier, self.emb_noise = Waves(channels, phases=True), Weight(emb, channels)
        if labels:
            self.emb_label = Weight(emb, labels)

        self.enc, self.dec, kept = nn.ModuleDict(), nn.ModuleDict(), [channels]
        width = channels
        self.enc[f"{side}x{side}_conv"] = Weight(channels, 4, 3)  # red, green, blue and one
        for level, (s, wider) in enumerate(zip(self.sides, widths, strict=True)):
            if level:
                self.enc[f"{s}x{s}_down"] = Edm2Block("enc", emb, width, width)
                kept.append(width)
            for i in range(blocks):
                self.enc[f"{s}x{s}_block{i}"] = Edm2Block("enc", emb, width, wider, s in attention)
                width = wider
                kept.append(width)
        self.dec[f"{s}x{s}_in0"] = Edm2Block("dec", emb, width, width, True)
        self.dec[f"{s}x{s}_in1"] = Edm2Block("dec", emb, width, width)
        for level, s in reversed(list(enumerate(self.sides))):
            for i in range(blocks + 1):
                name, ins = f"{s}x{s}_block{i}", width + kept.pop()
                self.dec[name] = Edm2Block("dec", emb, ins, widths[level], s in attention)
                width = widths[level]
            if level:
                self.dec[f"{2 * s}x{2 * s}_up"] = Edm2Block("dec", emb, width, width)
        self.out_conv, self.out_gain = Weight(3, width, 3), nn.Parameter(torch.empty([]))

    def forward(self, x, c_noise, label=None):
        waves = torch.cos(c_noise[:, None] * self.emb_fourier.freqs + self.emb_fourier.phases)
        e = self.emb_noise(math.sqrt(2) * waves)
        if label is not None:
            e = mixed(e, self.emb_label(label * math.sqrt(label.shape[1])), 0.5)
        e = silu(e)
        first = self.sides[0]
        h = self.enc[f"{first}x{first}_conv"](fn.pad(x, (0, 0, 0, 0, 0, 1), value=1.0))
        kept = [h]
        for s in self.sides:
            if s != first:
                h = self.enc[f"{s}x{s}_down"](fn.avg_pool2d(h, 2), e)
                kept.append(h)
            for i in range(self.blocks):
                h = self.enc[f"{s}x{s}_block{i}"](h, e)
                kept.append(h)
        h = self.dec[f"{s}x{s}_in1"](self.dec[f"{s}x{s}_in0"](h, e), e)
        for s in reversed(self.sides):
            for i in range(self.blocks + 1):
                h = self.dec[f"{s}x{s}_block{i}"](joined(h, kept.pop()), e)
            if s != first:
                h = self.dec[f"{2 * s}x{2 * s}_up"](fn.interpolate(h, scale_factor=2, mode="nearest"), e)
        return self.out_conv(h, self.out_gain)


class Edm2Block(nn.Module):
    """Figure 21: the encoder's widens and normalises its input, the decoder's widens the shortcut."""

    def __init__(self, way, emb, ins, outs, attends=False):
        super().__init__()
        self.way, self.heads = way, outs // 64 if attends else 0
        self.conv_res0, self.conv_res1 = Weight(outs, outs if way == "enc" else ins, 3), Weight(outs, outs, 3)
        self.emb_linear, self.emb_gain = Weight(outs, emb), nn.Parameter(torch.empty([]))
        if ins != outs:
            self.conv_skip = Weight(outs, ins, 1)
        if attends:
            self.attn_qkv, self.attn_proj = Weight(3 * outs, outs, 1), Weight(outs, outs, 1)

    def forward(self, x, e):
        wide = self.conv_skip(x) if hasattr(self, "conv_skip") else x
        x, start = (over_rms(wide, 1), over_rms(wide, 1)) if self.way == "enc" else (wide, x)
        h = self.conv_res0(silu(start)) * (1 + self.emb_linear(e, self.emb_gain)[..., None, None])
        x = mixed(x, self.conv_res1(silu(h)), 0.3)
        if self.heads:
            parts = self.attn_qkv(x).flatten(2).unflatten(1, (self.heads, -1, 3)).unbind(3)
            q, k, v = (over_rms(part, 2) for part in parts)  # [batch, head, channel, position]
            weights = torch.softmax(q.transpose(2, 3) @ k / math.sqrt(q.shape[2]), -1)
            x = mixed(x, self.attn_proj((v @ weights.transpose(2, 3)).reshape(x.shape)), 0.3)
        return x.clamp(-256, 256)


class Weight(nn.Module):
    """A dense layer (size 0) or a convolution that keeps magnitudes, equation 47."""

    def __init__(self, outs, ins, size=0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outs, ins, *(size,) * (2 if size else 0)))

    def forward(self, x, gain=1.0):
        weight = over_rms(self.weight, tuple(range(1, self.weight.ndim)))
        weight = weight * (gain / math.sqrt(self.weight[0].numel()))
        return fn.conv2d(x, weight, padding=weight.shape[-1] // 2) if weight.ndim == 4 else fn.linear(x, weight)


def over_rms(x, dims):
    return x / (x.square().mean(dims, keepdim=True).sqrt() + 1e-4)


def silu(x):
    return fn.silu(x) / 0.596


def mixed(a, b, t):
    """Equation 88."""
    return torch.lerp(a, b, t) / math.sqrt(t**2 + (1 - t) ** 2)


def joined(a, b):
    """Equation 103 for equal parts."""
    n, m = a.shape[1], b.shape[1]
    return torch.cat([a / math.sqrt(n), b / math.sqrt(m)], 1) * math.sqrt((n + m) / 2)
