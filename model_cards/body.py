"""The card's text: sections of Markdown, every figure of which comes from CardFacts."""

from __future__ import annotations

import json

from model_cards.facts import CardFacts
from model_cards.licences import Licence
from model_store.manifest import Source, Step
from model_store.progress import human_bytes
from model_store.records import Measurement, RecordSet

NOT_MEASURED = "not measured"


def render_body(facts: CardFacts, licence: Licence, *, title: str) -> str:
    """Assemble the sections, English first, with a Chinese summary on top."""
    sections = [
        f"# {title}",
        _summary(facts),
        "## Use\n\n" + _use(),
        "## How it was made\n\n" + _lineage(facts),
        "## Measured against its reference\n\n" + _measured(facts),
        "## Files\n\n" + _files(facts),
        "## Licence\n\n" + _licence(licence, facts),
    ]
    return "\n\n".join(sections) + "\n"


def _summary(facts: CardFacts) -> str:
    base = _name(facts.base)
    if facts.quantization is not None:
        bits = facts.quantization["bits"]
        english = (
            f"GPTQ {bits}-bit weights of {base}: {facts.quantized_linears} linear layers of the "
            f"language model are quantized, everything else is kept as it was."
        )
        chinese = (
            f"{base} 的 GPTQ {bits} 比特量化权重：语言模型的 {facts.quantized_linears} 个线性层"
            "被量化，其余参数保持原样。"
        )
    else:
        english = f"The weights of {base} in the layout that today's transformers load natively."
        chinese = f"{base} 的权重，采用当前 transformers 可直接加载的原生布局。"
    plain = "Loads without remote code. 无需远程代码即可加载。"
    size = f"Weights / 权重: {human_bytes(facts.weight_bytes)}."
    return "\n\n".join((english, chinese, f"{plain} {size}"))


def _use() -> str:
    return """```python
from qwen_vl.dialogue import chat
from qwen_vl.loading import load_model, load_tokenizer

folder = "."  # where this repository was downloaded to
model, tokenizer = load_model(folder), load_tokenizer(folder)
query = [{"image": "picture.jpg"}, {"text": "What is in the picture?"}]
answer, history = chat(model, tokenizer, query)
print(answer)
```

Boxes come as `<ref>object</ref><box>(x1,y1),(x2,y2)</box>` with coordinates in thousandths of
width and height. 检测框坐标以图像宽高的千分之一为单位。"""


def _lineage(facts: CardFacts) -> str:
    digest = f"Content digest of this snapshot: `{facts.content_digest}`."
    if not facts.lineage:
        return f"As published; nothing was changed. {digest}"
    rows = ["| step | tool | options | from content digest |", "|---|---|---|---|"]
    rows += [_lineage_row(step) for step in facts.lineage]
    if facts.base is not None:
        rows += ["", f"Origin: {_name(facts.base)}, commit `{facts.base.commit}`."]
    return "\n".join([*rows, "", digest])


def _lineage_row(step: Step) -> str:
    options = ", ".join(f"{key}={json.dumps(value)}" for key, value in step.options.items())
    return f"| {step.step} | {step.tool} | {_cell(options)} | `{step.parent[:16]}…` |"


def _measured(facts: CardFacts) -> str:
    parts = [_record(record) for record in facts.parity]
    if not parts:
        parts = [f"Parity with its reference: {NOT_MEASURED}."]
    # one row per layer would bury the verdict: the card says how many, and where they are
    parts += [
        f"{len(record.measurements)} further measurements: "
        f"[records/{record.name}.json](records/{record.name}.json), {record.verdict}."
        for record in facts.records
        if record not in facts.parity
    ]
    return "\n\n".join(parts)


def _record(record: RecordSet) -> str:
    head = f"**{record.name}**: {record.verdict}"
    rows = [
        "| measurement | value | 95 % interval | threshold | n | verdict |",
        "|---|---|---|---|---|---|",
    ]
    rows += [_measurement_row(m) for m in record.measurements]
    command = f"Command: `{' '.join(record.command)}`; {record.hardware or 'hardware unknown'}."
    return "\n".join((head, "", *rows, "", command))


def _measurement_row(m: Measurement) -> str:
    interval = "" if m.interval is None else f"{m.interval[0]:.4g} … {m.interval[1]:.4g}"
    name = f"**{m.name}**" if m.primary else m.name
    cells = (name, value_text(m), interval, m.threshold or "", str(m.n), m.verdict)
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def value_text(m: Measurement) -> str:
    """A measurement's value as the card prints it; the lint looks for exactly this text."""
    if m.value is None:
        return NOT_MEASURED
    shown = f"{m.value:.4g}" if isinstance(m.value, float) else str(m.value)
    return f"{shown} {m.unit}".rstrip()


def _files(facts: CardFacts) -> str:
    rows = ["| file | size | sha256 |", "|---|---|---|"]
    rows += [
        f"| {_cell(entry.path)} | {human_bytes(entry.size)} | `{entry.sha256}` |"
        for entry in facts.files
        if entry.path.endswith((".safetensors", ".bin", ".tiktoken"))
    ]
    return "\n".join(rows)


def _licence(licence: Licence, facts: CardFacts) -> str:
    text = f"{licence.title}: see [LICENSE](LICENSE) and [NOTICE](NOTICE)."
    if facts.lineage:
        text += " What was changed: [CHANGES.md](CHANGES.md)."
    return text


def _name(source: Source | None) -> str:
    return f"{source.repo_id} ({source.hub})" if source else "an unpublished checkpoint"


def _cell(text: str) -> str:
    # a pipe ends a table cell, an angle bracket starts HTML on both hubs' pages
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
