# %% [markdown]
# # 1. Debias anybody's logits
#
# All that is needed are the logits of a model and the labels of a few images. The logits here are those of the embedded
# zero-shot model `micro` on handwritten digits; NumPy arrays of any other model work as well.

# %%
import numpy as np

import unskew

run = unskew.train("digits", "ZeroshotCLIP")
logits, labels = run.predictions["logits"].numpy(), run.predictions["labels"].numpy()  # [N, C] and [N]
order = np.random.default_rng(0).permutation(len(labels))
few, rest = order[:100], order[100:]  # 100 images have labels for us; the others are to be classified
print("images with labels:", len(few), " to classify:", len(rest), " classes:", logits.shape[1])

# %% [markdown]
# The model prefers some classes: it finds far too many images of them, and hardly any of the others.


# %%
def show(predicted):
    """Print the accuracy and, for each class, a bar of its predictions beside its number of images."""
    print(f"accuracy {100 * (predicted == labels[rest]).mean():.1f}%   (#: 4 predictions)")
    for label, name in enumerate(run.metrics["classnames"]):
        count = (predicted == label).sum()
        print(f"{name:>6} {count:4} of {(labels[rest] == label).sum():3} {'#' * (count // 4)}")


show(logits[rest].argmax(1))

# %% [markdown]
# `GLA` estimates the bias from the labelled images, as the label prior q that the model shows, and subtracts log q.

# %%
gla = unskew.GLA().fit(logits[few], None, labels[few])
show(gla.predict(logits[rest]))

# %% [markdown]
# The estimate comes with standard deviations. A class whose log q is far below the others was rarely found before.

# %%
print(gla.summary())
for name, log_q, deviation in zip(run.metrics["classnames"], gla.log_q_, gla.log_q_deviation_, strict=True):
    print(f"{name:>6} log q {log_q:5.1f} ± {deviation:.1f}")

# %% [markdown]
# Without any label, q can be estimated on the images to classify, if their classes are about equally frequent. With a
# fine-tuned model of the same classes, pass its logits too: `unskew.GLA().fit(zs, ft, labels)` and `gla.predict(zs,
# ft)`.

# %%
unlabelled = unskew.GLA(prior="unlabelled").fit(logits[rest], None)
show(unlabelled.predict(logits[rest]))
