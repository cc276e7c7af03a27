import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unskew.cli.main import main
from unskew.debias.combination import fit_combination
from unskew.debias.cross_fit import cross_fit, fold_numbers
from unskew.debias.gla import GLA
from unskew.debias.prior import estimate_log_prior
from unskew.debias.temperature import fit_temperature
from unskew.runs.run import Run, execute


class Files:
    """Files of arrays in one folder, and `unskew adjust` on them."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def __call__(self, **arrays) -> None:
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", np.asarray(array))

    def path(self, name: str) -> str:
        """A file's path; what is no file's name stays as it is."""
        return str(self.folder / name) if (self.folder / name).exists() else name

    def flags(self, **flags) -> list[str]:
        flags = {"zeroshot": "zs.npy", "finetuned": "ft.npy", "out": str(self.folder / "out.safetensors"), **flags}
        pairs = [(f"--{flag.replace('_', '-')}", self.path(value)) for flag, value in flags.items() if value]
        return ["adjust", *(word for pair in pairs for word in pair)]

    def adjust(self, **flags) -> dict[str, torch.Tensor]:
        assert main(self.flags(**flags)) == 0
        return load_file(self.folder / "out.safetensors")

    def facts(self) -> dict[str, str]:
        with safe_open(self.folder / "out.safetensors", "pt") as file:
            return file.metadata()


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def rows_of(said: str) -> dict[str, list[str]]:
    """The cells of the printed table by the name of their row."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line[:1] == "|"]
    return {name: cells for name, *cells in lines if "--" not in name}


def model(seed: int, samples: int, classes: int = 4, scale: float = 1.0):
    """Labels, and two models' noisy logits for them."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(samples) % classes)
    zs, ft = (rng.normal(size=(samples, classes)) + 2 * np.eye(classes)[labels] for _ in range(2))
    return zs * scale + np.linspace(2, 0, classes), ft, labels


# --- closed forms --------------------------------------------------------------------------------------


def test_gla_is_the_exact_balanced_posterior_of_independent_views(files):
    """GLA's theorem: each half sees a view of its own, under a label prior of its own."""
    rng = np.random.default_rng(0)
    classes, first, second = 5, 4, 6
    view1 = rng.dirichlet(np.ones(first), classes)  # P(x1 | y)
    view2 = rng.dirichlet(np.ones(second), classes)
    p, q = rng.dirichlet(np.ones(classes)), rng.dirichlet(np.ones(classes))
    pairs = [(a, b) for a in range(first) for b in range(second)]
    balanced = np.array([view1[:, a] * view2[:, b] / (view1[:, a] @ view2[:, b]) for a, b in pairs])
    ft = np.array([view1[:, a] * p / (view1[:, a] @ p) for a, _ in pairs])  # P_p(y | x1)
    zs = np.array([view2[:, b] * q / (view2[:, b] @ q) for _, b in pairs])  # P_q(y | x2)
    files(ft=np.log(ft), zs=np.log(zs) + 3, q=q, p=1000 * p)
    out = files.adjust(prior="q.npy", train_counts="p.npy", temperature="none", combine="sum")
    assert np.allclose(out["logits"].softmax(1).numpy(), balanced, atol=1e-6)
    assert np.allclose(out["log_q"].numpy(), np.log(q), atol=1e-6)

    target = rng.dirichlet(np.ones(classes))
    files(target=target)
    out = files.adjust(prior="q.npy", train_counts="p.npy", temperature="none", target="target.npy", combine="sum")
    shifted = balanced * target / (balanced @ target)[:, None]
    assert np.allclose(out["logits"].softmax(1).numpy(), shifted, atol=1e-6)
    assert torch.equal(
        files.adjust(prior="q.npy", temperature="none", target="uniform")["logits"],
        files.adjust(prior="q.npy", temperature="none")["logits"],
    )


