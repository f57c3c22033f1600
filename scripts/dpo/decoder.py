"""A decoder layer with LoRA, forward and backward, written out by hand.

Layers that read the same input are one product, which has LoRA's first factor in it too. Between products everything is
float32, so that what the adapter adds is not rounded away against what the frozen layer gives, which is 16-bit:

    y = float32(W x) + (alpha / r) B (A x)        LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1

Weights have gradients for A and B only. T is the number of tokens, of all pairs in one row.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from dpo.attention import PairAttention
from dpo.workspace import Workspace


@dataclass
class Factors:
    """LoRA's two factors on one layer of a `Projection`, and where they work."""

    a: nn.Parameter  # (r, inputs), float32
    b: nn.Parameter  # (outputs, r), float32; bfloat16 where TRL trained on a 4-bit model
    scaling: float  # alpha / r
    outputs: slice  # the layer's outputs among those of the projection
    inner: slice  # A x among the inner values of the projection


class Projection:
    """Linear layers that read the same input, as one: outputs side by side, and inner values A x after them."""

    def __init__(self, layers: list[nn.Module], dtype: torch.dtype, adapter: bool):
        self.dtype = dtype
        self.frozen = [getattr(layer, "base_layer", layer) for layer in layers]
        self.factors, self.outputs, self.inner = [], 0, 0
        for layer, frozen in zip(layers, self.frozen, strict=True):
            outputs = slice(self.outputs, self.outputs + frozen.out_features)
            self.outputs = outputs.stop
            if adapter and hasattr(layer, "lora_A"):
                (name,) = layer.active_adapters
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                inner = slice(self.inner, self.inner + len(a))
                self.inner = inner.stop
                self.factors.append(Factors(a, b, layer.scaling[name], outputs, inner))
        biases = [frozen.bias for frozen in self.frozen]
        self.bias = None if biases[0] is None else torch.cat(biases).detach().float()
        self._weight = None
        if not hasattr(self.frozen[0].weight, "quant_state"):
            self._weight = self._gather()
            for frozen, rows in zip(self.frozen, self._rows(), strict=True):
                if frozen.weight.dtype == dtype:
                    frozen.weight.data = rows  # one copy of the weights for this and for transformers' own model

    def _gather(self) -> torch.Tensor:
        parts = [frozen_weight(frozen).to(self.dtype) for frozen in self.frozen]
        return torch.cat([*parts, parts[0].new_zeros(self.inner, parts[0].shape[1])])

    def _rows(self) -> tuple[torch.Tensor, ...]:
        return self._weight[: self.outputs].split([frozen.out_features for frozen in self.frozen])

    def refresh(self) -> None:
        """Have `weight` give each A as it is now."""
        if self._weight is not None:
            self._set_factors(self._weight)

    def weight(self) -> torch.Tensor:
        """Return the frozen weights and, below them, each A: (outputs + inner, inputs)."""
        return self._set_factors(self._gather()) if self._weight is None else self._weight

    def _set_factors(self, weight: torch.Tensor) -> torch.Tensor:
        for factors in self.factors:
            weight[self.outputs :][factors.inner] = factors.a.detach()
        return weight

    def forward(self, x: torch.Tensor, y: torch.Tensor, workspace: Workspace, unscaled: float = 1.0) -> torch.Tensor:
        """Put outputs / unscaled into y, (T, outputs), float32; return the inner values, (T, inner), for `backward`."""
        both = functional.linear(x, self.weight())
        y.copy_(both[:, : self.outputs])
        inner = workspace.copy(both[:, self.outputs :])
        h = inner.float()
        for factors in self.factors:
            y[:, factors.outputs].addmm_(h[:, factors.inner], factors.b.detach().float().t(), alpha=factors.scaling)
        if unscaled != 1:
            y /= unscaled
        if self.bias is not None:
            y += self.bias
        return inner

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, inner: torch.Tensor, gradients: dict, unscaled: float = 1.0
    ) -> torch.Tensor:
        """Put the gradients of A and B into `gradients`; return that of x / unscaled, (T, inputs), in `dtype`.

        Args:
            dy: gradient of the outputs, from `room`.
            x, inner, unscaled: what `forward` took and gave.
            gradients: where to put those of each parameter, float32.
        """
        dinner = dy[:, self.outputs :]
        for factors in self.factors:
            dout = dy[:, factors.outputs]
            dinner[:, factors.inner] = dout @ factors.b.detach().mul(factors.scaling).to(self.dtype)
            db = inner[:, factors.inner].t() @ dout
            torch.mul(db.t(), factors.scaling / unscaled, out=gradients[factors.b])
        if self.factors:
            da = dinner.t() @ x
            for factors in self.factors:
                torch.div(da[factors.inner], unscaled, out=gradients[factors.a])
        return dy @ self.weight()

    def room(self, length: int) -> torch.Tensor:
        """Return room for the gradient of the outputs, and for that of the inner values: (T, outputs + inner)."""
        device = self.frozen[0].weight.device
        return torch.empty(length, self.outputs + self.inner, dtype=self.dtype, device=device)

    def with_room(self, dy: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the outputs in `dtype`, in such room."""
        room = self.room(len(dy))
        room[:, : self.outputs] = dy
        return room


class Norm:
    """Root mean square layer normalisation (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4)."""

    def __init__(self, layer: nn.Module):
        self.weight = layer.weight.detach().float()
        self.epsilon = layer.variance_epsilon

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Put x normalised, (T, hidden), into y; return each token's factor, (T, 1), for `backward`."""
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        factor = square.div_(x.shape[-1]).add_(self.epsilon).rsqrt_()
        y.copy_((x * factor).mul_(self.weight))
        return factor

    def backward(self, dy: torch.Tensor, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Return the gradient of x, (T, hidden), float32."""
        dx = dy * self.weight
        along = torch.linalg.vecdot(dx, x)[:, None] * factor.square() / x.shape[-1]
        return dx.addcmul_(x, along, value=-1).mul_(factor)


class DecoderLayer:
    """Attention and a gated feed-forward network, each on its normalised input and added to it."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype, adapter: bool):
        attention, mlp = layer.self_attn, layer.mlp
        self.dtype, self.width = dtype, mlp.gate_proj.out_features
        self.norm_1, self.norm_2 = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.qkv = Projection([attention.q_proj, attention.k_proj, attention.v_proj], dtype, adapter)
        self.o = Projection([attention.o_proj], dtype, adapter)
        self.gate_up = Projection([mlp.gate_proj, mlp.up_proj], dtype, adapter)
        self.down = Projection([mlp.down_proj], dtype, adapter)
        self.projections = self.qkv, self.o, self.gate_up, self.down

    def forward(self, x: torch.Tensor, y: torch.Tensor, attention: PairAttention, workspace: Workspace) -> tuple:
        """Put the layer's output into y, (T, hidden), float32; return what `backward` needs."""
        length = len(x)
        n1 = workspace.empty(x.shape, self.dtype)
        factor_1 = self.norm_1.forward(x, n1)
        qkv = torch.empty(length, self.qkv.outputs, device=x.device)
        inner_1 = self.qkv.forward(n1, qkv, workspace)
        mean, attended = attention.forward(qkv, workspace)
        middle = workspace.empty(x.shape, x.dtype)
        inner_2 = self.o.forward(mean, middle, workspace, attention.off_grid)
        middle += x
        n2 = workspace.empty(x.shape, self.dtype)
        factor_2 = self.norm_2.forward(middle, n2)
        gate_up = workspace.empty((length, 2 * self.width), x.dtype)
        inner_3 = self.gate_up.forward(n2, gate_up, workspace)
        gate, up = gate_up.split(self.width, 1)
        product = workspace.copy(functional.silu(gate).mul_(up), self.dtype)
        inner_4 = self.down.forward(product, y, workspace)
        y += middle
        return (
            x, n1, factor_1, inner_1, attended, mean, inner_2, middle, n2, factor_2, inner_3, gate_up, product, inner_4
        )  # fmt: skip

    def backward(self, dy: torch.Tensor, saved: tuple, attention: PairAttention, gradients: dict) -> torch.Tensor:
        """Put the adapter's gradients into `gradients`; return that of the input, (T, hidden), float32."""
        x, n1, factor_1, inner_1, attended, mean, inner_2, middle, n2, factor_2, inner_3, gate_up, product, inner_4 = (
            saved
        )
        dproduct = self.down.backward(self.down.with_room(dy), product, inner_4, gradients).float()
        gate, up = gate_up.split(self.width, 1)
        dgate_up = self.gate_up.room(len(dy))
        dgate_up[:, self.width : 2 * self.width] = functional.silu(gate).mul_(dproduct)
        dgate_up[:, : self.width] = torch.ops.aten.silu_backward(dproduct.mul_(up), gate)
        dn2 = self.gate_up.backward(dgate_up, n2, inner_3, gradients)
        dmiddle = self.norm_2.backward(dn2, middle, factor_2).add_(dy)
        dmean = self.o.backward(self.o.with_room(dmiddle), mean, inner_2, gradients, attention.off_grid)
        dqkv = self.qkv.room(len(dy))
        attention.backward(dmean, attended, dqkv)
        dn1 = self.qkv.backward(dqkv, n1, inner_1, gradients)
        return self.norm_1.backward(dn1, x, factor_1).add_(dmiddle)


def frozen_weight(layer: nn.Module) -> torch.Tensor:
    """Return a layer's weight, (outputs, inputs), dequantised where bitsandbytes holds it in 4 bits."""
    weight = layer.weight.detach()
    if hasattr(layer.weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight, layer.weight.quant_state)
    return weight
