"""Load a bundled folder with transformers alone, and say what came out, as one JSON line."""

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

OURS = {
    "model_store", "hub_tools", "qwen_vl", "model_cards", "conversion", "quantization",
    "verification", "finetuning", "serving", "pipeline",
}  # fmt: skip
# a folder works without these, too
ABSENT = {"tiktoken", "rfc8785"}


class Refusing(MetaPathFinder):
    """Stands in front of every other way to find a module."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in OURS | ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refusing())

import torch  # noqa: E402  # after the guard
from PIL import Image  # noqa: E402  # as above
from transformers import (  # noqa: E402  # as above
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)


def main(folder: str, picture: str, text: str) -> None:
    """Try everything that the folder's auto_map promises."""
    torch.set_num_threads(1)
    remote: dict[str, Any] = {"trust_remote_code": True}
    tokenizer = AutoTokenizer.from_pretrained(folder, **remote)
    processor = AutoProcessor.from_pretrained(folder, **remote)
    inputs: Any = processor(text=text, images=[Image.open(picture)])
    logits: dict[str, Any] = {}
    model: Any = None
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        model = auto.from_pretrained(folder, dtype="float32", **remote)
        with torch.no_grad():
            logits[auto.__name__] = model(**inputs).logits[0, -1].tolist()
    base: Any = AutoModel.from_pretrained(folder, dtype="float32", **remote)
    answer, _ = model.chat(tokenizer, "hello", max_new_tokens=3, do_sample=False)
    model.save_pretrained("saved")
    saved: Any = AutoModelForCausalLM.from_pretrained("saved", dtype="float32", **remote)
    with torch.no_grad():
        again = saved(**inputs).logits[0, -1].tolist()
    made = [
        AutoConfig.from_pretrained(folder, **remote),
        AutoImageProcessor.from_pretrained(folder, **remote),
        *(tokenizer, processor, processor.tokenizer, model, base, saved),
    ]
    said = {
        "ids": tokenizer.encode(text),
        "logits": logits,
        "rows": list(base.get_image_features(inputs["pixel_values"]).pooler_output.shape),
        "answer": answer,
        "saved_logits_equal": again == logits["AutoModelForCausalLM"],
        "modules": sorted({type(one).__module__.rpartition(".")[2] for one in made}),
        "files": sorted(path.name for path in Path("saved").iterdir()),
    }
    sys.stdout.write("\n" + json.dumps(said) + "\n")


main(*sys.argv[1:])
