"""The verbs `recipe ls`, `recipe show`, `recipe check` and `recipe diff`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perfuse.commands.options import Json

if TYPE_CHECKING:
    from perfuse.recipes import Recipe

Name = Annotated[str, typer.Argument(help="A built-in recipe, a YAML file, or module:function.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe; repeatable.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Small network, crops and steps: minutes on two cores.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    recipe = typer.Typer(help="Look at recipes, and write the next one.", no_args_is_help=True)
    recipe.command("ls")(ls)
    recipe.command("show")(show)
    recipe.command("check")(check)
    recipe.command("diff")(diff)
    app.add_typer(recipe, name="recipe")


def ls(as_json: Json = False) -> None:
    """List the built-in recipes.

    Example: perfuse recipe ls
    """
    from perfuse.console import print_entry, print_json
    from perfuse.recipes import RECIPES

    about = {name: (make.__doc__ or "").split("\n")[0] for name, make in RECIPES.items()}
    if as_json:
        print_json({"recipes": [{"name": n, "about": about[n], **_summary(RECIPES[n]())} for n in RECIPES]})
        return
    for name, make in RECIPES.items():
        summary = _summary(make())
        print_entry(name, about[name], f"{summary['network']}; {summary['sees']}; {summary['work']} crops")


def _summary(recipe: "Recipe") -> dict[str, str]:
    network = recipe.network
    planes = "1 plane" if network.planes == 1 else f"{network.planes} planes{', mosaic' * network.mosaic}"
    return {
        "network": network.module or f"{network.architecture} {network.encoder}",
        "sees": f"{recipe.crop}², {planes}, along {', '.join(recipe.axes)}",
        "work": f"{recipe.steps:,} × {recipe.batch * recipe.accumulate}",
    }


def show(name: Name, settings: Settings = None, smoke: Smoke = False) -> None:
    """Print a recipe as YAML, whole: change what you like, and train with it.

    Example: perfuse recipe show sennet_3rd > my.yaml
    Example: perfuse recipe show sennet_3rd --set network.encoder=resnet34 --set losses.0.weight=0.5
    """
    from perfuse.recipes import load_recipe, to_yaml

    sys.stdout.write(to_yaml(load_recipe(name, settings or [], smoke=smoke)))


def check(name: Name, settings: Settings = None, smoke: Smoke = False, as_json: Json = False) -> dict[str, Any]:
    """Check that a recipe can work: its keys and values, that its network takes its crops and tiles, and answers logits.

    Reads no scan and loads no weights.

    Example: perfuse recipe check my.yaml --set network.encoder=tu-maxvit_tiny_tf_512
    """
    from perfuse.console import print_json, results
    from perfuse.recipes import load_recipe
    from perfuse.recipes.checking import check_network

    recipe = load_recipe(name, settings or [], smoke=smoke)
    count = check_network(recipe)
    found = {"recipe": recipe.name, "weights": count, **_summary(recipe)}
    if as_json:
        print_json(found)
    else:
        results.print(
            f"{recipe.name} can work: {found['network']}, {count / 1e6:.1f} million weights; it sees "
            f"{found['sees']}; {found['work']} crops",
            soft_wrap=True,
        )
    return found


def diff(a: Name, b: Name, as_json: Json = False) -> None:
    """Show where two recipes differ.

    Example: perfuse recipe diff sennet_3rd my.yaml
    """
    from rich.markup import escape
    from rich.table import Table

    from perfuse.console import print_json, results
    from perfuse.recipes import differences, load_recipe

    found = differences(load_recipe(a), load_recipe(b))
    if as_json:
        print_json({key: {"a": left, "b": right} for key, (left, right) in found.items()})
        return
    table = Table("key", a, b)
    for key, values in found.items():
        table.add_row(key, *(escape(str(v)) for v in values))
    results.print(table)
