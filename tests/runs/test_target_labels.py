"""No label of the images that a run is evaluated on is used to fit anything, and the logits are the formula's."""

import pytest
import torch
from evaluating import OVER_COOP, SHORT, copy_images, evaluated, train
from safetensors.torch import load_file

from unskew import config
from unskew.data.dataset import DatasetBase, Datum
from unskew.engine import checkpoint
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.runs.evaluate import evaluate, with_settings_of
from unskew.runs.run import Run, execute

COMPOSITE = [
    pytest.param(name, marks=pytest.mark.world) if config.has_members(name) else name
    for name in config.names("trainers")
    if TRAINER_REGISTRY.get(config.class_name(name)).has_fitted_terms
]
TWO = ("TRAINER.BACKDOOR.MEMBERS", ["micro", "micro-a"])
OTHER = ("DATASET.SUBSAMPLE_CLASSES", "new")


@pytest.fixture(scope="module")
def copies(data_root, tmp_path_factory):
    """A folder with some classes of the digits, and the rows of its test images among those of the digits."""
    root = tmp_path_factory.mktemp("copies") / "digits"
    return root, copy_images(data_root, root)


@pytest.fixture
def permute_labels(monkeypatch):
    """A function after which the train and val images of each dataset have the labels of other images."""
    build = DatasetBase.__init__

    def permuted(self, train_x=None, train_u=None, val=None, *args, **options):
        splits = [
            [
                Datum(other.impath, item.label, item.domain, item.classname)
                for item, other in zip(items, moved, strict=True)
            ]
            for items, moved in ((items, items[::-1]) for items in (list(train_x or []), list(val or [])))
        ]
        build(self, splits[0], train_u, splits[1], *args, **options)

    return lambda: monkeypatch.setattr(DatasetBase, "__init__", permuted)


def check_bits(run, permute_labels, targets):
    """Evaluate a run on targets, with labels as they are and permuted: the files of predictions have the same bytes."""
    contents, rows = [], []
    for _ in range(2):
        for number, (dataset, root, *opts) in enumerate(targets):
            folder = run.path / "eval" / f"{len(contents)}-{number}"
            target = Run(dataset, "", root=str(root), opts=tuple(opts), folder=str(folder))
            rows.append(evaluate(with_settings_of(str(run.path), target), str(run.path), console=False)[0])
            contents.append((folder / "predictions.safetensors").read_bytes())
        permute_labels()
    first, second = contents[: len(targets)], contents[len(targets) :]
    assert first == second
    return rows[: len(targets)]


@pytest.mark.parametrize("name", COMPOSITE)
def test_permuted_labels_of_halves_and_subsets_change_no_bit(name, copies, data_root, tmp_path, permute_labels):
    run = train(name, data_root, tmp_path / "run", *OVER_COOP)
    assert not TRAINER_REGISTRY.get(config.class_name(name)).is_class_bound(run.config)
    rows = check_bits(run, permute_labels, [("digits", data_root, *OTHER), ("folder", copies[0])])
    assert [row["transfer"] for row in rows] == ["zero-shot", "by class name"]


@pytest.mark.world
@pytest.mark.parametrize("name", COMPOSITE)
def test_permuted_labels_of_another_dataset_change_no_bit(name, data_root, tmp_path, permute_labels):
    opts = (*SHORT, *TWO, *OVER_COOP)
    run = Run("shapes", name, shots=1, seed=1, root=data_root, folder=str(tmp_path / "run"), opts=opts)
    execute(run, console=False)
    check_bits(run, permute_labels, [("patterns", data_root)])


# --- the formula, in float64 -------------------------------------------------------------------------


def raw_logits(run, dataset, root, *opts):
    """Return the base's and the zero-shot logits of the target, which no calibration has changed, in float64."""
    base, _ = evaluated_base(run, dataset, root, *opts)
    zeroshot = Run(dataset, "ZeroshotCLIP", "micro", root=str(root), folder=str(run.path / "zs"), opts=(*SHORT, *opts))
    execute(zeroshot, console=False)
    return base["logits"].double(), zeroshot.predictions["logits"].double()


def evaluated_base(run, dataset, root, *opts):
    base = Run("digits", "CoOp", folder=str(run.config.TRAINER.GLA.BASE_DIR))
    metrics, found = evaluated(base, dataset, root, *opts)
    return found, metrics


def saved_terms(run, name):
    state = checkpoint.load_checkpoint(checkpoint.last_checkpoint(run.path / name))["state_dict"]
    return {key: value.double() for key, value in state.items()}


