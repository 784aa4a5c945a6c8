"""The verbs `promote`, `rollback`, `history` and `model import`."""

import math
from typing import Annotated, Any

import typer

from perfuse.commands.options import Json

Model = Annotated[str, typer.Argument(help="Name of the registered model.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(promote)
    app.command()(rollback)
    app.command()(history)
    model = typer.Typer(help="Bring models from elsewhere.", no_args_is_help=True)
    model.callback()(_models)
    model.command("import")(import_model)
    app.add_typer(model, name="model")


def _models() -> None:
    """Bring models from elsewhere."""


def promote(
    model: Model, version: Annotated[int, typer.Argument(min=1, help="The version.")], as_json: Json = False
) -> None:
    """Make a version champion, if its surface dice is not below the champion's on the same data.

    Example: perfuse promote vessels 3
    """
    from perfuse import registry

    decision = registry.promote(model, str(version))
    _tell({"model": model, "champion": str(version), "reason": decision.reason}, as_json)


def rollback(model: Model, as_json: Json = False) -> None:
    """Make the champion before this one champion again.

    Example: perfuse rollback vessels
    """
    from perfuse import registry

    _tell({"model": model, "champion": registry.rollback(model), "reason": "rolled back"}, as_json)


def _tell(answer: dict[str, Any], as_json: bool) -> None:
    from perfuse.console import print_json, results

    if as_json:
        print_json(answer)
    else:
        results.print(
            f"{answer['model']}: version {answer['champion']} is champion; {answer['reason']}", soft_wrap=True
        )


def history(model: Model, as_json: Json = False) -> None:
    """Show every decision on a model, and moves of its champion that were made behind the ledger's back.

    Example: perfuse history vessels
    """
    from rich.table import Table

    from perfuse import registry
    from perfuse.console import print_json, results

    found = registry.history(model)
    if as_json:
        print_json(found)
        return
    table = Table(title=f"{model}: champion {found['champion']}")
    for heading in ("", "when (UTC)", "who", "what", "version", "before", "why"):
        table.add_column(heading, no_wrap=heading == "when (UTC)")
    for entry in found["entries"]:
        when = entry["when"][:16].replace("T", " ")
        keys = ("who", "action", "version", "champion_before", "reason")
        table.add_row(str(entry["index"]), when, *(str(entry[k] or "") for k in keys))
    results.print(table)
    if found["broken_at"] is not None:
        results.print(f"The chain is broken at entry {found['broken_at']}: an entry was changed, added or removed.")
    if found["moved_behind_ledger"]:
        results.print(f"The alias was moved behind the ledger's back: the ledger says {found['ledger_champion']}.")


def import_model(
    weights: Annotated[str, typer.Argument(help="A state dict: .pt, .pth or .safetensors, a path or a URL.")],
    recipe: Annotated[str, typer.Option(help="The recipe, built in or YAML, that says what network it is of.")],
    name: Annotated[str, typer.Option(help="Name in the registry.")],
    voxel_size_um: Annotated[
        tuple[float, float], typer.Option(help="The finest and the coarsest pixel that it may be used on, in µm.")
    ],
    threshold: Annotated[float, typer.Option(min=1 / 255, max=1, help="Vessel is what is at least so probable.")] = 0.5,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe; repeatable.")] = None,
    as_json: Json = False,
) -> str:
    """Register a published checkpoint as challenger. Its file is read as plain weights; no code of it is run.

    Example: perfuse model import unet.pth --recipe sennet_5th --name vessels --voxel-size-um 45 65 --threshold 0.2
    """
    from perfuse import registry
    from perfuse.console import print_json, results
    from perfuse.importing import import_weights
    from perfuse.recipes import load_recipe
    from perfuse.tracking import Run

    loaded = load_recipe(recipe, settings or [])
    bundle = import_weights(weights, loaded, voxel_size_um, math.ceil(255 * threshold))
    run = Run.start(name, {"perfuse.recipe": loaded.name, "perfuse.imported": bundle.lineage["imported"]})
    uri = registry.register(bundle, name, run.id)
    run.finish()
    if as_json:
        print_json({"model": uri})
    else:
        results.print(uri)
    return uri
