"""Files of CLIP weights: names of backbones, caches, downloads and hashes."""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unskew.clip._model_folder import CONFIG, find_weights, read_config
from unskew.micro import weights as micro
from unskew.utils.errors import MissingWeightsError
from unskew.utils.registry import folded, suggestion, unknown_name

# CLIP's short names. They mean OpenAI's weights, which were trained with QuickGELU.
OPENAI = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")


class Source(NamedTuple):
    """The source of a backbone. Neither ``tag`` nor ``file`` means random weights.

    Attributes:
        arch: open_clip's name of the architecture; with a scheme, ``hf-hub:ID`` or ``local-dir:FOLDER``.
        tag: open_clip's name of the weights, or "".
        file: a local file of weights.
        folder: a folder with a config that decides architecture and preprocessing.
    """

    arch: str
    tag: str = ""
    file: Path | None = None
    folder: Path | None = None


def spelling(name: str) -> str:
    """Return CLIP's short name or the shipped model of a name in upper or lower case and with - for /, or the name."""
    return {folded(known): known for known in (*OPENAI, *micro.NAMES)}.get(folded(name), name)


def resolve(name: str) -> Source:
    """Return the source of a backbone by its name.

    Raises:
        ValueError: an unknown name; the message lists similar names.
        FileNotFoundError: a folder without a model, or a model of the hub that cannot be downloaded.
    """
    import open_clip

    if "micro" not in open_clip.list_models():
        open_clip.add_model_config(micro.MODELS)
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:")).expanduser()
        read_config(folder)
        return Source(f"local-dir:{folder}", "", find_weights(folder), folder)
    if name.startswith("hf-hub:"):
        return _from_hub(name)
    if name in OPENAI:
        return Source(_openai_arch(name), "openai")
    if name in micro.NAMES:
        return Source(name, "", micro.model_path(name))
    return _pair(name)


def _pair(name: str) -> Source:
    """Return the source of ARCH@TAG, ARCH@FILE or ARCH@random."""
    import open_clip
    from open_clip import pretrained

    arch, weights = _split(name)
    if not weights:
        hint = (
            "for other models give ARCH@TAG from open_clip.list_pretrained(), ARCH@FILE, hf-hub:ID or local-dir:FOLDER"
        )
        raise ValueError(f"{unknown_name('backbone', name, (*OPENAI, *micro.NAMES))}; {hint}")
    if arch not in open_clip.list_models():
        similar = suggestion("open_clip architecture", arch, open_clip.list_models())
        raise ValueError(f"{similar} (open_clip.list_models() has all {len(open_clip.list_models())})")
    if weights == "random":
        return Source(arch)
    if pretrained.is_pretrained_cfg(arch, weights):
        return Source(arch, weights)
    if os.sep in weights or Path(weights).suffix:
        return _from_file(name, arch, Path(weights).expanduser())
    tags = pretrained.list_pretrained_tags_by_model(arch)
    raise ValueError(f"{unknown_name(f'{arch} weights', weights, (*tags, 'random'))}; or give ARCH@FILE, a local file")


def _openai_arch(short: str) -> str:
    return short.replace("/", "-").replace("@336px", "-336") + "-quickgelu"


def _short_name(name: str) -> str:
    """Return the name of CLIP, such as ViT-B/32, that a backbone's name has before an @, or ""."""
    return max((short for short in OPENAI if name.startswith(f"{short}@")), key=len, default="")


def _split(name: str) -> tuple[str, str]:
    """Split ARCH@WEIGHTS; one of CLIP's names has an @ itself."""
    place = len(_short_name(name)) or f"{name}@".index("@")
    return name[:place].replace("/", "-").replace("@336px", "-336"), name[place + 1 :]


def _from_file(name: str, arch: str, file: Path) -> Source:
    """Return a local file with its architecture; a config beside it decides.

    The names of CLIP (ViT-B/32, RN50) mean QuickGELU, with a file too; open_clip's (ViT-B-32) mean its config.
    """
    if (file.parent / CONFIG).is_file():
        return Source(arch, "", file, file.parent)
    short = _short_name(name)
    return Source(_openai_arch(short) if short else arch, "", file)


