"""Where the rows of a packed text stand: the prefix once, then the classes side by side in tiles of attention."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 32  # places in a tile of attention: several short names fill it, and few pairs of strangers are looked at


class Layout(NamedTuple):
    """Where the R rows of [prefix; taken from own] stand: in n tiles of T places for attention.

    P rows are the prefix, C the ends of the classes; a tile holds at most E of them.
    """

    taken: Tensor | None  # [R - P], the rows of ``own``; ``None`` for all of them in their order
    places: Tensor  # [R], each row's place in its prompt
    tiled: Tensor  # [n * T], the row at each place of the tiles; any row where there is none
    packed: Tensor  # [R], each row's place in the tiles
    seen: Tensor  # [n, 1, T, P + T], 0 for each row of the prefix and each place of its tile that a place looks at,
    # minus infinity for the others
    ends: Tensor  # [C], the rows of the end tokens
    end_tiled: Tensor  # [n * E], the class of each end in the tiles; any class where there is none
    end_packed: Tensor  # [C], each end among those of the tiles
    end_seen: Tensor  # [n, 1, E, P + T]


@functools.lru_cache(maxsize=64)  # the same at each step, and built on the host: no step waits for the device
@torch.inference_mode(False)  # else a first call for predictions would leave tensors that training cannot use
def pack(
    prefix: int,
    lengths: tuple[int, ...],
    histories: tuple[int, ...] | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Layout:
    """The layout of `Prompts` whose prefix has ``prefix`` rows; the masks are in ``dtype``, as attention takes them."""
    size = max(TILE, prefix, *lengths)
    taken, depths, places, ways = _put(prefix, lengths, histories or tuple(range(sum(lengths))), size)
    packed = torch.tensor([*range(prefix), *places])
    tiles = int(packed.max()) // size + 1
    tiled = torch.zeros(tiles * size, dtype=torch.long).index_copy(0, packed, torch.arange(len(packed)))

    # A row looks at what is on its way; an empty place looks at itself, since a row of no weights at all would be NaN.
    own = torch.eye(size, dtype=torch.bool).repeat(tiles, 1, 1)  # [n, T, T]
    own[0, :prefix, :prefix] = torch.ones(prefix, prefix, dtype=torch.bool).tril()
    longest = max(lengths)
    padded = torch.tensor([[*way, *[way[-1]] * (longest - len(way))] for way in ways])  # [C, L], places of the tiles
    later, earlier = torch.tril_indices(longest, longest)
    own[padded[:, :1] // size, padded[:, later] % size, padded[:, earlier] % size] = True
    shared = torch.zeros(tiles * size, dtype=torch.bool).index_fill(0, packed[prefix:], True).view(tiles, size, 1)
    looked = torch.cat([shared.expand(-1, -1, prefix), own], -1)
    seen = torch.zeros(looked.shape, dtype=dtype).masked_fill(~looked, -torch.inf)

    # The same once more for the end tokens alone, all that the last block is asked for.
    ends = padded[:, -1]  # [C], places of the tiles
    count, number = [0] * tiles, []
    for tile in (ends // size).tolist():
        number.append(count[tile])
        count[tile] += 1
    end_packed = ends // size * max(count) + torch.tensor(number)
    end_places = torch.zeros(tiles * max(count), dtype=torch.long).index_copy(0, end_packed, ends % size)
    layout = Layout(
        taken=None if taken == list(range(sum(lengths))) else torch.tensor(taken),
        places=torch.tensor([*range(prefix), *(prefix + depth for depth in depths)]),
        tiled=tiled,
        packed=packed,
        seen=seen[:, None],
        ends=tiled[ends],
        end_tiled=torch.zeros_like(end_places).index_copy(0, end_packed, torch.arange(len(ends))),
        end_packed=end_packed,
        end_seen=seen[torch.arange(tiles)[:, None], end_places.view(tiles, -1)][:, None],
    )
    return Layout(*(tensor if tensor is None else tensor.to(device) for tensor in layout))


def _put(
    prefix: int, lengths: Sequence[int], histories: Sequence[int], size: int
) -> tuple[list[int], list[int], list[int], list[list[int]]]:
    """Put the classes side by side in tiles of ``size`` places, none of them cut, the prefix before all.

    In a tile a row stands once for all classes that have its history, for which these are neighbours.

    Returns:
        Of each row that is taken its index in ``own``, its place in its class and in the tiles; of each class
        the places of its rows in the tiles.
    """
    ends = [*itertools.accumulate(lengths)]
    classes = [histories[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    taken, depths, places = [], [], []
    ways: list[list[int]] = [[]] * len(classes)
    here, free, first = {}, size - prefix, prefix  # rows of this tile, its free places, the first of them
    for c in sorted(range(len(classes)), key=classes.__getitem__):
        if sum(row not in here for row in classes[c]) > free:
            here, first = {}, first + free
            free = size
        for depth, row in enumerate(classes[c]):
            if row not in here:
                here[row] = first
                taken.append(row)
                depths.append(depth)
                places.append(first)
                first, free = first + 1, free - 1
        ways[c] = [here[row] for row in classes[c]]
    return taken, depths, places, ways
