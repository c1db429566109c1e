"""An independent look-ahead: plain formulas of SGD and one big graph. Shares no code with l2t_fast."""

from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.func import functional_call


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
    logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return F.dropout(logits.softmax(-1), dropout_p) @ value


# PyTorch differentiates the loop, but the first one's second derivative fails gradgradcheck, and the other has none.
@patch("torch._weight_norm", lambda v, g, dim: v * (g / torch.norm_except_dim(v, 2, dim)))
@patch("torch.nn.functional.scaled_dot_product_attention", attention)
def naive_hypergradient(
    target, matching, meta, optimizer, source_features, x, y, *, steps, beta, seed=None, criterion=F.cross_entropy
):
    """d criterion(end) / d phi by nested autograd over an unrolled loop after the documentation of torch.optim.SGD."""
    if seed is not None:
        torch.manual_seed(seed)
    channel_weights, pair_weights = meta(source_features)
    parameters = {("t", n): p for n, p in target.named_parameters()}
    parameters |= {("m", n): p for n, p in matching.named_parameters()}
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    values = {k: p.detach().clone().requires_grad_() for k, p in parameters.items()}
    moments = {k: optimizer.state.get(p, {}).get("momentum_buffer") for k, p in parameters.items()}

    buffers = dict(target.named_buffers())

    def forward(values):
        state = {n: b.clone() for n, b in buffers.items()}
        state |= {n: v for (kind, n), v in values.items() if kind == "t"}
        result = functional_call(target, state, (x,))
        buffers.update({n: state[n] for n in buffers})
        return result

    def step(loss, values, moments):
        grads = torch.autograd.grad(loss, list(values.values()), create_graph=True, allow_unused=True)
        new_values, new_moments = {}, {}
        for (key, value), grad in zip(values.items(), grads, strict=True):
            group = group_of[id(parameters[key])]
            d = (torch.zeros_like(value) if grad is None else grad) + group["weight_decay"] * value
            if group["momentum"] != 0:
                old = moments[key]
                m = d if old is None else group["momentum"] * old + (1 - group["dampening"]) * d
                new_moments[key] = m
                d = d + group["momentum"] * m if group["nesterov"] else m
            else:
                new_moments[key] = None
            new_values[key] = value - group["lr"] * d
        return new_values, new_moments

    for _ in range(steps):
        _, features = forward(values)
        state = {n: v for (kind, n), v in values.items() if kind == "m"}
        loss = functional_call(matching, state, (source_features, features, channel_weights, beta, pair_weights))
        values, moments = step(loss, values, moments)
    logits, _ = forward(values)
    values, moments = step(criterion(logits, y), values, moments)
    logits, _ = forward(values)
    grads = torch.autograd.grad(criterion(logits, y), list(meta.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(meta.parameters(), grads, strict=True)]
