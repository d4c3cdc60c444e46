"""Where a window's vectors lie: one block of memory a site, taken once and filled again and again.

Fresh gigabytes cost more in page faults than the copy into them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Buffers:
    """Room for `rows` vectors of every site that is put into it; several threads may put at once.

    `dtype` is the number format they are kept in, that of the first to come where it is None.
    """

    def __init__(self, rows: int, *, dtype: torch.dtype | None) -> None:
        self._rows, self._dtype = rows, dtype
        self._blocks: dict[str, Tensor] = {}

    def __getitem__(self, site: str) -> Tensor:
        return self._blocks[site]

    def put(
        self, site: str, tensor: Tensor, lengths: Sequence[int], places: Sequence[Tensor | slice]
    ) -> None:
        """Copy rows of text [rows, pos, ...] without their position 0 and what pads them.

        `lengths` says how many positions of each row are text, `places` where its vectors go: a
        slice, or a place for each.
        """
        block = self._block(site, tensor)
        if tensor.device.type != "cpu" and len(set(lengths)) == 1:
            _copy(block, _joined(places), tensor[:, 1:].flatten(0, 1).flatten(1))
            return
        for row, length, place in zip(tensor, lengths, places, strict=True):
            _copy(block, place, row[1:length].flatten(1))  # contiguous as it is

    def _block(self, site: str, tensor: Tensor) -> Tensor:
        if site not in self._blocks:
            width = tensor[0, 0].numel()
            # What is made inside inference mode could not be trained on.
            with torch.inference_mode(False):
                dtype = self._dtype or tensor.dtype
                block = torch.empty(self._rows, width, dtype=dtype, device=tensor.device)
            # setdefault keeps two threads from having one each.
            self._blocks.setdefault(site, block)
        return self._blocks[site]


def _copy(block: Tensor, place: Tensor | slice, vectors: Tensor) -> None:
    if isinstance(place, slice):
        block[place] = vectors
        return
    vectors = vectors.to(block.dtype)
    if block.shape[1] * block.element_size() % 8 == 0:
        # Scattering single numbers of two bytes takes twice as long.
        block, vectors = block.view(torch.int64), vectors.contiguous().view(torch.int64)
    block.index_copy_(0, place, vectors)


def _joined(places: Sequence[Tensor | slice]) -> Tensor | slice:
    """Where the rows go as one: on a device every copy by itself would cost a launch."""
    tensors = [place for place in places if isinstance(place, Tensor)]
    if tensors:
        return torch.cat(tensors)
    slices = [place for place in places if isinstance(place, slice)]
    return slice(slices[0].start, slices[-1].stop)
