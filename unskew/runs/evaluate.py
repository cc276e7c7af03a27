"""Evaluation of a trained model without training (``--eval-only``), and building a run without starting it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from unskew import config
from unskew.data.snapshot import with_snapshot
from unskew.data.transfer import read_source, saved_config
from unskew.engine import fingerprint
from unskew.engine.results import results_of, write_results
from unskew.engine.run_dir import RunDir, dataset_label
from unskew.runs import tables
from unskew.runs.run import Run, check_root, with_threads
from unskew.utils import processes

if TYPE_CHECKING:
    from unskew.engine.trainer import SimpleTrainer

# Keys of the trained run: those that its weights need, and those that draw the sample on which a trainer may fit again.
_WEIGHTS = ("MODEL.", "TRAINER.", "INPUT.")
_SAMPLE = ("SEED", "DATASET.SEED", "DATASET.NUM_SHOTS", "DATASET.NUM_VAL_SHOTS")

_NAMES = ("DATASET.NAME", "TRAINER.NAME", "TRAINER.CLASS", "MODEL.BACKBONE.NAME")


def with_settings_of(model_dir: str, run: Run) -> Run:
    """Return ``run`` with the settings in the ``config.yaml`` of a trained run, unless ``run`` gives other ones.

    These are trainer, backbone, seed, shots and the keys below MODEL, TRAINER and INPUT. If ``run`` names no dataset,
    dataset and all keys below DATASET are those of the trained run too.

    Args:
        model_dir: the folder of the trained run. A folder without ``config.yaml``, such as CoOp's, changes nothing.
        run: the evaluation; its trainer, backbone and dataset may be empty.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: its ``config.yaml`` is damaged.
    """
    if not Path(model_dir).is_dir():
        raise FileNotFoundError(f"--model-dir '{model_dir}' is not a folder: pass the folder of a finished run")
    saved = saved_config(model_dir)
    if not saved:
        return run
    if source := saved.get("TEST.MODEL_DIR"):
        raise ValueError(f"--model-dir '{model_dir}' holds an evaluation of the run in '{source}': pass that folder")
    dataset, trainer, _, backbone = (str(saved.get(key, "")) for key in _NAMES)
    given = {
        *run.opts[::2],
        *(dict(config.flatten(config.read_yaml(Path(run.config_file)))) if run.config_file else ()),
    }
    flags = {"DATASET.ROOT": run.root or None, "DATASET.NUM_SHOTS": run.shots, "SEED": run.seed}
    excluded = {*_NAMES, *given, *(key for key, value in flags.items() if value is not None)}
    excluded |= {*fingerprint.NOT_IDENTITY} - {"DATASET.ROOT"}
    kept = _WEIGHTS if run.dataset else (*_WEIGHTS, "DATASET.")
    values = [
        part
        for key, value in saved.items()
        if key not in excluded and (key.startswith(kept) or key in _SAMPLE)
        for part in (key, value)
    ]
    trainer = run.trainer or trainer
    has_own = config.has_members(config.check_name("trainers", trainer)) or "MODEL.BACKBONE.NAME" in given
    backbone = run.backbone or ("" if has_own else backbone)
    opts = (*values, *run.opts)
    return replace(run, dataset=run.dataset or dataset, trainer=trainer, backbone=backbone, opts=opts)


def label(cfg: CfgNode, epoch: int | None = None) -> str:
    """Return the name of an evaluation's folder: the dataset, then what is not all classes, test and the kept epoch.

    Examples are ``digits``, ``digits-new`` and ``digits-val-epoch5``.
    """
    half, split = cfg.DATASET.SUBSAMPLE_CLASSES, cfg.TEST.SPLIT
    parts = [half] * (half != "all") + [split] * (split != "test") + [f"epoch{epoch}"] * (epoch is not None)
    return "-".join([dataset_label(cfg), *parts])


def _described(run: Run, model_dir: str, epoch: int | None) -> tuple[CfgNode, Path | None]:
    """Return the config of an evaluation, with the trained run in it, and its folder if it has one."""
    cfg = run.config
    chosen = run.folder or dict(zip(run.opts[::2], run.opts[1::2], strict=True)).get("OUTPUT_DIR")
    folder = Path(chosen) if chosen else Path(model_dir) / "eval" / label(cfg, epoch) if model_dir else None
    values: dict[str, object] = {"TEST.MODEL_DIR": str(model_dir), "TEST.EPOCH": -1 if epoch is None else epoch}
    return config.derive(cfg, {**values, "OUTPUT_DIR": str(folder)} if folder else values), folder


@with_snapshot
def finished_evaluation(run: Run, model_dir: str, epoch: int | None = None) -> dict | None:
    """Return the metrics of a finished evaluation of a trained run with a config; ``None`` without one.

    An evaluation with another config, or before the run was trained again, does not count, see
    `unskew.engine.fingerprint.files`.

    Args:
        run: the config to evaluate with.
        model_dir: the folder of the trained run.
        epoch: the epoch to load.
    """
    cfg, folder = _described(run, model_dir, epoch)
    if folder is None or not model_dir or not RunDir(folder).is_finished_run_of(cfg):
        return None
    metrics = tables.read_metrics(RunDir(folder).metrics)
    return None if tables.is_outdated(metrics, model_dir) else metrics


@with_threads
@with_snapshot
def evaluate(run: Run, model_dir: str = "", epoch: int | None = None, console: bool = True) -> tuple[dict, Path | None]:
    """Test the model in a run's folder with the config of ``run``, see `with_settings_of`.

    The folder of ``run``, by default ``<model_dir>/eval/<dataset>``, gets ``config.yaml``, ``log.txt``,
    ``predictions.safetensors``, ``metrics.json``, with ``evaluated_from``, and in the end ``done``. A finished
    evaluation is only read, see `finished_evaluation`. Without ``model_dir`` there is no ``done``, and without a folder
    too nothing is written.

    Args:
        run: the config to evaluate with.
        model_dir: the folder of the trained run; may be empty if the trainer trains nothing.
        epoch: the epoch to load; default: the best, else the last.
        console: print the log lines too.

    Returns:
        The metrics and the folder.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: ``model_dir`` is missing, its weights belong to another backbone or trainer, or the folder is that
            of a trained run.
    """
    cfg, folder = _described(run, model_dir, epoch)
    if (finished := finished_evaluation(run, model_dir, epoch)) is not None:
        return finished, folder
    check_root(cfg)
    if model_dir:
        _check_weights(cfg, model_dir)
        _check_epoch(cfg, model_dir, epoch)
    main = processes.is_main()  # only one of several processes writes
    if folder:
        _check_folder(folder, model_dir)
    from unskew.utils.logging import setup_logger

    place = RunDir(folder).start_log() if folder and main else None
    with setup_logger(place, console=console and main):
        metrics, predictions = _test(cfg, model_dir, epoch)
        with processes.together():
            if folder and main:
                RunDir(folder).prepare(cfg)
                write_results(RunDir(folder), metrics, predictions)
                if model_dir:
                    RunDir(folder).finish(cfg)
    return metrics, folder


def _test(cfg: CfgNode, model_dir: str, epoch: int | None) -> tuple[dict, dict]:
    from unskew.engine.trainer import build_trainer
    from unskew.utils.seeds import set_random_seed

    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    if trainer.get_model_names() and not model_dir:
        raise ValueError(f"--eval-only needs --model-dir, the folder of a finished {cfg.TRAINER.NAME} run")
    try:
        trainer.load_model(model_dir, epoch=epoch)
    except ValueError as error:
        saved = saved_config(model_dir)
        keys = fingerprint.differing_keys(cfg, config.read_yaml(RunDir(model_dir).config)) if saved else []
        other = ", ".join(f"{key} {saved.get(key)}" for key in keys if key.startswith(_WEIGHTS))
        raise ValueError(f"{error}; the run in '{model_dir}' has {other}" if other else str(error)) from error
    trainer.test()
    return results_of(trainer, cfg, trainer.results, **(_origin(trainer, cfg) if model_dir else {}))


def _origin(trainer: "SimpleTrainer", cfg: CfgNode) -> dict[str, object]:
    """Return the entries of ``metrics.json`` that tell of the trained run."""
    model_dir = cfg.TEST.MODEL_DIR
    source = read_source(model_dir)
    dataset = source.dataset if source else saved_config(model_dir).get("DATASET.NAME")
    transfer = getattr(trainer, "transfer", "")
    entries: dict[str, object] = {"evaluated_from": model_dir, "source": dataset, "transfer": transfer}
    if cfg.TEST.EPOCH >= 0:
        entries["epoch"] = cfg.TEST.EPOCH
    state = {"source_state": tables.state_of_training(model_dir), "subsample": cfg.DATASET.SUBSAMPLE_CLASSES}
    return {name: value for name, value in entries.items() if value} | state


@with_threads
def build(run: Run) -> None:
    """Build a run's trainer and data, which checks both, and train nothing."""
    from unskew.engine.trainer import build_trainer
    from unskew.utils.logging import setup_logger
    from unskew.utils.seeds import set_random_seed

    check_root(run.config)
    with setup_logger(run.folder or None, console=True):
        set_random_seed(run.config.SEED)
        build_trainer(run.config)


