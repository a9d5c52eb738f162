"""PyTorch's contestants of `bench.py kernels`: compiled LayerNorm and softmax, SDPA, FlexAttention.

Runs in the peers' environment, or wherever torch is (`benchmarks.peers.Peer`). On a GPU times are of CUDA events.
"""

# pyright: reportMissingImports=false

import json
import statistics
import sys
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F

ROTATED_BYTES, MOST_INPUTS, ROUNDS = 2**28, 8, 7  # as `benchmarks.kernels.timing`


def main() -> None:
    """Answers requests, lines of JSON, until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        request.pop("command")
        print(json.dumps({"rows": rows(**request)}), flush=True)


def rows(operation: str, shape: str, format: str, direction: str, sizes: dict, platform: str, **_) -> list[dict]:
    """One row a contestant: its seconds, or why there are none."""
    if platform == "gpu" and not torch.cuda.is_available():
        return [{"contestant": "torch", "skipped": "this PyTorch sees no GPU: install one built for CUDA"}]
    device = "cuda" if platform == "gpu" else "cpu"
    results = []
    for name, make in CONTESTANTS[operation].items():
        try:
            draw, function = make(SimpleNamespace(**sizes), getattr(torch, format), device)
            results.append({"contestant": name, "seconds": _device_seconds(draw, function, direction, device)})
        except (RuntimeError, NotImplementedError) as error:  # out of memory among them
            results.append({"contestant": name, "skipped": " ".join(str(error).split())[:200]})
            torch.cuda.empty_cache()
    return results


def _layer_norm(sizes, dtype, device):
    def draw():
        x = torch.randn(sizes.rows, sizes.channels, device=device, dtype=dtype)
        return x, *(torch.randn(sizes.channels, device=device, dtype=dtype) for _ in range(2))

    return draw, torch.compile(lambda x, scale, bias: F.layer_norm(x, x.shape[-1:], scale, bias, 1e-5))


def _softmax(sizes, dtype, device):
    def draw():
        seen = torch.where(torch.arange(sizes.rows, device=device) % 2 == 0, sizes.keys, sizes.keys * 3 // 4)
        mask = torch.arange(sizes.keys, device=device) < seen[:, None]
        return 3 * torch.randn(sizes.rows, sizes.keys, device=device, dtype=dtype), mask

    return draw, torch.compile(lambda x, mask: x.masked_fill(~mask, -torch.inf).softmax(-1))


def _attention_arguments(sizes, dtype, device):
    def draw():
        query = torch.randn(sizes.batch, sizes.heads, sizes.queries, sizes.head_dim, device=device, dtype=dtype)
        key, value = (
            torch.randn(sizes.batch, sizes.heads, sizes.keys, sizes.head_dim, device=device, dtype=dtype)
            for _ in range(2)
        )
        return query, key, value, torch.randn(sizes.heads, 2 * sizes.largest + 1, device=device, dtype=dtype)

    return draw


def _seen(sizes, batch, query, key):
    """Whether a query sees a key, of their indices; the second half of a batch is shorter."""
    position = query + sizes.keys - sizes.queries
    length = torch.where(batch < (sizes.batch + 1) // 2, sizes.keys, sizes.keys * 7 // 8)
    inside = (position < length) & (key < length)
    if not sizes.chunk_size:
        return inside
    chunk, key_chunk = position // sizes.chunk_size, key // sizes.chunk_size
    return inside & (key_chunk <= chunk) & (key_chunk >= chunk - sizes.num_left_chunks)


def _distance(sizes, query, key):
    return (query + sizes.keys - sizes.queries - key).clamp(-sizes.largest, sizes.largest) + sizes.largest


def _sdpa(sizes, dtype, device):
    batch, query, key = (torch.arange(n, device=device) for n in (sizes.batch, sizes.queries, sizes.keys))
    seen = _seen(sizes, batch[:, None, None, None], query[:, None], key)
    distance = _distance(sizes, query[:, None], key)

    def attention(query, key, value, bias):
        mask = bias[:, distance].masked_fill(~seen, -torch.inf)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)

    return _attention_arguments(sizes, dtype, device), attention


def _flex(sizes, dtype, device):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(batch, head, query, key):
        return _seen(sizes, batch, query, key)

    block_mask = create_block_mask(seen, sizes.batch, None, sizes.queries, sizes.keys, device=device)
    compiled = torch.compile(flex_attention)

    def attention(query, key, value, bias):
        def add_bias(score, b, head, query, key):
            return score + bias[head, _distance(sizes, query, key)]

        return compiled(query, key, value, score_mod=add_bias, block_mask=block_mask, scale=1.0)

    return _attention_arguments(sizes, dtype, device), attention


CONTESTANTS = {
    "layer_norm": {"torch compiled": _layer_norm},
    "lut_softmax": {"torch compiled": _softmax},
    "chunked_attention": {"torch sdpa": _sdpa, "torch flex": _flex},
}


def _device_seconds(draw, function, direction: str, device: str) -> float:
    """The median time of one application, of different inputs in turn."""
    first = draw()
    size = sum(a.nbytes for a in first)
    inputs = [first, *(draw() for _ in range(min(MOST_INPUTS, max(2, -(-ROTATED_BYTES // size))) - 1))]
    cotangent = torch.randn_like(first[0])
    backward = direction == "both"
    for arguments in inputs:
        for a in arguments:
            a.requires_grad_(backward and a.is_floating_point())

    def apply(arguments):
        result = function(*arguments)
        if backward:
            torch.autograd.grad(result, [a for a in arguments if a.requires_grad], cotangent)

    with torch.set_grad_enabled(backward):
        for arguments in inputs:  # compiles
            apply(arguments)
        return statistics.median(_round(apply, inputs, device) for _ in range(ROUNDS))


def _round(apply, inputs, device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        for arguments in inputs:
            apply(arguments)
        return (time.perf_counter() - start) / len(inputs)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for arguments in inputs:
        apply(arguments)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / len(inputs)


if __name__ == "__main__":
    main()
