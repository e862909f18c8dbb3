"""The Chinese of what a comparison says: one table of sentences with slots for their values.

Findings and records speak English, and parity.json keeps it; the page and the verdict's sentence
look their words up here. A slot's name, without its digit, says what may stand in it. The first
row that fits the whole text is taken, so longer sentences stand before those they contain.
"""

from __future__ import annotations

import re

# kinds of question, as probes name them
KINDS = {
    "colour": "颜色",
    "shape": "形状",
    "background": "背景",
    "presence": "有无",
    "region": "区域",
    "chart": "柱状图",
    "choice": "选择题",
    "counting": "计数",
    "relation": "位置关系",
    "reading": "文字识别",
    "comparison": "比较",
    "grounding": "检测框",
    "caption": "描述",
    "text": "纯文本",
    "dialogue": "对话",
}
UNITS = {
    "tensors": "个张量", "settings": "项配置", "texts": "条文本", "answers": "个回答",
    "boxes": "个框", "modules": "个模块", "linears": "个线性层", "tasks": "类题型",
    "measurements": "个测量项", "tokens": "个词元", "points": "个百分点",
}  # fmt: skip
_SIDES = {"reference": "参考", "candidate": "候选"}

SENTENCES = (
    # limits
    ("{passes} (warn {limit})", "{passes}（警告 {limit}）"),
    ("{limit}, upper 95 %", "{limit}，95 % 上限"),
    ("{limit}, lower 95 %", "{limit}，95 % 下限"),
    ("{limit}, one-sided 95 %", "{limit}，单侧 95 % 下限"),
    ("warn {limit}", "警告 {limit}"),
    ("{limit}", "{limit}"),
    # why nothing is concluded
    ("not measured", "未测量"),
    ("{count} probes were run, {count2} are needed", "运行了 {count} 个探针，至少需要 {count2} 个"),
    ("n is {count}, {count2} are needed", "n 为 {count}，至少需要 {count2}"),
    ("no probe of this sort was run", "没有运行这类探针"),
    ("no probe gave a box", "没有探针给出检测框"),
    ("no probe shows an image", "没有带图像的探针"),
    ("no traced probe shows an image", "被追踪的探针均不含图像"),
    ("no probe has a right answer to be graded by", "没有可评分的探针"),
    ("no blessed report was named", "未指定经确认的基线"),
    ("neither side is in the 2023 layout", "双方都不是 2023 年布局"),
    ("the limit is float32's, this run was {name}", "该限值针对 float32，本次运行使用 {name}"),
    ("the candidate has no packed layer to round", "候选没有可供取整的打包层"),
    ("the candidate has no quantized linear layer", "候选没有已量化的线性层"),
    ("rounding to nearest changes nothing here", "直接取整在此不改变任何结果"),
    ("not run: tensors are missing or extra ({note})", "未运行：有缺失或多余的张量（{note}）"),
    # what a value is made of
    ("{count} dialogues", "{count} 段对话"),
    ("10/25/75/90 %: {name}", "10/25/75/90 % 分位：{name}"),
    ("rounding: {number} nats", "直接取整：{number} nats"),
    ("{count} strings, {count2} prompts", "{count} 条字符串，{count2} 条提示"),
    (
        "{count} of {count2} strings, {count3} of {count4} prompts",
        "{count2} 条字符串中有 {count} 条、{count4} 条提示中有 {count3} 条",
    ),
    ("{count} probes differ", "{count} 个探针不同"),
    ("{count} of the reference, {count2} of the candidate", "参考 {count} 个，候选 {count2} 个"),
    (
        "{count} of {count2} found by the reference, {count3} by the candidate",
        "共 {count2} 个，参考命中 {count} 个，候选命中 {count3} 个",
    ),
    (
        "{count} right to wrong, {count2} wrong to right",
        "由对变错 {count} 个，由错变对 {count2} 个",
    ),
    (
        "{count} right before, {count2} now; with n = {count3} and {number} % flips one can see "
        "{number2} points, 1 point takes {count4}",
        "原先答对 {count} 个，现在 {count2} 个；n = {count3}、翻转率 {number} % 时可检出 {number2} "
        "个百分点的差异，检出 1 个百分点需要 n = {count4}",
    ),
    ("exact; never a proof of parity", "精确检验；不能证明一致"),
    # where it is worst
    (
        "on the weights of the {side}; worst: {name} ({sort})",
        "用{side}的权重；最差：{name}（{sort}）",
    ),
    ("of the {side}", "用{side}的权重"),
    ("worst: {name}, {number} of the reference", "最差：{name}，为参考的 {number} 倍"),
    ("worst: {name}", "最差：{name}"),
    ("first: {name}, {number} by itself", "首个：{name}，自身误差 {number}"),
    ("against {label}", "对比基线：{label}"),
    (
        "{name} (error of its own {number}): none of its tensors differs",
        "{name}（自身误差 {number}）：其张量均无不同",
    ),
    ("{name} (error of its own {number}): {note}", "{name}（自身误差 {number}）：{note}"),
    # settings
    (
        "{field}: {value} against {value2}, {settings}",
        "{field}：{value} 对 {value2}；{settings}",
    ),
    ("{field}: {value} against {value2}", "{field}：{value} 对 {value2}"),
    ("{count} more", "另有 {count} 项"),
    # tensors, probes and kinds of question by their names
    (
        "{note}; {count} compared after a cast to the candidate's dtype",
        "{note}；{count} 个转换为候选的数据类型后比较",
    ),
    (
        "{count} compared after a cast to the candidate's dtype",
        "{count} 个转换为候选的数据类型后比较",
    ),
    ("no rule maps tensor {quoted}", "没有规则对应张量 {quoted}"),
    (
        "{name} has shape {label}: dim {count} does not divide by {count2}",
        "{name} 的形状为 {label}：第 {count} 维不能被 {count2} 整除",
    ),
    ("{item} and {count} more", "{item}，另有 {count} 个"),
    ("{item}, {note}", "{item}、{note}"),
    ("{kind}", "{kind}"),
    ("{identifier}", "{identifier}"),
)  # fmt: skip