def _check_folder(folder: Path, model_dir: str) -> None:
    """Raise ``ValueError`` if an evaluation would write into the folder of a trained run."""
    same = model_dir and folder.resolve() == Path(model_dir).resolve()
    trained = RunDir(folder).is_finished and not saved_config(folder).get("TEST.MODEL_DIR")
    if same or trained or RunDir(folder).has_checkpoints:
        raise ValueError(f"--output-dir '{folder}' holds a trained run, whose files are kept: choose another folder")


def _check_epoch(cfg: CfgNode, model_dir: str, epoch: int | None) -> None:
    """Raise ``FileNotFoundError`` if no model below a run's folder, or its base's, has a checkpoint of the epoch."""
    if epoch is None:
        return
    bases = (str(value) for key, value in config.flatten(cfg) if key.endswith(".BASE_DIR") and value)
    files = [file.name for folder in (model_dir, *bases) for file in Path(folder).rglob("model.pth.tar-*")]
    epochs = sorted({int(match[1]) for name in files if (match := re.fullmatch(r"model\.pth\.tar-(\d+)", name))})
    if epoch not in epochs:
        there = f"it has those of {', '.join(map(str, epochs))}" if epochs else "it has none"
        raise FileNotFoundError(f"--load-epoch {epoch}: '{model_dir}' has no checkpoint of that epoch; {there}")


def _check_weights(cfg: CfgNode, model_dir: str) -> None:
    """Raise ``ValueError`` for weights of another backbone or trainer, even if their shapes fit."""
    saved = saved_config(model_dir)
    keys = ("TRAINER.NAME",) if config.has_members(cfg.TRAINER.NAME) else ("MODEL.BACKBONE.NAME", "TRAINER.NAME")
    for key in keys:
        value = dict(config.flatten(cfg))[key]
        if saved.get(key, value) != value:
            raise ValueError(
                f"the run in '{model_dir}' has {key} {saved[key]}, this one has {value}: evaluate it with {saved[key]}"
            )
