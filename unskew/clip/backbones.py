"""CLIP backbones. Every tower comes from open_clip; a name selects the weights."""

import contextlib
import functools
import gc
import logging
import os
import pickle
import re
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unskew.clip import _model_folder
from unskew.clip._weights import (
    OPENAI,
    Source,
    find_or_download,
    hash_file,
    hash_tensors,
    is_guess,
    openai_hashes,
    resolve,
    spelling,
)
from unskew.data.snapshot import file_state
from unskew.micro import weights as micro
from unskew.utils.errors import DAMAGE, MissingWeightsError
from unskew.utils.logging import warn_once
from unskew.utils.registry import unknown_name

if TYPE_CHECKING:  # open_clip takes seconds to import
    from open_clip import CLIP, CustomTextCLIP
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
    from open_clip.transformer import TextTransformer

__all__ = ["OPENAI", "PRECISIONS", "Backbone", "load_backbone", "release"]

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "amp": torch.float32}


class Backbone(nn.Module):
    """A frozen CLIP: always in ``eval()``, with no gradients for its weights; gradients flow through it.

    Attributes:
        name: the name that was loaded.
        id: architecture and hash of the weights, independent of where the file is.
        architecture: open_clip's name of the architecture, or ``hf-hub:ID`` or ``local-dir:FOLDER``.
        tag: open_clip's name of the weights; empty for other ones.
        dtype: type of the convolutions and matrix products, and of the features.
        mean, std, size, interpolation, resize_mode, fill_color: the preprocessing that the weights were trained with;
            ``size`` is an int, or (height, width) if the image is not square.
        tokenizer: list of n strings -> int64 [n, context_length], padded, truncated if too long.
        context_length: number of tokens L in a prompt, including start and end.
        start_ids, end_id, pad_id: the tokens before and after a text, and the padding.
        causal: whether tokens after the end token cannot affect a prompt's feature, so that packing is exact.
    """

    model: "CLIP | CustomTextCLIP"
    architecture: str = ""
    tag: str = ""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: "SimpleTokenizer | HFTokenizer",
        name: str,
        weights_id: str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.tokenizer, self.name, self.id, self.dtype = tokenizer, name, weights_id, dtype
        preprocess = self.model.visual.preprocess_cfg
        self.mean, self.std = tuple(preprocess["mean"]), tuple(preprocess["std"])
        self.interpolation, self.resize_mode = preprocess["interpolation"], preprocess["resize_mode"]
        self.fill_color = preprocess.get("fill_color", 0)
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
        """Stay in evaluation mode: training on top must not change the batch statistics."""
        return super().train(False)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode preprocessed images: [N, 3, H, W] -> [N, D], not normalised."""
        return self.model.encode_image(images.to(self.dtype), normalize=False)

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Encode token ids by open_clip's own text tower: [n, context_length] -> [n, D], not normalised."""
        return self.model.encode_text(ids, normalize=False)

    def warn_of_unknown_names(self, classnames: Sequence[str]) -> None:
        """Warn if this is an embedded model, and class names are of another world than its own."""
        unknown = micro.unknown_names(self.architecture, classnames) if self.architecture in micro.NAMES else ()
        if unknown:
            fits = next(
                (f", such as {name}" for name in micro.LARGEST if not micro.unknown_names(name, classnames)), ""
            )
            warn_once(
                f"{self.name} has never seen the words of {len(unknown)} of {len(classnames)} class names, such as "
                f"'{unknown[0]}': it cannot know these classes, so choose another backbone (-b){fits}"
            )

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.logit_scale.device

    @property
    def logit_scale(self) -> Tensor:
        """The natural logarithm of the scale, as in open_clip."""
        return self.model.logit_scale

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        return self.model.visual

    @property
    def text(self) -> "CLIP | TextTransformer":
        """The module that holds the text tower's parts; in open_clip's plain CLIP it is the model itself."""
        return getattr(self.model, "text", self.model)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The token embeddings [vocabulary, W].

        Raises:
            ValueError: a Hugging Face text tower, which accepts strings only.
        """
        if not hasattr(self.text, "token_embedding"):
            raise ValueError(
                f"the text tower of backbone '{self.name}' accepts strings only, no embeddings, so prompts cannot be "
                "learned on it; choose a backbone with open_clip's own text tower"
            )
        return self.text.token_embedding

    @property
    def positional_embedding(self) -> Tensor:
        """The positional embeddings [context_length, W]."""
        return self.text.positional_embedding

    @property
    def resblocks(self) -> nn.ModuleList:
        """The residual attention blocks of the text tower."""
        return self.text.transformer.resblocks

    @property
    def ln_final(self) -> nn.Module:
        """The LayerNorm after the last block of the text tower."""
        return self.text.ln_final

    @property
    def text_projection(self) -> Tensor | nn.Linear | None:
        """The projection into the joint space; as a matrix it is [W, D]."""
        return self.text.text_projection


def _is_causal(text: "CLIP | TextTransformer") -> bool:
    pool = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
    return (
        getattr(text, "attn_mask", None) is not None
        and getattr(text, "cls_emb", None) is None  # CoCa's class token attends to the padding
        and pool in ("argmax", "eos")
        and all(isinstance(block.attn, nn.MultiheadAttention) for block in text.transformer.resblocks)
    )


def load_backbone(name: str, precision: str = "fp32", device: str | torch.device = "cpu") -> Backbone:
    """Load a CLIP once per process; the same arguments return the same object, unless its files change.

    Args:
        name: one of ``OPENAI`` or a shipped model (``micro``, ``micro-a``, ...), in upper or lower case; ``ARCH@TAG``,
            any pair of ``open_clip.list_pretrained()``; ``ARCH@FILE``, a local .pt, .pth or .safetensors;
            ``local-dir:FOLDER`` or ``hf-hub:ID``, as in open_clip; ``ARCH@random``, the same random weights each time,
            for benchmarks. No other name gives random weights. With a file, CLIP's names (ViT-B/32) mean QuickGELU,
            unless an ``open_clip_config.json`` beside it decides.
        precision: fp32, fp16, bf16, or amp, which holds the weights in fp32. On a CPU fp16 becomes fp32.
        device: the device of the weights.

    Returns:
        The frozen `Backbone`.

    Raises:
        ValueError: an unknown name or precision (the message lists similar ones), or a file that is not a
            checkpoint of the architecture (the message lists the first missing keys).
        FileNotFoundError: the weights are not on this machine and cannot be downloaded.

    Examples:
        >>> import unskew
        >>> backbone = unskew.load_backbone("micro")
        >>> backbone.size, backbone.context_length
        (32, 32)
    """
    if precision not in PRECISIONS:
        raise ValueError(unknown_name("precision", precision, PRECISIONS))
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device '{device}'; choose cpu, cuda or cuda:0") from error
    if precision == "fp16" and device.type == "cpu":
        _warn_fp16_once()
        precision = "fp32"
    name = spelling(str(name))
    return _load(name, "fp32" if precision == "amp" else precision, str(device), weights_state(name))


def weights_state(name: str) -> tuple[str | int, ...]:
    """Return the name of a backbone, and the paths and present states of its files, without loading it.

    A snapshot of the data does not count: the fingerprint of each run of a sweep has the present state of the weights.

    Raises:
        ValueError: see `load_backbone`.
        FileNotFoundError: see `load_backbone`.
    """
    name = spelling(name)
    source = resolve(name)
    file = find_or_download(name, source.arch, source.tag) if source.tag else source.file
    beside = sorted(path for path in source.folder.iterdir() if path.is_file()) if source.folder else []
    paths = [os.path.abspath(path) for path in ([file] if file else []) + beside]
    return name, *(part for path in paths for part in (path, *(file_state(path) or ())))


_in_memory: weakref.WeakSet[Backbone] = weakref.WeakSet()


def release() -> None:
    """Forget the loaded models, and free those that nothing else references."""
    _load.cache_clear()
    if _in_memory:  # a trainer uses one, or a reference cycle keeps one; the collection takes 0.3 s
        gc.collect()


@functools.cache
def _warn_fp16_once() -> None:
    warnings.warn("fp16 is not supported on CPUs: the backbone runs in fp32", stacklevel=3)


@functools.cache
@torch.inference_mode(False)  # gradients cannot flow through tensors that are made in inference mode
def _load(name: str, precision: str, device: str, state: tuple[str | int, ...]) -> Backbone:
    """Load a backbone; another ``state`` of its files is another call."""
    source = resolve(name)
    if source.tag:
        source = source._replace(file=find_or_download(name, source.arch, source.tag))
    file = source.file
    if file and not file.is_file():
        raise MissingWeightsError(f"backbone '{name}': there is no file '{file}'")
    digest = hash_file(file) if file else ""
    if source.folder and file:
        model, variant = _create_from_config(source.arch, source.folder, file, precision)
        tokenizer = _load_tokenizer(source.arch if ":" in source.arch else f"local-dir:{source.folder}")
    else:
        tokenizer = _load_tokenizer(source.arch)
        model, variant = _create(name, source, digest, precision)
    weights_id = f"{variant}@{(digest or hash_tensors(model.state_dict().values()))[:16]}"
    backbone = Backbone(model, tokenizer, name, weights_id, PRECISIONS[precision]).to(device)
    backbone.architecture, backbone.tag = variant if not variant.startswith("config-") else source.arch, source.tag
    _in_memory.add(backbone)
    return backbone


@contextlib.contextmanager
def _loading(arch: str, file: Path | None) -> Iterator[None]:
    """Keep the caller's random stream, and report a file that is not a checkpoint of the architecture in one line."""
    root = logging.getLogger()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), contextlib.ExitStack() as stack:
        torch.manual_seed(0)  # for @random
        root.addFilter(_is_not_about_missing_weights)
        stack.callback(root.removeFilter, _is_not_about_missing_weights)
        warnings.filterwarnings("ignore", message=r".*(torch\.jit|TorchScript)")
        try:
            yield
        except DAMAGE as error:
            if not file:
                raise
            raise ValueError(f"'{file}' is not a checkpoint of {arch}: {_summary(error)}") from error


