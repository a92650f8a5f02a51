"""JAM's network and its flow-matching loss: 530M parameters or 6M, the same code.

Read from the bottom: `flow_loss` trains a velocity to be x1 - x0, data minus noise; `DiT.forward` predicts
it, `DiT.condition` computes whatever does not depend on the flow time. sampler.py makes songs of it.

Axes: B songs, T latent frames, L = 4T phoneme cells, C latent channels, D width, E width of text, style and
scalars, U different texts, P rows of a network's batch (songs times guidance passes), H heads, K head width.
Source: arXiv 2507.20880 and the published weights JAM-0.5; tests/test_model.py compares all numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config import ModelConfig, UserError
from support.files import reading

NORM_EPS = 1e-6
FREQUENCIES = 128            # sines and cosines in a scalar's features


class RMSNorm(nn.Module):
    """x / rms(x) * weight over channels, in the type of x; inside, torch computes it in float32."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), NORM_EPS)


def rotary_tables(frames: int, head_dim: int, device: torch.device | None = None,
                  padding: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, K) of positions 0..T-1: base 10000, one frequency for channels i and i + K/2.

    Args: padding, channels beyond head_dim, half of them after each half.
    """
    frequency = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    frequency = F.pad(frequency, (0, padding // 2))
    position = torch.arange(frames, dtype=torch.float32, device=device)
    angle = torch.outer(position, frequency).repeat(1, 2)                                        # (T, K)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + K/2) of x (..., T, K) by their position's angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v of each head (P, H, T, K)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # torch's kernel converts to float32 and back; head by head, the matrix products stay in bfloat16, and
        # so do the scores, which is less exact: docs/solvers.md has the difference in whole songs.
        heads = zip(*(x.flatten(0, 1) for x in (q, scale * k, v)))
        return torch.stack([(a @ b.T).softmax(-1) @ c for a, b, c in heads]).view_as(q)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class Attention(nn.Module):
    """Bidirectional self-attention over all frames, padding included; no mask exists."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)                 # (P, H, T, K)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, self.scale)
        return self.o_proj(y.transpose(1, 2).flatten(2))                                   # (P, T, D)

    def pad_heads(self, padding: int) -> None:
        """Add channels of zeros to each head, half of them after each half of it: the result is the same."""
        def padded(weight: Tensor) -> nn.Parameter:                                        # (D, D)
            halves = F.pad(weight.unflatten(0, (2 * self.heads, -1)), (0, 0, 0, padding // 2))
            return nn.Parameter(halves.flatten(0, 1), requires_grad=weight.requires_grad)
        for proj in (self.q_proj, self.k_proj, self.v_proj):
            proj.weight = padded(proj.weight)
        self.o_proj.weight = nn.Parameter(padded(self.o_proj.weight.T).T.contiguous(),
                                          requires_grad=self.o_proj.weight.requires_grad)


class MLP(nn.Module):
    """SiLU-gated feed-forward layer."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm transformer layer; the flow time does not modulate it."""

    def __init__(self, dim: int, heads: int, ff_mult: int):
        super().__init__()
        self.input_layernorm = RMSNorm(dim)
        self.self_attn = Attention(dim, heads)
        self.post_attention_layernorm = RMSNorm(dim)
        self.mlp = MLP(dim, ff_mult * dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class ScalarEmbed(nn.Module):
    """Embeds one number per song, e.g. the flow time: (B,) -> (B, E)."""

    def __init__(self, dim: int):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, scalar: Tensor) -> Tensor:
        return self.time_mlp(self.features(scalar).to(self.time_mlp[0].weight.dtype))

    @staticmethod
    def features(scalar: Tensor) -> Tensor:
        """(B,) -> (B, 256): sines, then cosines, of 1000 * scalar at falling frequencies."""
        k = torch.arange(FREQUENCIES, dtype=torch.float32, device=scalar.device)
        frequency = torch.exp(-k * (math.log(10000) / (FREQUENCIES - 1)))
        angle = (1000 * scalar.float())[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class GRN(nn.Module):
    """Global response norm: each channel's L2 norm over *time*, relative to the mean over channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)       # (U, 1, channels)
        ratio = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return x * (1 + self.gamma * ratio).to(x.dtype) + self.beta.to(x.dtype)


class ConvNeXtBlock(nn.Module):
    """ConvNeXt-V2 block along the phoneme cells."""

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(dim, 2 * dim)
        self.grn = GRN(2 * dim)
        self.pwconv2 = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x.transpose(1, 2)).transpose(1, 2)                                 # conv: (U, E, L)
        return x + self.pwconv2(self.grn(F.gelu(self.pwconv1(self.norm(y)))))


class TextEmbed(nn.Module):
    """Phoneme ids (U, L) -> one vector per latent frame (U, T, E)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim = config.text_dim
        self.last_position = 4 * config.max_frames - 1
        # Drawn here, as nn.Embedding does it: on the meta device that would load torch's compiler, for 1 s.
        rows = torch.empty(config.text_num_embeds + 1, dim)
        self.text_embed = nn.Embedding.from_pretrained(rows if rows.is_meta else rows.normal_(), freeze=False)
        self.text_blocks = nn.Sequential(*(ConvNeXtBlock(dim) for _ in range(config.conv_layers)))
        self.downsample_blocks = nn.Sequential(*(nn.Conv1d(dim, dim, 4, 2, padding=1) for _ in range(2)))

    def positions(self, cells: int, device: torch.device | None = None) -> Tensor:
        """Table (L, E): cosines, then sines, of the cell's index; cells past the longest song repeat."""
        dim = self.text_embed.embedding_dim
        frequency = 1.0 / 10000.0 ** (torch.arange(0, dim, 2, device=device).float() / dim)
        index = torch.arange(cells, device=device).clamp_max(self.last_position).float()
        angle = torch.outer(index, frequency)
        return torch.cat([angle.cos(), angle.sin()], dim=-1)

    def forward(self, phonemes: Tensor) -> Tensor:
        x = self.text_embed(phonemes)                                                      # (U, L, E)
        x = x + self.positions(x.shape[1], x.device).to(x.dtype)
        x = self.text_blocks(x).transpose(1, 2)                                            # (U, E, L)
        return self.downsample_blocks(x).transpose(1, 2)                                   # L -> 2T -> T


class ConvPosition(nn.Module):
    """Two grouped convolutions over 31 frames each."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1d = nn.Sequential(nn.Conv1d(dim, dim, 31, padding=15, groups=16), nn.Mish(),
                                    nn.Conv1d(dim, dim, 31, padding=15, groups=16), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1d(x.transpose(1, 2)).transpose(1, 2)


class InputEmbed(nn.Module):
    """Projects noisy latents, audio condition, text, style and scalars: DiT applies the parts of `proj`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.sizes = [config.mel_dim, config.mel_dim, config.text_dim, config.cond_dim, config.cond_dim]
        self.proj = nn.Linear(sum(self.sizes), config.dim)
        self.conv_pos_embed = ConvPosition(config.dim)

    def weights(self) -> tuple[Tensor, ...]:
        """The columns of `proj` for latents, audio condition, text, style and scalars."""
        return self.proj.weight.split(self.sizes, dim=1)


class FinalNorm(nn.Module):
    """LayerNorm whose scale and shift come from the scalars."""

    def __init__(self, dim: int, cond_dim: int):
        super().__init__()
        self.linear = nn.Linear(cond_dim, 2 * dim)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(c))[:, None].chunk(2, dim=-1)                    # (P, 1, D) each
        return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


@dataclass
class Condition:
    """What the network is conditioned on, except the flow time: computed once, used at every step.

    It has P rows; rows that share a text share what is computed from it.
    """
    static: Tensor          # (P, T, D) input projection of audio condition, text, style, start and durations
    scalars: Tensor         # (P, E) embedded start and durations, summed
    fusion: list[Tensor]    # per early block (U, T, D)
    row: Tensor | None      # (P,) which of the U texts a row uses; None: each has its own
    rotary: tuple[Tensor, Tensor]    # cosines and sines (T, K)

    def first(self, rows: int) -> "Condition":
        """The condition of the first rows alone."""
        return replace(self, static=self.static[:rows], scalars=self.scalars[:rows], row=self.row[:rows])

    def fused(self, block: int) -> Tensor:
        """What an early block adds to each row: (P, T, D)."""
        return self.fusion[block] if self.row is None else self.fusion[block][self.row]


class DiT(nn.Module):
    """The diffusion transformer. `forward(x, time, condition(...))` is the velocity."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False      # keep only the blocks' inputs, recompute the rest
        self.head_padding = 0                    # channels of zeros in each attention head
        dim, cond = config.dim, config.cond_dim
        self.time_embed, self.start_time_embed, self.duration_abs_embed, self.duration_rel_embed = (
            ScalarEmbed(cond) for _ in range(4))
        self.text_embed = TextEmbed(config)
        self.duration_pad_bias = nn.Parameter(torch.zeros(config.text_dim))
        self.input_embed = InputEmbed(config)
        self.transformer_blocks = nn.ModuleList(
            Block(dim, config.heads, config.ff_mult) for _ in range(config.depth))
        self.text_fusion_linears = nn.ModuleList(
            nn.Sequential(nn.Linear(config.text_dim, dim), nn.SiLU()) for _ in range(config.depth // 2))
        self.norm_out = FinalNorm(dim, cond)
        self.proj_out = nn.Linear(dim, config.mel_dim)
        # Text fusion starts at zero.
        for parameter in self.text_fusion_linears.parameters():
            nn.init.zeros_(parameter)

    def pad_heads(self) -> "DiT":
        """Widen attention heads with zeros to a multiple of 8, which flash kernels want; for sampling.

        Each call of attention would copy queries, keys and values to do it: JAM-0.5's heads have 44 channels.
        """
        if self.head_padding:
            raise ValueError("the heads are padded already")
        self.head_padding = -(self.config.dim // self.config.heads) % 8
        for block in self.transformer_blocks if self.head_padding else ():
            block.self_attn.pad_heads(self.head_padding)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights; activations have it too, whatever the type of the inputs."""
        return self.proj_out.weight.dtype

    def embed_text(self, phonemes: Tensor, duration_rel: Tensor) -> Tensor:
        """(U, L) ids and (U,) -> (U, T, E); frames past the song's end get the learned padding bias.

        The float32 product is truncated, as in the original: 283 of its 5000 lengths lose a frame.
        """
        text = self.text_embed(phonemes)
        real = (self.config.max_frames * duration_rel.float()).long()                      # (U,)
        padding = torch.arange(text.shape[1], device=text.device) >= real[:, None]         # (U, T)
        return text + padding[:, :, None] * self.duration_pad_bias

    def condition(self, phonemes: Tensor, style: Tensor, start_time: Tensor, duration_abs: Tensor,
                  duration_rel: Tensor, audio: Tensor | None = None, row: Tensor | None = None) -> Condition:
        """Compute whatever does not depend on the flow time.

        Args: phonemes (U, L) ids, all 0 where text is dropped; style (P, E), zeros where it is dropped;
            start_time, duration_abs, duration_rel (U,); audio (P, T, C) audio condition, None for zeros;
            row (P,) the text of each row, None if each row has its own.
        """
        c, cells = self.config, phonemes.shape[1]
        if cells % 4 or cells > 4 * c.max_frames:
            raise ValueError(f"{cells} phoneme cells; expected 4 a frame, {4 * c.max_frames} at most")
        rows = slice(None) if row is None else row
        text = self.embed_text(phonemes, duration_rel)
        scalars = (self.start_time_embed(start_time) + self.duration_abs_embed(duration_abs)
                   + self.duration_rel_embed(duration_rel))[rows]
        _, for_audio, for_text, for_style, for_scalars = self.input_embed.weights()
        constant = (F.linear(style.to(self.dtype), for_style) + F.linear(scalars, for_scalars)
                    + self.input_embed.proj.bias)                                          # (P, D)
        static = F.linear(text, for_text)[rows] + constant[:, None]                         # (P, T, D)
        if audio is not None:
            static = static + F.linear(audio.to(self.dtype), for_audio)
        return Condition(static, scalars, [fusion(text) for fusion in self.text_fusion_linears], row,
                         rotary_tables(text.shape[1], c.dim // c.heads, text.device, self.head_padding))

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Velocity (P, T, C) of latents x (P, T, C) at flow time (P,) or () in 0 (noise) .. 1 (data)."""
        expected = (*condition.static.shape[:2], self.config.mel_dim)
        if x.shape != expected:
            raise ValueError(f"latents {tuple(x.shape)}; the condition and the model expect {expected}")
        time = self.time_embed(time.reshape(-1)).expand(len(x), -1)                        # (P, E)
        h = self.embed_input(x.to(self.dtype), time, condition)
        for i, block in enumerate(self.transformer_blocks):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, *condition.rotary, use_reentrant=False)
            else:
                h = block(h, *condition.rotary)
            if i < len(condition.fusion):
                h = h + condition.fused(i)
        return self.proj_out(self.norm_out(h, time + condition.scalars))

    def embed_input(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Complete the input projection with what changes at each step; add the convolutional positions."""
        for_latents, *_, for_scalars = self.input_embed.weights()
        h = F.linear(x, for_latents) + F.linear(time, for_scalars)[:, None] + condition.static
        return h + self.input_embed.conv_pos_embed(h)


def load_weights(model: DiT, weights: dict[str, Tensor], source: str = "weights",
                 assign: bool = False) -> None:
    """Load tensors under their published names, which begin with `transformer.`, strictly.

    With `assign` the model takes the tensors themselves, with their type; else it copies their values.
    Raises: UserError, naming `source` and each tensor that is missing, unknown or of another shape.
    """
    own = {f"transformer.{name}": tensor for name, tensor in model.state_dict().items()}
    wrong = [f"missing {name}" for name in own if name not in weights]
    wrong += [f"unknown {name}" for name in weights if name not in own]
    wrong += [f"{name} is {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
              for name, tensor in own.items() if name in weights and weights[name].shape != tensor.shape]
    if wrong:
        raise UserError(f"{source}: {len(wrong)} tensors do not fit the model: {'; '.join(wrong[:5])}")
    model.load_state_dict({k.removeprefix("transformer."): v for k, v in weights.items()}, assign=assign)


def load_model(path: Path, config: ModelConfig, device: torch.device,
               dtype: torch.dtype = torch.float32) -> DiT:
    """Load a network for sampling from a safetensors file.

    The file is mapped, and reopened for each tensor: a tensor that was copied to another type or device is
    released at once, so that memory holds the weights only once.
    Raises: UserError if the file cannot be read or does not fit.
    """
    weights = {}
    with reading(path):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        for name in names:
            with safe_open(path, "pt") as file:
                weights[name] = file.get_tensor(name).to(device=device, dtype=dtype)
    with torch.device("meta"):
        model = DiT(config)
    load_weights(model, weights, str(path), assign=True)
    model = model.requires_grad_(False).eval()
    return model.pad_heads() if device.type == "cuda" else model


def flops(config: ModelConfig, frames: int) -> int:
    """Floating-point operations of one pass of one song of `frames`; a multiply-add counts as two."""
    from torch.utils.flop_counter import FlopCounterMode
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model, zeros = DiT(config), torch.zeros(1)
        phonemes = torch.zeros(1, 4 * frames, dtype=torch.long)
        condition = model.condition(phonemes, torch.zeros(1, config.cond_dim), zeros, zeros, zeros)
        model(torch.zeros(1, frames, config.mel_dim), zeros, condition)
    return counter.get_total_flops()


def flow_loss(model: Callable, x1: Tensor, x0: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Squared error of the velocity at x_t = (1 - t) x0 + t x1, per song (B,).

    The mean is over all frames and channels; padding frames count too, as in the original.
    Args: x1 data and x0 noise (B, T, C); time (B,).
    """
    t = time[:, None, None]
    return (model((1 - t) * x0 + t * x1, time, condition).float() - (x1 - x0)).square().mean((1, 2))


def drop(tensor: Tensor, dropped: Tensor) -> Tensor:
    """Zero the songs of tensor (B, ...), phoneme ids or styles, where dropped (B,) is true."""
    return tensor * ~dropped.view(-1, *[1] * (tensor.dim() - 1))
