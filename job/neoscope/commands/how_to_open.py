"""The lines of Python that open what a URL holds: a run, a selection of one, or its safetensors.

In: a store, or a manifest. Out: lines of text. It opens nothing.
"""

from __future__ import annotations

import json
from typing import Any

from neoscope.errors import CheckError
from neoscope.format.layout import SELECTION
from neoscope.format.manifest import read_manifest
from neoscope.spec import LAYER, number_ranges
from neoscope.storage.store import Store

HEAD = ["", "Open it in Python:"]


def opening_of(store: Store, endpoint_url: str | None) -> list[str]:
    """The lines for what a whole pull has left in `store`."""
    manifest = read_manifest(store)
    if manifest:
        return opening(manifest, store.url, endpoint_url)
    body = store.get(SELECTION)
    if body is None:
        raise CheckError(f"{store.url} was deleted while it was read")
    selection = json.loads(body)
    if selection["form"] != "safetensors":
        return [*HEAD, *_calls(["run = neoscope.open_run"], store.url, endpoint_url)]
    layers = selection["selection_layers"]
    name = f"{LAYER}{number_ranges('layers', layers)[0][0]}" if layers else "tokens"
    opened = f"load_file({_quoted(f'{store.url}/{name}.safetensors')})"
    return [
        *HEAD,
        "    from safetensors.numpy import load_file",
        f'    {name} = {opened}["{name}"]' if layers else f"    {name} = {opened}",
    ]


def opening(manifest: dict[str, Any], url: str, endpoint_url: str | None) -> list[str]:
    """The lines for the arrays and the statistics that a run has."""
    there = {
        "run = neoscope.open_run": manifest["spec"]["arrays"],
        "statistics = neoscope.open_statistics": "statistics" in manifest,
        "neurons = neoscope.open_neurons": "neurons" in manifest,
    }
    return [
        *HEAD,
        *_calls([call for call, is_there in there.items() if is_there], url, endpoint_url),
    ]


def _calls(calls: list[str], url: str, endpoint_url: str | None) -> list[str]:
    arguments = _quoted(url)
    if endpoint_url and url.startswith("s3://"):
        arguments += f", endpoint_url={_quoted(endpoint_url)}"
    return ["    import neoscope", *(f"    {call}({arguments})" for call in calls)]


def _quoted(text: str) -> str:
    """As a string of Python's, in double quotes."""
    return json.dumps(text, ensure_ascii=False)
