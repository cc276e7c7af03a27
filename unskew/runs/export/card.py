"""The metadata of an exported file and its model card."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

import unskew
from unskew.engine.run_dir import RunDir, shots_label
from unskew.micro import weights as micro
from unskew.runs.tables import read_metrics

SHOWN = 5  # classes of the largest and of the smallest prior

OPEN_CLIP = """
import json, open_clip, torch
from PIL import Image
from safetensors import safe_open

with safe_open("{file}", "pt") as file:
    weight, bias, facts = file.get_tensor("weight"), file.get_tensor("bias"), file.metadata()
backbone, temperature = json.loads(facts["backbone"]), float(facts["temperature"])
model, _, preprocess = open_clip.create_model_and_transforms(backbone["architecture"], pretrained={weights})
with torch.no_grad():
    x = model.eval().encode_image(preprocess(Image.open("image.jpg").convert("RGB"))[None], normalize=True)  # [1, D]
probabilities = ((x @ weight.T + bias) / temperature).softmax(-1)
print(json.loads(facts["classes"])[probabilities.argmax()], float(probabilities.max()))
"""

ONNX_HEAD = """
import json, numpy as np, onnxruntime

session = onnxruntime.InferenceSession("{file}")
facts = session.get_modelmeta().custom_metadata_map
features = np.load("features.npy")  # {shape}, float32, from the image tower; the graph normalises them
logits, probabilities = session.run(None, {{"features": features}})
print(np.array(json.loads(facts["classes"]))[probabilities.argmax(1)])
"""

ONNX_MODEL = """
import json, numpy as np, onnxruntime

session = onnxruntime.InferenceSession("{file}")
facts = session.get_modelmeta().custom_metadata_map
images = np.load("images.npy")  # {shape}, float32, RGB in [0, 1]; the graph normalises them
logits, probabilities = session.run(None, {{"images": images}})
print(np.array(json.loads(facts["classes"]))[probabilities.argmax(1)])
"""

_INPUTS = {
    "head": "the image feature; logits = W x + bias with x the normalised feature, or the mean over the crops of their "
    "normalised features",
    "model": "RGB images in [0, 1], resized and cropped; the graph normalises them",
}


def metadata_of(content: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Return the metadata of an exported file; lists and nodes are JSON.

    Args:
        content: that of the run's ``model.json``.
        kind: ``head`` or ``model``.
    """
    texts = {
        "created_by": f"unskew {unskew.__version__}",
        "kind": kind,
        "input": _INPUTS[kind],
        "license": licence_of(content),
        **{key: content[key] for key in ("dataset", "trainer")},
    }
    nodes = {key: content[key] for key in ("backbone", "preprocessing", "models") if key in content}
    nodes["classes"] = classes_of(content)
    temperature = repr(float(content.get("temperature", 1.0)))
    return {**texts, "temperature": temperature, **{key: json.dumps(value) for key, value in nodes.items()}}


def licence_of(content: Mapping[str, Any]) -> str:
    """Return the licences of all weights in a run's ``model.json``."""
    models: Sequence[Mapping[str, Any]] = content.get("models", [content])
    return "; ".join(dict.fromkeys(str(model["license"]) for model in models))