def is_guess(name: str, arch: str) -> bool:
    """Return whether the activation of a local file of weights is unknown: open_clip knows ``arch`` with both."""
    import open_clip

    plain = arch.removesuffix("-quickgelu")
    both = {plain, f"{plain}-quickgelu"} <= set(open_clip.list_models())
    return both and "-quickgelu@" not in name


def _from_hub(name: str) -> Source:
    """Return the config and the weights of a model of the Hugging Face hub, from its cache or by a download.

    Raises:
        FileNotFoundError: the files are in no cache and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from open_clip import constants, pretrained

    repo = name.removeprefix("hf-hub:")
    url = f"the hub's '{repo}'"
    try:
        url = hf_hub_url(repo, CONFIG)
        hits = [try_to_load_from_cache(repo, file) for file in (CONFIG, constants.HF_SAFE_WEIGHTS_NAME)]
        if not all(isinstance(hit, str) for hit in hits):
            _check_connection(url)
            hits = [hf_hub_download(repo, CONFIG), pretrained.download_pretrained_from_hf(repo)]
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingWeightsError(
            f"backbone '{name}' is not in the cache and {url} cannot be read ({' '.join(str(error).split())[:150]}); "
            "check the name, run once with internet, set HF_ENDPOINT to a mirror, or download the repository and pass "
            "its folder as local-dir:FOLDER"
        ) from error
    config, weights = (Path(str(hit)) for hit in hits)
    text = read_config(config.parent)["model_cfg"]["text_cfg"]
    # A tokenizer of the hub is found by the model's name, and open_clip's own needs no connection.
    arch = name if text.get("hf_tokenizer_name") else f"local-dir:{config.parent}"
    return Source(arch, "", weights, config.parent)


def find_or_download(name: str, arch: str, tag: str) -> Path:
    """Return the weights file of an open_clip pair from a cache, or download it; fail fast without a network.

    Raises:
        FileNotFoundError: the file is in no cache and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from open_clip import constants, pretrained

    cfg = pretrained.get_pretrained_cfg(arch, tag)
    url, (repo, _, file) = cfg["url"], cfg["hf_hub"].rpartition("/")
    file = file or constants.HF_WEIGHTS_NAME
    safe = constants.HF_SAFE_WEIGHTS_NAME if file == constants.HF_WEIGHTS_NAME else f"{Path(file).stem}.safetensors"
    for candidate in (safe, file) if repo else ():
        if isinstance(hit := try_to_load_from_cache(repo, candidate), str):
            return Path(hit)
    source = hf_hub_url(repo, safe) if repo else url
    clip_cache = Path("~/.cache/clip").expanduser() / Path(url).name  # the cache of OpenAI's clip package
    try:
        if url and clip_cache.is_file():
            return Path(pretrained.download_pretrained_from_url(url))  # checks the hash
        _check_connection(source)
        return Path(pretrained.download_pretrained(cfg))
    except (OSError, RuntimeError) as error:
        raise MissingWeightsError(
            f"backbone '{name}': its weights are not in the cache and {source} cannot be reached "
            f"({' '.join(str(error).split())[:150]}); run once with internet, set HF_ENDPOINT to a mirror, download "
            f"the file and pass it as {arch}@FILE, or use 'micro', which ships with unskew"
        ) from error


def _check_connection(url: str) -> None:
    """Try the URL once; the hub's client would retry for most of a minute without a network."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:  # the server answers
        return


def openai_hashes() -> set[str]:
    """Return the SHA-256 hashes of OpenAI's files, the only TorchScript archives that are trusted."""
    from open_clip import pretrained

    urls = (pretrained.get_pretrained_url(arch, tag) for arch, tag in pretrained.list_pretrained())
    return {url.split("/")[-2] for url in urls if "openaipublic" in url}


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of the numbers of tensors; it takes 0.6 s per GB."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
