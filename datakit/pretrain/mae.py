"""MAE: any quarter of the patches is seen, and a light transformer over all of them predicts the rest.

He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022 (arXiv 2111.06377).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import RecipeError
from .masked import Masked, Norm
from .select import noise


class MAE(Masked):
    """The masked autoencoder; `progress` changes nothing. The decoder attends to all patches and the class token."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_pix_loss: bool = True,
        mask_ratio: float = 0.75,
    ) -> None:
        decoder = decoder_embed_dim, decoder_num_heads
        super().__init__(
            img_size, patch_size, in_chans, embed_dim, depth, num_heads, *decoder, mlp_ratio, norm_pix_loss
        )
        self.seen = self.share(1 - mask_ratio)
        if not 0 < self.seen < self.length:
            raise RecipeError(f"mask_ratio: {mask_ratio}: of {self.length} patches {self.seen} are seen")
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads, mlp_ratio, qkv_bias=True, norm_layer=Norm)
            for _ in range(decoder_depth)
        )
        self.initialise()

    def select(
        self, images: Tensor, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        self.check(images)
        order = noise(images.new_empty(len(images), self.length, dtype=torch.float32), generator).argsort(1)
        return order[:, : self.seen], order[:, self.seen :]

    def predict(self, images: Tensor, visible_ids: Tensor, target_ids: Tensor) -> Tensor:
        return self.decode(self.encode(images, visible_ids), visible_ids, target_ids)

    def decode(self, latent: Tensor, visible_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Pixels of the targets, (B, T, P*P*C), from the encoder's output, (B, 1 + V, D).

        Attention heeds positions by their embedding alone: tokens stay in the order of the ids.
        """
        places = self.decoder_pos_embed[0]
        known = self.decoder_embed(latent)
        first = known[:, :1] + places[:1]
        tokens = torch.cat([first, known[:, 1:] + places[1:][visible_ids], self.mask_token + places[1:][target_ids]], 1)
        for block in self.decoder_blocks[:-1]:
            tokens = block(tokens)
        last: Any = self.decoder_blocks[-1]
        tokens = tokens + last.attn(last.norm1(tokens))
        wanted = tokens[:, -target_ids.shape[1] :]  # nobody asks what the last layer's perceptron makes of the others
        wanted = wanted + last.mlp(last.norm2(wanted))
        return self.decoder_pred(self.decoder_norm(wanted))  # type: ignore[no-any-return]
