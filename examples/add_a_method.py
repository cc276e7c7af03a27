# %% [markdown]
# # 3. Add a method
#
# A method is a class in a file of its own. It says what is trained (`build_model`) and how image features become logits
# (`logits`); data, cached features, training, checkpoints and the test are inherited. This one adds a trained number
# per class to the zero-shot logits. It is the simplest way to correct a class bias: fit it to a few labelled images.

# %%
from pathlib import Path

Path("classbias.py").write_text('''
import torch
import unskew


@unskew.TRAINER_REGISTRY.register()
class ClassBias(unskew.CLIPTrainer):
    """Zero-shot logits plus SCALE times a trained number per class."""

    def build_model(self):
        self.bias = torch.nn.ParameterList([torch.zeros(self.num_classes)])
        self.register_for_training("bias", self.bias, class_bound=True)

    def logits(self, image_features):  # [B, D] -> [B, C]
        zeroshot = self.cosine_logits(image_features, self.zeroshot_weights)
        return zeroshot + self.node.SCALE * self.bias[0]


def defaults():
    """Return the config keys below TRAINER.CLASSBIAS with their defaults."""
    return {"SCALE": 10.0}
''')

# %% [markdown]
# The file is a plugin. Its method now works like the others: here at one image per class, beside zero-shot CLIP, the
# zero-shot half of GLA, which estimates the bias instead, and GLA itself. The accuracies are means over two seeds.

# %%
import unskew

methods = ["ZeroshotCLIP", "ClassBias", "DebiasedZeroshot", "GLA"]
unskew.sweep("shapes", methods, shots=[1], seeds=[1, 2], plugins=["classbias.py"])
frame = unskew.results("output")
print(frame.groupby("trainer")["accuracy"].mean().round(1).loc[methods].to_string())

# %% [markdown]
# The folder of a run has the loss, the training accuracy in percent and the learning rate of each epoch.

# %%
run = unskew.train("shapes", "ClassBias", shots=1, seed=1, plugins=["classbias.py"])
lines = (run.path / "history.csv").read_text().splitlines()
print(*lines[:2], lines[-1], sep="\n")
print("trained parameters:", run.metrics["trained_parameters"])

# %% [markdown]
# GLA can use the method as its base, and keeps the epoch of the base that suits it best. That is an early one here: GLA
# takes the bias out itself.

# %%
opts = {"TRAINER.GLA.BASE": "ClassBias"}
over = unskew.train("shapes", "GLA", shots=1, seed=1, plugins=["classbias.py"], opts=opts)
print(f"the base {over.metrics['ft_accuracy']:.1f}, GLA over it {over.metrics['gla_accuracy']:.1f}")

# %% [markdown]
# Config keys are set as usual, `opts={"TRAINER.CLASSBIAS.SCALE": 1.0}`; on the command line it is `unskew train
# --plugin classbias.py -d shapes -t ClassBias --shots 1`. To add the method to the package instead, see
# [CONTRIBUTING.md](../CONTRIBUTING.md).
