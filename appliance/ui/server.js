// What the server says: probes, metrics, listings, and the key they may want.

let key = sessionStorage.getItem("key") ?? ""
const keyed = document.querySelector("#keyed")

keyed.addEventListener("submit", event => {
  event.preventDefault()
  key = document.querySelector("#key").value
  sessionStorage.setItem("key", key)
  keyed.hidden = true
  document.dispatchEvent(new Event("key"))
})

export const isLocked = () => !keyed.hidden

export async function ask(path, body, signal) {
  const headers = key ? { authorization: `Bearer ${key}` } : {}
  if (body) headers["content-type"] = "application/json"
  // Relative, so that the page works below a gateway's prefix as well.
  const answer = await fetch(path, { method: body ? "POST" : "GET", body: body && JSON.stringify(body), headers, signal })
  if (answer.status === 401 && keyed.hidden) keyed.hidden = false
  return answer
}

export async function fault(answer) {
  const told = await answer.json().catch(() => ({}))
  return told.error?.message ?? told.error ?? `the server answered ${answer.status}`
}

// One number for each model and metric, from Prometheus' text format.
const WANTED = /^(vllm:generation_tokens_total|vllm:kv_cache_usage_perc|vllm:num_requests_waiting|appliance_tokens_total|appliance_requests_queued)\{(.*)\} (\S+)$/

export function measured(text) {
  const values = {}
  for (const line of text.split("\n")) {
    const found = WANTED.exec(line)
    if (!found) continue
    const labels = Object.fromEntries([...found[2].matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(each => [each[1], each[2]]))
    if (labels.direction && labels.direction !== "output") continue
    const model = (values[labels.model ?? labels.model_name] ??= {})
    model[found[1]] = (model[found[1]] ?? 0) + Number(found[3])
  }
  return values
}
