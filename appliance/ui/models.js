// The cards: the state of each model, and its load.

import { byId, element, needsKey, parseMetrics, request } from "./server.js"

const GOOD = new Set(["ready", "following"])
const BAD = new Set(["failed", "stopped"])
// A model of one's own has fewer.
const MAX_OPERATIONS = 10
const SYMBOLS = { good: "●", busy: "◌", bad: "✕" }
const cards = byId("cards")
const states = new Map()
let lastCounts = { time: 0, tokens: {} }
let canReadMetrics = true
let modelCards = []
let listedStates = null

document.addEventListener("key", () => {
  canReadMetrics = true
  listedStates = null
})

const formatBytes = bytes => {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (bytes >= size) return `${(bytes / size).toFixed(bytes >= 10 * size ? 0 : 1)} ${unit}`
  return `${bytes} B`
}

const formatDuration = seconds => {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`
}

function downloadProgress(progress) {
  const { fetched_bytes: fetched, total_bytes: total, bytes_per_second: rate, eta_seconds: eta } = progress
  const parts = [total ? `${formatBytes(fetched)} of ${formatBytes(total)}` : formatBytes(fetched)]
  if (rate) parts.push(`${formatBytes(rate)}/s`)
  if (eta != null) parts.push(`${formatDuration(eta)} left`)
  if (progress.retry_in_seconds) parts.push(`the store is asked again in ${formatDuration(progress.retry_in_seconds)}`)
  const bar = element("progress", { ariaLabel: "Download" })
  if (total) Object.assign(bar, { max: total, value: fetched })
  return element("div", {}, bar, element("div", {}, parts.join(", ")))
}

// The keys that the config sets; empty without any.
function formatLayout(layout) {
  if (!layout || typeof layout === "string") return layout
  const format = ([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "object" ? JSON.stringify(value) : value}`
  return Object.entries(layout).map(format).join(", ")
}

// The planned value, and the measured one after the load.
function plannedAndMeasured(plan, name, format) {
  const { planned = {}, measured = {} } = plan ?? {}
  if (planned[name] == null) return null
  return measured[name] == null ? `${format(planned[name])} planned` : `${format(measured[name])}, ${format(planned[name])} planned`
}

// The duration of the last load, and its three longest parts.
function formatLoad({ seconds, phases, parts }) {
  const { loading, ...others } = phases
  const longest = Object.entries({ ...others, ...(parts ?? { loading }) }).filter(part => part[1] >= 0.1).sort((a, b) => b[1] - a[1]).slice(0, 3)
  return [`${seconds.toFixed(1)} s`, ...longest.map(([name, part]) => `${name.replaceAll("_", " ")} ${part.toFixed(1)}`)].join(", ")
}

// A proxy has every operation that its upstream may have.
function formatOperations(operations) {
  const names = operations.map(name => name.replaceAll("_", " "))
  return names.length <= MAX_OPERATIONS ? names.join(", ") : `any of ${names.length} of the OpenAI API`
}

function details(model, card, metrics, speed) {
  const rows = [["Operations", formatOperations(card?.operations ?? [])]]
  rows.push(["Aliases", (card?.aliases ?? []).join(", ")])
  rows.push(["LoRA adapters", modelCards.filter(each => each.parent === model.name).map(each => each.id).join(", ")])
  rows.push(["Max context", card?.max_model_len && `${card.max_model_len.toLocaleString("en")} tokens`])
  rows.push(["Layout", formatLayout(model.layout)])
  rows.push(["Weights", plannedAndMeasured(model.plan, "weight_bytes", bytes => `${formatBytes(bytes)} per device`)])
  rows.push(["KV tokens", plannedAndMeasured(model.plan, "kv_tokens", count => count.toLocaleString("en"))])
  rows.push(["Load", model.load && formatLoad(model.load)])
  const kvCacheUsage = metrics?.["vllm:kv_cache_usage_perc"]
  rows.push(["KV cache", kvCacheUsage != null && `${(kvCacheUsage * 100).toFixed(1)} % used`])
  rows.push(["Running", model.state === "ready" && String(model.running)])
  const queued = metrics?.appliance_requests_queued ?? metrics?.["vllm:num_requests_waiting"]
  rows.push(["Queued", queued != null && String(queued)])
  rows.push(["Output", speed != null && `${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s`])
  for (const [rank, state] of Object.entries(model.nodes ?? {})) rows.push([`Node ${rank}`, state])
  for (const upstream of model.upstreams ?? []) rows.push([upstream.name ?? "Upstream", upstream.state ?? upstream.reason])
  const shown = rows.filter(row => row[1]).flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)])
  return element("dl", {}, ...shown)
}

