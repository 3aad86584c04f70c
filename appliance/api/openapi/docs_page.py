"""The page on which people read the document."""

from __future__ import annotations

import base64
import hashlib
import re

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Appliance</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
  summary { cursor: pointer } code { font-size: 14px } b { display: inline-block; width: 4rem }
  pre { background: #8881; padding: 1rem; overflow: auto } summary span { float: right; opacity: .7 }
</style>
<h1>Appliance</h1>
<p>Every route; the same as <a href="schema/openapi.json">one document</a>.</p>
<main></main>
<script>
  const shown = (tag, text, ...inner) => {
    const made = document.createElement(tag)
    if (text) made.textContent = text
    made.append(...inner)
    return made
  }
  fetch("schema/openapi.json").then(answer => answer.json()).then(told => {
    const full = schema => JSON.stringify(schema, (key, value) =>
      value && value.$ref ? told.components.schemas[value.$ref.split("/").pop()] : value, 2)
    for (const [path, methods] of Object.entries(told.paths))
      for (const [method, one] of Object.entries(methods)) {
        const line = shown("summary", "", shown("b", method.toUpperCase()), shown("code", path),
          shown("span", one.summary))
        const parts = [line]
        const bodies = { request: one.requestBody, ...one.responses }
        for (const [name, body] of Object.entries(bodies))
          if (body && body.content)
            parts.push(shown("p", name), shown("pre", full(body.content["application/json"].schema)))
        document.querySelector("main").append(shown("details", "", ...parts))
      }
  })
</script>
</html>
"""
"""It has no part from elsewhere, and no state."""


def policy_of(page: str) -> str:
    """The `Content-Security-Policy` under which a page runs the script and the style that stand in it, and no other.

    Source: https://www.w3.org/TR/CSP3/#grammardef-hash-source
    """
    allowed = {
        f"{tag}-src": " ".join(_source(part) for part in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL))
        for tag in ("script", "style")
    }
    own = "; ".join(f"{directive} {sources}" for directive, sources in allowed.items() if sources)
    return f"default-src 'none'; connect-src 'self'; {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _source(part: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
