"""Options by which verbs name models, and say how these see a scan and answer as one."""

from typing import Annotated, Literal

import typer

Models = Annotated[
    list[str],
    typer.Option(
        "--model", help="models:/NAME@champion, models:/NAME/3 or runs:/…; of several the mean of their logits."
    ),
]
Views = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="key=value over how the model sees a scan: turns=all, scales=1,2, window=gaussian, axes=z, resample_um=63; "
        "N:key=value for the N-th model alone; repeatable.",
    ),
]
Average = Annotated[
    Literal["logit", "probability"] | None,
    typer.Option(help="What is averaged over several models; logits by default."),
]
Weights = Annotated[
    list[float] | None,
    typer.Option("--weight", help="How much each of several models counts, in their order; alike when not given."),
]
Temperatures = Annotated[
    list[float] | None,
    typer.Option("--temperature", help="By what each of several models' logits are divided, in their order."),
]
