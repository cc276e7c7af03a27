"""Dassl's public names, signatures and defaults, imported as a script written for it does."""

import importlib
import inspect

import pytest

pytestmark = pytest.mark.usefixtures("engine_as_dassl")

BASE_METHODS = {
    "register_model": "name='model', model=None, optim=None, sched=None",
    "get_model_names": "names=None",
    "save_model": "epoch, directory, is_best=False, val_result=None, model_name=''",
    "resume_model_if_exist": "directory",
    "load_model": "directory, epoch=None",
    "set_model_mode": "mode='train', names=None",
    "update_lr": "names=None",
    "detect_anomaly": "loss",
    "init_writer": "log_dir",
    "close_writer": "",
    "write_scalar": "tag, scalar_value, global_step=None",
    "before_train": "",
    "after_train": "",
    "before_epoch": "",
    "after_epoch": "",
    "run_epoch": "",
    "parse_batch_test": "batch",
    "model_inference": "input",
    "model_zero_grad": "names=None",
    "model_backward": "loss",
    "model_update": "names=None",
    "model_backward_and_update": "loss, names=None",
}
SIMPLE_METHODS = {
    **BASE_METHODS,
    "check_cfg": "cfg",
    "build_data_loader": "",
    "build_model": "",
    "train": "",
    "test": "split=None",
    "get_current_lr": "names=None",
}

