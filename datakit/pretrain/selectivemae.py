"""SelectiveMAE: a few patches are seen, chosen as the run goes on, and a quarter of all is predicted from them alone.

Wang et al., Harnessing Massive Satellite Imagery with Efficient Masked Image Modeling, ICCV 2025 (arXiv 2406.11933).
The decoder is CrossMAE's (Fu et al., arXiv 2401.14391): targets ask what is seen, and not each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from ..errors import RecipeError
from .masked import Masked, Norm
from .select import PUBLISHED, SELECTORS, Curriculum, Selector, best, expand, grow, priorities

__all__ = ["Curriculum", "SelectiveMAE", "expand"]


class CrossAttention(nn.Module):
    """Queries of some tokens to keys and values made of others."""

    def __init__(self, encoder_dim: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(encoder_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, latent: Tensor) -> Tensor:
        """tokens (B, T, dim), latent (B, 1 + V, encoder_dim) to (B, T, dim)."""
        query = self.q(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv(latent).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(query, key, value)
        return self.proj(heard.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class CrossBlock(nn.Module):
    """A layer of the decoder: cross attention, then a perceptron, each after a norm and added."""

    def __init__(self, encoder_dim: int, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = Norm(dim)
        self.cross_attn = CrossAttention(encoder_dim, dim, heads)
        self.norm2 = Norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor, latent: Tensor) -> Tensor:
        tokens = tokens + self.cross_attn(self.norm1(tokens), latent)
        return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]


class SelectiveMAE(Masked):
    """The autoencoder that sees 1 - mask_ratio of the patches and predicts target_ratio of them."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 12,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_pix_loss: bool = True,
        mask_ratio: float = 0.85,
        target_ratio: float = 0.25,
        selector: Selector = "random",
        curriculum: Curriculum = PUBLISHED,
    ) -> None:
        decoder = decoder_embed_dim, decoder_num_heads
        super().__init__(
            img_size, patch_size, in_chans, embed_dim, depth, num_heads, *decoder, mlp_ratio, norm_pix_loss
        )
        self.seen, self.wanted = self.share(1 - mask_ratio), self.share(target_ratio)
        if self.seen < 2 or self.wanted < 1 or self.seen + self.wanted > self.length:
            raise RecipeError(
                f"mask_ratio: {mask_ratio}, target_ratio: {target_ratio}: {self.seen} of {self.length} are seen "
                f"and {self.wanted} predicted: at least 2 and 1, and no more than there are"
            )
        if selector not in SELECTORS:
            raise RecipeError(f"selector: {selector}: one of {', '.join(SELECTORS)}")
        self.selector, self.curriculum = selector, curriculum
        self.decoder_blocks = nn.ModuleList(
            CrossBlock(embed_dim, decoder_embed_dim, decoder_num_heads, mlp_ratio) for _ in range(decoder_depth)
        )
        self.initialise()

    @torch.no_grad()
    def select(
        self, images: Tensor, progress: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Half of what is seen are seeds, the selector's first; the rest grows around them as the curriculum has it.

        Targets are the selector's first of what is not seen. Similarity is that of the patches' embeddings with their
        positions, as released: near is also near in the image.
        """
        self.check(images)
        mix = self.curriculum.at(progress)
        rank = priorities(images, self.patch_size, self.selector, generator)
        free = torch.ones_like(rank, dtype=torch.bool)
        seed_ids = best(rank, self.seen // 2, free)
        tokens = None if mix["random"] == 1 else self.embed(images)
        visible_ids = grow(tokens, seed_ids, self.length, self.seen - self.seen // 2, mix, generator=generator)
        return visible_ids, best(rank, self.wanted, free.scatter_(1, visible_ids, False))

    def predict(self, images: Tensor, visible_ids: Tensor, target_ids: Tensor) -> Tensor:
        return self.decode(self.encode(images, visible_ids), target_ids)

    def decode(self, latent: Tensor, target_ids: Tensor) -> Tensor:
        """Pixels of the targets, (B, T, P*P*C), from the encoder's output, (B, 1 + V, D)."""
        tokens = self.mask_token + self.decoder_pos_embed[0, 1:][target_ids]
        for block in self.decoder_blocks:
            tokens = block(tokens, latent)
        return self.decoder_pred(self.decoder_norm(tokens))  # type: ignore[no-any-return]
