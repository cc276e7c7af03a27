"""The only place that loads a CLIP. Every tower comes from open_clip; a name says which weights."""

import functools
import gc
import hashlib
import os
import pickle
import re
import struct
import urllib.error
import urllib.request
import warnings
import weakref
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from unskew.micro import weights as micro
from unskew.utils.registry import unknown_name

# CLIP's own names. They mean OpenAI's weights, which were trained with QuickGELU.
OPENAI = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "amp": torch.float32}

# What open_clip, torch and safetensors raise on a file that is not a checkpoint of the architecture.
_OF_CONTENT = (RuntimeError, LookupError, AttributeError, AssertionError, TypeError, ValueError, StopIteration)

_OF_FORMAT = (EOFError, pickle.UnpicklingError, struct.error, SafetensorError)


class Backbone(nn.Module):
    """A frozen CLIP: always in ``eval()``, without gradients of its own; gradients flow through it.

    Attributes:
        name: the name that it was loaded by.
        id: architecture and hash of the weights; the same weights give the same id wherever the file lies.
        dtype: of the convolutions and matrix products, and of the features.
        mean, std, size, interpolation, resize_mode: the preprocessing that the weights were trained with;
            ``size`` is an int, or (height, width) where the image is not square.
        tokenizer: list of n strings -> int64 [n, context_length], padded, cut where too long.
        context_length: tokens of a prompt, start and end included.
        start_ids, end_id, pad_id: the tokens before and after a text, and what fills up the rest.
        causal: whether what follows a prompt's end token cannot matter, so that packed text is exact.
    """

    def __init__(self, model: nn.Module, tokenizer, name: str, weights_id: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.tokenizer, self.name, self.id, self.dtype = tokenizer, name, weights_id, dtype
        preprocess = model.visual.preprocess_cfg
        self.mean, self.std = tuple(preprocess["mean"]), tuple(preprocess["std"])
        self.interpolation, self.resize_mode = preprocess["interpolation"], preprocess["resize_mode"]
        size = preprocess["size"]
        self.size = size if isinstance(size, int) else size[0] if size[0] == size[1] else tuple(size)
        empty = tokenizer([""])[0].tolist()
        special = [token for token in empty if token != empty[-1]]
        self.context_length, self.pad_id = len(empty), empty[-1]
        self.start_ids = special[:-1]
        self.end_id = special[-1] if special else self.pad_id  # SigLIP pads with its end token
        self.causal = _is_causal(self.text)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":
        """Stays in evaluation mode: training on top must not move the batch statistics."""
        return super().train(False)

    def encode_image(self, images: Tensor) -> Tensor:
        """[N, 3, H, W], preprocessed -> [N, D], not normalised."""
        return self.model.encode_image(images.to(self.dtype), normalize=False)

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """[n, context_length] token ids -> [n, D], not normalised, by open_clip's own text tower."""
        return self.model.encode_text(ids, normalize=False)

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def logit_scale(self) -> Tensor:
        """The natural log of the scale, as in open_clip."""
        return self.model.logit_scale

    @property
    def visual(self) -> nn.Module:
        return self.model.visual

    @property
    def text(self) -> nn.Module:
        """The module that holds the text tower's parts; open_clip's plain CLIP holds them itself."""
        return getattr(self.model, "text", self.model)

    @property
    def token_embedding(self) -> nn.Embedding:
        """[vocabulary, W].

        Raises:
            ValueError: a Hugging Face text tower, which takes strings only.
        """
        if not hasattr(self.text, "token_embedding"):
            raise ValueError(
                f"the text tower of backbone '{self.name}' takes strings only, no embeddings, so no prompt can be "
                "learned on it; choose a backbone with open_clip's own text tower"
            )
        return self.text.token_embedding

    @property
    def positional_embedding(self) -> Tensor:
        return self.text.positional_embedding  # [context_length, W]

    @property
    def resblocks(self) -> nn.ModuleList:
        return self.text.transformer.resblocks

    @property
    def ln_final(self) -> nn.Module:
        return self.text.ln_final

    @property
    def text_projection(self) -> Tensor | nn.Linear | None:
        return self.text.text_projection  # [W, D] where it is a matrix


def _is_causal(text: nn.Module) -> bool:
    pool = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
    return (
        getattr(text, "attn_mask", None) is not None
        and getattr(text, "cls_emb", None) is None  # CoCa's class token reads the padding
        and pool in ("argmax", "eos")
        and all(isinstance(block.attn, nn.MultiheadAttention) for block in text.transformer.resblocks)
    )


def load(name: str, precision: str = "fp32", device: str | torch.device = "cpu") -> Backbone:
    """Load a CLIP once per process; the same arguments give the same object.

    Args:
        name: one of ``OPENAI``; a shipped model (``micro``, ``micro-a``, ...); ``ARCH@TAG``, any pair of
            ``open_clip.list_pretrained()``; ``ARCH@FILE``, a local .pt, .pth or .safetensors; ``ARCH@random``,
            random weights, the same each time, for benchmarks. Nothing else ever starts from random weights.
        precision: fp32, fp16, bf16, or amp, which holds the weights in fp32. fp16 is fp32 on a CPU.

    Raises:
        ValueError: an unknown name or precision (the near ones are listed), or a file that is not a
            checkpoint of the architecture (the first missing keys are listed).
        FileNotFoundError: weights that are neither on this machine nor to be downloaded.
    """
    if precision not in PRECISIONS:
        raise ValueError(unknown_name("precision", precision, PRECISIONS))
    device = torch.device(device)
    if precision == "fp16" and device.type == "cpu":
        _say_fp16_once()
        precision = "fp32"
    return _load(str(name), "fp32" if precision == "amp" else precision, str(device))


_in_memory: weakref.WeakSet[Backbone] = weakref.WeakSet()


def release() -> None:
    """Forget the loaded models; one that nobody else holds leaves the memory at once."""
    _load.cache_clear()
    if _in_memory:  # held by a trainer in use, or by one that is held by its own parts alone; looking takes 0.3 s
        gc.collect()


@functools.cache
def _say_fp16_once() -> None:
    warnings.warn("fp16 is not for CPUs: the backbone runs in fp32", stacklevel=3)


@functools.cache
@torch.inference_mode(False)  # or gradients could never flow through what is kept here
def _load(name: str, precision: str, device: str) -> Backbone:
    arch, tag, file = _resolve(name)
    if tag:
        file = _weights_file(name, arch, tag)
    if file and not file.is_file():
        raise FileNotFoundError(f"backbone '{name}': there is no file '{file}'")
    tokenizer = _tokenizer(arch)
    digest = _sha256(file) if file else ""
    model, variant = _create(arch, tag, file, digest, precision)
    weights_id = f"{variant}@{(digest or _state_sha256(model))[:16]}"
    backbone = Backbone(model, tokenizer, name, weights_id, PRECISIONS[precision]).to(device)
    _in_memory.add(backbone)
    return backbone


def _resolve(name: str) -> tuple[str, str, Path | None]:
    """A name -> (open_clip architecture, tag or "", file or None); neither tag nor file means random weights."""
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
        hint = "any other is ARCH@TAG from open_clip.list_pretrained(), or ARCH@FILE"
        raise ValueError(f"{unknown_name('backbone', name, (*OPENAI, *micro.NAMES))}; {hint}")
    arch = arch.replace("/", "-")
    if arch not in open_clip.list_models():
        near = unknown_name("open_clip architecture", arch, open_clip.list_models()).partition(" (known")[0]
        raise ValueError(f"{near} (open_clip.list_models() has all {len(open_clip.list_models())})")
    if weights == "random":
        return arch, "", None
    if pretrained.is_pretrained_cfg(arch, weights):
        return arch, weights, None
    if os.sep in weights or Path(weights).suffix:
        return arch, "", Path(weights).expanduser()
    tags = pretrained.list_pretrained_tags_by_model(arch)
    raise ValueError(f"{unknown_name(f'{arch} weights', weights, (*tags, 'random'))}; or ARCH@FILE, a local file")


def _weights_file(name: str, arch: str, tag: str) -> Path:
    """The file of an open_clip pair, from a cache, else from the network, without long retries where there is none."""
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
    clip_cache = Path("~/.cache/clip").expanduser() / Path(url).name  # OpenAI's own package keeps its files there
    try:
        if url and clip_cache.is_file():
            return Path(pretrained.download_pretrained_from_url(url))  # checks the hash
        _reach(source)
        return Path(pretrained.download_pretrained(cfg))
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"backbone '{name}': its weights are not in the cache and {source} cannot be had "
            f"({' '.join(str(error).split())[:150]}); run once with internet, set HF_ENDPOINT to a mirror, put the "
            f"file anywhere and name it as {arch}@FILE, or take 'micro', which ships with unskew"
        ) from error


