"""Evaluation of a trained model without training (``--eval-only``), and building a run without starting it."""

from pathlib import Path

from yacs.config import CfgNode

from unskew import config
from unskew.runs.run import Run, check_root


def evaluate(run: Run, model_dir: str = "", epoch: int | None = None) -> None:
    """Test the model in a run's folder with the config of ``run``; the metrics are logged.

    Args:
        run: the config to evaluate with.
        model_dir: the folder of the trained run; may be empty if the trainer trains nothing.
        epoch: the epoch to load; default: the best, else the last.

    Raises:
        ValueError: ``model_dir`` is missing, or its weights belong to another backbone or trainer.
    """
    from unskew.engine.trainer import build_trainer
    from unskew.utils.seeds import set_random_seed

    check_root(run.config)
    if model_dir:
        if not Path(model_dir).is_dir():
            raise FileNotFoundError(f"--model-dir '{model_dir}' is not a folder: pass the folder of a finished run")
        _check_weights(run.config, model_dir)
    set_random_seed(run.config.SEED)
    trainer = build_trainer(run.config)
    if trainer.get_model_names() and not model_dir:
        raise ValueError(f"--eval-only needs --model-dir, the folder of a finished {run.trainer} run")
    trainer.load_model(model_dir, epoch=epoch)
    trainer.test()


def build(run: Run) -> None:
    """Build a run's trainer and data, which checks both, and train nothing."""
    from unskew.engine.trainer import build_trainer
    from unskew.utils.seeds import set_random_seed

    check_root(run.config)
    set_random_seed(run.config.SEED)
    build_trainer(run.config)


def _check_weights(cfg: CfgNode, model_dir: str) -> None:
    """Raise ``ValueError`` for weights of another backbone or trainer, even if their shapes fit."""
    file = Path(model_dir) / "config.yaml"
    if not file.is_file():  # CoOp's runs have none
        return
    saved = dict(config.flatten(config.read_yaml(file)))
    for key, value in (("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME), ("TRAINER.NAME", cfg.TRAINER.NAME)):
        if saved.get(key, value) != value:
            raise ValueError(
                f"the run in '{model_dir}' has {key} {saved[key]}, this one has {value}: evaluate it with {saved[key]}"
            )