def test_accuracies_counted_by_hand(files, capsys):
    """Of ten images a class, six look like it and two like each other class. Under q = (.7, .2, .1) class 0
    wins everywhere (.14 to .12 on the looks of class 1, .14 to .06 on those of class 2); without q each wins its own.
    """
    looks = np.repeat([0, 1, 2, 1, 0, 2, 2, 0, 1], [6, 2, 2, 6, 2, 2, 6, 2, 2])
    given = np.full((3, 3), 0.2) + 0.4 * np.eye(3)  # P(look | class)
    files(zs=np.log(given[looks] * [0.7, 0.2, 0.1]), ft=np.zeros((30, 3)), y=np.repeat([0, 1, 2], 10), q=[70, 20, 10])
    out = files.adjust(prior="q.npy", temperature="none", labels="y.npy", combine="sum")
    assert np.allclose(out["logits"].numpy(), np.log(given[looks]), atol=1e-5)
    said = capsys.readouterr().out
    rows = rows_of(said)
    assert rows[""] == ["accuracy", "head", "medium", "tail"]
    assert rows["zero-shot"] == rows["ensemble"] == ["33.3", "100.0", "0.0", "0.0"]
    assert rows["GLA"] == rows["zero-shot - log q"] == ["60.0", "60.0", "60.0", "60.0"]
    assert rows["fine-tuned"] == ["33.3", "100.0", "0.0", "0.0"]  # of equal logits the first
    assert list(rows)[-1] == "GLA"
    assert "30 samples, 3 classes" in said
    assert "max/min 7 " in said and "q.npy" in said
    assert "cross-fitted" not in said  # there was nothing to fit
    files.adjust(prior="q.npy", temperature="none", labels="y.npy", target="q.npy", combine="sum")
    rows = rows_of(capsys.readouterr().out)
    assert rows["zero-shot - log q + log target"] == rows["GLA"] == rows["zero-shot"]


@pytest.mark.parametrize("method", ["nll", "confidence"])
def test_logits_of_a_known_scale_are_calibrated_back(files, method):
    rng = np.random.default_rng(1)
    true = rng.normal(size=(40000, 6)) * 2
    labels = (true + rng.gumbel(size=true.shape)).argmax(1)  # a draw from softmax(true)
    files(vz=5 * true[:20000], vf=true[:20000] / 4, vy=labels[:20000], zs=5 * true[20000:], ft=true[20000:] / 4)
    files(q=np.ones(6))
    val = {"val_zeroshot": "vz.npy", "val_finetuned": "vf.npy", "val_labels": "vy.npy"}
    out = files.adjust(**val, prior="q.npy", temperature=method, combine="sum")
    facts = files.facts()
    assert math.isclose(float(facts["zeroshot_temperature"]), 5, rel_tol=0.03)
    assert math.isclose(float(facts["finetuned_temperature"]), 0.25, rel_tol=0.03)
    assert np.allclose(out["logits"].softmax(1), torch.from_numpy(2 * true[20000:]).softmax(1), atol=0.05)


@pytest.mark.parametrize("counts", ["", "p.npy"])
def test_the_bias_that_fine_tuning_has_left_is_taken_out(files, capsys, counts):
    """Fine-tuned logits are a balanced posterior plus 0.6 log q plus log p; the zero-shot half adds nothing."""
    rng = np.random.default_rng(1)
    log_q, log_p = (np.log(rng.dirichlet(np.full(6, 2.0))) for _ in range(2))
    true = rng.normal(size=(20000, 6)) * 2
    labels = (true + rng.gumbel(size=true.shape)).argmax(1)
    ft = true + 0.6 * log_q + (log_p if counts else 0)
    zs = rng.normal(size=true.shape) + log_q
    val = {"val_zeroshot": "zs.npy", "val_finetuned": "ft.npy", "val_labels": "y.npy"}
    files(zs=zs, ft=ft, y=labels, q=np.exp(log_q), p=np.exp(log_p))
    common = {**val, "prior": "q.npy", "temperature": "none", "train_counts": counts}
    out, facts = files.adjust(**common, combine="fitted"), files.facts()
    for name, value in (("rho", 0.6), ("ft_weight", 1.0), ("zs_weight", 0.0)):
        assert math.isclose(float(facts[name]), value, abs_tol=0.05), name
    assert np.allclose(out["logits"].softmax(1), torch.from_numpy(true).softmax(1), atol=0.05)
    rho, a, b = (float(facts[name]) for name in ("rho", "ft_weight", "zs_weight"))
    assert f"GLA: {a:.2f} (ft/T - {rho:.2f} log q) + {b:.2f} (zs/T - log q)" in capsys.readouterr().out
    out = files.adjust(**common, combine="sum")["logits"].numpy()
    assert np.allclose(out, ft + zs - log_q - (log_p if counts else 0), atol=1e-6)


