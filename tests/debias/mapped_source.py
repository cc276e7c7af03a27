"""A source for tests: a .npy file that is read by slices through a memory map."""

import numpy as np
import torch


class MappedRows:
    is_source = True

    def __init__(self, path, block_rows=1000):
        self.path, self.block_rows = str(path), block_rows
        array = np.load(self.path, mmap_mode="r")
        self.shape, self.device = array.shape, torch.device("cpu")
        self.dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return torch.from_numpy(np.load(self.path, mmap_mode="r")[rows].copy())


def mapped(folder, array, name="logits", **options):
    path = folder / f"{name}.npy"
    np.save(path, array)
    return MappedRows(path, **options)
