"""``DATASET.TRAIN_ON_VAL`` gives methods without a validation set all labelled images."""

import pytest
from building import build

from unskew.runs.run import Run


def images(trainer, split):
    return {item.impath for item in getattr(trainer.dataset, split)}


@pytest.mark.parametrize("shots", [1, 8, -1])
def test_train_has_the_images_of_train_and_val(shots, data_root, tmp_path):
    usual, together = (
        build("ZeroshotCLIP", data_root, tmp_path, "DATASET.TRAIN_ON_VAL", on, shots=shots) for on in (False, True)
    )
    assert images(usual, "val")
    assert images(together, "train_x") == images(usual, "train_x") | images(usual, "val")
    assert len(together.dataset.train_x) == len(usual.dataset.train_x) + len(usual.dataset.val)
    assert together.dataset.val == []
    assert images(together, "test") == images(usual, "test")


def test_a_finished_run_is_another_one(data_root, tmp_path):
    def run(*opts):
        return Run("digits", "ZeroshotCLIP", shots=1, seed=1, root=data_root, folder=str(tmp_path), opts=opts)

    from unskew.runs.run import execute

    execute(run())
    assert execute(run("DATASET.TRAIN_ON_VAL", False)) == execute(run())
    with pytest.raises(ValueError, match=r"DATASET\.TRAIN_ON_VAL"):
        execute(run("DATASET.TRAIN_ON_VAL", True))


def test_a_trainer_that_selects_on_val_says_that_it_is_missing(data_root, tmp_path):
    trainer = build("GLA", data_root, tmp_path, "DATASET.TRAIN_ON_VAL", True)
    with pytest.raises(ValueError, match=r"no val split: set DATASET\.TRAIN_ON_VAL"):
        trainer.train()
    with pytest.raises(ValueError, match=r"DATASET\.TRAIN_ON_VAL to False"):
        build("Backdoor", data_root, tmp_path, "DATASET.TRAIN_ON_VAL", True, "TRAINER.BACKDOOR.WEIGHTS", "val")
