"""The tensors that a step keeps between its forward and its backward pass, block by block.

The inventory was taken with `torch.autograd.graph.saved_tensors_hooks` on Llama and Qwen2 models under torch
2.13, transformers 5.23 and peft 0.21, and a test takes it again.
"""

from __future__ import annotations

from llamafarm.planning.request import QLORA, MemoryRequest, PackSize

_FP32_BYTES, _HALF_BYTES, _MASK_BYTES = 4, 2, 1
# The log-softmax, its gradient and the loss's gradient to it: three tensors (S, V) in fp32 at once.
_LOSS_BYTES = 3 * _FP32_BYTES
# Positions whose logits are there at once in training an adapter (`kernels.loss`).
CHUNK_POSITIONS = {"cpu": 256, "mps": 512, "cuda": 2048}
# The most keys for which a query keeps its weights, in the mean over a document (`kernels.layout`).
KEYS_KEPT = 384
# What documents are filled up to multiples of, there.
ALIGNED_TOKENS = 32
# In evaluation, the logits and their log-softmax.
_EVALUATION_BYTES = 2 * _FP32_BYTES


def saved_by_block_bytes(request: MemoryRequest, pack: PackSize) -> int:
    """Return what one block saves for its backward pass on a pack."""
    shape, width, num_tokens = request.shape, request.compute_bytes, pack.num_tokens
    norms = 2 * shape.hidden_size * _kept_by_norm_bytes(request)
    queries, keys = shape.num_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    attention = (queries + 2 * keys) * width
    weights = 0
    if request.device_kind == "cpu" and request.keeps_attention_weights:
        # At most the square of each document filled up.
        pairs = min(pack.num_pairs + ALIGNED_TOKENS * num_tokens, KEYS_KEPT * num_tokens)
        weights = shape.num_heads * pairs * width
    else:  # the logarithm of each softmax's sum, and the output, which an adapter on what reads it keeps too
        attention += shape.num_heads * _FP32_BYTES
        is_kept = any(layer.input_name.endswith("o_proj") for layer in request.adapted_layers)
        attention += 0 if request.is_fused and is_kept else queries * width
    # With a gate: what goes into the activation, what comes out unless the kernels compute it again, and what
    # it is multiplied with.
    feed_forward = (2 + shape.has_gate - request.is_fused) * shape.intermediate_size * width
    return weights + num_tokens * (norms + attention + feed_forward + _inputs_of_layers_bytes(request))


def _kept_by_norm_bytes(request: MemoryRequest) -> int:
    """Return what a norm keeps for each number that goes into it."""
    if request.is_fused:
        return request.compute_bytes
    # In fp32 where the kernels do not know it, and for a gradient of its weight what comes out, too.
    return (2 if request.is_full else 1) * _FP32_BYTES


def _inputs_of_layers_bytes(request: MemoryRequest) -> int:
    """Return what a block's linear layers keep for one token, for gradients of weights or adapters."""
    width, num_blocks = request.compute_bytes, request.shape.num_layers
    layers = request.adapted_layers
    # PEFT casts to fp32 and autocast back to 16 bits, and dropout makes a new tensor: one for each layer.
    # Else the layers that read the same tensor keep it once.
    has_own_inputs = not request.is_fused and (request.has_dropout or width < _FP32_BYTES)
    kept = layers if has_own_inputs else tuple({layer.input_name: layer for layer in layers}.values())
    total = sum(layer.count * layer.in_features for layer in kept) * width
    if not request.is_full:
        total += sum(layer.count for layer in layers) * request.rank * width
        if request.has_dropout and not request.is_fused:
            total += sum(layer.count * layer.in_features for layer in layers) * _MASK_BYTES
        if request.uses_dora:  # what comes out of the base and of the adapter, to be scaled
            total += sum(layer.count * layer.out_features for layer in layers) * 2 * width
    return total // num_blocks


def saved_bytes(request: MemoryRequest, pack: PackSize) -> int:
    """Return what the whole forward pass leaves for the backward pass, but for the logits."""
    shape, num_tokens = request.shape, pack.num_tokens
    # The last norm's and, where a loss is computed in chunks, the gradient of what goes into the head; where
    # the head is trained, that itself.
    ends = num_tokens * shape.hidden_size * _kept_by_norm_bytes(request)
    if request.has_known_head or request.is_full:
        ends += pack.num_supervised_tokens * shape.hidden_size * request.compute_bytes
    inputs = request.checkpointed_blocks * num_tokens * shape.hidden_size * request.residual_bytes
    casts = 0
    if request.casts_weights:  # copies in 16 bits are kept for the gradients of the layers' inputs
        in_blocks = shape.num_linear_weights // shape.num_layers * request.whole_blocks
        casts = (in_blocks + shape.num_head_weights) * _HALF_BYTES
    return ends + inputs + request.whole_blocks * saved_by_block_bytes(request, pack) + casts


def block_backward_bytes(request: MemoryRequest, pack: PackSize) -> int:
    """Return what the backward pass of one block takes beside what was saved.

    It begins with the last block. Where that was kept whole and only earlier ones are computed again, the
    memory of the whole ones is free by then, and one block takes no more of it.
    """
    shape = request.shape
    gradients = 2 * shape.intermediate_size * request.compute_bytes + 2 * shape.hidden_size * _FP32_BYTES
    recomputed = 0 if request.whole_blocks else saved_by_block_bytes(request, pack)
    return pack.num_tokens * gradients + recomputed + _dense_weight_bytes(request)


def _dense_weight_bytes(request: MemoryRequest) -> int:
    """Return what the largest weight in 4 bits takes while it is multiplied with."""
    if request.method != QLORA:
        return 0
    layers = request.shape.linear_layers
    return max(layer.in_features * layer.out_features for layer in layers) * request.compute_bytes


def loss_bytes(request: MemoryRequest, pack: PackSize) -> int:
    """Return what the logits and the loss take at their most."""
    if request.has_known_head:
        return _chunk_positions(request, pack) * request.shape.vocab_size * request.compute_bytes
    return _LOSS_BYTES * pack.num_supervised_tokens * request.shape.vocab_size


def evaluation_bytes(request: MemoryRequest, pack: PackSize) -> int:
    """Return what an evaluation pack takes at its most, where nothing is kept for a backward pass."""
    num_positions, each = pack.num_supervised_tokens, _EVALUATION_BYTES
    if request.has_known_head:
        num_positions, each = _chunk_positions(request, pack), each + request.compute_bytes
    logits = each * num_positions * request.shape.vocab_size
    return logits + pack.num_tokens * request.shape.hidden_size * _FP32_BYTES


def _chunk_positions(request: MemoryRequest, pack: PackSize) -> int:
    return min(CHUNK_POSITIONS[request.device_kind], pack.num_supervised_tokens)