def _reach(url: str) -> None:
    """One quick try, since the hub's client retries for most of a minute where there is no network."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:  # the server is there
        return


def _create(arch: str, tag: str, file: Path | None, digest: str, precision: str) -> tuple[nn.Module, str]:
    """An open_clip model on the CPU, and its architecture's name with the activation that the weights need."""
    import open_clip
    from open_clip import pretrained

    # A file is preprocessed as the architecture's known weights are.
    tags = [tag] if tag else pretrained.list_pretrained_tags_by_model(arch)[:1]
    known = pretrained.get_pretrained_cfg(arch, tags[0]) if tags else {}
    preprocess = {key: known[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in known}
    quick = bool(tag and known.get("quick_gelu"))  # open_clip warns and goes on where tag and architecture disagree
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)  # @random is the same each time, and loading leaves the caller's random stream alone
        warnings.filterwarnings("ignore", message=r".*(torch\.jit|TorchScript)")
        try:
            model = open_clip.create_model(
                arch,
                pretrained=str(file) if file else None,
                precision=precision,
                force_quick_gelu=quick,
                force_preprocess_cfg=preprocess,
                pretrained_text=False,
                weights_only=digest not in _openai_hashes(),
            )
        except (*_OF_CONTENT, *_OF_FORMAT) as error:
            if not file:
                raise
            raise ValueError(f"'{file}' is not a checkpoint of {arch}: {_summary(error)}") from error
    return model, f"{arch}-quickgelu" if quick and not arch.endswith("-quickgelu") else arch