def _is_not_about_missing_weights(record: logging.LogRecord) -> bool:
    """Drop open_clip's warning of random weights: they are asked for, or the weights are loaded after it."""
    return "Model initialized randomly" not in record.getMessage()


def _create(name: str, source: Source, digest: str, precision: str) -> tuple[nn.Module, str]:
    """Create an open_clip model on the CPU; also return its architecture with the activation that the weights need."""
    import open_clip
    from open_clip import pretrained

    arch, tag, file, _ = source
    # A local file gets the preprocessing of the architecture's first known weights.
    tags = [tag] if tag else pretrained.list_pretrained_tags_by_model(arch)[:1]
    known = pretrained.get_pretrained_cfg(arch, tags[0]) if tags else {}
    preprocess = {key: known[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in known}
    from_openai = digest in openai_hashes()
    # open_clip only warns if tag and architecture disagree.
    quick = bool(from_openai or (tag and known.get("quick_gelu")))
    if file and not tag and not quick and is_guess(name, arch):
        used, other = ("QuickGELU", "GELU") if arch.endswith("-quickgelu") else ("GELU", "QuickGELU")
        warn_once(
            f"backbone '{name}': the file does not say its activation, so {used} is used, as in {arch}; for weights "
            f"trained with {other} put an {_model_folder.CONFIG} beside the file"
        )
    with _loading(arch, file):
        model = open_clip.create_model(
            arch,
            pretrained=str(file) if file else None,
            precision=precision,
            force_quick_gelu=quick,
            force_preprocess_cfg=preprocess,
            pretrained_text=False,
            weights_only=not from_openai,
        )
    return model, f"{arch}-quickgelu" if quick and not arch.endswith("-quickgelu") else arch


def _create_from_config(arch: str, folder: Path, file: Path, precision: str) -> tuple[nn.Module, str]:
    """Create the open_clip model of a folder's config on the CPU; also return a name of its architecture."""
    import open_clip

    content = _model_folder.read_config(folder)
    if ":" not in arch:
        _model_folder.check_architecture(folder, content, arch, open_clip.get_model_config(arch))
    with _loading(f"'{folder / _model_folder.CONFIG}'", file):
        model = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, precision=precision, pretrained_text=False
        )
        open_clip.load_checkpoint(model, str(file))
    return model, f"config-{_model_folder.hash_config(content)}"


def _summary(error: Exception) -> str:
    """Summarise a loading error in one line, with the first three keys of a list."""
    if isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error):
        return "it holds more than plain tensors; save its state_dict with safetensors or torch.save"
    first, *rest = str(error).strip().splitlines() or [""]
    parts = []
    for line in rest[:2] if first.startswith("Error(s) in loading") else ():
        keys = re.findall(r'"([^"]+)"', line)
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        parts.append(f"{line.split(': ')[0].strip()}: {', '.join(keys[:3])}{more}" if keys else line.strip())
    return "; ".join(parts) or f"it cannot be read ({type(error).__name__}{first and ': '}{first})"


def _load_tokenizer(arch: str) -> "SimpleTokenizer | HFTokenizer":
    import open_clip

    if arch in micro.NAMES:
        return micro.tokenizer(arch)
    try:
        return open_clip.get_tokenizer(arch)
    except (ImportError, OSError) as error:
        raise ValueError(
            f"the tokenizer of {arch} is on the Hugging Face hub: pip install transformers and run once with "
            f"internet ({' '.join(str(error).split())[:150]})"
        ) from error
