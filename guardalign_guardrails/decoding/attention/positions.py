"""Indexes tensors by lists of positions, one list for each row of a batch.

Where all lists are the same run of positions, which is the rule for a single prompt, it takes views instead of copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Positions:
    """Positions in one dimension, for each row of a batch.

    Attributes:
        at: The positions, shape [B, N].
        is_uniform: Whether every row has the same.
        run: The first and the one after the last, if they are uniform and consecutive; None otherwise.
    """

    at: Tensor
    is_uniform: bool
    run: tuple[int, int] | None = None

    def repeated(self, times: int) -> Positions:
        """The positions for a batch in which each row is repeated ``times`` times in succession."""
        return self if times == 1 else Positions(self.at.repeat_interleave(times, 0), self.is_uniform, self.run)

    def on(self, device: torch.device) -> Positions:
        """The positions on a device."""
        return self if self.at.device == device else Positions(self.at.to(device), self.is_uniform, self.run)

    def taken(self, tensor: Tensor, dim: int) -> Tensor:
        """Take the entries at these positions of a dimension of a tensor [B, ...]; a view where they are a run."""
        if self.run is not None:
            return tensor.narrow(dim, self.run[0], self.run[1] - self.run[0])
        if self.is_uniform:
            return tensor.index_select(dim, self.at[0])
        return tensor.gather(dim, self._index(tensor, dim))

    def put(self, tensor: Tensor, new: Tensor, is_real: Tensor | None) -> Tensor:
        """Overwrite the entries at these positions of dimension 2.

        Args:
            tensor: Shape [B, H, L, ...], changed in place.
            new: Shape [B, H, N, ...].
            is_real: Which positions are no padding, shape [B, N]; None for all.

        Returns:
            ``tensor``.
        """
        if is_real is None and self.run is not None:
            self.taken(tensor, 2).copy_(new)
            return tensor
        if is_real is None and self.is_uniform:
            return tensor.index_copy_(2, self.at[0], new)
        if is_real is None:
            is_real = torch.ones_like(self.at, dtype=torch.bool)
        # Padding of a shorter list is position 0 and must not write there.
        batch, place = is_real.nonzero(as_tuple=True)
        tensor[batch, :, self.at[batch, place]] = new[batch, :, place]
        return tensor

    def add(self, tensor: Tensor, extra: Tensor) -> Tensor:
        """Add to the entries at these positions of dimension 3, in place, [B, H, I, K] and [B, H, I, N]."""
        if self.run is not None:
            self.taken(tensor, 3).add_(extra)
            return tensor
        return tensor.scatter_add_(3, self._index(tensor, 3), extra)

    def _index(self, tensor: Tensor, dim: int) -> Tensor:
        batch, number = self.at.shape
        own = [batch if d == 0 else number if d == dim else 1 for d in range(tensor.dim())]
        whole = [number if d == dim else size for d, size in enumerate(tensor.shape)]
        return self.at.view(own).expand(whole)
