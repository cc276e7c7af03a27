"""Names that the modules of Dassl 0.6.3 import from elsewhere, which scripts import from there."""


def _by_name(modules: dict[str, str]) -> dict[str, str]:
    """Return ``{name: "module:attribute"}`` of ``{module: "name name=attribute ..."}``."""
    table = {}
    for module, names in modules.items():
        for name in names.split():
            name, _, attribute = name.partition("=")
            table[name] = f"{module}:{attribute or name}"
    return table


_MODULES = (
    "PIL collections copy datetime errno functools gdown glob json logging math np=numpy os osp=os.path pd=pandas "
    "pickle random re shutil sys tarfile time torch warnings zipfile nn=torch.nn F=torch.nn.functional "
    "T=torchvision.transforms model_zoo=torch.utils.model_zoo"
)

# Dassl's trainers by the module that has them; `dassl.engine` offers them, too.
_TRAINERS = {
    "da": "ADDA CDAC DAEL DANN M3SDA MCD MME SE AdaBN SourceOnly",
    "dg": "DAELDG DDAIG CrossGrad DomainMix Vanilla",
    "ssl": "EntMin FixMatch MeanTeacher MixMatch SupBaseline",
}

# Each name with its module, or with "module:attribute". A key "module.name" is an exception for one module of Dassl.
IMPORTED: dict[str, str] = {
    **{name.partition("=")[0]: name.rpartition("=")[2] for name in _MODULES.split()},
    "dassl.data.transforms.transforms.F": "torchvision.transforms.functional",
    **{
        f"dassl.engine.{name}": f"dassl.engine.{kind}:{name}"
        for kind, names in _TRAINERS.items()
        for name in names.split()
    },
    **_by_name(
        {
            "PIL": "Image ImageEnhance ImageOps",
            "collections": "OrderedDict defaultdict",
            "contextlib": "contextmanager",
            "difflib": "SequenceMatcher",
            "functools": "partial",
            "sklearn.metrics": "confusion_matrix f1_score",
            "tabulate": "tabulate",
            "torch": "Tensor",
            "torch.autograd": "Function",
            "torch.hub": "load_state_dict_from_url",
            "torch.optim": "Optimizer",
            "torch.optim.lr_scheduler": "LambdaLR _LRScheduler",
            "torch.utils.data": "RandomSampler Sampler SequentialSampler TorchDataset=Dataset",
            "torch.utils.tensorboard": "SummaryWriter",
            "torchvision.transforms": "CenterCrop ColorJitter Compose GaussianBlur InterpolationMode Normalize "
            "RandomApply RandomCrop RandomGrayscale RandomHorizontalFlip RandomResizedCrop Resize ToTensor",
            "tqdm": "tqdm",
            "typing": "Any Callable List Optional Type Union",
            "wilds": "wilds_get_dataset=get_dataset",
            "yacs.config": "CN=CfgNode",
            "dassl.data": "DataManager",
            "dassl.data.datasets": "DATASET_REGISTRY DatasetBase Datum build_dataset",
            "dassl.data.samplers": "build_sampler",
            "dassl.data.transforms": "INTERPOLATION_MODES build_transform",
            "dassl.data.transforms.autoaugment": "CIFAR10Policy ImageNetPolicy SVHNPolicy",
            "dassl.data.transforms.randaugment": "RandAugment RandAugment2 RandAugmentFixMatch",
            "dassl.engine": "SimpleNet TRAINER_REGISTRY TrainerX TrainerXU",
            "dassl.evaluation": "EVALUATOR_REGISTRY build_evaluator",
            "dassl.metrics": "compute_accuracy",
            "dassl.modeling": "BACKBONE_REGISTRY Backbone HEAD_REGISTRY NETWORK_REGISTRY build_backbone build_head "
            "build_network",
            "dassl.modeling.ops": "Attention Conv2dDynamic MixStyle ReverseGrad mixup",
            "dassl.modeling.ops.utils": "create_onehot ema_model_update linear_rampup sharpen_prob shuffle_index "
            "sigmoid_rampup",
            "dassl.optim": "build_lr_scheduler build_optimizer",
            "dassl.optim.radam": "RAdam",
            "dassl.utils": "AverageMeter MetricMeter Registry check_availability check_isfile count_num_param "
            "init_network_weights listdir_nohidden load_checkpoint load_pretrained_weights mkdir_if_missing "
            "open_specified_layers read_image resume_from_checkpoint save_checkpoint tolist_if_not",
        }
    ),
}