# Of a class that of its constructor, and of each method without self; None for what is not called.
SIGNATURES = {
    "dassl.config": {"get_cfg_default": "", "clean_cfg": "cfg, trainer"},
    "dassl.data": {
        "DataManager": "cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None",
        "DataManager.show_dataset_summary": "cfg",
        "DatasetWrapper": "cfg, data_source, transform=None, is_train=False",
    },
    "dassl.data.data_manager": {
        "DataManager": "cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None",
        "DatasetWrapper": "cfg, data_source, transform=None, is_train=False",
        "build_data_loader": "cfg, sampler_type='SequentialSampler', data_source=None, batch_size=64, n_domain=0, "
        "n_ins=2, tfm=None, is_train=True, dataset_wrapper=None",
    },
    "dassl.data.datasets": {
        "DATASET_REGISTRY": None,
        "build_dataset": "cfg",
        "Datum": "impath='', label=0, domain=0, classname=''",
        "DatasetBase": "train_x=None, train_u=None, val=None, test=None",
        "DatasetBase.get_num_classes": "data_source",
        "DatasetBase.get_lab2cname": "data_source",
        "DatasetBase.check_input_domains": "source_domains, target_domains",
        "DatasetBase.is_input_domain_valid": "input_domains",
        "DatasetBase.download_data": "url, dst, from_gdrive=True",
        "DatasetBase.generate_fewshot_dataset": "*data_sources, num_shots=-1, repeat=False",
        "DatasetBase.split_dataset_by_label": "data_source",
        "DatasetBase.split_dataset_by_domain": "data_source",
    },
    "dassl.data.datasets.base_dataset": {"Datum": "impath='', label=0, domain=0, classname=''", "DatasetBase": None},
    "dassl.data.datasets.build": {"DATASET_REGISTRY": None, "build_dataset": "cfg"},
    "dassl.data.samplers": {
        "build_sampler": "sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16",
        "RandomDomainSampler": "data_source, batch_size, n_domain",
        "SeqDomainSampler": "data_source, batch_size",
        "RandomClassSampler": "data_source, batch_size, n_ins",
    },
    "dassl.data.transforms": {"INTERPOLATION_MODES": None, "build_transform": "cfg, is_train=True, choices=None"},
    "dassl.data.transforms.transforms": {
        "INTERPOLATION_MODES": None,
        "build_transform": "cfg, is_train=True, choices=None",
    },
    "dassl.engine": {
        "TRAINER_REGISTRY": None,
        "build_trainer": "cfg",
        "TrainerBase": "",
        **{f"TrainerBase.{name}": signature for name, signature in BASE_METHODS.items()},
        "TrainerBase.train": "start_epoch, max_epoch",
        "SimpleTrainer": "cfg",
        **{f"SimpleTrainer.{name}": signature for name, signature in SIMPLE_METHODS.items()},
        "TrainerX": "cfg",
        "TrainerX.parse_batch_train": "batch",
        "TrainerX.forward_backward": "batch",
        "SimpleNet": "cfg, model_cfg, num_classes, **kwargs",
        "SimpleNet.forward": "x, return_feature=False",
        "TrainerXU": "cfg",
        "TrainerXU.parse_batch_train": "batch_x, batch_u",
    },
    "dassl.engine.trainer": {"SimpleTrainer": "cfg", "TrainerX": "cfg", "TrainerXU": "cfg", "TrainerBase": ""},
    "dassl.evaluation": {"EVALUATOR_REGISTRY": None, "build_evaluator": "cfg, **kwargs"},
    "dassl.evaluation.build": {"EVALUATOR_REGISTRY": None, "build_evaluator": "cfg, **kwargs"},
    "dassl.evaluation.evaluator": {
        "EvaluatorBase": "cfg",
        "EvaluatorBase.reset": "",
        "EvaluatorBase.process": "mo, gt",
        "EvaluatorBase.evaluate": "",
        "Classification": "cfg, lab2cname=None, **kwargs",
        "Classification.reset": "",
        "Classification.process": "mo, gt",
        "Classification.evaluate": "",
    },
    "dassl.metrics": {
        "compute_accuracy": "output, target, topk=(1,)",
        "compute_distance_matrix": "input1, input2, metric='euclidean'",
        "cosine_distance": "input1, input2",
        "euclidean_squared_distance": "input1, input2",
    },
    "dassl.modeling": {
        "BACKBONE_REGISTRY": None,
        "Backbone": "",
        "build_backbone": "name, verbose=True, **kwargs",
        "HEAD_REGISTRY": None,
        "build_head": "name, verbose=True, **kwargs",
        "NETWORK_REGISTRY": None,
        "build_network": "name, verbose=True, **kwargs",
    },
    "dassl.modeling.head.mlp": {
        "MLP": "in_features=2048, hidden_layers=(), activation='relu', bn=True, dropout=0.0",
        "mlp": "**kwargs",
    },
    "dassl.modeling.ops": {
        "mixup": "x1, x2, y1, y2, beta, preserve_order=False",
        "cross_entropy": "input, target, label_smooth=0, reduction='mean'",
        "ReverseGrad.forward": "x, grad_scaling=1.0",
    },
    "dassl.modeling.ops.utils": {
        "sharpen_prob": "p, temperature=2",
        "reverse_index": "data, label",
        "shuffle_index": "data, label",
        "create_onehot": "label, num_classes",
        "sigmoid_rampup": "current, rampup_length",
        "linear_rampup": "current, rampup_length",
        "ema_model_update": "model, ema_model, alpha",
    },
    "dassl.optim": {
        "build_optimizer": "model, optim_cfg, param_groups=None",
        "build_lr_scheduler": "optimizer, optim_cfg",
    },
    "dassl.optim.lr_scheduler": {
        "AVAI_SCHEDS": None,
        "ConstantWarmupScheduler": "optimizer, successor, warmup_epoch, cons_lr, last_epoch=-1, verbose=False",
        "LinearWarmupScheduler": "optimizer, successor, warmup_epoch, min_lr, last_epoch=-1, verbose=False",
    },
    "dassl.optim.optimizer": {"AVAI_OPTIMS": None},
    "dassl.utils": {
        "AverageMeter": "ema=False",
        "AverageMeter.update": "val, n=1",
        "MetricMeter": "delimiter=' '",
        "MetricMeter.update": "input_dict",
        "Registry": "name",
        "Registry.get": "name",
        "Registry.registered_names": "",
        "Logger": "fpath=None",
        "setup_logger": "output=None",
        "set_random_seed": "seed",
        "collect_env_info": "",
        "mkdir_if_missing": "dirname",
        "check_isfile": "fpath",
        "read_json": "fpath",
        "write_json": "obj, fpath",
        "download_url": "url, dst",
        "read_image": "path",
        "listdir_nohidden": "path, sort=False",
        "get_most_similar_str_to_a_from_b": "a, b",
        "check_availability": "requested, available",
        "tolist_if_not": "x",
        "save_checkpoint": "state, save_dir, is_best=False, remove_module_from_keys=True, model_name=''",
        "load_checkpoint": "fpath",
        "resume_from_checkpoint": "fdir, model, optimizer=None, scheduler=None",
        "load_pretrained_weights": "model, weight_path",
        "open_all_layers": "model",
        "open_specified_layers": "model, open_layers",
        "count_num_param": "model=None, params=None",
        "init_network_weights": "model, init_type='normal', gain=0.02",
    },
}


