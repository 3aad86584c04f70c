"""
The page on which people read the document.
"""

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
"""
It has no part from elsewhere, and no state.
"""
