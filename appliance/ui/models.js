// The cards: where each model stands, and how busy it is.

import { ask, isLocked, measured } from "./server.js"

const GOOD = new Set(["ready", "following"])
const BAD = new Set(["failed", "stopped"])
const SIGNS = { good: "●", busy: "◌", bad: "✕" }
const grid = document.querySelector("#cards")
const states = new Map()
let before = { at: 0, tokens: {} }
let isMeasured = true

document.addEventListener("key", () => (isMeasured = true))

export const made = (tag, properties = {}, ...inner) => {
  const element = Object.assign(document.createElement(tag), properties)
  element.append(...inner)
  return element
}

const amount = bytes => {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (bytes >= size) return `${(bytes / size).toFixed(bytes >= 10 * size ? 0 : 1)} ${unit}`
  return `${bytes} B`
}

const span = seconds => {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`
}

function progress(told) {
  const { fetched_bytes: fetched, total_bytes: total, bytes_per_second: rate, eta_seconds: rest } = told
  const words = [total ? `${amount(fetched)} of ${amount(total)}` : amount(fetched)]
  if (rate) words.push(`${amount(rate)}/s`)
  if (rest != null) words.push(`${span(rest)} to go`)
  const bar = made("progress", { ariaLabel: "Bytes fetched" })
  if (total) Object.assign(bar, { max: total, value: fetched })
  return made("div", {}, bar, made("div", {}, words.join(", ")))
}

// What was said of it; one device, where nothing was.
function told(layout) {
  if (!layout || typeof layout === "string") return layout
  const flat = ([word, value]) => `${word.replaceAll("_", " ")} ${typeof value === "object" ? JSON.stringify(value) : value}`
  return Object.entries(layout).map(flat).join(", ")
}

// Both where the load has shown how good the plan was.
function compared(plan, name, shown) {
  const { planned = {}, measured: actual = {} } = plan ?? {}
  if (planned[name] == null) return null
  return actual[name] == null ? `${shown(planned[name])} planned` : `${shown(actual[name])}, ${shown(planned[name])} planned`
}

// How long its last load took, and what most of that went to.
function spent({ seconds, phases, parts }) {
  const { loading, ...others } = phases
  const longest = Object.entries({ ...others, ...(parts ?? { loading }) }).filter(each => each[1] >= 0.1).sort((a, b) => b[1] - a[1]).slice(0, 3)
  return [`${seconds.toFixed(1)} s`, ...longest.map(([name, each]) => `${name.replaceAll("_", " ")} ${each.toFixed(1)}`)].join(", ")
}

function facts(model, card, now, pace) {
  const rows = [["Answers", (card?.operations ?? []).join(", ").replaceAll("_", " ")]]
  rows.push(["Longest context", card?.max_model_len && `${card.max_model_len.toLocaleString("en")} tokens`])
  rows.push(["Layout", told(model.layout)])
  rows.push(["Weights", compared(model.plan, "weight_bytes", bytes => `${amount(bytes)} a device`)])
  rows.push(["KV tokens", compared(model.plan, "kv_tokens", count => count.toLocaleString("en"))])
  rows.push(["Load", model.load && spent(model.load)])
  const full = now?.["vllm:kv_cache_usage_perc"]
  rows.push(["KV cache", full != null && `${(full * 100).toFixed(1)} % used`])
  rows.push(["Under way", model.state === "ready" && String(model.running)])
  const queued = now?.appliance_requests_queued ?? now?.["vllm:num_requests_waiting"]
  rows.push(["Queued", queued != null && String(queued)])
  rows.push(["Output", pace != null && `${pace.toFixed(pace < 10 ? 1 : 0)} tokens/s`])
  for (const [rank, standing] of Object.entries(model.nodes ?? {})) rows.push([`Node ${rank}`, standing])
  for (const each of model.upstreams ?? []) rows.push([each.name ?? "Upstream", each.state ?? each.reason])
  return made("dl", {}, ...rows.filter(row => row[1]).flatMap(([term, text]) => [made("dt", {}, term), made("dd", {}, text)]))
}

function drawn(model, card, now, pace) {
  const kind = GOOD.has(model.state) ? "good" : BAD.has(model.state) ? "bad" : "busy"
  const state = made("span", { className: `state ${kind}` }, `${SIGNS[kind]} ${model.state}`)
  const since = `, ${span((Date.now() - Date.parse(model.since)) / 1000)} ago`
  const article = made("article", {}, made("header", {}, made("h3", {}, model.name), state))
  article.dataset.model = model.name
  article.append(made("p", { className: "reason" }, model.reason, since))
  if (model.progress) article.append(progress(model.progress))
  article.append(facts(model, card, now, pace))
  return article
}

function tell(models) {
  const news = models.filter(each => states.has(each.name) && states.get(each.name) !== each.state)
  for (const each of models) states.set(each.name, each.state)
  // Said once and not at each look, or a screen reader never falls silent.
  if (news.length) document.querySelector("#news").textContent = news.map(each => `${each.name} is ${each.state}.`).join(" ")
}

function paces(values) {
  const at = performance.now()
  const counts = Object.entries(values).map(([model, now]) => [model, now.appliance_tokens_total ?? now["vllm:generation_tokens_total"]])
  const tokens = Object.fromEntries(counts)
  const seconds = (at - before.at) / 1000
  const found = Object.fromEntries(counts.map(([model, count]) => [model, (count - before.tokens[model]) / seconds]))
  before = { at, tokens }
  return found
}

async function listed() {
  const answer = await ask("v1/models")
  return answer.ok ? (await answer.json()).data : []
}

async function scraped() {
  const answer = await ask("metrics")
  // Not for every key: to ask again would only fill the console.
  isMeasured = answer.ok
  return answer.ok ? measured(await answer.text()) : {}
}

export async function look() {
  // Not readiness: its 503 would fill the console of whoever watches a model load.
  const probe = await (await ask("livez")).json()
  const cards = isLocked() ? [] : await listed()
  const values = isLocked() || !isMeasured ? {} : await scraped()
  const pace = paces(values)
  const shown = name => (Number.isFinite(pace[name]) && pace[name] >= 0 ? pace[name] : null)
  const known = Object.fromEntries(cards.map(card => [card.id, card]))
  grid.replaceChildren(...probe.models.map(each => drawn(each, known[each.name], values[each.name], shown(each.name))))
  tell(probe.models)
  const wanted = probe.models.filter(each => each.state !== "unloaded")
  const missing = wanted.filter(each => !GOOD.has(each.state)).length
  document.querySelector("#verdict").textContent =
    !probe.models.length ? "Which models there are is for those with a key."
    : missing || !wanted.length ? `Not ready: ${missing} of ${wanted.length} models` : "Ready"
  return cards
}
