"""Maps of the sizes of a network's weights, layer under layer, of two networks side by side (Evci 2018, 2.2 and 4.2.1).

A kernel is a tile; a convolution has a row of tiles for each input channel, a column for each unit; a dense layer has a
row for each unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps, style
from matplotlib.figure import Figure
from numpy.typing import NDArray

from network_surgery.study.evidence.drawing import STYLE, Drawing

#: What is gone: a grey that the scale does not have.
GONE = "#c9c9c9"
#: Between kernels: below the scale, so white.
BETWEEN = -1.0


def draw(networks: Mapping[str, Mapping[str, Any]], title: str) -> Drawing:
    """``networks``: title → layer → nested lists of the sizes of its weights, NaN where a weight is gone."""
    pictures = {
        name: {layer: tiles(np.asarray(weight, dtype=np.float64)) for layer, weight in layers.items()}
        for name, layers in networks.items()
    }
    layers = list(next(iter(pictures.values())))
    shapes = {layer: next(iter(pictures.values()))[layer].shape for layer in layers}
    heights = [max(0.3, 5.0 * rows / columns) for rows, columns in shapes.values()]
    words = []
    with style.context(["default", STYLE, {"axes.grid": False}]):
        figure = Figure(figsize=(5.4 * len(pictures) + 0.9, sum(heights) + 0.35 * len(layers) + 0.2))
        figure.set_layout_engine("constrained")
        panels = figure.subplots(len(layers), len(pictures), squeeze=False, height_ratios=heights)
        colours = colormaps["viridis"].with_extremes(bad=GONE, under="white")
        for row, layer in enumerate(layers):
            most = max(float(np.nanmax(picture[layer])) for picture in pictures.values())
            for axes, (name, picture) in zip(panels[row], pictures.items(), strict=True):
                image = axes.imshow(picture[layer], cmap=colours, vmin=0, vmax=most, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                axes.set_title(f"{layer}, {name}", fontsize=9)
                weight = np.asarray(networks[name][layer], dtype=np.float64)
                absent = np.isnan(weight) | (weight == 0)
                words.append(f"{layer}, {name}: {absent.mean():.0%} of the weights gone")
            bar = figure.colorbar(image, ax=list(panels[row]), pad=0.01, fraction=0.02, ticks=[0, most])
            bar.ax.set_yticklabels(["0", f"{most:.2g}"], fontsize=7)
    caption = (
        "Sizes of the weights; of each layer on one scale. Tiles are kernels: a column for each unit of a convolution, "
        "a row for each of its inputs. Rows of a dense layer are its units. Grey: removed."
    )
    return Drawing(figure, title, caption, "; ".join(words) + ".")


def tiles(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """A weight ``[out, in, *kernel]`` as a picture: kernels side by side with a white line between; dense as it is."""
    if weight.ndim == 2:
        return weight
    rows = [
        np.concatenate([np.pad(kernel, ((0, 1), (0, 1)), constant_values=BETWEEN) for kernel in kernels], axis=1)
        for kernels in weight.swapaxes(0, 1)
    ]
    return np.concatenate(rows, axis=0)[:-1, :-1]
