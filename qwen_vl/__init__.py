"""Qwen-VL, native on transformers 5: model, tokenizer, dialogue, boxes, weight map."""
