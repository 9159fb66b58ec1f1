"""Execute docs/first-mixture.ipynb and write its outputs into it.

    python scripts/notebook.py

Outputs hold no times and no paths of a machine, so that a diff shows what has changed.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

PAGE = Path(__file__).parents[1] / "docs" / "first-mixture.ipynb"
SECONDS = 600  # of one cell


def executed(shorter: Mapping[str, str] = MappingProxyType({})) -> NotebookNode:
    """Return the notebook with its outputs.

    Args:
        shorter: texts in place of others, which are in its code.
    """
    notebook = nbformat.read(PAGE, as_version=4)
    for text, other in shorter.items():
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source)
        cell.source = cell.source.replace(text, other)
    before = {key: os.environ.pop(key, None) for key in ("DISPLAY", "WAYLAND_DISPLAY")}
    try:
        with TemporaryDirectory() as folder:
            client = NotebookClient(
                notebook, timeout=SECONDS, kernel_name="python3", record_timing=False,
                resources={"metadata": {"path": folder}},
            )  # fmt: skip
            client.execute()
    finally:
        os.environ.update({key: value for key, value in before.items() if value is not None})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _untimed(cell.outputs)
    return notebook


def _untimed(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join pieces of one stream, and drop its lines about a page that renews itself: both depend on time."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            output.text = "".join(line for line in output.text.splitlines(True) if "renews itself" not in line)
            if not output.text:
                continue
            if kept and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
                continue
        kept.append(output)
    return kept


def main() -> None:
    notebook = executed()
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    nbformat.write(notebook, PAGE)


if __name__ == "__main__":
    main()
