"""The losses of a training to a picture."""

import polars as pl

from cvsi.core.figures import COLOURS, svg


def losses_picture(name: str, losses: pl.DataFrame) -> str:
    """The losses on training and on held-out captions over the steps (`step`, `train`, `validation`) as SVG."""
    with svg(7, 4) as (figure, text):
        axes = figure.subplots()
        for column, colour in zip(("train", "validation"), COLOURS, strict=False):
            axes.plot(losses["step"].to_list(), losses[column].to_list(), ".-", color=colour, label=column)
        axes.set(yscale="log", xlabel="step", ylabel="loss")
        axes.set_title(f"phi {name}: loss on training and on held-out captions", loc="left", fontsize=11)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return text.getvalue()