def find(module: str, name: str):
    """Return the object of ``from module import name``, or its method after a dot."""
    name, _, method = name.partition(".")
    found = {}
    exec(f"from {module} import {name}", found)
    return getattr(found[name], method) if method else found[name]


def parameters(function) -> list[str]:
    """Return the parameters as "name", "name=default" or "*args"."""
    found = inspect.signature(function).parameters.values()
    return [str(parameter.replace(annotation=parameter.empty)) for parameter in found if parameter.name != "self"]


@pytest.mark.parametrize("module", SIGNATURES)
def test_names_and_signatures(module):
    for name, text in SIGNATURES[module].items():
        found = find(module, name)
        if text is None:
            continue
        expected, ours = parameters(eval(f"lambda {text}: None")), parameters(found)
        named = [parameter for parameter in expected if not parameter.startswith("**")]
        assert ours[: len(named)] == named, name
        assert set(expected) <= set(ours), name
        assert all("=" in extra or "*" in extra for extra in ours[len(named) :]), f"{name} asks for more: {ours}"


def test_one_object_under_all_its_modules():
    for name, modules in {
        "DATASET_REGISTRY": ["dassl.data.datasets", "dassl.data.datasets.build"],
        "Datum": ["dassl.data.datasets", "dassl.data.datasets.base_dataset"],
        "EVALUATOR_REGISTRY": ["dassl.evaluation", "dassl.evaluation.build"],
        "TRAINER_REGISTRY": ["dassl.engine", "dassl.engine.build"],
        "DataManager": ["dassl.data", "dassl.data.data_manager"],
        "Registry": ["dassl.utils", "dassl.utils.registry"],
    }.items():
        assert len({id(find(module, name)) for module in modules}) == 1


def test_star_imports_give_all_names():
    for module in SIGNATURES:
        found = {}
        exec(f"from {module} import *", found)
        assert {name.partition(".")[0] for name in SIGNATURES[module]} <= set(found)


def test_registry_takes_dassls_calls():
    registry = find("dassl.utils", "Registry")("ANIMAL")

    @registry.register()
    class Cat: ...

    registry.register(int)
    registry.register(obj=float)
    registry.register(type("Cat", (), {}), force=True)
    assert registry.registered_names() == ["Cat", "int", "float"]
    assert registry.get("Cat") is not Cat
    with pytest.raises(KeyError, match=r"'int'.*'ANIMAL'"):
        registry.register(int)
    with pytest.raises(ValueError, match="'Dog'"):
        registry.get("Dog")


def test_a_missing_name_is_an_import_error():
    with pytest.raises(ImportError, match="CLIPTrainer"):
        find("dassl.engine", "CLIPTrainer")
    with pytest.raises(ModuleNotFoundError, match=r"dassl\.nothing"):
        importlib.import_module("dassl.nothing")
