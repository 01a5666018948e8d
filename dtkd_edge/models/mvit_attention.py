"""MViT's attention by one fused call. torchvision writes out every score, then every relative position, then their sum.

Li et al. (MViTv2, CVPR 2022) add to the score of query i and key j a product of q_i with a learned vector for their distance in
time, in height and in width. For one query there are as many such products as the keys have rows in time, height and width
(8 + 7 + 7, where there are 8 · 7 · 7 keys). Behind the query's own numbers they make a longer query, ones behind a key's, where
it stands, make a longer key, and the product of the two is the whole score:

    [q_i / √d, e_i] · [k_j, onehot(t_j), onehot(h_j), onehot(w_j)] = q_i · k_j / √d + e_i,t(j) + e_i,h(j) + e_i,w(j)

so that `scaled_dot_product_attention` needs no mask, and no `[queries, keys]` matrix is ever in memory. The class token, first
of queries and of keys, has zeros there: it is nowhere.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video.mvit import MultiscaleAttention

Grid = tuple[int, int, int]


class FusedAttention(MultiscaleAttention):
    """torchvision's `MultiscaleAttention`, with its weights and its numbers."""

    counted_as = MultiscaleAttention  # what makes the queries and keys longer is no cost of the published network

    def forward(self, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        """Tokens `[B, 1 + T·H·W, C]` and their grid → the same of what is attended to, pooled as the block says."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind()
        k, keys = (k, thw) if self.pool_k is None else self.pool_k(k, thw)
        v = v if self.pool_v is None else self.pool_v(v, thw)[0]
        q, thw = (q, thw) if self.pool_q is None else self.pool_q(q, thw)
        if self.rel_pos_h is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = self._attend(q, k, v, thw, keys)
        if self.residual_pool:
            out = out + q if self.residual_with_cls_embed else torch.cat([out[:, :, :1], out[:, :, 1:] + q[:, :, 1:]], 2)
        return self.project(out.transpose(1, 2).reshape(batch, -1, self.output_dim)), thw

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, queries: Grid, keys: Grid) -> Tensor:
        cells = q[:, :, 1:].unflatten(2, queries)
        tables = (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
        vectors = [table_of(table, q, k) for table, q, k in zip(tables, queries, keys, strict=True)]
        scores = [torch.einsum(f"bnthwc,{axis}kc->bnthwk", cells, r) for axis, r in zip("thw", vectors, strict=True)]
        width, extra = self.head_dim, sum(keys)
        pad = -(width + extra) % 8  # what the fused kernels take in half precision
        longer = F.pad(torch.cat(scores, -1).flatten(2, 4), (0, pad, 1, 0))
        places = F.pad(onehot(keys, k.device).to(k.dtype), (0, pad, 1, 0))
        q = torch.cat([q * self.scaler, longer.to(q.dtype)], -1)
        k = torch.cat([k, places.expand(*k.shape[:2], -1, -1)], -1)
        return F.scaled_dot_product_attention(q, k, F.pad(v, (0, extra + pad)), scale=1.0)[..., :width]


def table_of(table: Tensor, queries: int, keys: int) -> Tensor:
    """Along one axis, the learned vector `[queries, keys, C]` of each pair's distance; the table is scaled to that many."""
    length = 2 * max(queries, keys) - 1
    if len(table) != length:
        table = F.interpolate(table.t()[None], length, mode="linear")[0].t()
    return table[distances(queries, keys, table.device)]


@lru_cache  # a copy to a device would wait for it
def distances(queries: int, keys: int, device: torch.device) -> Tensor:
    """Row of the table for each pair, `[queries, keys]`: the coarser of the two steps in the finer one's units."""
    with torch.inference_mode(False):
        q = torch.arange(queries)[:, None] * max(keys / queries, 1.0)
        k = (torch.arange(keys)[None] - keys + 1) * max(queries / keys, 1.0)
        return (q - k).long().to(device)


@lru_cache
def onehot(keys: Grid, device: torch.device) -> Tensor:
    """Where each of T·H·W keys stands: `[T·H·W, T + H + W]`, a one for its time, its height and its width."""
    with torch.inference_mode(False):
        places = torch.cartesian_prod(*(torch.arange(n) for n in keys))  # [T·H·W, 3]
        return torch.cat([F.one_hot(places[:, axis], n) for axis, n in enumerate(keys)], -1).float().to(device)


def replace_attention(model: nn.Module) -> None:
    """Every attention of torchvision's MViT becomes ours, in place; its weights and their names stay."""
    for module in model.modules():
        if type(module) is MultiscaleAttention:
            module.__class__ = FusedAttention
