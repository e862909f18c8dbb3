
import torch

from quantization.options import GptqConfig
from quantization.sequential import CalibrationInput, quantize_model


def prepare(model, out, samples, variant):
    from transformers import AutoModelForCausalLM

    res = {}
    opts = {}
    for part in variant.split("+"):
        if "=" in part:
            k, v = part.split("=")
            opts[k] = (
                float(v)
                if "." in v
                else (int(v) if v.isdigit() else (v == "True" if v in ("True", "False") else v))
            )
        else:
            opts["preset"] = part
    cfg = GptqConfig(**opts)

    def work():
        m = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        quantize_model(
            m,
            [CalibrationInput(r) for r in samples],
            cfg,
            lambda n, q: res.__setitem__(n + ".weight", q),
        )

    return work, lambda told: {n: q.weight() for n, q in res.items()}
