"""The file that `unskew adjust --out` writes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from unskew.cli.main import main


@pytest.fixture
def source(tmp_path):
    logits = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    save_file({"zs": logits[0].clone(), "ft": logits[1].clone()}, tmp_path / "run.safetensors")
    return tmp_path / "run.safetensors"


@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize("link", [False, True])
def test_out_never_replaces_a_file_to_read(source, tmp_path, capsys, key, link):
    before, out = source.read_bytes(), source
    if link:
        out = tmp_path / "link.safetensors"
        out.symlink_to(source)
    zeroshot, finetuned = (f"{source}:{name}" if key else str(source) for name in ("zs", "ft"))
    assert main(["adjust", "--zeroshot", zeroshot, "--finetuned", finetuned, "--out", str(out)]) == 2
    assert source.read_bytes() == before and "--out" in capsys.readouterr().err


def test_out_may_replace_an_earlier_result(source, tmp_path):
    out = tmp_path / "out.safetensors"
    for _ in range(2):
        assert main(["adjust", "--zeroshot", str(source), "--finetuned", str(source), "--out", str(out)]) == 0
    assert load_file(out)["logits"].shape == (20, 3)
