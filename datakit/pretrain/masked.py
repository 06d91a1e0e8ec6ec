"""What masked autoencoders share: an encoder of timm's parts that sees some patches, pixels to predict, pictures.

The encoder's weights are those of timm's VisionTransformer, name by name. Other names are of the released checkpoints.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import RecipeError
from ..stream.augment import IMAGENET
from . import exchange
from .select import EXACT

Norm = partial(nn.LayerNorm, eps=1e-6)
FLAT = 1e-6  # added to the variance of a patch's pixels: MAE, forward_loss
SIZES: dict[str, dict[str, int]] = {  # of MAE (appendix A.1) and SelectiveMAE; S from CrossMAE (arXiv 2401.14391)
    "tiny": {"embed_dim": 96, "depth": 4, "num_heads": 3, "decoder_embed_dim": 64, "decoder_num_heads": 2},
    "vit_s": {"embed_dim": 384, "depth": 12, "num_heads": 6, "decoder_embed_dim": 256, "decoder_num_heads": 8},
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "decoder_embed_dim": 512, "decoder_num_heads": 16},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "decoder_embed_dim": 512, "decoder_num_heads": 16},
    "vit_h": {
        "embed_dim": 1280,
        "depth": 32,
        "num_heads": 16,
        "decoder_embed_dim": 512,
        "decoder_num_heads": 16,
        "patch_size": 14,
    },
}


class Masked(nn.Module):
    """An encoder of the patches that are seen, and the loss over those that are predicted.

    Images are (B, C, H, W) float, normalised, of the size given: px, or (height, width) in px, multiples of the patch.
    Ids number the patches row by row, from 0; there are L.
    """

    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        decoder_embed_dim: int,
        decoder_num_heads: int,
        mlp_ratio: float,
        norm_pix_loss: bool,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width, patch_size) < 1 or height % patch_size or width % patch_size:
            raise RecipeError(f"img_size: {img_size}: height and width are multiples of patch_size, {patch_size}")
        for name, dim, heads in ("", embed_dim, num_heads), ("decoder_", decoder_embed_dim, decoder_num_heads):
            if dim % heads or dim % 4:
                raise RecipeError(f"{name}embed_dim: {dim}: a multiple of 4 and of {name}num_heads, {heads}")
        if norm_pix_loss and patch_size**2 * in_chans == 1:
            raise RecipeError(
                "norm_pix_loss: a patch of 1 number has no deviation: larger patches, or no norm_pix_loss"
            )
        self.patch_size, self.norm_pix_loss = patch_size, norm_pix_loss
        self.grid = height // patch_size, width // patch_size
        self.patch_embed = PatchEmbed((height, width), patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("pos_embed", positions(self.grid, embed_dim))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=Norm) for _ in range(depth)
        )
        self.norm = Norm(embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.register_buffer("decoder_pos_embed", positions(self.grid, decoder_embed_dim))
        self.decoder_norm = Norm(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)

    @abstractmethod
    def select(
        self, images: Tensor, progress: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids of the patches that are seen, (B, V) int64, and of those to predict, (B, T), at a share of the run."""

    @abstractmethod
    def predict(self, images: Tensor, visible_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Pixels of some patches from others, (B, T, P*P*C), as the loss wants them."""

    def forward(self, images: Tensor, progress: float, generator: torch.Generator | None = None) -> Tensor:
        """The loss of each image, (B,) float32, at a share of the run, 0..1; all that is random is the generator's.

        Compiled, it is one graph for all of the run: patches are chosen outside of it, by steps that change.
        """
        visible_ids, target_ids = self._selected(images, progress, generator)
        return self.loss(images, self.predict(images, visible_ids, target_ids), target_ids)

    def encode(self, images: Tensor, visible_ids: Tensor) -> Tensor:
        """What the encoder makes of the patches that are seen, (B, 1 + V, D), the class token first, normed."""
        proj = self.patch_embed.proj
        tokens = F.linear(self._pixels(images, visible_ids).flatten(2), proj.weight.flatten(1), proj.bias)
        tokens = tokens + self.pos_embed[0, 1:][visible_ids]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([first, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def loss(self, images: Tensor, prediction: Tensor, target_ids: Tensor) -> Tensor:
        """Mean squared error over an image's targets, (B,) float32; prediction (B, T, P*P*C): rows, columns, bands."""
        pixels = self._wanted(images, target_ids)
        if self.norm_pix_loss:
            mean, deviation = spread(pixels)
            pixels = (pixels - mean) / deviation
        return (prediction.float() - pixels).square().mean((1, 2))

    @torch.no_grad()
    def reconstruct(
        self, images: Tensor, progress: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is seen (0 elsewhere), that and a guess of the rest, and the images: each (B, C, H, W), normalised.

        All that is hidden is predicted, also what training would leave out. Where the loss is of normalised patches,
        each has its true mean and deviation, as in MAE's pictures.
        """
        visible_ids, _ = self.select(images, progress, generator)
        everything = torch.arange(self.length, device=images.device).expand(len(images), -1)
        hidden = torch.ones_like(everything, dtype=torch.bool).scatter_(1, visible_ids, False)
        hidden_ids = everything[hidden].view(len(images), -1)
        prediction = self.predict(images, visible_ids, hidden_ids).float()
        pixels = self._wanted(images, everything)
        if self.norm_pix_loss:
            mean, deviation = spread(pixels[hidden].view_as(prediction))
            prediction = prediction * deviation + mean
        seen, guessed = pixels.clone(), pixels.clone()
        seen[hidden], guessed[hidden] = 0, prediction.flatten(0, 1)
        original = images.float()
        return self._pictures(seen), self._pictures(guessed), original

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Any], **arguments: Any) -> Self:
        """The model of a released checkpoint: sizes are read from its weights, other arguments are the class's own.

        Heads are not in the weights: those of the papers' sizes, else of 64 numbers each in the encoder and 32 in the
        decoder. Parameters that the released code never used are left out by name; others that do not fit are an error.
        """
        state = exchange.used(state_dict)
        model = cls(**{**exchange.sizes(state, SIZES), **arguments})
        exchange.load(model, state)
        return model

    def export_timm(
        self,
        path: str | Path,
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
        interpolation: str = "bicubic",
    ) -> None:
        """Write the encoder as a folder that `timm.create_model("local-dir:" + path, pretrained=True)` makes it from.

        config.json tells timm how images are to be resized and normalised: mean and std as shares of the highest level.
        """
        bands = self.patch_embed.proj.in_channels
        if len(mean) != bands or len(std) != bands:
            raise RecipeError(f"mean, std: {len(mean)} and {len(std)} numbers, for images of {bands} bands")
        encoder = {k: v for k, v in self.state_dict().items() if not k.startswith(("decoder_", "mask_token"))}
        exchange.write_timm(Path(path), encoder, self._arguments(), (tuple(mean), tuple(std)), interpolation)

    @property
    def length(self) -> int:
        """How many patches an image has."""
        return self.grid[0] * self.grid[1]

    def check(self, images: Tensor) -> None:
        """RecipeError where images are not of the model's size."""
        size = self.patch_embed.proj.in_channels, *(n * self.patch_size for n in self.grid)
        if images.shape[1:] != size:
            raise RecipeError(
                f"images of {tuple(images.shape[1:])}: the model takes {size}: bands, height and width in px"
            )

    def share(self, ratio: float) -> int:
        """So many of an image's patches, rounded down."""
        return int(self.length * ratio + EXACT)

    def embed(self, images: Tensor) -> Tensor:
        """All patches as the encoder would take them in, (B, L, D)."""
        return self.patch_embed(images) + self.pos_embed[:, 1:]  # type: ignore[no-any-return]

    def initialise(self) -> None:
        """Weights as MAE's, drawn from torch's own generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))  # as a linear layer's
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _selected(self, images: Tensor, progress: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return self.select(images, progress, generator)

    def _arguments(self) -> dict[str, Any]:
        """What timm's VisionTransformer is to be made with."""
        proj: nn.Conv2d = self.patch_embed.proj
        block: Any = self.blocks[0]
        return {
            "img_size": tuple(n * self.patch_size for n in self.grid),
            "patch_size": self.patch_size,
            "in_chans": proj.in_channels,
            "embed_dim": proj.out_channels,
            "depth": len(self.blocks),
            "num_heads": block.attn.num_heads,
            "mlp_ratio": block.mlp.fc1.out_features / proj.out_channels,
        }

    def _wanted(self, images: Tensor, ids: Tensor) -> Tensor:
        """Pixels of patches as they are predicted, (B, n, P*P*C) float32: by rows, columns, bands."""
        return self._pixels(images, ids).permute(0, 1, 3, 4, 2).flatten(2).float()

    def _pixels(self, images: Tensor, ids: Tensor) -> Tensor:
        """Pixels of some patches, (B, n, C, P, P)."""
        self.check(images)
        (rows, columns), size = self.grid, self.patch_size
        parts = images.reshape(*images.shape[:2], rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        return parts[torch.arange(len(ids), device=ids.device).unsqueeze(1), ids // columns, ids % columns]

    def _pictures(self, pixels: Tensor) -> Tensor:
        """Images of all their patches' pixels, (B, L, P*P*C) to (B, C, H, W)."""
        size = self.patch_size
        parts = pixels.view(len(pixels), *self.grid, size, size, -1)
        return parts.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def spread(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch's pixels, (B, n, 1)."""
    variance, mean = torch.var_mean(pixels, -1, keepdim=True)
    return mean, (variance + FLAT).sqrt()


def positions(grid: Sequence[int], dim: int) -> Tensor:
    """Sines and cosines of the columns, then of the rows, (1, 1 + L, dim) float32; zeros for the class token."""
    rate = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [of.flatten().unsqueeze(1) * rate for of in (columns, rows)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)
    return F.pad(table, (0, 0, 1, 0)).float().unsqueeze(0)