def _openai_hashes() -> set[str]:
    """SHA-256 of OpenAI's own files. They are TorchScript, which ``weights_only`` refuses; these alone are trusted."""
    from open_clip import pretrained

    urls = (pretrained.get_pretrained_url(arch, tag) for arch, tag in pretrained.list_pretrained())
    return {url.split("/")[-2] for url in urls if "openaipublic" in url}


def _summary(error: Exception) -> str:
    """One line of a loading error; of a list of keys the first three."""
    if isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error):
        return "it holds more than plain tensors, which is refused; save its state_dict with safetensors or torch.save"
    first, *rest = str(error).strip().splitlines() or [""]
    parts = []
    for line in rest[:2] if first.startswith("Error(s) in loading") else ():
        keys = re.findall(r'"([^"]+)"', line)
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        parts.append(f"{line.split(': ')[0].strip()}: {', '.join(keys[:3])}{more}" if keys else line.strip())
    return "; ".join(parts) or f"it cannot be read ({type(error).__name__}{first and ': '}{first})"


def _tokenizer(arch: str):
    import open_clip

    if arch in micro.NAMES:
        return micro.tokenizer(arch)
    try:
        return open_clip.get_tokenizer(arch)
    except (ImportError, OSError) as error:
        raise ValueError(
            f"the tokenizer of {arch} comes from the Hugging Face hub: pip install transformers and run once with "
            f"internet ({' '.join(str(error).split())[:150]})"
        ) from error


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _state_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
