# %% [markdown]
# # 2. Your own images, from a folder to an exported head
#
# All that is needed is a folder of images for each class. Here, 536 pictures of handwritten digits stand in for your
# photos, and the small model `micro` for CLIP; with yours, leave out this cell and choose a backbone such as
# `ViT-B/16`.

# %%
import shutil
from pathlib import Path

import unskew
from unskew.data.dataset import build_dataset

for item in build_dataset(unskew.Run("digits", "ZeroshotCLIP").config).test:
    folder = Path("photos", item.classname)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(item.impath, folder)
print({folder.name: len(list(folder.iterdir())) for folder in sorted(Path("photos").iterdir())})

# %% [markdown]
# The images are divided into train, val and test, the same for every seed. Four training images per class and three
# seeds show whether GLA helps. `unskew.summarize` gives the mean with its 95% interval, and the difference from
# zero-shot CLIP with its p-value.

# %%
runs = unskew.sweep("folder", ["ZeroshotCLIP", "GLA"], shots=[4], seeds=[1, 2, 3], root="photos", backbones=["micro"])
frame = unskew.summarize("output", compare="ZeroshotCLIP")
print(frame[["trainer", "mean", "low", "high", "seeds", "difference", "adjusted_p"]].round(3).to_string(index=False))

# %% [markdown]
# A finished run predicts any images, from its folder alone. `unskew predict RUN IMAGE ...` does the same in a terminal.

# %%
run = unskew.load_run(runs[-1].path)
images = sorted(Path("photos", "seven").iterdir())[:3]
proba = run.predict_proba(images)
for image, row in zip(images, proba.probabilities, strict=True):
    print(image.name, proba.classes[row.argmax()], f"{100 * row.max():.0f}%")

# %% [markdown]
# GLA over a linear base is one linear layer on the image features, so that removing the bias costs nothing when the
# model is used. `unskew export RUN --out head.safetensors` writes it, with a model card.

# %%
from unskew.runs.export import export_run

exported = export_run(run.path, "head.safetensors")
print(exported.kind, exported.file, exported.card)

# %% [markdown]
# The file needs no part of this package. Any program that computes the normalised image features of the same backbone
# can use it: [USE.md](USE.md#export) has the lines for open_clip and for Hugging Face transformers. Here, the features
# are ours, and the probabilities are those of the run.

# %%
import json

import torch
from safetensors import safe_open

with safe_open("head.safetensors", "pt") as file:
    weight, bias, facts = file.get_tensor("weight"), file.get_tensor("bias"), file.metadata()
features = unskew.encode_images(unskew.load_backbone("micro"), images)
x = torch.nn.functional.normalize(features, dim=-1)  # [3, D]
probabilities = ((x @ weight.T + bias) / float(facts["temperature"])).softmax(-1)
print([json.loads(facts["classes"])[row.argmax()] for row in probabilities], tuple(weight.shape))
print("as the run's:", torch.allclose(probabilities, torch.from_numpy(proba.probabilities), atol=1e-5))
