// Requests to the server with the key of the reader, and elements to show the responses.

export const byId = id => document.getElementById(id)

let key = sessionStorage.getItem("key") ?? ""
const keyForm = byId("key-form")

keyForm.addEventListener("submit", event => {
  event.preventDefault()
  key = byId("key").value
  sessionStorage.setItem("key", key)
  showKeyForm(false)
  document.dispatchEvent(new Event("key"))
})

byId("key-note").hidden = !key
byId("forget-key").addEventListener("click", () => {
  sessionStorage.removeItem("key")
  location.reload()
})

export const needsKey = () => !keyForm.hidden
export const hasKey = () => Boolean(key)

function showKeyForm(isShown) {
  keyForm.hidden = !isShown
  byId("key-note").hidden = isShown || !key
  byId("key-error").textContent = isShown && key ? "The server does not accept this key." : ""
  // The page shows nothing that it cannot fill.
  document.body.classList.toggle("locked", isShown)
}

export async function request(path, { method = "GET", body, signal } = {}) {
  const used = key
  const headers = used ? { authorization: `Bearer ${used}` } : {}
  if (body) headers["content-type"] = "application/json"
  // The path is relative, so that the page also works below a gateway's prefix.
  const response = await fetch(path, { method, body, headers, signal })
  // The answer to an earlier key says nothing of the present one.
  if (response.status === 401 && used === key && keyForm.hidden) showKeyForm(true)
  return response
}

export const post = (path, body, signal) => request(path, { method: "POST", body: JSON.stringify(body), signal })

export async function errorMessage(response) {
  const body = await response.json().catch(() => ({}))
  return body.error?.message ?? body.error ?? `The server answered with status ${response.status}.`
}

export const element = (tag, properties = {}, ...children) => {
  const created = Object.assign(document.createElement(tag), properties)
  created.append(...children)
  return created
}

const METRIC = /^(vllm:generation_tokens_total|vllm:kv_cache_usage_perc|vllm:num_requests_waiting|appliance_tokens_total|appliance_requests_queued)\{(.*)\} (\S+)$/

// One number for each model and metric, from Prometheus' text format.
export function parseMetrics(text) {
  const values = {}
  for (const line of text.split("\n")) {
    const match = METRIC.exec(line)
    if (!match) continue
    const labels = Object.fromEntries([...match[2].matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(label => [label[1], label[2]]))
    if (labels.direction && labels.direction !== "output") continue
    const model = (values[labels.model ?? labels.model_name] ??= {})
    model[match[1]] = (model[match[1]] ?? 0) + Number(match[3])
  }
  return values
}
