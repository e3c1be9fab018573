"""`asc info`."""

from asc.cli.options import Weights


def command(weights: Weights) -> None:
    """Prints a network's layers, parameters and size.

    They are counted from the network itself.
    """
    from rich.console import Console

    from asc.checkpoint import load_model
    from asc.complexity import parameter_table, size
    from asc.report.tables import complexity_table, print_tables, printable, size_lines

    model = load_model(weights)
    console = Console()
    print_tables(console, [complexity_table(parameter_table(model))])
    for line in size_lines(size(model)):
        console.print(line, soft_wrap=True)
    names = printable(", ".join(model.classes))
    console.print("classes:", names, markup=False, soft_wrap=True)