@pytest.fixture(scope="module")
def base_dir(data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "run"
    train("CoOp", data_root, folder)
    return str(folder)


@pytest.mark.parametrize(
    ("opts", "temperature"),
    [
        ((), 1.0),
        (("TRAINER.GLA.COMBINE", "sum"), None),
        (("TRAINER.GLA.COMBINE", "fitted", "TRAINER.GLA.PRIOR", "convex"), None),
        (("TRAINER.GLA.TARGET", "train"), 1.0),
    ],
)
def test_on_other_classes_there_is_no_class_bias(opts, temperature, base_dir, data_root, tmp_path):
    run = train("GLA", data_root, tmp_path / "run", *OVER_COOP, "TRAINER.GLA.BASE_DIR", base_dir, *opts)
    metrics, found = evaluated(run, "digits", data_root, *OTHER)
    t = saved_terms(run, "gla")
    ft, zs = raw_logits(run, "digits", data_root, *OTHER)
    expected = t["ft_weight"] * ft / t["finetuned_temperature"]
    expected += t["zs_weight"] * zs / (temperature or t["zeroshot_temperature"])
    assert metrics["transfer"] == "zero-shot" and t["log_q"].std() > 0.1
    torch.testing.assert_close(found["logits"].double(), expected, rtol=1e-5, atol=1e-4)


def test_on_a_part_of_the_classes_all_terms_carry_over(copies, base_dir, data_root, tmp_path):
    run = train("GLA", data_root, tmp_path / "run", *OVER_COOP, "TRAINER.GLA.BASE_DIR", base_dir)
    metrics, found = evaluated(run, "folder", copies[0])
    t = saved_terms(run, "gla")
    names = metrics["classnames"]
    columns = [run.metrics["classnames"].index(name) for name in names]
    ft, zs = raw_logits(run, "folder", copies[0])
    own = [sorted(names).index(name) for name in names]  # a folder's classes are in the order of the alphabet
    q, p, d = (t[key][columns] for key in ("log_q", "log_p", "offset"))
    expected = t["ft_weight"] * (ft / t["finetuned_temperature"] - p - t["rho"] * q)
    expected += t["zs_weight"] * (zs[:, own] / t["zeroshot_temperature"] - q) - d
    torch.testing.assert_close(found["logits"].double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["GLA", "DebiasedZeroshot"])
def test_unlabelled_estimates_the_bias_of_other_classes_on_the_images_to_predict(name, base_dir, data_root, tmp_path):
    from unskew.debias.prior import estimate

    opts = (*OVER_COOP, "TRAINER.GLA.BASE_DIR", base_dir)
    run = train(name, data_root, tmp_path / "run", *opts)
    unlabelled = (f"TRAINER.{name.upper()}.PRIOR", "unlabelled")  # it may differ from the run's there
    metrics, found = evaluated(run, "digits", data_root, *OTHER, *unlabelled)
    ft, zs = raw_logits(run, "digits", data_root, *OTHER)
    beta = estimate(zs.float(), None, "unlabelled").log_q.double()
    expected = zs - beta
    if name == "GLA":
        t = saved_terms(run, "gla")
        expected = t["zs_weight"] * expected + t["ft_weight"] * (ft / t["finetuned_temperature"] - t["rho"] * beta)
    assert metrics["transfer"] == "unlabelled" and metrics["transductive"] and beta.std() > 0.1
    torch.testing.assert_close(found["logits"].double(), expected, rtol=1e-5, atol=1e-3)


def test_backdoor_keeps_its_weights_and_temperatures_on_other_classes(data_root, tmp_path):
    run = train("Backdoor", data_root, tmp_path / "run", *OVER_COOP, *TWO, "TRAINER.BACKDOOR.DEBIAS", False)
    _, found = evaluated(run, "digits", data_root, *OTHER)
    t, logits = saved_terms(run, "backdoor"), 0.0
    for weight, member in zip(t["weights"], ("micro", "micro-a"), strict=True):
        part = load_file(run.path / "eval" / "digits-new" / "predictions.safetensors")[member].double()
        logits = logits + weight * part / t["temperature"]
    torch.testing.assert_close(found["logits"].double(), logits, rtol=1e-5, atol=1e-4)
    assert t["weights"].std() > 0


# --- what would need a fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "opts"),
    [("folder", ("TRAINER.GLA.PRIOR", "convex")), ("digits", (*OTHER, "TRAINER.GLA.COMBINE", "sum"))],
)
def test_other_settings_need_the_images_of_the_run(dataset, opts, copies, base_dir, data_root, tmp_path):
    run = train("GLA", data_root, tmp_path / "run", *OVER_COOP, "TRAINER.GLA.BASE_DIR", base_dir)
    with pytest.raises(ValueError, match=opts[-2]):
        evaluated(run, dataset, copies[0] if dataset == "folder" else data_root, *opts)
    _, found = evaluated(run, "digits", data_root, "DATASET.SUBSAMPLE_CLASSES", "base", *opts[-2:])
    assert (found["logits"] - run.predictions["logits"]).abs().max() > 0.01  # fitted again on its own images
    again, _ = evaluated(run, "digits", data_root, "DATASET.SUBSAMPLE_CLASSES", "base", "SEED", 2)
    assert again["transfer"] == "by class name"  # another sample: nothing is fitted


@pytest.mark.parametrize("key", ["PRIOR", "TARGET"])
def test_a_file_of_a_prior_is_for_its_classes(key, base_dir, data_root, tmp_path):
    (tmp_path / "prior.json").write_text("[1, 2, 3, 4, 5]")
    opts = (f"TRAINER.GLA.{key}", str(tmp_path / "prior.json"))
    run = train("GLA", data_root, tmp_path / "run", *OVER_COOP, "TRAINER.GLA.BASE_DIR", base_dir, *opts)
    with pytest.raises(ValueError, match=f"TRAINER.GLA.{key}"):
        evaluated(run, "digits", data_root, *OTHER)


@pytest.mark.parametrize("name", ["GLA", "Backdoor"])
def test_an_epoch_of_other_images_is_not_calibrated_on_them(name, data_root, tmp_path, monkeypatch):
    more = ("OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.KEEP", -1, "TRAINER.BACKDOOR.DEBIAS", False)
    run = train(name, data_root, tmp_path / "run", *OVER_COOP, *more)
    fits, contents = [], []
    for place in ("unskew.trainers.backdoor.fit_temperature", "unskew.debias.temperature.fit"):
        monkeypatch.setattr(place, lambda *args, **options: fits.append(1) or 1.0)
    for half, epoch in (("new", 1), ("new", 2), ("base", 1)):
        assert not fits
        target = Run("digits", "", root=data_root, opts=("DATASET.SUBSAMPLE_CLASSES", half))
        _, folder = evaluate(with_settings_of(str(run.path), target), str(run.path), epoch, console=False)
        contents.append(load_file(folder / "predictions.safetensors")["logits"])
    assert fits and not torch.equal(contents[0], contents[1])
