from .clip.backbones import load_backbone
from .clip.features import encode_images
from .clip.text import zeroshot_classifier
from .config._files import list_backbones, list_datasets, list_trainers
from .data.dataset import DATASET_REGISTRY, DatasetBase, Datum
from .debias.combination import adjust
from .debias.gla import GLA
from .debias.io import read_prior
from .debias.metrics import classification_metrics, prior_groups
from .debias.mixture import combine_members
from .debias.prior import PriorEstimate, estimate_log_prior
from .debias.temperature import fit_temperature
from .engine.clip_trainer import CLIPTrainer
from .engine.trainer import TRAINER_REGISTRY
from .micro.weights import true_log_prior
from .runs.launch import sweep
from .runs.run import Run, load_run, train
from .runs.tables import results
from .runs.tables.records import summarize

__all__ = [
    "DATASET_REGISTRY",
    "GLA",
    "TRAINER_REGISTRY",
    "CLIPTrainer",
    "DatasetBase",
    "Datum",
    "PriorEstimate",
    "Run",
    "adjust",
    "classification_metrics",
    "combine_members",
    "encode_images",
    "estimate_log_prior",
    "fit_temperature",
    "list_backbones",
    "list_datasets",
    "list_trainers",
    "load_backbone",
    "load_run",
    "prior_groups",
    "read_prior",
    "results",
    "summarize",
    "sweep",
    "train",
    "true_log_prior",
    "zeroshot_classifier",
]

__version__: str
