"""Every command ends quietly when the reader of its output, such as ``head``, ends first."""

import subprocess
import sys

import pytest

from unskew.utils.errors import exit_code


@pytest.mark.parametrize(
    "argv",
    [["data", "list"], ["table"], ["train", "--help"], ["sweep", "-d", "digits", "-t", "GLA", "CoOp", "--dry-run"]],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_a_closed_pipe_gives_no_message(argv, tmp_path):
    (tmp_path / "output").mkdir()
    command = [sys.executable, "-c", "import sys; from unskew.cli.main import main; sys.exit(main())", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    process.stdout.close()  # before the first line is printed
    assert process.stderr.read() == b""
    assert process.wait(60) in (0, 141)
    process.stderr.close()


def test_an_error_on_a_closed_pipe_is_quiet_too(tmp_path):
    command = [sys.executable, "-c", "import sys; from unskew.cli.main import main; sys.exit(main())", "table", "nope"]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path)
    reader.stdout.close()
    assert reader.wait(60) in (2, 141)


def test_another_broken_pipe_is_an_error(capsys):
    def work():
        raise BrokenPipeError(32, "Broken pipe", "worker")

    assert exit_code(work) == 2
    assert "worker" in capsys.readouterr().err