# --- who fits on what ----------------------------------------------------------------------------------


def test_labels_of_the_scored_samples_fit_nothing_when_there_is_val(files, capsys):
    zs, ft, labels = model(0, 60)
    vz, vf, vy = model(1, 40, scale=2)
    files(zs=zs, ft=ft, y=labels, shuffled=np.roll(labels, 7), vz=vz, vf=vf, vy=vy)
    val = {"val_zeroshot": "vz.npy", "val_finetuned": "vf.npy", "val_labels": "vy.npy"}
    out = files.adjust(**val)
    assert "|" not in capsys.readouterr().out  # without labels there is no table
    for name in ("y.npy", "shuffled.npy"):
        again = files.adjust(**val, labels=name)
        assert torch.equal(again["logits"], out["logits"])
    estimate = estimate_log_prior(vz, vy, method="map", logit_scale="unknown")
    t_zs, log_q = estimate.temperature, estimate.log_q
    t_ft = fit_temperature(vf, vy, method="map", expected=fit_temperature(vf, vy))
    rho, a, b, offset = fit_combination(vz / t_zs, vf / t_ft, vy, log_q, method="map")
    expected = a * (ft / t_ft - rho * log_q) + b * (zs / t_zs - log_q) - offset.numpy()
    assert np.allclose(out["logits"].numpy(), expected, atol=1e-6)
    said = capsys.readouterr().out
    assert f"zero-shot {t_zs:.3g}, fine-tuned {t_ft:.3g} (map, from 40 val samples)" in said
    assert "map, from 40 val samples, converged" in said


@pytest.mark.parametrize("given_prior", [False, True])
def test_without_val_each_sample_is_adjusted_by_other_folds(files, capsys, given_prior):
    zs, ft, labels = model(2, 57)
    files(zs=zs, ft=ft, y=labels, q=[8, 4, 2, 1])
    how = {"prior": "q.npy"} if given_prior else {"method": "convex"}
    out = files.adjust(labels="y.npy", temperature="nll", combine="fitted", **how)
    dealt = sorted(range(57), key=lambda sample: (labels[sample], sample))
    fold = {sample: place % 5 for place, sample in enumerate(dealt)}
    fits = {}
    for number in range(5):
        others = [sample for sample in range(57) if fold[sample] != number]
        z, f, y = (torch.from_numpy(array[others]) for array in (zs, ft, labels))
        t_zs, t_ft = fit_temperature(z, y, method="nll"), fit_temperature(f, y, method="nll")
        log_q = np.log([8 / 15, 4 / 15, 2 / 15, 1 / 15])
        log_q = log_q if given_prior else estimate_log_prior(z / t_zs, y).log_q.numpy()
        fits[number] = (t_zs, t_ft, log_q, *fit_combination(z / t_zs, f / t_ft, y, torch.as_tensor(log_q)))
    for sample in range(57):
        t_zs, t_ft, log_q, rho, a, b, _ = fits[fold[sample]]
        expected = a * (ft[sample] / t_ft - rho * log_q) + b * (zs[sample] / t_zs - log_q)
        assert np.allclose(out["logits"][sample].numpy(), expected, atol=1e-6)
    assert len({fit[0] for fit in fits.values()}) == 5  # so that a mix-up of folds would be seen
    said = capsys.readouterr().out
    assert "(nll, cross-fitted)" in said and "fitted on all samples" in said
    every = fit_temperature(torch.from_numpy(zs), torch.from_numpy(labels), method="nll")
    assert float(files.facts()["zeroshot_temperature"]) == every


def test_folds_share_every_class():
    labels = torch.from_numpy(model(3, 103, classes=7)[2])
    folds = fold_numbers(labels)
    table = torch.zeros(7, 5).index_put((labels, folds), torch.ones(103), accumulate=True)
    assert (table.amax(1) - table.amin(1)).max() == 1
    assert table.sum(0).amax() - table.sum(0).amin() == 1
    assert fold_numbers(torch.tensor([2, 0])).unique().numel() == 2


def test_cross_fitting_covers_each_row_once():
    zs, ft, labels = map(torch.from_numpy, model(4, 33))
    plan = cross_fit(GLA(), zs, ft, labels)
    assert torch.stack([rows for rows, _ in plan]).sum(0).tolist() == [1] * 33
    with pytest.raises(ValueError, match="single sample"):
        cross_fit(GLA(), zs[:1], ft[:1], labels[:1])


