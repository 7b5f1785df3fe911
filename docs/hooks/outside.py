"""Links from docs/ to files of the repository, which the site does not have.

In: a page, where `[text](../k8s)` is a link that a code host follows. Out: the page with the
text alone. A link to a file that is not there ends the build; one that stays in docs/ is the builder's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)\)")
DOCS = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    folder = (DOCS / page.file.src_uri).parent

    def outside(link: re.Match[str]) -> str:
        text, path = link.groups()
        target = (folder / path).resolve()
        if target.is_relative_to(DOCS):
            return link[0]
        if not target.exists():
            raise SystemExit(f"docs/{page.file.src_uri}: [{text}]({path}) leads nowhere")
        return f"{text} (`{target.relative_to(DOCS.parent)}`)"

    return LINK.sub(outside, markdown)
