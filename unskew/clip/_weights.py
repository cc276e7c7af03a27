"""Files of CLIP weights: names of backbones, caches, downloads and hashes."""

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

import torch
from torch import nn

from unskew.micro import weights as micro
from unskew.utils.errors import MissingWeightsError
from unskew.utils.registry import suggestion, unknown_name

# CLIP's short names. They mean OpenAI's weights, which were trained with QuickGELU.
OPENAI = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")


def resolve(name: str) -> tuple[str, str, Path | None]:
    """Split a backbone's name into open_clip architecture, tag (or "") and local file (or ``None``).

    Neither tag nor file means random weights.

    Raises:
        ValueError: an unknown name; the message lists similar names.
    """
    import open_clip
    from open_clip import pretrained

    if "micro" not in open_clip.list_models():
        open_clip.add_model_config(micro.MODELS)
    flat = name.replace("/", "-")
    if flat in (short.replace("/", "-") for short in OPENAI):
        return flat.replace("@336px", "-336") + "-quickgelu", "openai", None
    if name in micro.NAMES:
        return name, "", micro.model_path(name)
    arch, _, weights = name.partition("@")
    if not weights:
        hint = "for other models give ARCH@TAG from open_clip.list_pretrained(), or ARCH@FILE"
        raise ValueError(f"{unknown_name('backbone', name, (*OPENAI, *micro.NAMES))}; {hint}")
    arch = arch.replace("/", "-")
    if arch not in open_clip.list_models():
        similar = suggestion("open_clip architecture", arch, open_clip.list_models())
        raise ValueError(f"{similar} (open_clip.list_models() has all {len(open_clip.list_models())})")
    if weights == "random":
        return arch, "", None
    if pretrained.is_pretrained_cfg(arch, weights):
        return arch, weights, None
    if os.sep in weights or Path(weights).suffix:
        return arch, "", Path(weights).expanduser()
    tags = pretrained.list_pretrained_tags_by_model(arch)
    raise ValueError(f"{unknown_name(f'{arch} weights', weights, (*tags, 'random'))}; or give ARCH@FILE, a local file")


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


def hash_state(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