def test_without_labels_q_comes_from_balanced_logits_alone(files, capsys):
    zs, ft, labels = model(5, 400)
    files(zs=zs, ft=ft)
    out = files.adjust()
    said = capsys.readouterr().out
    assert "map, from --zeroshot, assuming that it is balanced" in said
    log_q = estimate_log_prior(zs, method="map").log_q
    assert np.allclose(out["logits"].numpy(), 0.3 * ft + 0.7 * (zs - log_q), atol=1e-6)
    out = files.adjust(method="em", combine="sum")
    said = capsys.readouterr().out
    assert "em, from --zeroshot, assuming that it is balanced" in said
    assert "zero-shot 1, fine-tuned 1 (no labels to fit them on)" in said
    log_q = estimate_log_prior(torch.from_numpy(zs), torch.from_numpy(labels)).log_q
    assert torch.allclose(out["log_q"], log_q, atol=1e-4)  # 100 samples a class: as good as with their labels
    assert np.allclose(out["logits"].numpy(), ft + zs - log_q.numpy(), atol=1e-4)
    files.adjust(method="eigen")
    assert "assuming that its predictions are right" in capsys.readouterr().out


def test_unlabelled_estimates_q_on_the_samples_to_adjust(files, capsys):
    zs, ft, labels = model(9, 400)
    vz, vf, vy = model(10, 60)
    files(zs=zs, ft=ft, y=labels, vz=vz, vf=vf, vy=vy)
    val = {"val_zeroshot": "vz.npy", "val_finetuned": "vf.npy", "val_labels": "vy.npy"}
    out, facts = files.adjust(**val, method="unlabelled", combine="fitted"), files.facts()
    said = capsys.readouterr().out
    assert "unlabelled, from --zeroshot without labels" in said
    t_zs, t_ft, rho, a, b = (
        float(facts[name])
        for name in ("zeroshot_temperature", "finetuned_temperature", "rho", "ft_weight", "zs_weight")
    )
    assert t_zs == fit_temperature(vz, vy, method="map", expected=fit_temperature(vz, vy))
    log_q = estimate_log_prior(torch.from_numpy(zs) / t_zs, method="map").log_q
    torch.testing.assert_close(out["log_q"], log_q)
    expected = a * (ft / t_ft - rho * log_q.numpy()) + b * (zs / t_zs - log_q.numpy())
    assert np.allclose(out["logits"].numpy(), expected, atol=1e-6)
    alone = files.adjust(method="unlabelled", combine="sum")["log_q"]
    torch.testing.assert_close(alone, estimate_log_prior(torch.from_numpy(zs), method="map").log_q)


def test_otter_transports_to_the_target(files, capsys):
    zs, ft, labels = model(11, 400)
    files(zs=zs, ft=ft, y=labels, target=[4, 3, 2, 1])
    for target, expected in (("uniform", [100] * 4), ("target.npy", [160, 120, 80, 40])):
        for name in ("", "y.npy"):  # without labels, and cross-fitted
            logits = files.adjust(combine="otter", labels=name, target=target)["logits"]
            assert np.abs(logits.argmax(1).bincount(minlength=4).numpy() - expected).max() <= (8 if name else 0)
        rows = rows_of(capsys.readouterr().out)
        assert "zero-shot, transported" in rows and "zero-shot - log q" not in rows
    files.adjust(combine="otter", labels="y.npy")
    rows = rows_of(capsys.readouterr().out)
    assert float(rows["GLA"][0]) > float(rows["zero-shot, transported"][0]) > float(rows["zero-shot"][0])


def test_strength_reaches_the_estimator(files):
    files(**dict(zip(("zs", "ft", "y"), model(6, 80), strict=True)))
    val = {"val_zeroshot": "zs.npy", "val_finetuned": "ft.npy", "val_labels": "y.npy", "temperature": "none"}
    zs, labels = torch.from_numpy(np.load(files.path("zs.npy"))), torch.from_numpy(np.load(files.path("y.npy")))
    seen = []
    for text, value in (("", 1.0), ("40", 40.0), ("cv", "cv")):
        log_q = files.adjust(**val, method="convex", strength=text)["log_q"]
        assert torch.equal(log_q, estimate_log_prior(zs, labels, strength=value).log_q)
        seen.append(log_q)
    assert not torch.equal(seen[0], seen[1])