_KIND = "|".join(KINDS)
_IDENTIFIER = r"[^\s,;()]*[._/\d-][^\s,;()]*"  # a word of prose has none of these
_FIELD = r"[\w.]+"
_QUOTED = r"'[^']*'|\"[^\"]*\""
_PATTERNS = {
    "count": r"\d+",
    "number": r"[-+.\w]+",
    "limit": r"[≤≥>] \S+",
    "passes": r"[≤≥>] .+",
    "name": r"\S+",
    "identifier": _IDENTIFIER,
    "side": "|".join(_SIDES),
    "kind": _KIND,
    "sort": r"\w+",
    "field": _FIELD,
    "value": r".+?",
    "settings": rf"{_FIELD}: .+ against .+|\d+ more",
    # a tensor without a place stands in a list as a sentence
    "item": rf"{_KIND}|{_IDENTIFIER}|no rule maps tensor (?:{_QUOTED})"
    r"|\S+ has shape \(.*?\): dim \d+ does not divide by \d+",
    "quoted": _QUOTED,
    "label": r".+",
    "note": r".+",
}  # fmt: skip
_SENTENCES_INSIDE = frozenset({"passes", "settings", "item", "note"})
_WORDS = {"side": _SIDES, "kind": KINDS, "sort": KINDS, "value": {"absent": "无"}}
# names come from checkpoints: neither a long nor a deep one may cost much
_LONGEST, _DEEPEST = 1000, 40


def in_chinese(text: str) -> str:
    """The Chinese of a note, a limit or a fault; the text itself where the table has none."""
    found = translated(text)
    return text if found is None else found


def translated(text: str, *, depth: int = 0) -> str | None:
    """Look a text up in the table; None when no row fits it, or something inside it."""
    if not text:
        return ""
    if len(text) > _LONGEST or depth > _DEEPEST:
        return None
    for pattern, chinese in _TABLE:
        match = pattern.fullmatch(text)
        if match is None:
            continue
        values = {slot: _value(slot, value, depth) for slot, value in match.groupdict().items()}
        if None not in values.values():
            return chinese.format(**values)
    return None


def _value(slot: str, value: str, depth: int) -> str | None:
    sort = slot.rstrip("0123456789")
    if sort in _SENTENCES_INSIDE:
        return translated(value, depth=depth + 1)
    return _WORDS.get(sort, {}).get(value, value)


def _compiled(sentence: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", sentence)  # words, slot, words, slot, …
    for at in range(1, len(parts), 2):
        slot = parts[at]
        parts[at] = f"(?P<{slot}>{_PATTERNS[slot.rstrip('0123456789')]})"
    for at in range(0, len(parts), 2):
        parts[at] = re.escape(parts[at])
    return re.compile("".join(parts), re.DOTALL)


_TABLE = tuple((_compiled(english), chinese) for english, chinese in SENTENCES)
