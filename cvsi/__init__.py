"""CVSI, composed image retrieval as a staged pipeline with cached artifacts.

`datasets` reads a dataset's folder into two tables, images and queries. `pipeline` captions every image, edits the
reference image's captions by the instruction, and turns images and texts into vectors; `models` has the engines that
compute this, and `store` keeps every computed row. `evaluation` fuses the vectors by weights, ranks the gallery and
writes metrics, submissions and the report. `training` trains phi, `commands` is the command line, and `core` has what
all of them use. tests/project/test_layers.py lists which package may import which.
"""

import os

__version__ = "0.1.0"

# torch reads this when it is loaded: waiting threads must sleep. Spinning ones slow small models down by a factor of
# forty on a busy machine (9.3 s against 0.25 s for a batch of captions).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
