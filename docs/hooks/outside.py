"""Links from docs/ to files of the repository, which the site does not have.

In: a page, where `[text](../k8s)` is a link that a code host follows. Out: the page with the
text alone. A link to a file that is not there ends the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)\)")
ROOT = Path(__file__).parent.parent.parent


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    for text, path in LINK.findall(markdown):
        if not (ROOT / path).exists():
            raise SystemExit(f"docs/{page.file.src_uri}: [{text}](../{path}) leads nowhere")
    return LINK.sub(r"\1 (`\2`)", markdown)
