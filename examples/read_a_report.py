# %% [markdown]
# # 4. Where the bias is: reading a report
#
# A report answers three questions: is there a class bias, does the correction remove it, and what does that cost? The
# runs here are of `digits`, with one and 16 training images per class.

# %%
from pathlib import Path

import unskew
from unskew.runs.report import write_report

unskew.sweep("digits", ["ZeroshotCLIP", "LinearProbe", "GLA"], shots=[1, 16], seeds=[1, 2, 3])
write_report(["output"], "report.html", tables="tables")
print(*sorted(file.name for file in Path("tables").glob("*.csv")), sep="\n")  # the report's tables

# %% [markdown]
# `unskew report output` writes the same page, `report.html`. Open it in a browser; this is the top of one with more
# runs:
#
# ![The top of a report](report.png)
#
# **Is there a bias?** The section *The bias* shows log q, the prior that the zero-shot model shows, for each class.
# Without a bias, all classes have log(1/C), here -2.3. A class far above it is predicted too often, one far below it
# too rarely. The numbers are in `prior.csv` of each GLA run.

# %%
import pandas as pd

run = unskew.load_run("output/digits/GLA/micro_16shots/seed1")
prior = pd.read_csv(run.path / "prior.csv").sort_values("log_q", ascending=False)
print(prior.round(2).to_string(index=False))

# %% [markdown]
# The standard deviations tell which differences are real. In the embedded world the true prior is known, so that the
# estimate can be checked.

# %%
import numpy as np

truth = unskew.true_log_prior("micro", "digits")
estimate = pd.read_csv(run.path / "prior.csv")["log_q"]
print(f"correlation with the true log q: {np.corrcoef(truth, estimate)[0, 1]:.2f}")

# %% [markdown]
# **Does the correction remove it?** The accuracy of classes against log q is a rising line before the correction, and
# should be flat after it. The thirds of the classes by q say the same in numbers: many, medium and few pre-training
# images.

# %%
frame = unskew.results("output")
frame = frame[frame["shots"] == 16]
columns = ["accuracy", "p_many", "p_medium", "p_few", "ece"]
print(frame.groupby("trainer")[columns].mean().round(1).to_string())

# %% [markdown]
# **What does it cost?** Some accuracy on the classes that the bias had favoured, as `p_many` shows, and hardly any
# time. The section *Cost* has seconds, memory and trained parameters.
#
# **Which differences could be chance?** In *Overview*, a dot marks the best trainer and all that do not differ from it
# significantly; the intervals cover other test images and other seeds. A table in a terminal has the same numbers:

# %%
from unskew.runs import tables
from unskew.runs.tables import text_tables

print(text_tables.table(tables.collect("output"), ci=True, compare="ZeroshotCLIP"))
