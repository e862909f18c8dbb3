"""Every command answers --help without its heavy libraries."""

import subprocess
import sys

import pytest

from pipeline.commands import COMMANDS

# a newcomer who installed only the core has none of these
BLOCKED = ("torch", "transformers", "safetensors", "huggingface_hub", "modelscope", "tokenizers")
_BLOCKER = f"""
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
module, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = module
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def _help(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _BLOCKER, module, *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", sorted(set(COMMANDS.values())))
def test_a_command_explains_itself_with_examples_and_without_torch(module: str) -> None:
    done = _help(module)

    assert done.returncode == 0, done.stderr
    assert f"usage: python -m {module}" in done.stdout
    assert "Examples:\n" in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_subcommand_of_ferry_gives_the_same_help(name: str) -> None:
    done = _help("pipeline", name)

    assert done.returncode == 0, done.stderr
    assert f"usage: ferry {name}" in done.stdout


def test_the_overview_lists_every_command_without_torch() -> None:
    done = _help("pipeline")

    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ")]
    assert [name for name in COMMANDS if name not in listed] == []
