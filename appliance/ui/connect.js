// How a program uses the model and task of the playground.

import { byId, hasKey } from "./server.js"

const BASE_URL = new URL("v1", location.href.split(/[?#]/)[0]).href
const PYTHON_CALLS = {
  chat_completion: ["chat.completions", "messages", "choices[0].message.content"],
  embedding: ["embeddings", "input", "data[0].embedding"],
}
const PATHS = { chat_completion: "chat/completions", embedding: "embeddings" }
const INPUTS = { chat_completion: { messages: [{ role: "user", content: "Hello" }], max_tokens: 50 }, embedding: { input: "Hello" } }

function curl(model, task) {
  const authorization = hasKey() ? ` \\\n  -H "Authorization: Bearer $API_KEY"` : ""
  if (!model) return `curl ${BASE_URL}/models${authorization}`
  const body = JSON.stringify({ model, ...INPUTS[task] }).replaceAll("'", "'\\''")
  return `curl ${BASE_URL}/${PATHS[task]}${authorization} \\\n  -H "Content-Type: application/json" \\\n  -d '${body}'`
}

function python(model, task) {
  const key = hasKey() ? `os.environ["API_KEY"]` : `"none"`
  const client = `${hasKey() ? "import os\n\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url="${BASE_URL}", api_key=${key})\n`
  if (!model) return `${client}print(client.models.list())`
  const [method, name, result] = PYTHON_CALLS[task]
  const input = JSON.stringify(INPUTS[task][name])
  return `${client}response = client.${method}.create(model=${JSON.stringify(model)}, ${name}=${input})\nprint(response.${result})`
}

export function showSnippet() {
  const format = byId("client").value === "curl" ? curl : python
  byId("base-url").textContent = BASE_URL
  byId("snippet").textContent = format(byId("model").value, byId("task").value)
}

for (const button of document.querySelectorAll("[data-copy]")) {
  // Browsers let only pages of https and of this machine write to the clipboard.
  button.hidden = !navigator.clipboard
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(byId(button.dataset.copy).textContent)
    button.textContent = "Copied"
    setTimeout(() => (button.textContent = "Copy"), 1500)
  })
}
byId("client").addEventListener("change", showSnippet)
document.addEventListener("key", showSnippet)
