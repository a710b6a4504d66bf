"""The torch side of bench/backbone.py: answers each line `{"dtype": ..., "batch": ...}` with the seconds of one pass.

`--gemm` lines (`{"gemm": size, "dtype": ...}`) are answered with the seconds of one square product.
"""

import json
import sys
import time
from typing import Any

import torch
import transformers


def model(dtype: str) -> Any:
    """transformers' ViT-B/16 with random weights, its own fastest attention (sdpa), no pooler."""
    torch.manual_seed(0)
    built: Any = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
    if built.config._attn_implementation != "sdpa":
        raise RuntimeError(f"expected sdpa attention, got {built.config._attn_implementation}")
    return built.eval().to(getattr(torch, dtype))


def main() -> None:
    models: dict[str, Any] = {}
    inputs: dict[Any, torch.Tensor] = {}
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        dtype = job["dtype"]
        shape = (job["gemm"], job["gemm"]) if "gemm" in job else (job["batch"], 3, 224, 224)
        key = dtype, shape
        if key not in inputs:
            inputs[key] = torch.randn(shape).to(getattr(torch, dtype))
        x = inputs[key]
        if "batch" in job and dtype not in models:
            models[dtype] = model(dtype)
        with torch.inference_mode():
            start = time.perf_counter()
            _ = x @ x if "gemm" in job else models[dtype](pixel_values=x).last_hidden_state
            seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
