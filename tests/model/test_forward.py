"""A pack through real architectures against each document by itself through plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

from llamafarm.data.encoding.pack import Pack, build_pack, pack_rows
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.errors import ModelError
from llamafarm.model.adapter import AdapterSettings, attach_adapter
from llamafarm.model.forward import _Rounding, packed_forward, supervised_logits

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Windows shorter than the longest document, a softcap that bites, layers of both kinds.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral-window": ("MistralConfig", {"sliding_window": 5}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi3": ("Phi3Config", {}),
    "gpt2": (
        "GPT2Config",
        {
            "n_embd": 32,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 128,
            **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        },
    ),
}


def make_rows(lengths: list[int], vocabulary: int) -> list[EncodedRow]:
    draw = np.random.default_rng(7)
    return [
        EncodedRow(
            draw.integers(3, vocabulary, length).astype(np.int32),
            np.append(draw.random(length - 1) < 0.6, True),
            n,
        )
        for n, length in enumerate(lengths, start=1)
    ]


def rows_of(pack: Pack) -> tuple[int, ...]:
    """Return the indices of a pack's rows, without the document that fills it up."""
    return pack.row_indices[:-1] if pack.num_fillers else pack.row_indices


def logits_by_document(model: torch.nn.Module, rows: list[EncodedRow], pack: Pack) -> torch.Tensor:
    """Return the supervised logits, each document by itself and with the attention it was made with."""
    parts = []
    for index in rows_of(pack):
        row = rows[index]
        token_ids = torch.from_numpy(row.token_ids_T.astype(np.int64))[None]
        parts.append(model(input_ids=token_ids).logits[0, np.flatnonzero(row.is_supervised_T[1:])])
    return torch.cat(parts)


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A random model of each architecture, with weights large enough for attention to matter."""
    return make_model(*ARCHITECTURES[request.param])


def make_model(class_name: str, options: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(getattr(transformers, class_name)(**{**SIZES, **options})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
    return made


def adapt(model: PreTrainedModel) -> tuple[PeftModel, list[torch.nn.Parameter]]:
    """Put an adapter that does something on every linear layer; return it, and what is trained of it."""
    adapted, _ = attach_adapter(model, AdapterSettings(4, 8, 0.0, "all-linear"), base_name="base", seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    return adapted, [parameter for parameter in adapted.parameters() if parameter.requires_grad]


def test_a_pack_gives_the_logits_of_its_documents(model: PreTrainedModel) -> None:
    rows = make_rows([9, 1, 14, 2, 6], vocabulary=64)
    (pack,) = pack_rows(rows, range(5), 100)
    before = model.config._attn_implementation
    with torch.no_grad():
        expected = logits_by_document(model, rows, pack)
        with packed_forward(model):
            logits = supervised_logits(model, pack)
        after = logits_by_document(model, rows, pack)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == before
    assert torch.equal(after, expected), "outside, the model attends as before"


def test_packs_of_every_size_give_the_gradients_of_the_documents(
    fresh_model: Callable[[], PreTrainedModel],
) -> None:
    model = fresh_model()
    adapted, _ = attach_adapter(
        model,
        AdapterSettings(2, 4, 0.0, ("q_proj", "v_proj", "down_proj")),
        base_name=model.name_or_path,
        seed=0,
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    rows = make_rows([9, 1, 14, 2, 6], vocabulary=500)

    def gradients(max_pack_tokens: int | None) -> tuple[torch.Tensor, ...]:
        losses = []
        for pack in pack_rows(rows, range(5), max_pack_tokens or 1):
            if max_pack_tokens is None:
                logits = logits_by_document(adapted, rows, pack)
            else:
                with packed_forward(model):
                    logits = supervised_logits(adapted, pack)
            losses.append(functional.cross_entropy(logits, pack.targets_S, reduction="sum"))
        return torch.autograd.grad(torch.stack(losses).sum(), trained)

    expected = gradients(None)
    assert all(gradient.abs().max() > 1e-3 for gradient in expected)
    for max_pack_tokens in (1, 16, 100):
        for ours, theirs in zip(gradients(max_pack_tokens), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fuses", [False, True])
def test_a_prefix_that_rows_share_gives_their_loss_and_gradients(model: PreTrainedModel, fuses: bool) -> None:
    _, trained = adapt(model)
    draw = np.random.default_rng(3)
    prefix = draw.integers(3, 64, 40)
    rows = [
        EncodedRow(
            np.concatenate((prefix, draw.integers(3, 64, length))).astype(np.int32),
            np.arange(40 + length) >= 41,
            number,
        )
        for number, length in enumerate((9, 20, 3))
    ]
    results = []
    with packed_forward(model, fuses=fuses) as packed:
        for shares_prefixes in (False, True):
            (pack,) = pack_rows(rows, range(3), 500, shares_prefixes=shares_prefixes)
            assert pack.has_prefix == shares_prefixes
            loss = packed.sum_loss(pack)
            results.append((loss, *torch.autograd.grad(loss, trained)))
    for apart, shared in zip(*results, strict=True):
        assert (shared - apart).norm() <= 1e-5 * apart.norm() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_compute_each_family_as_transformers_does_forward_and_gradient(
    model: PreTrainedModel, dtype: torch.dtype
) -> None:
    model.to(dtype)
    adapted, trained = adapt(model)
    rows = make_rows([40, 1, 14, 2, 33], vocabulary=64)
    (pack,) = pack_rows(rows, range(5), 100)
    with packed_forward(model) as packed:
        computed = {name for name, module in model.named_modules() if "forward" in vars(module)}
        loss = packed.sum_loss(pack)
        found = torch.autograd.grad(loss, trained)
    assert not any("forward" in vars(module) for module in model.modules())
    for name, module in model.named_modules():
        if type(module).__name__.endswith(("Attention", "MLP", "RMSNorm")):
            assert name in computed or model.config.model_type == "gpt2", name
    assert (packed.head is not None) and packed.num_fused == len(computed)

    model.float()  # the same weights: rounded once, for bf16
    logits = logits_by_document(adapted, rows, pack)
    expected = functional.cross_entropy(logits, pack.targets_S, reduction="sum")
    wanted = torch.autograd.grad(expected, trained)
    if dtype == torch.float32:
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-6
    else:
        assert loss.item() == pytest.approx(expected.item(), rel=0.02)
        one, other = (torch.cat([part.flatten() for part in parts]) for parts in (found, wanted))
        assert functional.cosine_similarity(one, other, dim=0) > 0.999


def test_a_block_that_only_looks_like_a_known_one_keeps_its_own_forward() -> None:
    class Doubled(LlamaMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = make_model("LlamaConfig", {})
    for layer in model.get_decoder().layers:
        layer.mlp.__class__ = Doubled
    model.requires_grad_(False)
    rows = make_rows([9, 6], vocabulary=64)
    (pack,) = pack_rows(rows, range(2), 100)
    expected = functional.cross_entropy(
        logits_by_document(model, rows, pack), pack.targets_S, reduction="sum"
    )
    with packed_forward(model) as packed:
        assert packed.num_fused == 0 and packed.head is not None
        assert packed.why_plain.startswith("the kernels' logits are off by ")
        torch.testing.assert_close(packed.sum_loss(pack), expected, rtol=1e-5, atol=1e-5)


def test_kernels_are_judged_by_the_rounding_of_the_model_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(7, 10_000, generator=generator)

    def off_by(distance: float, dtype: torch.dtype) -> torch.Tensor:
        return (exact + distance * torch.randn(exact.shape, generator=generator)).to(dtype)

    # As in 32 layers of bf16 on a GPU, where the largest of a million differences is five times the mean one.
    deep = _Rounding.between(off_by(0.04, torch.bfloat16), exact.bfloat16())
    assert deep.explains(off_by(0.05, torch.bfloat16), exact.bfloat16())
    assert not deep.explains(off_by(0.11, torch.bfloat16), exact.bfloat16())
    # What two layers in fp32 differ by is far less, and so is what their kernels may.
    shallow = _Rounding.between(off_by(1e-6, torch.float32), exact)
    assert shallow.explains(off_by(5e-5, torch.float32), exact)
    assert not shallow.explains(off_by(5e-4, torch.float32), exact)
    assert not shallow.explains(exact * torch.nan, exact)


@pytest.mark.parametrize("num_prefix", [0, 32])
def test_what_fills_a_pack_up_changes_neither_loss_nor_gradients(
    model: PreTrainedModel, num_prefix: int
) -> None:
    adapted, plan = attach_adapter(
        model, AdapterSettings(4, 8, 0.0 if num_prefix else 0.3, "all-linear"), base_name="base", seed=0
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    prefix = np.random.default_rng(3).integers(3, 64, num_prefix).astype(np.int32)
    rows = []
    for row in make_rows([9, 20, 4], vocabulary=64):
        marks = np.concatenate((np.zeros(num_prefix + 1, np.bool_), row.is_supervised_T[1:]))
        rows.append(EncodedRow(np.concatenate((prefix, row.token_ids_T)), marks, row.row_number))
    pack = build_pack(rows, range(3), num_prefix)
    filled = pack.filled_up()
    assert (pack.num_fillers, filled.num_fillers) == (0, 15)
    results = []
    adapted.train()
    with packed_forward(model) as packed:
        for one in (pack, filled):
            plan.enter_pack(3, one.row_indices, one.document_lengths, one.supervised_positions_S)
            loss = packed.sum_loss(one)
            results.append((loss, *torch.autograd.grad(loss, trained)))
    for plain, of_filled in zip(*results, strict=True):
        assert (of_filled - plain).norm() <= 1e-5 * plain.norm() + 1e-6


def test_attention_is_restored_after_an_error(fresh_model: Callable[[], PreTrainedModel]) -> None:
    model = fresh_model()
    before = model.config._attn_implementation
    with pytest.raises(KeyError), packed_forward(model):
        assert model.config._attn_implementation != before
        raise KeyError
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("class_name", "options"),
    [
        ("FalconConfig", {}),
        ("BloomConfig", {}),
        ("MambaConfig", {}),
        ("GptOssConfig", {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}),
    ],
    ids=["own-attention", "alibi", "recurrent", "sinks"],
)
def test_an_architecture_that_would_mix_documents_is_refused(
    class_name: str, options: dict[str, Any]
) -> None:
    model = make_model(class_name, options)
    before = model.config._attn_implementation
    with pytest.raises(ModelError) as caught, packed_forward(model):
        pytest.fail("a pack of it would have been trained on")
    assert type(model).__name__ in caught.value.problem
    assert model.config._attn_implementation == before


def test_attention_dropout_is_an_error_and_not_a_wrong_number() -> None:
    model = make_model("LlamaConfig", {"attention_dropout": 0.1}).train()
    (pack,) = pack_rows(make_rows([5, 4], vocabulary=64), range(2), 100)
    with pytest.raises(NotImplementedError, match="dropout"), packed_forward(model):
        supervised_logits(model, pack)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_model_is_in_training_within_as_it_was_before(
    fresh_model: Callable[[], PreTrainedModel], is_training: bool
) -> None:
    model = fresh_model().train(is_training)
    with packed_forward(model):
        assert model.training == is_training
    assert model.training == is_training


def test_an_adapter_on_the_output_layer_drops_the_same_elements_in_every_pack(
    fresh_model: Callable[[], PreTrainedModel],
) -> None:
    model = fresh_model()
    settings = AdapterSettings(2, 4, 0.5, ("q_proj", "lm_head"))
    adapted, plan = attach_adapter(model, settings, base_name=model.name_or_path, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3)
    rows = make_rows([9, 1, 14, 2, 6], vocabulary=500)

    def logits_by_row(max_pack_tokens: int) -> dict[int, torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for pack in pack_rows(rows, range(5), max_pack_tokens):
            plan.enter_pack(3, pack.row_indices, pack.document_lengths, pack.supervised_positions_S)
            logits = supervised_logits(adapted, pack)
            counts = [rows[index].num_supervised_tokens for index in rows_of(pack)]
            found.update(zip(rows_of(pack), torch.split(logits, counts), strict=True))
        return found

    with torch.no_grad(), packed_forward(model):
        adapted.train()
        alone, together = logits_by_row(1), logits_by_row(100)
        adapted.eval()
        undropped = logits_by_row(100)
    for index, logits in alone.items():
        torch.testing.assert_close(together[index], logits, rtol=1e-4, atol=1e-4)
    assert (undropped[2] - alone[2]).abs().max() > 0.1