def test_predictions_of_a_run_are_enough(tmp_path, capsys):
    zs, ft, labels = map(torch.from_numpy, model(7, 50))
    save_file({"zs": zs, "ft": ft, "logits": zs + ft, "labels": labels}, tmp_path / "predictions.safetensors")
    file = str(tmp_path / "predictions.safetensors")
    common = ["adjust", "--labels", file, "--method", "convex", "--temperature", "none"]
    common = [*common, "--zeroshot", file, "--finetuned"]
    assert main([*common, file]) == 0
    halves = rows_of(capsys.readouterr().out)
    assert halves["fine-tuned"][0] == f"{100 * (ft.argmax(1) == labels).double().mean():.1f}"
    assert halves["zero-shot"][0] == f"{100 * (zs.argmax(1) == labels).double().mean():.1f}"
    assert main([*common, f"{file}:logits"]) == 0
    assert rows_of(capsys.readouterr().out)["fine-tuned"] == halves["ensemble"]


# --- users' mistakes -----------------------------------------------------------------------------------


def bad(array, row, column, value):
    array = array.copy()
    array[row, column] = value
    return array


@pytest.fixture
def mistakes(files):
    """Good files (zs, ft, y, q) and bad ones."""
    zs, ft, labels = model(8, 40)
    files(zs=zs, ft=ft, y=labels, q=[4, 3, 2, 1], flat=zs[0], cube=zs[None], short=zs[:39], narrow=zs[:, :3])
    files(nan=bad(zs, 3, 2, np.nan), inf=bad(zs, 39, 0, -np.inf), few=labels[:39], floats=labels / 1, high=labels + 1)
    files(
        low=labels - 1, q3=[1, 2, 3], q0=[4, 0, 2, 1], qneg=[4, -3, 2, 1], qnan=[4, np.nan, 2, 1], ny=labels.clip(0, 2)
    )
    for name in ("a.pkl", "a.pt"):
        (files.folder / name).write_bytes(pickle.dumps([zs]))
    (files.folder / "names.csv").write_text("d,1\nc,2\nb,3\na,4\n")
    np.save(files.folder / "complex.npy", np.ones((40, 4), dtype=complex))
    np.save(files.folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (files.folder / "cut.npy").write_bytes((files.folder / "zs.npy").read_bytes()[:500])
    save_file({"one": torch.from_numpy(zs), "two": torch.from_numpy(ft)}, files.folder / "two.safetensors")
    (files.folder / "run").mkdir()
    return files


VAL = {"val_zeroshot": "zs.npy", "val_finetuned": "ft.npy", "val_labels": "y.npy"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"zeroshot": "flat.npy"}, "flat.npy"),
        ({"finetuned": "cube.npy"}, "[1, 40, 4]"),
        ({"finetuned": "short.npy"}, "--zeroshot is [40, 4] and --finetuned [39, 4]"),
        ({"finetuned": "narrow.npy"}, "--finetuned [40, 3]"),
        ({"zeroshot": "nan.npy"}, "row 3, column 2"),
        ({"finetuned": "inf.npy"}, "row 39, column 0"),
        ({"labels": "few.npy"}, "40 integers"),
        ({"labels": "floats.npy"}, "float64 [40]"),
        ({"labels": "high.npy"}, "1..4"),
        ({"labels": "low.npy"}, "-1..2"),
        ({"labels": "zs.npy"}, "40 integers"),
        ({"prior": "q3.npy"}, "q3.npy' must hold 4 values"),
        ({"prior": "q0.npy"}, "class 1 has 0"),
        ({"prior": "qneg.npy"}, "class 1 has -3"),
        ({"prior": "qnan.npy"}, "class 1 has nan"),
        ({"prior": "a.pkl"}, "a.pkl"),
        ({"prior": "nowhere.json"}, "nowhere.json"),
        ({"train_counts": "q0.npy"}, "class 1 has 0"),
        ({"train_counts": "names.csv"}, "names"),
        ({"target": "names.csv"}, "names"),
        ({"prior": "names.csv"}, "names"),
        ({"zeroshot": "complex.npy"}, "complex128"),
        ({"target": "q3.npy"}, "4 values"),
        ({"zeroshot": "a.pkl"}, "a.pkl"),
        ({"zeroshot": "a.pt"}, "Python objects"),
        ({"finetuned": "objects.npy"}, "Python objects"),
        ({"finetuned": "cut.npy"}, "cut.npy"),
        ({"zeroshot": "two.safetensors"}, "one, two"),
        ({"zeroshot": "nowhere.npy"}, "nowhere.npy"),
        ({"val_zeroshot": "zs.npy", "val_labels": "y.npy"}, "belong together"),
        ({**VAL, "val_zeroshot": "narrow.npy", "val_finetuned": "narrow.npy", "val_labels": "ny.npy"}, "has 3 classes"),
        ({**VAL, "val_labels": "high.npy"}, "--val-labels"),
        ({"prior": "q.npy", "method": "em"}, "--method"),
        ({"temperature": "nll"}, "--temperature nll"),
        ({"method": "convex"}, "needs labels"),
        ({"method": "magic"}, "magic"),
        ({"strength": "much"}, "much"),
        ({"labels": "y.npy", "method": "convex", "strength": "-1"}, "0 or more"),
        ({"labels": "y.npy", "strength": "2"}, "strength"),
        ({"labels": "y.npy", "alpha": "0.3"}, "--checkpoints"),
        ({"labels": "y.npy", "checkpoints": "init"}, "--checkpoints"),
        ({"out": "/dev/null/x/out.safetensors"}, "'/dev/null'"),
        ({"out": "run"}, ".safetensors"),
        ({"out": "out.npy"}, ".safetensors"),
    ],
)
def test_a_users_mistake_ends_with_exit_code_two_and_writes_nothing(mistakes, flags, words, capsys):
    before = sorted(mistakes.folder.rglob("*"))
    try:
        code = main(mistakes.flags(**flags))
    except SystemExit as error:  # argparse's own
        code = error.code
    said = capsys.readouterr()
    assert code == 2
    assert words in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert sorted(mistakes.folder.rglob("*")) == before


