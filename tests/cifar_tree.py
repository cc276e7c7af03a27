"""CIFAR-100 in its two published formats: pickles of Python 2, and flat binary files."""

import io
import pickle
import struct
from pathlib import Path

import numpy as np


class Python2(pickle._Pickler):
    """A pickler for protocol 2 that writes text and bytes as Python 2 wrote its ``str``."""

    def save(self, obj, *args, **kwargs):
        if not isinstance(obj, str | bytes) or id(obj) in self.memo:
            return super().save(obj, *args, **kwargs)
        data = obj if isinstance(obj, bytes) else obj.encode()
        self.write(b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data)
        return self.memoize(obj)


def python2_pickle(content) -> bytes:
    file = io.BytesIO()
    Python2(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def cifar100(data: Path, edition: str = "python", classes: int = 100, each: int = 5) -> dict:
    """Write random images and return ``{split: (pixels [N, 3072], labels)}``; the classes are mixed."""
    folder, rng, found = data / "cifar100" / f"cifar-100-{edition}", np.random.RandomState(7), {}
    folder.mkdir(parents=True)
    names = [f"thing_{n:02d}" for n in range(classes)]
    for split, images in (("train", each), ("test", 1)):
        labels = rng.permutation(np.repeat(np.arange(classes), images))
        pixels = rng.randint(0, 256, (len(labels), 3072)).astype(np.uint8)
        if edition == "python":
            content = {"filenames": [f"x_s_{n:06d}.png" for n in range(len(labels))], "batch_label": f"{split} 1 of 1"}
            content |= {"fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist(), "data": pixels}
            (folder / split).write_bytes(python2_pickle(content))
        else:
            columns = [(labels // 5)[:, None].astype(np.uint8), labels[:, None].astype(np.uint8), pixels]
            (folder / f"{split}.bin").write_bytes(np.concatenate(columns, axis=1).tobytes())
        found[split] = (pixels, labels.tolist())
    if edition == "python":
        (folder / "meta").write_bytes(python2_pickle({"fine_label_names": names, "coarse_label_names": ["fish"]}))
    else:
        (folder / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    return found
