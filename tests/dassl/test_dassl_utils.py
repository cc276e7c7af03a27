"""Dassl's utilities: files, the log of standard output, names, layers of a model."""

import json
import logging
import sys

import pytest
import torch
from torch import nn

from unskew.dassl import utils


@pytest.fixture
def output(monkeypatch, capsys):
    """Reset standard output and the engine's logger; return the printed text."""
    logger = logging.getLogger("unskew")
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(logger, name, [] if name == "handlers" else getattr(logger, name))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back whatever replaces it
    return lambda: capsys.readouterr().out


# --- files -------------------------------------------------------------------------------------------


def test_json_is_indented_and_its_folder_created(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "split.json"
    utils.write_json({"train": [1, 2]}, str(path))
    assert path.read_text() == json.dumps({"train": [1, 2]}, indent=4)
    assert utils.read_json(str(path)) == {"train": [1, 2]}
    monkeypatch.chdir(tmp_path)
    utils.write_json([], "here.json")  # a bare name has no folder to make
    assert (tmp_path / "here.json").read_text() == "[]"
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        utils.read_json(tmp_path / "none.json")


def test_folders_and_files(tmp_path):
    utils.mkdir_if_missing(tmp_path / "a" / "b")
    utils.mkdir_if_missing(tmp_path / "a" / "b")
    for name in ("c", ".hidden", "B"):
        (tmp_path / name).touch()
    assert utils.listdir_nohidden(tmp_path, sort=True) == ["B", "a", "c"]
    assert sorted(utils.listdir_nohidden(tmp_path)) == ["B", "a", "c"]
    assert utils.check_isfile(tmp_path / "c")
    with pytest.warns(UserWarning, match='No file found at ".*a"'):
        assert not utils.check_isfile(tmp_path / "a")


# --- logs --------------------------------------------------------------------------------------------


def test_all_lines_are_appended_to_the_log_once(tmp_path, output):
    (tmp_path / "log.txt").write_text("killed here\n")
    logger = logging.getLogger("unskew")
    utils.setup_logger(str(tmp_path))
    print("printed")
    logger.info("logged")
    utils.setup_logger(str(tmp_path))  # again, as two runs in one process
    print("and", 3)
    logger.warning("warned")
    assert (tmp_path / "log.txt").read_text() == "killed here\nprinted\nlogged\nand 3\nwarned\n"
    assert output() == "printed\nlogged\nand 3\nwarned\n"


def test_a_second_run_has_its_own_log(tmp_path, output):
    utils.setup_logger(str(tmp_path / "first.txt"))
    print("one")
    utils.setup_logger(str(tmp_path / "second"))
    print("two")
    assert (tmp_path / "first.txt").read_text() == "one\n"
    assert (tmp_path / "second" / "log.txt").read_text() == "two\n"
    assert not sys.stdout.isatty()  # what a stream knows of itself is the console's


def test_a_scripts_own_log_gets_the_engines_lines_too(output):
    class Own:
        lines = ()

        def write(self, text):
            self.lines = (*self.lines, text)

        def flush(self):
            pass

    utils.setup_logger(None)
    sys.stdout = own = Own()
    logging.getLogger("unskew").info("epoch [1/2]")
    assert "".join(own.lines) == "epoch [1/2]\n"


def test_a_configured_logger_is_kept(output):
    logger = logging.getLogger("unskew")
    logger.addHandler(handler := logging.NullHandler())
    utils.show_log_lines()
    assert logger.handlers == [handler]


def test_a_log_that_cannot_be_written_is_an_error(tmp_path, output):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"log\.txt"):
        utils.setup_logger(str(tmp_path / "file"))


# --- names -------------------------------------------------------------------------------------------


def test_names():
    assert utils.get_most_similar_str_to_a_from_b("coop", ["cocoop", "zsclip"]) == "cocoop"
    assert utils.get_most_similar_str_to_a_from_b("coop", []) is None
    utils.check_availability("sgd", ["adam", "sgd"])
    with pytest.raises(ValueError, match=r"'sgdd'.*adam, sgd.*'sgd'"):
        utils.check_availability("sgdd", ["adam", "sgd"])
    assert utils.tolist_if_not("a") == ["a"]
    assert utils.tolist_if_not(["a"]) == ["a"]


# --- models ------------------------------------------------------------------------------------------


def network():
    layers = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "flat": nn.Flatten(), "head": nn.Linear(4, 2)}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def test_parameters_are_counted():
    model = network()
    assert utils.count_num_param(model) == 112 + 8 + 10
    assert utils.count_num_param(params=[{"params": model.head.weight}, model.head.bias]) == 10
    with pytest.raises(ValueError, match="count_num_param"):
        utils.count_num_param()


def test_layers_are_opened():
    model = network().eval()
    utils.open_specified_layers(model, "head")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert (model.head.training, model.norm.training) == (True, False)
    utils.open_specified_layers(nn.DataParallel(model), ["norm"])
    assert (model.head.training, model.norm.training) == (False, True)
    utils.open_all_layers(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match=r"Sequential.*'tail'"):
        utils.open_specified_layers(model, "tail")


@pytest.mark.parametrize(
    "kind, deviation", [("normal", 0.02), ("xavier", 0.02 * (2 / 512) ** 0.5), ("kaiming", (2 / 256) ** 0.5)]
)
def test_weights_are_initialised(kind, deviation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.Linear(256, 4, bias=False), nn.ReLU())
    nn.init.constant_(model[1].weight, 3.0)
    utils.init_network_weights(model, kind)
    assert model[0].weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert not model[0].bias.any()
    assert (model[1].weight == 1).all()


def test_orthogonal_weights_and_an_unknown_kind():
    model = nn.Sequential(nn.Linear(8, 8))
    utils.init_network_weights(model, "orthogonal", gain=2.0)
    torch.testing.assert_close(model[0].weight @ model[0].weight.T, 4 * torch.eye(8))
    with pytest.raises(ValueError, match="'xavier'"):
        utils.init_network_weights(model, "xavierr")


def test_learning_rates_by_epoch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))], lr=1)
    utils.adjust_learning_rate(optimizer, 0.1, 45, stepsize=20, gamma=0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    utils.adjust_learning_rate(optimizer, 0.1, 25, linear_decay=True, final_lr=0.02, max_epoch=100)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.08)


def test_batch_norms_in_evaluation_mode():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout())
    model.apply(utils.set_bn_to_eval)
    assert [module.training for module in model] == [True, False, True]
    assert model[1].weight.requires_grad