def test_a_missing_key_lists_what_there_is(mistakes, capsys):
    code = main(mistakes.flags(zeroshot=mistakes.path("two.safetensors") + ":zs"))
    assert (code, "has no 'zs'; it holds one, two" in capsys.readouterr().err) == (2, True)


def test_checkpoints_that_cannot_serve(mistakes, capsys):
    common, pair = mistakes.flags(labels="y.npy"), ["--checkpoints", "init", mistakes.path("run")]
    assert main([*common, *pair]) == 2
    assert "finished run" in capsys.readouterr().err
    assert main([*mistakes.flags(), *pair]) == 2
    assert "--labels" in capsys.readouterr().err
    assert not (mistakes.folder / "out.safetensors").exists()


def test_from_a_shell(mistakes):
    command = [sys.executable, "-m", "unskew.cli", *mistakes.flags(labels="floats.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "floats.npy" in done.stderr


# --- with runs -----------------------------------------------------------------------------------------


def test_wiseft_is_a_row_where_the_labels_are_its_test_images(data_root, tmp_path, capsys):
    folder = tmp_path / "run"
    opts = ("OPTIM.MAX_EPOCH", 1, "INPUT.VIEWS", 1, "OPTIM.LR", 0.05)
    execute(Run("digits", "ResidualPrompt", shots=1, seed=1, root=data_root, folder=str(folder), opts=opts), False)
    capsys.readouterr()
    saved = load_file(folder / "predictions.safetensors")
    accuracy = f"{100 * (saved['logits'].argmax(1) == saved['labels']).double().mean():.1f}"
    file = str(folder / "predictions.safetensors")
    command = ["adjust", "--zeroshot", file, "--finetuned", file, "--checkpoints", "init", str(folder), "--alpha", "1"]
    assert main([*command, "--labels", file]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["WiSE-FT 1"] == rows["fine-tuned"]
    assert rows["WiSE-FT 1"][0] == accuracy
    save_file({"labels": saved["labels"].flip(0)}, tmp_path / "other.safetensors")
    assert main([*command, "--labels", str(tmp_path / "other.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "no row WiSE-FT 1" in said
    assert "WiSE-FT 1" not in rows_of(said)
