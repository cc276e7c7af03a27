"""Values with which PyTorch would fail are refused before data is read, and the message names the key."""

import pytest

from unskew import config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("OPTIM.LR", -0.1),
        ("OPTIM.LR", float("nan")),
        ("OPTIM.LR", float("inf")),
        ("OPTIM.MOMENTUM", -1.0),
        ("OPTIM.WEIGHT_DECAY", -1.0),
        ("OPTIM.ADAM_BETA1", 1.5),
        ("OPTIM.MAX_EPOCH", -1),
        ("OPTIM.NAME", "sdg"),
        ("OPTIM.LR_SCHEDULER", "cosin"),
        ("OPTIM.WARMUP_TYPE", "linea"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", 0),
        ("DATALOADER.TEST.BATCH_SIZE", -2),
        ("DATALOADER.NUM_WORKERS", -1),
        ("DATASET.NUM_SHOTS", 0),
        ("TEST.SPLIT", "tset"),
        ("TEST.CROPS", 3),
    ],
)
def test_a_wrong_value_names_its_key(key, value):
    with pytest.raises(ValueError, match=key) as error:
        config.load("digits", trainer="CoOp", opts=(key, value))
    assert "\n" not in str(error.value)


def test_nesterov_needs_momentum():
    opts = ("OPTIM.NAME", "sgd", "OPTIM.SGD_NESTEROV", True, "OPTIM.MOMENTUM", 0.0)
    with pytest.raises(ValueError, match=r"OPTIM\.MOMENTUM"):
        config.load("digits", trainer="CoOp", opts=opts)
    assert config.load("digits", trainer="CoOp", opts=(*opts[:4], "OPTIM.MOMENTUM", 0.9)).OPTIM.SGD_NESTEROV


def test_all_values_of_the_project_are_accepted():
    for trainer in config.names("trainers"):
        for dataset in ("digits", "digits_lt", "imagenet", "inat2018"):
            for shots in (1, 16, -1):
                assert config.load(dataset, "micro", trainer, ("DATASET.NUM_SHOTS", shots))
