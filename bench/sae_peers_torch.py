"""The torch side of bench/sae_peers.py: one TopK autoencoder trained by another engine, on the same rows.

dense: codes as a masked [b, u] array, all products dense. gather: decoder rows gathered, weight gradients by index_add.
compiled: dense under torch.compile. sparsify: SparseCoder of eai-sparsify, with the calls of its training loop in order.
"""

import json
import sys
from typing import Any

import torch
from sae_peers_data import Rows, serve


class Gather(torch.autograd.Function):
    """x_hat = sum of k decoder rows; backward touches active rows only."""

    @staticmethod
    def forward(ctx: Any, values: Any, units: Any, w_dec: Any) -> Any:
        ctx.save_for_backward(values, units, w_dec)
        return torch.nn.functional.embedding_bag(units, w_dec, per_sample_weights=values, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,) = grads
        values, units, w_dec = ctx.saved_tensors
        d_values = torch.bmm(w_dec[units], g[:, :, None])[:, :, 0]
        rows = (values[:, :, None] * g[:, None]).flatten(0, 1)
        return d_values, None, torch.zeros_like(w_dec).index_add_(0, units.flatten(), rows)


class Encode(torch.autograd.Function):
    """The k largest of x w_enc' + b; backward touches active rows only."""

    @staticmethod
    def forward(ctx: Any, x: Any, w_enc: Any, b_enc: Any, k: int) -> Any:
        values, units = torch.nn.functional.linear(x, w_enc, b_enc).topk(k, dim=-1, sorted=False)
        values = values.relu()
        ctx.save_for_backward(x, w_enc, values, units)
        ctx.mark_non_differentiable(units)
        return values, units

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, w_enc, values, units = ctx.saved_tensors
        dz = grads[0] * (values > 0)
        rows = (dz[:, :, None] * x[:, None]).flatten(0, 1)
        d_w = torch.zeros_like(w_enc).index_add_(0, units.flatten(), rows)
        d_b = torch.zeros(len(w_enc)).index_add_(0, units.flatten(), dz.flatten())
        return None, d_w, d_b, None


class Plain(torch.nn.Module):
    """Unit decoder rows, encoder 0.577 times their transpose, biases 0."""

    def __init__(self, d: int, u: int, k: int, how: str) -> None:
        super().__init__()
        rows = torch.nn.functional.normalize(torch.randn(u, d), dim=1)
        self.w_dec = torch.nn.Parameter(rows.clone())
        self.w_enc = torch.nn.Parameter(0.577 * rows)
        self.b_enc = torch.nn.Parameter(torch.zeros(u))
        self.b_dec = torch.nn.Parameter(torch.zeros(d))
        self.k, self.how = k, how

    def forward(self, x: Any) -> Any:
        if self.how == "gather":
            values, units = Encode.apply(x, self.w_enc, self.b_enc, self.k)  # type: ignore[misc]
            return Gather.apply(values, units, self.w_dec) + self.b_dec, values, units
        pre = torch.nn.functional.linear(x, self.w_enc, self.b_enc)
        values, units = pre.topk(self.k, dim=-1, sorted=False)
        values = values.relu()
        z = torch.zeros_like(pre).scatter(-1, units, values)
        return z @ self.w_dec + self.b_dec, values, units


def plain(rows: Rows, args: dict) -> tuple[Any, Any]:
    """(step, reconstruct) of our own torch autoencoder."""
    model = Plain(args["d"], args["u"], args["k"], args["engine"])
    call = torch.compile(model) if args["engine"] == "compiled" else model
    adam = torch.optim.Adam(model.parameters(), lr=args["lr"], eps=6.25e-10)
    silent = torch.zeros(args["u"], dtype=torch.long)

    def step(index: int) -> None:
        x = torch.from_numpy(rows.batch(index, args["batch"], args["seed"]))
        adam.param_groups[0]["lr"] = args["lr"] * min(1.0, (index + 1) / args["warmup"])
        x_hat, _, units = call(x)
        (x - x_hat).square().mean().backward()
        with torch.no_grad():
            grad: Any = model.w_dec.grad
            grad -= (grad * model.w_dec).sum(1, keepdim=True) * model.w_dec
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            model.w_dec /= model.w_dec.norm(dim=1, keepdim=True)
        silent.add_(len(x))
        silent[units.flatten()] = 0

    return step, model


def sparsify(rows: Rows, args: dict) -> tuple[Any, Any]:
    """(step, reconstruct) of eai-sparsify with Adam and a constant rate: its best setting on this file."""
    # bench/kernels.py would hide the package `kernels` from transformers, which sparsify imports.
    sys.path.pop(0)
    from sparsify import SparseCoderConfig  # type: ignore[import-not-found]
    from sparsify.sparse_coder import SparseCoder  # type: ignore[import-not-found]

    sae = SparseCoder(args["d"], SparseCoderConfig(num_latents=args["u"], k=args["k"]), dtype=torch.float32)
    adam = torch.optim.Adam(sae.parameters(), lr=args["lr"])
    silent = torch.zeros(args["u"], dtype=torch.long)

    def step(index: int) -> None:
        x = torch.from_numpy(rows.batch(index, args["batch"], args["seed"]))
        adam.param_groups[0]["lr"] = args["lr"] * min(1.0, (index + 1) / args["warmup"])
        if index == 0:
            sae.b_dec.data = x.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x=x, y=x, dead_mask=None)
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        fired = torch.zeros(args["u"], dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        silent.add_(len(x))
        silent[fired] = 0

    def reconstruct(x: Any) -> Any:
        values, units, _ = sae.encode(x)
        return sae.decode(values, units), values, units

    return step, reconstruct


def main() -> None:
    args = json.loads(sys.argv[1])
    torch.manual_seed(args["seed"])
    rows = Rows(args["file"])
    step, model = (sparsify if args["engine"] == "sparsify" else plain)(rows, args)

    def reconstruct(x: Any) -> Any:
        with torch.no_grad():
            return [out.numpy() for out in model(torch.from_numpy(x))]

    facts = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    serve(step, lambda: None, lambda: rows.score(reconstruct, args["u"]), facts)


if __name__ == "__main__":
    main()
