"""The literal table of what is measured under each claim; profiles add the limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sense = Literal["at most", "at least", "more than", "report"]
Side = Literal["value", "upper", "lower", "one-sided"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One measurement: which way is good, and which number is held against the limit.

    `side` "upper" judges the upper end of the 95 % interval, "one-sided" the lower end of an
    interval whose lower end is a one-sided 95 % bound: few samples then make a gate harder to
    pass, not easier. A probe measurement is skipped when too few probes were run.
    """

    name: str
    unit: str
    sense: Sense
    en: str
    zh: str
    side: Side = "value"
    from_probes: bool = True


_TENSORS = (
    Measure("tensors_unpaired", "tensors", "at most", "Missing or extra tensors",
            "缺失或多余的张量", from_probes=False),
    Measure("settings_differing", "settings", "at most", "Settings with other values",
            "取值不同的配置项", from_probes=False),
)  # fmt: skip
_INPUTS = (
    Measure("token_ids_differing", "texts", "at most", "Texts with other token ids",
            "分词结果不同的文本", from_probes=False),
    Measure("pixels_max_delta", "", "at most", "Image tensors, max |Δ|", "图像张量最大差"),
)  # fmt: skip
_WITNESS = (
    Measure("witness_max_delta", "logits", "at most",
            "Independent 2023 forward, max |Δ logit|", "独立的 2023 前向计算，logit 最大差",
            from_probes=False),
    Measure("witness_image_error", "relative", "at most",
            "Independent 2023 vision, image rows off by", "独立的 2023 视觉计算，图像特征相对误差",
            from_probes=False),
)  # fmt: skip
_BASELINE = (
    Measure("regressions", "measurements", "at most", "Worse than the blessed report",
            "劣于已确认基线的测量项", from_probes=False),
)  # fmt: skip

CONVERTED = (
    Measure("tensors_differing", "tensors", "at most", "Tensors with other bytes",
            "字节不同的张量", from_probes=False),
    *_TENSORS,
    *_INPUTS,
    Measure("logits_bit_equal", "share", "report", "Positions whose logits are bit-equal",
            "logit 逐位相同的位置"),
    Measure("logits_max_delta", "logits", "at most", "Logits, max |Δ|", "logit 最大差"),
    Measure("modules_at_fault", "modules", "at most", "Modules that err by themselves",
            "自身出错的模块", from_probes=False),
    Measure("kl_mean", "nats", "at most", "KL divergence, mean", "KL 散度均值"),
    Measure("kl_p99", "nats", "at most", "KL divergence, 99th percentile", "KL 散度 99 分位"),
    Measure("top1_agreement", "share", "at least", "Same most likely token", "首选词元一致率"),
    Measure("greedy_unexplained", "answers", "at most",
            "Greedy answers that part without a near tie", "非近似并列导致的贪心回答分歧"),
    Measure("boxes_differing", "boxes", "at most", "Boxes that differ", "不同的检测框"),
    *_WITNESS,
    *_BASELINE,
)  # fmt: skip

QUANTIZED = (
    Measure("quantized_linears", "linears", "at least", "Quantized linear layers",
            "已量化的线性层", from_probes=False),
    Measure("same_content", "", "at most", "Candidate is the reference itself (1 = yes)",
            "候选就是参考本身（1 为是）", from_probes=False),
    *_TENSORS,
    Measure("kept_tensors_differing", "tensors", "at most", "Unquantized tensors that differ",
            "未量化却不同的张量", from_probes=False),
    Measure("weight_error_max", "relative", "at most", "Weight error, worst layer",
            "权重误差（最差层）", from_probes=False),
    Measure("weight_scale_deviation_max", "relative", "at most",
            "Weight scale off by, worst layer", "权重整体缩放偏差（最差层）", from_probes=False),
    *_INPUTS,
    Measure("kl_max", "nats", "more than", "KL divergence, largest (0 = nothing was quantized)",
            "KL 散度最大值（0 表示并未量化）"),
    Measure("kl_mean", "nats", "at most", "KL divergence, mean", "KL 散度均值", "upper"),
    Measure("kl_mean_image", "nats", "at most", "KL divergence, mean, with images",
            "KL 散度均值（含图像）", "upper"),
    Measure("kl_mean_text", "nats", "at most", "KL divergence, mean, text only",
            "KL 散度均值（纯文本）", "upper"),
    Measure("kl_p99", "nats", "at most", "KL divergence, 99th percentile", "KL 散度 99 分位"),
    Measure("kl_rtn_ratio", "ratio", "at most", "KL divergence against plain rounding's",
            "KL 散度与直接取整之比", "upper"),
    Measure("noise_floor", "nats", "at most", "KL divergence of the reference, batch 1",
            "参考模型逐条运行时的 KL 散度"),
    Measure("top1_agreement", "share", "at least", "Same most likely token", "首选词元一致率"),
    Measure("top1_agreement_image", "share", "at least", "Same most likely token, with images",
            "首选词元一致率（含图像）"),
    Measure("top1_agreement_text", "share", "at least", "Same most likely token, text only",
            "首选词元一致率（纯文本）"),
    Measure("ppl_ratio", "ratio", "at most", "Perplexity ratio", "困惑度之比"),
    Measure("answer_flips", "share", "at most", "Answers that flipped, right to wrong or back",
            "对错翻转的回答"),
    Measure("accuracy_difference", "points", "more than", "Accuracy, candidate minus reference",
            "准确率差（候选减参考）", "one-sided"),
    Measure("mcnemar_p", "p", "report", "McNemar's exact test of the flips",
            "翻转的 McNemar 精确检验"),
    Measure("tasks_worse", "tasks", "at most", "Kinds of question that got worse (Holm, 5 %)",
            "变差的题型（Holm 校正，5 %）"),
    Measure("greedy_prefix_median", "tokens", "report", "Greedy answers, common prefix (median)",
            "贪心回答共同前缀（中位数）"),
    Measure("greedy_identical", "share", "report", "Greedy answers that are identical",
            "完全相同的贪心回答"),
    Measure("box_iou_median", "IoU", "at least", "Boxes, median overlap with the reference's",
            "检测框与参考的 IoU 中位数"),
    Measure("box_agreement", "share", "at least", "Boxes with IoU ≥ 0.5", "IoU ≥ 0.5 的检测框"),
    Measure("box_hit_agreement", "share", "at least", "Boxes found, or missed, by both sides",
            "双方同时命中或同时未命中的检测框"),
    Measure("box_parse_failures", "points", "at most", "Answers without a readable box, more by",
            "无法读出检测框的回答增加"),
    *_WITNESS,
    *_BASELINE,
)  # fmt: skip

BY_CLAIM = {"converted": CONVERTED, "quantized": QUANTIZED}
