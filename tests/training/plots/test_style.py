"""Names beside curves: each is there, none covers another."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from topklm.training.plots.style import LINE, label_ends, layer_colours, short, token_unit


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0.1, 0.5, 0.9], ["0", "1", "2"]),
        ([0.5, 0.51, 0.52, 0.53], ["0", "1", "2", "3"]),
        ([0.99, 1.0, 0.98, 0.0], ["3", "2", "0", "1"]),
        ([0.01, 0.0, 0.02], ["1", "0", "2"]),
        ([0.3, 0.3, 0.3], ["all layers"]),
        ([0.3, 0.8, 0.3], ["2 layers", "1"]),
        (list(np.linspace(0, 0.1, 9)), list("012345678")),
        ([0.4], ["0"]),
    ],
)
def test_labels_do_not_overlap(values, names):
    figure, axis = plt.subplots()
    axis.set_ylim(0, 1)
    label_ends(axis, [(value, str(i), "black") for i, value in enumerate(values)])
    texts = sorted(axis.texts, key=lambda text: text.get_position()[1])
    plt.close(figure)
    assert [text.get_text() for text in texts] == names
    places = [text.get_position()[1] for text in texts]
    assert all(np.diff(places) >= LINE * 0.95)
    assert all(-0.001 <= place <= 1.001 for place in places)


def test_what_stands_in_pictures():
    assert short("layer_03") == "layer 3"
    assert short("layer_11_mlp_neurons") == "layer 11 mlp_neurons"
    assert token_unit(2_457_600) == (1e6, "million tokens")
    assert token_unit(500) == (1e3, "thousand tokens")
    assert token_unit(3e9) == (1e9, "billion tokens")
    assert len(np.unique(layer_colours(24), axis=0)) == 24
