"""Layout of packed prompts: the shared prefix once, then the classes side by side in tiles of attention."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 32  # places in a tile: enough for several short names, and few masked pairs


class Layout(NamedTuple):
    """Positions of the R rows [prefix; chosen suffix rows] in n tiles of T places for attention.

    The prefix has P rows. There are C end tokens, at most E of them in one tile.
    """

    chosen: Tensor | None  # [R - P], rows of the suffix; ``None`` for all of them in their order
    positions: Tensor  # [R], position of each row in its prompt
    tile_rows: Tensor  # [n * T], row at each place of the tiles; an arbitrary row at an empty place
    row_places: Tensor  # [R], place of each row in the tiles
    mask: Tensor  # [n, 1, T, P + T], 0 for the rows of the prefix and of its tile that a place attends to, else -inf
    ends: Tensor  # [C], rows of the end tokens
    tile_ends: Tensor  # [n * E], class of each end token in the tiles; an arbitrary class at an empty place
    end_places: Tensor  # [C], place of each end token among the tiles' end tokens
    end_mask: Tensor  # [n, 1, E, P + T]

    def to(self, device: torch.device) -> "Layout":
        """Return the layout on ``device``."""
        chosen, *tensors = self
        return Layout(chosen if chosen is None else chosen.to(device), *(tensor.to(device) for tensor in tensors))


@functools.lru_cache(maxsize=64)  # equal at each step, and built on the host: no step waits for the device
@torch.inference_mode(False)  # otherwise a first call for predictions would leave tensors that training cannot use
def pack(
    prefix: int,
    lengths: tuple[int, ...],
    prefix_ids: tuple[int, ...] | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Layout:
    """Lay out `Prompts` whose prefix has ``prefix`` rows.

    Args:
        prefix: number of rows in the shared prefix.
        lengths: `Prompts.lengths`.
        prefix_ids: `Prompts.prefix_ids`.
        device: device of the layout's tensors.
        dtype: type of the masks; attention requires the type of its queries.
    """
    size = max(TILE, prefix, *lengths)
    chosen, depths, places, paths = _place_rows(prefix, lengths, prefix_ids or tuple(range(sum(lengths))), size)
    row_places = torch.tensor([*range(prefix), *places])
    tiles = int(row_places.max()) // size + 1
    tile_rows = torch.zeros(tiles * size, dtype=torch.long).index_copy(0, row_places, torch.arange(len(row_places)))

    # A row attends to its path. An empty place attends to itself: a row of the mask with no zero would give NaN.
    within = torch.eye(size, dtype=torch.bool).repeat(tiles, 1, 1)  # [n, T, T]
    within[0, :prefix, :prefix] = torch.ones(prefix, prefix, dtype=torch.bool).tril()
    longest = max(lengths)
    padded = torch.tensor([[*path, *[path[-1]] * (longest - len(path))] for path in paths])  # [C, L], places
    later, earlier = torch.tril_indices(longest, longest)
    within[padded[:, :1] // size, padded[:, later] % size, padded[:, earlier] % size] = True
    to_prefix = torch.zeros(tiles * size, dtype=torch.bool).index_fill(0, row_places[prefix:], True)
    attended = torch.cat([to_prefix.view(tiles, size, 1).expand(-1, -1, prefix), within], -1)
    mask = torch.zeros(attended.shape, dtype=dtype).masked_fill(~attended, -torch.inf)

    # The last block needs queries of the end tokens only.
    ends = padded[:, -1]  # [C], places of the tiles
    count, number = [0] * tiles, []
    for tile in (ends // size).tolist():
        number.append(count[tile])
        count[tile] += 1
    end_places = ends // size * max(count) + torch.tensor(number)
    in_tile = torch.zeros(tiles * max(count), dtype=torch.long).index_copy(0, end_places, ends % size)
    return Layout(
        chosen=None if chosen == list(range(sum(lengths))) else torch.tensor(chosen),
        positions=torch.tensor([*range(prefix), *(prefix + depth for depth in depths)]),
        tile_rows=tile_rows,
        row_places=row_places,
        mask=mask[:, None],
        ends=tile_rows[ends],
        tile_ends=torch.zeros_like(in_tile).index_copy(0, end_places, torch.arange(len(ends))),
        end_places=end_places,
        end_mask=mask[torch.arange(tiles)[:, None], in_tile.view(tiles, -1)][:, None],
    ).to(device)


def _place_rows(
    prefix: int, lengths: Sequence[int], prefix_ids: Sequence[int], size: int
) -> tuple[list[int], list[int], list[int], list[list[int]]]:
    """Put the classes side by side in tiles of ``size`` places, after the prefix; no class is split.

    Classes with a common beginning are neighbours; a tile holds the rows of that beginning once.

    Returns:
        For each chosen row its index in the suffix, its position in its class and its place in the tiles; for each
        class the places of its rows in the tiles.
    """
    ends = [*itertools.accumulate(lengths)]
    classes = [tuple(prefix_ids[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    chosen, depths, places = [], [], []
    paths: list[list[int]] = [[]] * len(classes)
    placed: dict[int, int] = {}  # place of each row in the current tile
    free, first = size - prefix, prefix  # free places of the current tile, and the first of them
    for c in sorted(range(len(classes)), key=lambda c: classes[c]):
        if sum(row not in placed for row in classes[c]) > free:
            placed, first = {}, first + free
            free = size
        for depth, row in enumerate(classes[c]):
            if row not in placed:
                placed[row] = first
                chosen.append(row)
                depths.append(depth)
                places.append(first)
                first, free = first + 1, free - 1
        paths[c] = [placed[row] for row in classes[c]]
    return chosen, depths, places, paths
