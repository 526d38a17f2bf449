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
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_what_a_position_sees_may_be_given(kv_heads, dtype):
    torch.manual_seed(0)
    q = torch.randn(3, 4, 50, 16, dtype=dtype)
    k, v = torch.randn(2, 3, kv_heads, 50, 16, dtype=dtype)
    sees = torch.rand(3, 1, 50, 50) < 0.2
    sees |= torch.eye(50, dtype=torch.bool)
    kk, vv = (x.float().repeat_interleave(4 // kv_heads, dim=1) for x in (k, v))
    logits = (q.float() @ kk.transpose(2, 3) * 0.3).masked_fill(~sees, float("-inf"))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for is_causal in (True, False):
        y = attend(q, k, v, is_causal, 0.3, sees).float()
        torch.testing.assert_close(y, logits.softmax(-1) @ vv, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_gives_what_recomputation_gives(build, ids, dtype):
    from topklm.model.attention import KVCache

    model = build(n_kv_heads=2).to(dtype).eval()
    caches = [KVCache(model.config, 2, torch.device("cpu"), dtype) for _ in range(3)]
    parts = [model(ids[:, :7], caches)] + [model(ids[:, t : t + 1], caches) for t in range(7, 24)]
    tolerance = 1e-5 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=tolerance, atol=tolerance)
