"""What autograd saves, kept in main memory meanwhile: the same values and layout, the same gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from llamafarm.data.encoding.pack import Pack, pack_rows
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.model.adapter import AdapterSettings, attach_adapter
from llamafarm.model.forward import packed_forward
from llamafarm.model.weights import Trained
from llamafarm.training import offload
from llamafarm.training.methods import start_checkpointing
from llamafarm.training.offload import HostCopies, Offload, storages_of

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))
ENOUGH = 2**30


@pytest.fixture
def copies_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small a tensor is, it is copied, on processors too."""
    monkeypatch.setattr(offload, "_LEAST_BYTES", 1)
    monkeypatch.setattr(offload, "_KINDS_WITH_OWN_MEMORY", ("cuda", "cpu"))


def model_with_adapter() -> tuple[LlamaForCausalLM, Trained]:
    """Return a model of two layers, and the adapter on it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    adapted, _ = attach_adapter(model, AdapterSettings(2, 4, 0.0, "all-linear"), base_name="base", seed=0)
    return model, adapted


def a_pack(device: str) -> Pack:
    row = EncodedRow(np.arange(20, dtype=np.int32), np.arange(20) > 5, 1)
    (pack,) = pack_rows([row], [0], 100)
    return pack.to(torch.device(device))


def gradients_of(adapted: Trained) -> list[torch.Tensor]:
    gradients = [one.grad for one in adapted.parameters() if one.requires_grad]
    adapted.zero_grad(set_to_none=True)
    assert all(gradient is not None for gradient in gradients)
    return [gradient for gradient in gradients if gradient is not None]


@pytest.mark.usefixtures("copies_all")
@pytest.mark.parametrize("fuses", [True, False])
@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_gradients_are_those_of_a_pass_that_copies_nothing(
    device: str, checkpoints: bool, fuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    pack_one = HostCopies.pack

    def counted(self: HostCopies, tensor: torch.Tensor) -> object:
        before = self.num_bytes
        packed = pack_one(self, tensor)
        copied.append(self.num_bytes - before)
        return packed

    monkeypatch.setattr(HostCopies, "pack", counted)
    model, adapted = model_with_adapter()
    adapted.to(device).train()
    remedy = Offload(adapted, device)
    if checkpoints:
        assert start_checkpointing(adapted)
    pack = a_pack(device)
    with packed_forward(model, fuses=fuses) as packed:

        def train() -> tuple[torch.Tensor, list[torch.Tensor]]:
            with remedy.around_forward():
                loss = packed.sum_loss(pack)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach(), gradients_of(adapted)

        loss, gradients = train()
        assert copied == []
        assert remedy.start()
        loss_again, gradients_again = train()
    assert torch.equal(loss, loss_again)
    assert all(torch.equal(*pair) for pair in zip(gradients, gradients_again, strict=True))
    hidden_bytes = pack.num_tokens * 32 * 4
    if checkpoints:  # the input of each layer, and what is after the last
        assert 2 * hidden_bytes <= sum(copied) < 8 * hidden_bytes
    else:
        assert sum(copied) > 12 * hidden_bytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_devices_memory_is_free_between_forward_and_backward() -> None:
    layers = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(8))).to("cuda")
    hidden = torch.randn(4096, 1024, device="cuda")
    remedy = Offload(layers, "cuda")

    def held_bytes() -> int:
        before = torch.cuda.memory_allocated()
        with remedy.around_forward():
            loss = layers(hidden).sum()
        held = torch.cuda.memory_allocated() - before
        loss.backward()
        layers.zero_grad(set_to_none=True)
        return held

    kept = held_bytes()
    assert remedy.start()
    assert held_bytes() < kept / 4


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda whole: whole,
    "transposed": lambda whole: whole.t(),
    "columns": lambda whole: whole[:, 100:900],
    "every second row": lambda whole: whole[1::2],
    "expanded": lambda whole: whole[:, None].expand(-1, 3, -1),
    "16 bits": lambda whole: whole.bfloat16(),
    "whole numbers": lambda whole: whole.mul(1000).long(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_tensors_come_back_bit_by_bit_and_lie_as_they_lay(device: str, layout: str) -> None:
    tensor = LAYOUTS[layout](torch.randn(1024, 1024, device=device))
    expected = tensor.clone()
    copies = HostCopies(device, frozenset(), ENOUGH)
    packed = copies.pack(tensor)
    assert not isinstance(packed, torch.Tensor)
    assert packed.stretch.device.type == "cpu"
    tensor.untyped_storage().fill_(0)  # what becomes of the memory is nobody's concern
    found = copies.unpack(packed)
    assert (found.device, found.dtype, found.stride()) == (tensor.device, tensor.dtype, tensor.stride())
    assert torch.equal(found, expected)


def test_weights_and_what_is_small_are_not_copied() -> None:
    layer = torch.nn.Linear(1024, 1024, dtype=torch.float32)
    layer.register_buffer("table", torch.zeros(1024, 1024))
    frozen = copy.deepcopy(layer).requires_grad_(False)
    model = torch.nn.ModuleList([layer, frozen])
    copies = HostCopies("cpu", storages_of(model), ENOUGH)
    for one in (layer, frozen):
        table = one.get_buffer("table")
        for tensor in (one.weight, one.weight.detach(), one.weight.t(), one.weight[512:], table):
            assert copies.pack(tensor) is tensor
    small = torch.zeros(2**18 - 1)
    assert copies.pack(small) is small
    assert copies.num_bytes == 0
    assert copies.pack(torch.zeros(2**18)) is not small
    assert copies.num_bytes == 2**20


def test_a_pass_saves_its_activations_and_not_its_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 512))
    model[0].requires_grad_(False)
    copies = HostCopies("cpu", storages_of(model), ENOUGH)
    hidden = torch.randn(600, 512, requires_grad=True)
    with saved_tensors_hooks(copies.pack, copies.unpack):
        model(hidden)
    # The inputs of GELU and of the second layer; the first layer is frozen, and needs its weight only.
    assert copies.num_bytes == 2 * 600 * 1024 * 4


def test_what_does_not_fit_main_memory_stays_where_it_is() -> None:
    copies = HostCopies("cpu", frozenset(), room_bytes=2**21)
    tensors = [torch.randn(2**18) for _ in range(3)]
    packed = [copies.pack(tensor) for tensor in tensors]
    assert [one is tensor for one, tensor in zip(packed, tensors, strict=True)] == [False, False, True]
    assert copies.num_bytes == 2**21


def test_tensors_of_other_devices_and_other_forms_stay() -> None:
    copies = HostCopies("cuda", frozenset(), ENOUGH)
    here = torch.zeros(2**18)
    assert copies.pack(here) is here
    sparse = torch.eye(2**10).to_sparse()
    assert HostCopies("cpu", frozenset(), ENOUGH).pack(sparse) is sparse


@pytest.mark.parametrize("device_kind", ["cpu", "mps"])
def test_where_main_memory_is_the_devices_there_is_nothing_to_start(device_kind: str) -> None:
    remedy = Offload(torch.nn.Linear(2, 2), device_kind)
    assert not remedy.start()


def test_it_is_started_once_and_only_where_there_is_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = Offload(torch.nn.Linear(2, 2), "cuda")
    monkeypatch.setattr(offload, "read_main_memory", lambda: (2**34, 2**20))
    assert not remedy.start()
    monkeypatch.setattr(offload, "read_main_memory", lambda: (2**34, 2**33))
    assert remedy.start()
    assert not remedy.start()
