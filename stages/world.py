"""Draws the demo's pictures and queries, in CIRCO's layout."""

from cvsi.core import params, stage_runner
from cvsi.core.atomic import atomic_dir
from cvsi.core.console import info
from cvsi.core.paths import WORLD
from demo.world.dataset import draw


def world() -> None:
    """Draw the demo world: data/demo."""
    sizes = params.load().world
    with atomic_dir(WORLD) as folder:
        draw(folder, sizes)
    info(f"{sizes.gallery:,} images, {sizes.val:,} labelled and {sizes.test:,} hidden queries drawn")


if __name__ == "__main__":
    stage_runner.run(world)
