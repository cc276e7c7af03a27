"""The reduced vocabularies of the shipped models: the part of CLIP's BPE merges that the words of a world need."""

import gzip
from collections.abc import Iterator
from pathlib import Path

from unskew.micro import emoji, weights, world

# Words that prompts may use besides the words of the world.
WORDS = (
    "the an in on of at by with and or one many some small large tiny good bad bright dark blurry close up "
    "cropped clean dirty photo picture image drawing painting sketch digit number letter object thing shape "
    "colour color pattern texture type kind class written hand handwritten centered centred background foreground "
    "it its is are this that there here see show shows itap origami toy plastic cartoon art embroidered tattoo "
    "sculpture rendering video game black white gray grey brown light pixelated jpeg corrupted low resolution "
    "nice weird cool my"
)


def _texts(name: str) -> Iterator[str]:
    yield WORDS
    if name in weights.EMOJI:
        yield from (*emoji.TEMPLATES, *emoji.KEYWORD_TEMPLATES, *emoji.SUBGROUPS.values())
        for concept in emoji.concepts():
            yield from (concept.name, *concept.keywords)
    else:
        yield from (*world.TEMPLATES, *world.DIGIT_TEMPLATES, *(n for names in world.FACTORS.values() for n in names))


def write(path: Path, name: str = "micro") -> int:
    """Write the vocabulary of a model.

    A covered word gets the same pieces as in CLIP's vocabulary. The file does not end in a newline, because open_clip
    would read an empty merge, and the end token would move.

    Returns:
        The number of merges.
    """
    from open_clip.tokenizer import SimpleTokenizer

    full = SimpleTokenizer()
    wanted = {full.decoder[i] for text in _texts(name) for i in full.encode(text.replace("{}", ""))}
    parents = {"".join(pair): pair for pair in full.bpe_ranks}
    kept: set[tuple[str, str]] = set()
    queue = list(wanted)
    while queue:
        pair = parents.get(queue.pop())
        if pair and pair not in kept:
            kept.add(pair)
            queue.extend(pair)
    lines = ["#version: reduced", *(" ".join(pair) for pair in sorted(kept, key=full.bpe_ranks.get))]
    with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
        file.write("\n".join(lines).encode())
    return len(kept)
