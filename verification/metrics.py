"""The benchmarks' metrics under one name, each with profile="standard" or "qwen-2023"."""

from __future__ import annotations

from verification.answer_metrics import anls, exact_match, gqa, relaxed_accuracy, vqa_accuracy
from verification.box_metrics import grounding
from verification.caption_metrics import captions
from verification.choice_metrics import multiple_choice
from verification.mme_metric import mme

__all__ = [
    "anls", "captions", "exact_match", "gqa", "grounding", "mme", "multiple_choice",
    "relaxed_accuracy", "vqa_accuracy",
]  # fmt: skip