function modelCard(model, card, metrics, speed) {
  const kind = GOOD.has(model.state) ? "good" : BAD.has(model.state) ? "bad" : "busy"
  const state = element("span", { className: `state ${kind}` }, `${SYMBOLS[kind]} ${model.state}`)
  const since = ` · ${formatDuration((Date.now() - Date.parse(model.since)) / 1000)} ago`
  const article = element("article", {}, element("header", {}, element("h3", {}, model.name), state))
  article.dataset.model = model.name
  article.append(element("p", { className: "reason" }, model.reason, since))
  if (model.progress) article.append(downloadProgress(model.progress))
  article.append(details(model, card, metrics, speed))
  return article
}

// Only changes, so that a screen reader does not repeat what it has read.
function announceChanges(models) {
  const changed = models.filter(model => states.has(model.name) && states.get(model.name) !== model.state)
  for (const model of models) states.set(model.name, model.state)
  if (changed.length) byId("announcements").textContent = changed.map(model => `${model.name} is ${model.state}.`).join(" ")
}

// Output tokens per second of each model since the last call.
function tokenRates(metrics) {
  const time = performance.now()
  const counts = Object.entries(metrics).map(([model, values]) => [model, values.appliance_tokens_total ?? values["vllm:generation_tokens_total"]])
  const seconds = (time - lastCounts.time) / 1000
  const rates = Object.fromEntries(counts.map(([model, count]) => [model, (count - lastCounts.tokens[model]) / seconds]))
  lastCounts = { time, tokens: Object.fromEntries(counts) }
  return rates
}

// Once for each change of a state, so that an open page does not fill the server's log.
async function fetchModelCards(models) {
  const found = JSON.stringify(models.map(model => [model.name, model.state]))
  if (found === listedStates) return
  const response = await request("v1/models")
  modelCards = response.ok ? (await response.json()).data : []
  listedStates = response.ok ? found : null
}

async function fetchMetrics() {
  const response = await request("metrics")
  // Not every key may read metrics, and another refusal would only fill the console.
  canReadMetrics = response.ok
  return response.ok ? parseMetrics(await response.text()) : {}
}

export async function refreshModels() {
  // Not /readyz, because a browser logs its 503 as an error.
  const probe = await (await request("livez")).json()
  if (!needsKey()) await fetchModelCards(probe.models)
  const metrics = needsKey() || !canReadMetrics ? {} : await fetchMetrics()
  const rates = tokenRates(metrics)
  const speed = name => (Number.isFinite(rates[name]) && rates[name] >= 0 ? rates[name] : null)
  const byName = Object.fromEntries(modelCards.map(card => [card.id, card]))
  cards.replaceChildren(...probe.models.map(model => modelCard(model, byName[model.name], metrics[model.name], speed(model.name))))
  announceChanges(probe.models)
  const loaded = probe.models.filter(model => model.state !== "unloaded")
  const notReady = loaded.filter(model => !GOOD.has(model.state)).length
  showStatus(
    !probe.models.length ? "Enter an API key to see the models."
    : notReady || !loaded.length ? `Not ready: ${notReady} of ${loaded.length} models` : "Ready")
  return modelCards
}

// The states that were known last are no longer true.
export function showOffline() {
  for (const state of cards.querySelectorAll(".state")) Object.assign(state, { className: "state bad", textContent: "? unknown" })
  showStatus("The server does not respond.", "bad")
}

function showStatus(text, kind = "") {
  Object.assign(byId("status"), { textContent: text, className: kind })
}
