"""Attention: the written-out path against PyTorch's kernel, and the cache against recomputation."""

import pytest
import torch
import torch.nn.functional as F

from topklm.model.attention import attend


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_written_out_attention_equals_the_kernel(kv_heads):
    torch.manual_seed(0)
    q = torch.randn(3, 4, 50, 16, dtype=torch.bfloat16)
    k, v = torch.randn(2, 3, kv_heads, 50, 16, dtype=torch.bfloat16)
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v, True, 0.3).float(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_gives_what_recomputation_gives(build, ids, dtype):
    from topklm.model.attention import KVCache

    model = build(n_kv_heads=2).to(dtype).eval()
    caches = [KVCache(model.config, 2, torch.device("cpu"), dtype) for _ in range(3)]
    parts = [model(ids[:, :7], caches)] + [model(ids[:, t : t + 1], caches) for t in range(7, 24)]
    tolerance = 1e-5 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=tolerance, atol=tolerance)
