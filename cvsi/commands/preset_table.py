"""The presets as a table: models with memory, download, rate and terms, and numbered sources below."""

from rich.console import Console

from cvsi.commands.forecast import BYTES, weights_bytes
from cvsi.commands.layout import Table, say
from cvsi.core.params import Backbone
from cvsi.models import catalogue
from cvsi.models.catalogue import UNKNOWN_TEXT, Entry, gigabytes
from cvsi.models.presets import SERVER, TINY, Part, Preset, presets

NOTE = (
    "Memory is that of the weights (backbones in fp32, others in fp32 on a CPU and bf16 on a GPU), calculated from the "
    "number of parameters; downloads are the files of the weights. Sources:"
)
ON = {"cpu": "fp32", "cuda": "bf16"}  # what `precision: auto` is
UNITS = {"captions": "captions", "edits": "edits", "image_vectors": "images", "text_vectors": "texts"}


class Sources:
    """Sources, numbered in the order in which they are named first."""

    def __init__(self) -> None:
        """Begin without sources."""
        self.numbers: dict[str, int] = {}

    def cite(self, text: str, source: str) -> str:
        """A text with the number of its source."""
        return f"{text} [{self.numbers.setdefault(source, len(self.numbers) + 1)}]"

    def lines(self) -> list[str]:
        """One line for each source."""
        return [f"[{number}] {source}" for source, number in self.numbers.items()]


def show(console: Console) -> None:
    """Print all presets and the sources of their facts."""
    sources = Sources()
    for name, preset in presets().items():
        console.print(table(name, preset, sources))
    say(console, NOTE)
    for line in sources.lines():
        say(console, line)


def table(name: str, preset: Preset, sources: Sources) -> Table:
    """The models of one preset; captioner and editor of `server` are the server's."""
    shown = Table(f"{name}: {preset.machine}").texts("model", key=True).figures("memory", "download")
    shown.texts("rate", least=20).texts("terms", least=60)
    if name == TINY:
        for part in (preset.captioner, preset.editor, preset.backbone):
            _add_own(shown, part)
        return shown
    device = "cuda" if preset.gpu_gib else "cpu"
    if name == SERVER:
        shown.add_row("captioner and editor: the server's", *"----")
    else:
        for part in (preset.captioner, preset.editor):
            model = part.settings["model"]
            _add(shown, model, catalogue.of_model(model), device, part.settings.get("precision"), sources)
    backbone = Backbone.model_validate(preset.backbone.settings)
    entry = catalogue.of_backbone(backbone)
    _add(shown, f"{backbone.model} {backbone.pretrained}", entry, device, backbone.precision, sources)
    return shown


def _add_own(shown: Table, part: Part) -> None:
    """Add a model that comes with the project."""
    shown.add_row(str(part.settings["model"]), "small", "none", "not measured", "those of this project")


def _add(shown: Table, name: str, entry: Entry, device: str, precision: str | None, sources: Sources) -> None:
    """Add a model: memory, download and rate, each with its source's number, or `unknown`; and its terms."""
    size = weights_bytes(entry, precision if precision in BYTES else ON[device])
    memory = sources.cite(gigabytes(size), entry.parameters.source) if entry.parameters else UNKNOWN_TEXT
    download = sources.cite(gigabytes(entry.download.value), entry.download.source) if entry.download else UNKNOWN_TEXT
    rates = [
        sources.cite(f"{rate.per_second:.2g} {UNITS[rate.rows]}/s", rate.source)
        for rate in entry.rates
        if rate.device == device
    ]
    terms = sources.cite(entry.terms.value, entry.terms.source) if entry.terms else UNKNOWN_TEXT
    shown.add_row(name, memory, download, ", ".join(rates) or "not measured", terms)
