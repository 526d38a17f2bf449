"""How often a run compiles."""

import torch
from torch._dynamo.utils import counters

from topklm.model import ModelConfig, TopKConfig, TopKTransformer, document_numbers, generate
from topklm.training.compiling import compile_blocks


def test_each_kind_of_block_is_one_graph_however_k_moves():
    """And two more for validation, two for its smaller last batch, none for generation. The count is Dynamo's, so the
    backend that does nothing will do."""
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "d_model": 64, "n_layers": 3, "n_heads": 2, "seq_len": 8}
    sites = ("resid_post_attn", "mlp_neurons", "resid_post_mlp")
    model = TopKTransformer(ModelConfig(**shape, topk=TopKConfig(k=5, sites=sites)))
    torch.compiler.reset()
    counters.clear()
    compile_blocks(model, backend="eager")
    ids = torch.randint(0, 61, (4, 9))

    def batch(windows):
        inputs = ids[:windows, :-1]
        return inputs, ids[:windows, 1:], document_numbers(inputs, 3)

    for step in range(50):
        model.set_k([60 - step] * 6)
        model.loss(*batch(4)).backward()
    assert counters["stats"]["unique_graphs"] == 2
    model.eval()
    for windows in (4, 4, 3, 2):
        model.token_losses(*batch(windows))
    generate(model, ids[:1, :2], 4)
    model.train().loss(*batch(4))
    assert counters["stats"]["unique_graphs"] == 6
    assert not counters["graph_break"]
