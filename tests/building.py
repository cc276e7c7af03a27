"""A small run of any trainer, for the trainers' tests."""

from unskew import config
from unskew.engine.trainer import build_trainer
from unskew.runs import costs
from unskew.utils.seeds import set_random_seed

SHORT = ("OPTIM.MAX_EPOCH", 2, "INPUT.VIEWS", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 8, "DATALOADER.NUM_WORKERS", 0)


def build(name, data_root, output, *opts, seed=1, shots=2, dataset="digits", backbone=""):
    """Return a trainer that trains quickly; ``opts`` are KEY, VALUE, ..."""
    flags = ("DATASET.ROOT", data_root, "OUTPUT_DIR", str(output), "DATASET.NUM_SHOTS", shots, "SEED", seed)
    cfg = config.load(dataset, backbone, name, (*SHORT, *flags, *opts))
    set_random_seed(cfg.SEED)
    return build_trainer(cfg)


def some_paths(trainer, n=40):
    return [item.impath for item in trainer.dataset.test[:n]]


def without_costs(metrics):
    """Return a run's metrics without its costs, which equal runs need not share: time, memory, images in the cache."""
    kept = {"trained_parameters"}
    return {key: value for key, value in metrics.items() if key in kept or key not in costs.NAMES}