def classes_of(content: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes that a run predicts: the tested ones."""
    names, tested = content["classes"], content.get("test_classes")
    return names if tested is None else [names[label] for label in tested]


def card_of(folder: str | Path, content: Mapping[str, Any], kind: str, out: Path) -> str:
    """Return the model card of an exported run as Markdown.

    Args:
        folder: the run's folder.
        content: that of its ``model.json``.
        kind: ``head`` or ``model``.
        out: the exported file.
    """
    metrics = read_metrics(RunDir(folder).metrics)
    weights = "one linear layer on the image features of" if kind == "head" else "the image tower and head on"
    towers = [model["backbone"] for model in content.get("models", [content])]
    names = ", ".join(str(tower["name"]) for tower in towers)
    facts = [
        ("dataset", content["dataset"]),
        ("images", f"{shots_label(metrics['shots'], metrics['longtail'])}, seed {metrics['seed']}"),
        ("classes", f"{len(classes_of(content)):,}"),
        ("method", content["trainer"]),
        ("backbone", "; ".join(f"{tower['name']} ({tower['id']})" for tower in towers)),
        ("licence of the weights", licence_of(content)),
    ]
    parts = [
        f"# {_plain(content['trainer'])} on {_plain(content['dataset'])}",
        f"`{out.name}` is {weights} {_plain(names)}, exported by unskew {unskew.__version__}.",
        _table(facts, ["", ""]),
        "## Accuracy",
        "Percent of the test images:",
        _table(_accuracies(metrics), ["", "%"]),
        *_prior(Path(folder)),
        "## Load",
        _how_to_load(content, kind, out),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _plain(text: object) -> str:
    """Return a text on one line that ends no cell of a table and no code, and starts no tag."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _table(rows: Iterable[Sequence[object]], headers: Sequence[str]) -> str:
    cells = [[_plain(cell) for cell in row] for row in rows]
    return tabulate(cells, headers, "github", disable_numparse=True) if cells else ""


def _accuracies(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = {key: value for key, value in metrics.items() if key == "accuracy" or key.endswith("_accuracy")}
    return [(key.replace("_", " "), f"{value:.1f}") for key, value in shown.items() if isinstance(value, float)]


def _prior(folder: Path) -> list[str]:
    """Return the section on the class bias in the run's ``prior.csv``; nothing without one."""
    file = RunDir(folder).prior
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as rows:
        log_q = sorted(((float(row["log_q"]), row["class"]) for row in csv.DictReader(rows)), reverse=True)
    shown = log_q if len(log_q) <= 2 * SHOWN else [*log_q[:SHOWN], *log_q[-SHOWN:]]
    text = "The label prior q that the zero-shot model shows on this dataset, and that the method removes"
    text += f"; the {SHOWN} largest and smallest:" if len(shown) < len(log_q) else ":"
    return ["## Class bias", text, _table([(name, f"{value:.2f}") for value, name in shown], ["class", "log q"])]


def _weights(backbone: Mapping[str, str]) -> str:
    """Return the argument ``pretrained`` of open_clip for a backbone, as code."""
    if backbone["tag"]:
        return 'backbone["tag"]'
    if backbone["name"] in micro.NAMES:
        return f"str(unskew.micro.weights.model_path({backbone['name']!r}))"
    return "None" if ":" in backbone["architecture"] else '"FILE_OF_THE_WEIGHTS"'  # a folder has its weights


def _how_to_load(content: Mapping[str, Any], kind: str, out: Path) -> str:
    crops, size = content["preprocessing"]["crops"], content["preprocessing"]["size"]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    batch = "N" if crops == 1 else f"N, {crops}"
    if out.suffix == ".safetensors":
        code, note = OPEN_CLIP, "W and bias fit any program that computes the features of the same weights."
        if (name := content["backbone"]["name"]) in micro.NAMES:
            note += f" {_plain(name)} is part of unskew and unknown to open_clip, so the code makes it known."
            code = f"import unskew.micro.weights\n{code.strip()}".replace(
                "\nbackbone, temp", "\nopen_clip.add_model_config(unskew.micro.weights.MODELS)\nbackbone, temp"
            )
        if crops > 1:
            note = f"x is the mean of the normalised features of {crops} crops of each image, which this code omits."
        code = code.format(file=out.name, weights=_weights(content["backbone"]))
    else:
        template, shape = (ONNX_HEAD, f"[{batch}, D]") if kind == "head" else (ONNX_MODEL, "")
        code = template.format(file=out.name, shape=shape or f"[{batch}, 3, {height}, {width}]")
        note = 'The preprocessing is in the metadata: `facts["preprocessing"]`.'
    return f"{note}\n\n```python\n{code.strip()}\n```"
