"""The driver: each layer is calibrated on what reaches it once all before it is quantized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from quantization.errors import CalibrationError, UnsupportedModelError
from quantization.hessian import HessianAccumulator
from quantization.options import GptqConfig
from quantization.sequential import (
    CalibrationInput,
    LayerError,
    decoder_layers,
    linears,
    quantize_model,
)
from quantization.solver import QuantizedLinear, relative_errors
from tests.quantization.tiny import N_RANKS, tiny_model

CONFIG = GptqConfig(group_size=32)
IMAGE = [N_RANKS + 214, *[N_RANKS + 216] * 16, N_RANKS + 215]


def _samples(count: int = 6) -> list[CalibrationInput]:
    dice = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        words = torch.randint(0, 256, (5 + 7 * number,), generator=dice).tolist()
        pixels = torch.randn(1, 3, 56, 56, generator=dice) if number % 2 else None
        ids = [*words[:3], *IMAGE, *words[3:]] if number % 2 else words
        found.append(CalibrationInput(torch.tensor(ids), pixels))
    return found


def _run(model: nn.Module, sample: CalibrationInput) -> Tensor:
    pixels = {} if sample.pixel_values is None else {"pixel_values": sample.pixel_values}
    with torch.no_grad():
        logits: Tensor = model(input_ids=sample.input_ids[None], **pixels).logits
    return logits


@contextmanager
def _hessians(model: nn.Module) -> Iterator[dict[str, HessianAccumulator]]:
    found: dict[str, HessianAccumulator] = {}
    handles = []
    for name, linear in linears(decoder_layers(model)).items():
        found[name] = HessianAccumulator(linear.in_features)

        def see(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            found[name].add(args[0])

        handles.append(linear.register_forward_pre_hook(see))
    yield found
    for handle in handles:
        handle.remove()


def _quantize(
    model: nn.Module, samples: list[CalibrationInput], config: GptqConfig = CONFIG
) -> tuple[list[LayerError], dict[str, QuantizedLinear]]:
    results: dict[str, QuantizedLinear] = {}
    return quantize_model(model, samples, config, results.__setitem__), results


def test_every_linear_sees_what_reaches_it_in_the_quantized_model() -> None:
    model, samples = tiny_model(), _samples()
    before = {name: one.weight.clone() for name, one in linears(decoder_layers(model)).items()}

    errors, _ = _quantize(model, samples)

    with _hessians(model) as hessians:  # one unpadded sample at a time, after all is done
        for sample in samples:
            _run(model, sample)
    after = linears(decoder_layers(model))
    assert [error.name for error in errors] == list(before)
    for error in errors:
        hessian = hessians[error.name].matrix()
        (measured,) = relative_errors(before[error.name], [after[error.name].weight], hessian)
        assert error.error == pytest.approx(measured, rel=1e-3)
        assert error.rows == sum(len(sample.input_ids) for sample in samples)


def test_the_model_holds_exactly_what_the_sink_was_given() -> None:
    model = tiny_model()

    _, results = _quantize(model, _samples())

    for name, linear in linears(decoder_layers(model)).items():
        assert torch.equal(linear.weight, results[name].weight())


def test_nothing_but_the_decoders_linears_changes() -> None:
    model, untouched = tiny_model(), tiny_model().state_dict()

    _quantize(model, _samples())

    quantized = {f"{name}.weight" for name in linears(decoder_layers(model))}
    assert len(quantized) == 14
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, untouched[name]) == (name not in quantized)


def test_no_hook_is_left_behind() -> None:
    model = tiny_model()

    _quantize(model, _samples())

    assert not any(module._forward_pre_hooks for module in model.modules())


def test_solving_beats_rounding_for_the_whole_model() -> None:
    samples = _samples()
    expected = [_run(tiny_model(), sample) for sample in samples]
    distance = {}

    for method in ("gptq", "rtn"):
        model = tiny_model()
        _quantize(model, samples, GptqConfig(group_size=32, method=method, bits=4))
        found = [_run(model, sample) for sample in samples]
        distance[method] = sum(
            float((one - two).norm()) for one, two in zip(found, expected, strict=True)
        )

    assert distance["gptq"] < 0.8 * distance["rtn"]


def test_the_same_samples_give_the_same_integers() -> None:
    first = _quantize(tiny_model(), _samples())[1]
    second = _quantize(tiny_model(), _samples())[1]

    assert all(torch.equal(first[name].codes, second[name].codes) for name in first)


def test_a_model_we_have_no_table_for_works_as_well() -> None:
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = Qwen2ForCausalLM(shape)
    samples = [CalibrationInput(torch.arange(n) % 64) for n in (40, 64, 70)]

    errors, results = _quantize(model, samples)

    assert len(results) == 14
    assert all(error.error < error.rounding_error for error in errors)


def test_without_samples_nothing_is_quantized() -> None:
    with pytest.raises(CalibrationError):
        _quantize(tiny_model(), [])


def test_a_linear_that_never_runs_is_an_error() -> None:
    model = tiny_model()
    model.model.language_model.layers[1].mlp.add_module("spare", nn.Linear(64, 64))

    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.spare"):
        _quantize(model, _samples())


def test_a_model_without_a_decoder_is_an_error() -> None:
    with pytest.raises(UnsupportedModelError):
        decoder_layers(nn.Linear(4, 4))
