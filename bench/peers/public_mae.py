"""MAE as its public code computes it (facebookresearch/mae, models_mae.py), in timm's blocks, as a peer.

All patches are embedded, then some are kept; the decoder's tokens are put back in the image's order; all patches are
predicted and all pixels laid out, and those that were seen are left out of the loss by a mask. The weights have the
names of ours.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def pick(rows: Tensor, ids: Tensor) -> Tensor:
    return torch.gather(rows, 1, ids.unsqueeze(-1).repeat(1, 1, rows.shape[2]))


class PublicMAE(nn.Module):
    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12, mask_ratio: float = 0.75) -> None:
        super().__init__()
        norm, decoder, self.mask_ratio = partial(nn.LayerNorm, eps=1e-6), 512, mask_ratio
        self.patch_embed = PatchEmbed(224, 16, 3, width)
        places = 1 + self.patch_embed.num_patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, places, width), requires_grad=False)
        self.blocks = nn.ModuleList([Block(width, heads, 4, qkv_bias=True, norm_layer=norm) for _ in range(depth)])
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, places, decoder), requires_grad=False)
        self.decoder_blocks = nn.ModuleList([Block(decoder, 16, 4, qkv_bias=True, norm_layer=norm) for _ in range(8)])
        self.decoder_norm = norm(decoder)
        self.decoder_pred = nn.Linear(decoder, 16 * 16 * 3)

    def forward(self, images: Tensor, *_: Any) -> Tensor:
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        batch, length, _width = tokens.shape
        kept = int(length * (1 - self.mask_ratio))
        order = torch.rand(batch, length, device=images.device).argsort(1)
        back = order.argsort(1)
        tokens = pick(tokens, order[:, :kept])
        tokens = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.decoder_embed(self.norm(tokens))
        hidden = self.mask_token.repeat(batch, length - kept, 1)
        patches = pick(torch.cat([tokens[:, 1:], hidden], 1), back)
        tokens = torch.cat([tokens[:, :1], patches], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        prediction = self.decoder_pred(self.decoder_norm(tokens))[:, 1:]
        side = images.shape[2] // 16
        pixels = torch.einsum("nchpwq->nhwpqc", images.reshape(batch, 3, side, 16, side, 16)).reshape(batch, length, -1)
        mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True)
        errors = ((prediction - (pixels - mean) / (variance + 1e-6) ** 0.5) ** 2).mean(-1)
        mask = torch.ones(batch, length, device=images.device)
        mask[:, :kept] = 0
        mask = torch.gather(mask, 1, back)
        return (errors * mask).sum() / mask.sum()
