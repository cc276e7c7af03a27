"""The benchmarks run, small, from the command line that their docs give."""

import importlib
import itertools
import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

TEXT = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")).replace("\\\n", " ")
COMMANDS = sorted({line.strip() for line in TEXT.splitlines() if line.strip().startswith("python benchmarks/")})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_docs_has_known_flags(command):
    _, script, *words = shlex.split(command)
    source = (ROOT / script).read_text(encoding="utf-8")
    assert [word for word in words if word.startswith("-") and f'"{word}"' not in source] == []


@pytest.mark.world
def test_prior_recovery(data_root, tmp_path):
    flags = ["--worlds", "digits", "coarse_digits", "--backbones", "micro", "--bases", "TaskRes", "LinearProbe"]
    flags += ["--shots", "1", "2", "--seeds", "1", "--root", data_root, "--records", str(tmp_path / "records")]
    files = ["--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "plot.png")]
    command = [sys.executable, str(ROOT / "benchmarks" / "prior_recovery.py"), *flags, *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    for family in ("shipped", "corrupted", "exact, biased", "exact, no bias"):
        assert f"| {family} " in done.stdout
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    runs = {(row["world"], row["base"], row["shots"]): row["accuracy"] for row in rows}
    for shots in (1, 2):
        taskres, probe = (runs["digits", base, shots] for base in ("TaskRes", "LinearProbe"))
        assert taskres["BCTS"] == probe["BCTS"] > taskres["zero-shot"] == probe["zero-shot"]
        assert taskres["GLA"] > taskres["zero-shot"] > runs["coarse_digits", "TaskRes", shots]["zero-shot"]
    recovered = [row for row in rows if row["family"] == "exact, biased"]
    slopes = {name: [row["recovery"][name]["slope"] for row in recovered] for name in ("convex", "map")}
    assert sum(slopes["map"]) > sum(slopes["convex"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.world
def test_backdoor_controls(data_root, tmp_path):
    flags = ["--worlds", "digits_lt", "unseen_digits_lt", "--seeds", "1", "--root", data_root]
    flags += ["--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "plot.png")]
    command = [sys.executable, str(ROOT / "benchmarks" / "backdoor_controls.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "3 models" in done.stdout
    rules = done.stdout.split("Rules\n\n")[1].splitlines()
    assert "| `unseen_digits_lt`" in rules[0] and len(rules) == 12
    assert done.stdout.split("Difference to the best member")[1].count("| `DEBIAS False` |") == 2
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    found = {(row["world"], row["name"]): row["accuracy"] for row in rows if row["study"] == "ways"}
    assert (
        found["digits_lt", "logits, P(m) on val, DEBIAS True"]
        > found["unseen_digits_lt", "logits, P(m) on val, DEBIAS True"] + 20
    )


def test_listing(tmp_path):
    flags = ["--files", "10007", "--classes", "20", "--json", str(tmp_path / "rows.json")]
    command = [sys.executable, str(ROOT / "benchmarks" / "listing.py"), *flags]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "10007 files in 20 folders" in done.stdout and "read the saved list" in done.stdout
    rows = {row["name"]: row["seconds"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert len(rows) == 5 and rows["read the saved list"] < rows["the same, with a check that each image exists"]
    assert not list(tmp_path.rglob("imagenet"))  # the tree is gone


def run_quickly(script, flags, folder):
    """The printed text and the rows of a benchmark of the smallest size, from another folder than its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *flags, "--json", str(folder / "rows.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    written = json.loads((folder / "rows.json").read_text())
    assert written["machine"] in done.stdout and "torch" in written["machine"]
    return done.stdout, written["rows"]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark by its name, as a script imports its neighbours."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_text_step(tmp_path):
    flags = ["--backbone", "micro", "--classes", "5", "--repeats", "1", "--chunk", "2"]
    printed, (row,) = run_quickly("text_step.py", flags, tmp_path)
    assert "floor" in printed
    assert 0 < row["gradient_difference"] < 1e-5  # 0 would be the same computation twice
    assert row["ratio"] == pytest.approx(row["reference_seconds"] / row["seconds"])
    assert row["flops"] > 0 and row["reference_chunk"] == 2
    if sys.platform == "linux":
        assert row["peak_bytes"] > 0 and row["reference_peak_bytes"] > 0


def test_the_gradients_of_the_text_step(benchmark):
    text_step = benchmark("text_step")
    given = text_step.problem("micro", 5, "cpu", torch.get_num_threads())
    ways = [text_step.ours(given), text_step.reference(given, 100), text_step.reference(given, 2)]
    ours, whole, chunked = (text_step.context_gradient(given, way) for way in ways)
    for gradient in (ours, chunked):
        assert (gradient - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_scaling(tmp_path, data_root):
    sizes = {"classes": [3, 6, 9], "images": [20, 40], "shots": [1, 2]}
    words = [word for name, found in sizes.items() for word in (f"--{name}", *map(str, found))]
    flags = ["--backbone", "micro", "--repeats", "1", "--root", data_root, *words]
    printed, rows = run_quickly("scaling.py", flags, tmp_path)
    assert [(row["name"], row["size"]) for row in rows] == [(name, size) for name in sizes for size in sizes[name]]
    assert "exponent" in printed and len({row["exponent"] for row in rows}) == 3


def test_fewshot_run(tmp_path, data_root):
    flags = ["--dataset", "digits", "--root", data_root, "--shots", "1", "--seeds", "1", "--trainers", "CoOp", "GLA"]
    printed, rows = run_quickly(
        "fewshot_run.py", [*flags, "--opts", "OPTIM.MAX_EPOCH", "4", "INPUT.VIEWS", "2"], tmp_path
    )
    assert [row["trainer"] for row in rows] == ["CoOp", "GLA"] and "faster from epochs" in printed
    for row in rows:
        assert row["ratio"] == pytest.approx(row["reference_seconds"] / row["seconds"])
        assert row["views"] == 2 and row["step_seconds"] > 0 and row["reference_epoch_seconds"] > 0
        assert set(row["ratios"]) == {"6", "50", "200"}


def test_the_break_even_is_the_first_number_of_epochs_that_is_faster(benchmark):
    module = benchmark("fewshot_run")
    for step, view, reference, views in itertools.product((0.1, 1.0), (0.0, 0.3, 2.0), (0.3, 1.06, 5.0), (1, 4, 8)):
        costs = (step, view, reference)
        faster = [n for n in range(1, 500) if module.ratio_at(n, *costs, views) > 1]
        assert module.break_even(*costs, views) == (faster[0] if faster else None)
        assert not faster or faster == list(range(faster[0], 500))


def test_the_costs_of_an_epoch(benchmark):
    """An epoch with a new view has the steps and the encoding; the first epoch does not count."""
    ours = {"views": 3, "epochs": [(0, 90.0), (1, 5.0), (2, 5.0), (3, 2.0), (4, 2.0)]}
    runs = {"ours": [ours], "reference": [{"views": 3, "epochs": [(0, 90.0), (1, 8.0), (2, 8.0)]}]}
    costs = benchmark("fewshot_run").epoch_costs(runs)
    assert (costs["step_seconds"], costs["view_seconds"], costs["reference_epoch_seconds"]) == (2, 3, 8)
    assert costs["break_even"] == 1 and costs["ratios"]["50"] == pytest.approx(400 / 109)
    ours["epochs"] = ours["epochs"][:3]  # all views are new
    assert benchmark("fewshot_run").epoch_costs(runs)["break_even"] is None


def test_views(tmp_path, data_root):
    flags = ["--root", data_root, "--shots", "1", "2", "--views", "0", "2", "--seeds", "1", "2", "--against", "2"]
    flags += ["--records", str(tmp_path / "records"), "--opts", "OPTIM.MAX_EPOCH", "2"]
    printed, rows = run_quickly("views.py", flags, tmp_path)
    assert [(row["shots"], row["views"]) for row in rows] == [(1, 0), (1, 2), (2, 0), (2, 2)]
    assert printed.count("new ones") == 2 + 3 and "±" in printed  # the differences: CoOp, digits and all
    again, same = run_quickly("views.py", flags, tmp_path)
    assert again == printed and same == rows


def test_paired_differences(benchmark):
    views = benchmark("views")
    row = {"dataset": "digits", "shots": 1}
    rows = [
        {**row, "trainer": "CoOp", "views": n, "val": val} for n, val in ((4, [3.0, 5.0, 7.0]), (8, [1.0, 1.0, 1.0]))
    ]
    rows += [{**row, "trainer": "GLA", "views": n, "val": [2.0, 2.0, 2.0]} for n in (4, 8)]
    found = views.differences(rows, 8)
    assert [pair["difference"] for pair in found] == [2, 4, 6, 0, 0, 0]
    mean, half = views.pooled([pair for pair in found if pair["trainer"] == "CoOp"])
    assert mean == 4 and half == pytest.approx(4.3027 * 2 / 3**0.5, rel=1e-4)  # t of two degrees of freedom
    assert views.pooled(found) == pytest.approx((2, half / 2))  # trainers with the same images are averaged


def test_the_fitted_exponent(benchmark):
    sizes = [10, 20, 40, 80]
    assert benchmark("scaling").exponent(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx(1.5)


@pytest.mark.world
def test_prior(tmp_path):
    flags = ["--samples", "600", "--classes", "20", "--repeats", "1", "--json", str(tmp_path / "rows.json")]
    command = [sys.executable, str(ROOT / "benchmarks" / "prior.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "convex, strength cv" in done.stdout and "20 classes" in done.stdout
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert len(rows) == 12 and rows["eigen"]["passes"] == 1
    for name, row in rows.items():
        assert row["seconds"] > 0 and row["floor_seconds"] > 0
        assert "cv" in name or "map" in name or row["passes"] <= 30
        # The plain way knows no bounds of the weights, which bind on so few images.
        tolerance = 1e-4 if name == "map" else 1e-5
        assert name == "combination" or row["difference"] is None or row["difference"] < tolerance


# --- a GPU -------------------------------------------------------------------------------------------


@pytest.mark.world
def test_the_small_form_of_the_gpu_script(tmp_path):
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--small", str(tmp_path / "gpu")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    logs = "".join(path.read_text() for path in (tmp_path / "gpu").glob("*.log"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu" / "gpu.json").read_text())
    assert result["missing"] == [], logs
    parts = {name: part["rows"] for name, part in result["parts"].items()}
    assert [row["precision"] for row in parts["step"]] == ["fp32", "amp", "bf16"]
    assert {(row["backbone"], row["name"]) for row in parts["encode"]} == {
        (tower, name) for tower in ("micro-vit", "micro") for name in ("tower", "decoding, one process", "both")
    }
    assert [(row["precision"], row["name"]) for row in parts["finetune"]] == [
        *(("amp", name) for name in ("steps", "epoch")),
        *((precision, "steps") for precision in ("bf16", "fp32")),
    ]
    assert len(parts["runs"]) == 10
    assert parts["runs"][0]["images_encoded"] >= 8 * (2 * 2 + 2)  # two views of train, and test
    assert all(row["period"] > 0 and len(row["each_epoch"]) == row["epochs"] for row in parts["runs"])
    assert {row["name"] for row in parts["prior"]} >= {"map", "convex, strength 1", "combination"}
    assert result["small"] and result["sweep"] is None and all(goal["met"] is None for goal in result["goals"])
    table = (tmp_path / "gpu" / "table.md").read_text()
    assert table in done.stdout and "run of GLA, 4 epochs" in table and "Small sizes" in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_measures_nothing(tmp_path):
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path / "gpu")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 2 and "--small" in done.stderr and not (tmp_path / "gpu" / "gpu.json").exists()


def gpu_parts(faster=10.0, less=5.0, step=0.01):
    """The files of the parts as a GPU could give them."""
    steps = {"classes": 1000, "precision": "bf16", "seconds": step, "reference_seconds": faster * step}
    steps |= {"peak_bytes": 2**30, "reference_peak_bytes": less * 2**30}
    both = [{"name": "both", "backbone": "ViT", "precision": "bf16", "workers": n} for n in (1, 2, 4)]
    both = [{**row, "images_per_second": 600.0 * row["workers"]} for row in both]
    tower = {"name": "tower", "backbone": "ViT", "precision": "bf16", "images_per_second": 1300.0}
    run = {"period": 1.0, "steps": 100, "once_seconds": 2.0, "seconds": 9.0, "view_seconds": 0.5, "epochs": 4}
    run |= {"views": 2, "shots": 16}
    runs = [
        {**run, "trainer": name, "classes": classes, "period": step * 100 * classes / 1000}
        for name in ("CoOp", "ProGrad", "CLIPAdapter", "TaskRes", "GLA")
        for classes in (100, 1000)
    ]
    rows = {"step": [steps], "encode": [tower, *both], "runs": runs}
    return {name: {"machine": "a GPU", "rows": found} for name, found in rows.items()}


def test_the_predicted_sweep(benchmark):
    gpu_table = benchmark("gpu_table")
    assert gpu_table.between(550, [(1000, 3.0), (100, 1.0)]) == pytest.approx(2.0)
    assert gpu_table.between(37, [(1000, 3.0), (100, 1.0)]) == 1.0
    assert gpu_table.images_of("imagenet", 4) == 50_000 + 4 * 93_000 + 45_000
    assert gpu_table.images_of("eurosat", 4) == 8_100 + 4 * 930 + 450
    sweep = gpu_table.predict_sweep(gpu_parts())
    assert sweep["runs"] == 11 * 5 * 3 * 5
    assert sweep["encoding_seconds"] == pytest.approx(sweep["images"] / 2400)  # four processes
    classes = [1000, 100, 37, 196, 102, 101, 100, 397, 47, 10, 101]
    steps = sum(  # CoOp's schedule; its steps of ImageNet take 0.01 s
        epochs * max(1, count * shots // 32) * 0.01 * max(100, count) / 1000
        for count in classes
        for shots, epochs in zip((1, 2, 4, 8, 16), [50] * 5 if count == 1000 else (50, 100, 100, 200, 200), strict=True)
    )
    assert sweep["trainers"]["CoOp"] == pytest.approx(3 * (steps + 5 * len(classes) * 2.0))
    parts = gpu_parts()
    parts["runs"]["rows"] = [row for row in parts["runs"]["rows"] if row["classes"] == 1000]
    assert gpu_table.predict_sweep(parts) is None
    assert gpu_table.predict_sweep({}) is None


def test_the_goals_on_a_gpu(benchmark):
    gpu_table = benchmark("gpu_table")

    def met(**changes):
        parts = gpu_parts(**changes)
        return [goal["met"] for goal in gpu_table.goals(parts, gpu_table.predict_sweep(parts))]

    assert met(step=0.0001) == [True, True, True]
    assert met(faster=7.0, step=0.0001) == [False, True, True]
    assert met(less=3.0, step=10.0) == [True, False, False]
    assert [goal["met"] for goal in gpu_table.goals({}, None)] == [None, None, None]
    busy = [line for line in gpu_table.image_lines(gpu_parts()) if "busy" in line[0]]
    assert [line[2] for line in busy] == ["2"]  # 1,200 of 1,300 images per second


def test_photos_have_the_size_of_imagenets(benchmark, tmp_path):
    photos = benchmark("photos")
    root = photos.write(tmp_path / "photos", 2, {"train": 3, "val": 1, "test": 1}, jobs=1)
    files = sorted(root.rglob("*.jpg"))
    assert len(files) == 10 and len({file.read_bytes() for file in files}) == 10
    sizes = [file.stat().st_size / 1024 for file in files]
    assert all(80 < size < 140 for size in sizes), sizes


# --- many classes ------------------------------------------------------------------------------------


@pytest.mark.world
def test_imagenet_size(tmp_path):
    sizes = ["--classes", "20", "--train", "8", "--val", "2", "--test", "2", "--data", str(tmp_path / "data")]
    flags = [*sizes, "--trainers", "LinearProbe", "GLA", "--sweep"]
    _, rows = run_quickly("imagenet_size.py", flags, tmp_path)
    names = [(row["name"], row["classes"]) for row in rows]
    runs = [("LinearProbe", 20), ("LinearProbe", 6), ("LinearProbe", 2), ("GLA", 20)]
    assert names == [("sweep of 40 runs", 20), ("the same sweep, finished", 20), *runs]
    for row in rows:
        assert sum(row["phases"].values()) == pytest.approx(row["cpu"])
        assert all(value > 0 for value in row["phases"].values())
    sweep, again, probe, _, _, gla = rows
    assert probe["accuracy"] > 90 and probe["checkpoint_bytes"] > 20 * 65 * 4
    assert gla["predictions_bytes"] > 2 * 40 * 20 * 4 > probe["predictions_bytes"] > 40 * 20 * 4
    assert sweep["counts"]["builds"] >= 1 and sweep["phases"]["training"] > 0
    assert "builds" not in again["counts"] and "training" not in again["phases"]
    compared, again = run_quickly(
        "imagenet_size.py", [*sizes, "--trainers", "GLA", "--before", str(tmp_path / "rows.json")], tmp_path
    )
    assert len(again) == 1 and f"{gla['cpu']:.3g} → {again[0]['cpu']:.3g} " in compared


def test_images_of_many_classes(benchmark, tmp_path):
    classes = benchmark("classes")
    counts = {"train": 2, "test": 1}
    small, large = (classes.write(tmp_path / str(count), count, counts) for count in (3, 5))
    files = sorted(path.relative_to(small) for path in small.rglob("*.png"))
    assert len(files) == 9 and len(list(large.rglob("*.png"))) == 15
    assert all((small / file).read_bytes() == (large / file).read_bytes() for file in files)
    assert len({(small / file).read_bytes() for file in files}) == 9
    assert len(set(classes.class_names(5000))) == 5000


@pytest.fixture
def watch(benchmark, monkeypatch):
    """A watch and its clock, which tests set."""
    phases, clock = benchmark("phases"), {"now": 1.0}
    monkeypatch.setattr(phases.time, "process_time", lambda: clock["now"])
    return phases.Watch(), clock


def test_a_nested_phase_keeps_its_time(watch):
    watch, clock = watch

    def spend(seconds, then=lambda: None):
        clock["now"] += seconds
        then()
        clock["now"] += seconds

    inner = watch.phase("images", lambda: spend(0.5))
    watch.phase("training", lambda: spend(2, inner))()
    watch.phase("groups", lambda: spend(4, inner))()
    spend(16)
    phases = watch.result()["phases"]
    assert phases == {"imports": 1, "training": 4, "images": 1, "groups": 9, "rest": 32}


def test_counts_are_without_imports(watch):
    watch, _ = watch
    call = watch.count("calls", lambda value: 2 * value)
    assert call(3) == 6 and watch.phase("imports", call)(value=4) == 8
    assert watch.result()["counts"] == {"calls": 1}


@pytest.mark.parametrize("table", ["PHASES", "COUNTED"])
def test_the_measured_functions_exist(benchmark, table):
    phases = benchmark("phases")
    for target in (target for targets in getattr(phases, table).values() for target in targets):
        place, path = (
            target.replace("engine.*", "engine.trainer").replace("trainers.*", "trainers.tipadapter").split(":")
        )
        assert phases._found(importlib.import_module(place), path), target


def test_only_functions_of_the_named_module_are_wrapped(benchmark, watch):
    watch, _ = watch
    module = types.ModuleType("unskew.engine.testing")
    module.evaluate, module.other = (lambda: 1), (lambda: 2)
    before = dict(vars(module))
    watch.wrap(module)
    assert {name for name, value in vars(module).items() if value is not before[name]} == {"evaluate"}
    assert module.evaluate() == 1
    assert "test" in watch.result()["phases"]


@pytest.mark.world
def test_webscale(tmp_path):
    flags = ["--sizes", "70000", "140000", "--classes", "12", "--wide", "20", "--width", "16", "--data", str(tmp_path)]
    printed, rows = run_quickly("webscale.py", flags, tmp_path)
    assert "under 2 GB" in printed and "NOT" not in printed and "400,000,000 images, 21,841 classes" in printed
    fits = {(row["name"], row["images"], row["classes"]): row for row in rows if "images" in row}
    assert len(fits) == 8 and not list(tmp_path.glob("*/*/*.npy"))
    assert all(row["correlation"] > 0.9 and row["error"] < 0.3 for row in fits.values())
    few, many, wide = (fits[("map", *size)] for size in ((70000, 12), (140000, 12), (70000, 20)))
    assert few["difference"] < 1e-5 and few["passes"] > 2  # it was read several times, not loaded
    assert few["exponent"] == many["exponent"] is not None
    plan = {(row["name"], row["machines"]): row for row in rows if "machines" in row}
    one, cluster = plan["map", 1], plan["map", 64]
    assert one["hours"] == pytest.approx(64 * cluster["hours"]) and one["speed"] == pytest.approx(cluster["speed"])
    assert one["exaflops"] == pytest.approx(wide["passes"] * 2 * 4e8 * 16 * 21841 / 1e18)
    assert one["terabytes"] == pytest.approx(wide["passes"] * 4e8 * 16 * 2 / 1e12)
    assert one["hours"] / wide["seconds"] == pytest.approx(4e8 * 21841 / (70000 * 20) / 3600)
