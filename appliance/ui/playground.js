// The playground: a chat that streams, and texts compared by their embeddings.

import { ask, fault } from "./server.js"
import { made } from "./models.js"

const USES = { chat_completion: "a chat", embedding: "similarity" }

const find = id => document.querySelector(`#${id}`)
const chosen = find("model")
const turns = find("turns")
let said = []
let cards = []
let running = null

export function offer(listed) {
  // An alias leads to a model that is there already.
  cards = listed.filter(card => uses(card).length && (card.parent || card.id === card.root))
  fill(chosen, cards.map(card => [card.id, card.id]))
  choose()
}

const uses = card => Object.keys(USES).filter(each => card?.operations?.includes(each))

// Nothing is touched that is right already: a list that somebody has open must stay so.
function fill(select, options) {
  if (options.map(([value]) => value).join() === [...select.options].map(option => option.value).join()) return
  const kept = select.value
  select.replaceChildren(...options.map(([value, text]) => made("option", { value }, text)))
  if (options.some(([value]) => value === kept)) select.value = kept
}

function choose() {
  const use = find("use")
  fill(use, uses(cards.find(each => each.id === chosen.value)).map(each => [each, USES[each]]))
  find("chat").hidden = use.value === "embedding"
  find("embed").hidden = use.value !== "embedding"
}

function turn(role, text) {
  const body = made("span", {}, text)
  turns.append(made("div", { className: `turn ${role}` }, made("b", {}, role), body))
  turns.scrollTop = turns.scrollHeight
  return body
}

// Server-sent events, as they come: https://html.spec.whatwg.org/multipage/server-sent-events.html
async function* events(answer) {
  let rest = ""
  for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + chunk).split(/\r?\n/)
    rest = lines.pop()
    for (const line of lines)
      if (line.startsWith("data:") && line.slice(5).trim() !== "[DONE]") yield JSON.parse(line.slice(5))
  }
}

async function reply(body) {
  const began = performance.now()
  let first, count, text = ""
  const answer = await ask("v1/chat/completions", body, running.signal)
  if (!answer.ok) throw new Error(await fault(answer))
  const place = turn("assistant", "")
  const pace = () => {
    const seconds = (performance.now() - first) / 1000
    const rate = count && seconds ? `, ${count} tokens, ${(count / seconds).toFixed(1)} tokens/s` : ""
    find("pace").textContent = `First token after ${((first - began) / 1000).toFixed(2)} s${rate}`
  }
  try {
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message)
      const piece = event.choices?.[0]?.delta?.content ?? ""
      if (piece) first ??= performance.now()
      place.textContent = text += piece
      turns.scrollTop = turns.scrollHeight
      count = event.usage?.completion_tokens ?? count
    }
  } finally {
    if (first) pace()
  }
  return text
}

find("chat").addEventListener("submit", async event => {
  event.preventDefault()
  const message = find("message").value.trim()
  if (!message || running) return
  running = new AbortController()
  find("stop").disabled = false
  turn("user", message)
  find("message").value = ""
  const asked = [...said, { role: "user", content: message }]
  const options = { temperature: Number(find("temperature").value), max_tokens: Number(find("longest").value) }
  try {
    const text = await reply({ model: chosen.value, messages: asked, stream: true, stream_options: { include_usage: true }, ...options })
    said = [...asked, { role: "assistant", content: text }]
  } catch (error) {
    if (error.name !== "AbortError") turn("fault", error.message)
  } finally {
    running = null
    find("stop").disabled = true
    find("message").focus()
  }
})

find("message").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault()
    find("chat").requestSubmit()
  }
})
find("stop").addEventListener("click", () => running?.abort())
find("clear").addEventListener("click", () => {
  running?.abort()
  said = []
  turns.replaceChildren()
  find("pace").textContent = ""
})
chosen.addEventListener("change", choose)
find("use").addEventListener("change", choose)

const cosine = (a, b) => a.reduce((sum, each, n) => sum + each * b[n], 0) / (Math.hypot(...a) * Math.hypot(...b))

find("embed").addEventListener("submit", async event => {
  event.preventDefault()
  const texts = find("texts").value.split("\n").map(line => line.trim()).filter(Boolean)
  find("compared").textContent = "Asking…"
  const answer = await ask("v1/embeddings", { model: chosen.value, input: texts })
  if (!answer.ok) {
    find("compared").textContent = await fault(answer)
    return
  }
  const vectors = (await answer.json()).data.map(each => each.embedding)
  find("compared").textContent = `${vectors.length} texts, ${vectors[0].length} numbers each`
  compare(texts, vectors)
})

function compare(texts, vectors) {
  const table = find("similarities")
  const head = texts.map((text, n) => made("th", { scope: "col", title: text }, String(n + 1)))
  table.tHead.replaceChildren(made("tr", {}, made("td"), ...head))
  table.tBodies[0].replaceChildren(...texts.map((text, n) => {
    const cells = vectors.map(other => {
      const value = cosine(vectors[n], other)
      const cell = made("td", {}, value.toFixed(2))
      cell.style.setProperty("--share", Math.max(0, value))
      return cell
    })
    return made("tr", {}, made("th", { scope: "row" }, `${n + 1}. ${text}`), ...cells)
  }))
  table.parentElement.hidden = false
}
