"""PyTorch's contestants of `bench.py kernels`: compiled LayerNorm and softmax, SDPA, FlexAttention.

Runs in the peers' environment, or wherever torch is (`benchmarks.peers.Peer`). On a GPU applications are captured in a
CUDA graph, so that no time is Python's; its replays are timed by CUDA's events.
"""

# pyright: reportMissingImports=false

import json
import math
import os
import statistics
import sys
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F

ROTATED_BYTES, MOST_INPUTS, ROUNDS, BLOCK_SECONDS = 2**28, 8, 7, 0.01  # as `benchmarks.kernels.timing`


def main() -> None:
    """Answers requests, lines of JSON, until the input ends; what fails is a reply, as in `kernels.worker`."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    for line in sys.stdin:
        request = json.loads(line)
        request.pop("command")
        try:
            reply = measure(**request)
        except Exception as error:
            reply = {"skipped": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300], "broken": True}
        print(json.dumps(reply), file=replies, flush=True)


def measure(
    contestant: str, operation: str, format: str, direction: str, sizes: dict, platform: str, **_: str
) -> dict[str, object]:
    """The time of one contestant in one case."""
    if platform == "gpu" and not torch.cuda.is_available():
        return {"skipped": "this PyTorch sees no GPU: install one built for CUDA"}
    torch._dynamo.reset()  # else the limit of compilations leaves later shapes to the interpreter
    device = "cuda" if platform == "gpu" else "cpu"
    make = CONTESTANTS[operation][contestant]
    draw, function = make(SimpleNamespace(**sizes), getattr(torch, format), device)
    return _device_seconds(draw, function, direction, device)


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
    """Returns whether a query sees a key, by their indices; the second half of a batch is shorter."""
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


def _device_seconds(draw, function, direction: str, device: str) -> dict[str, object]:
    """The median time of one application, of different inputs in turn."""
    first = draw()
    size = sum(a.nbytes for a in first)
    inputs = [first, *(draw() for _ in range(min(MOST_INPUTS, max(2, -(-ROTATED_BYTES // size))) - 1))]
    cotangent = torch.randn_like(first[0])
    backward = direction == "both"
    for arguments in inputs:
        for a in arguments:
            a.requires_grad_(backward and a.is_floating_point())

    def apply() -> None:
        for arguments in inputs:
            result = function(*arguments)
            if backward:
                torch.autograd.grad(result, [a for a in arguments if a.requires_grad], cotangent)

    with torch.set_grad_enabled(backward):
        run, clock = (apply, "wall") if device == "cpu" else (_captured(apply), "cuda graph")
        run()  # compiles
        times = max(1, math.ceil(BLOCK_SECONDS / _seconds(run, 1, device)))
        seconds = statistics.median(_seconds(run, times, device) for _ in range(ROUNDS)) / times / len(inputs)
    return {"seconds": seconds, "clock": clock, "cached": len(inputs) * size < ROTATED_BYTES}


def _captured(apply):
    """The same as one launch."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # as PyTorch wants it before a capture
        for _ in range(3):
            apply()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        apply()
    return graph.replay


def _seconds(run, times: int, device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(times):
            run()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


if __name__ == "__main__":
    main()
