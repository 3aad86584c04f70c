// The playground: a chat with streamed responses, and the similarity of texts by their embeddings.

import { element, errorMessage, post } from "./server.js"

const TASKS = { chat_completion: "Chat", embedding: "Similarity" }

const byId = id => document.querySelector(`#${id}`)
const modelSelect = byId("model")
const conversation = byId("turns")
let history = []
let playgroundModels = []
let running = null

const tasksOf = card => Object.keys(TASKS).filter(task => card?.operations?.includes(task))

export function listModels(modelCards) {
  // Without aliases, whose models are listed themselves.
  playgroundModels = modelCards.filter(card => tasksOf(card).length && (card.parent || card.id === card.root))
  setOptions(modelSelect, playgroundModels.map(card => [card.id, card.id]))
  showTask()
}

// A select that has the options already is not touched, because it may be open.
function setOptions(select, options) {
  if (options.map(([value]) => value).join() === [...select.options].map(option => option.value).join()) return
  const selected = select.value
  select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)))
  if (options.some(([value]) => value === selected)) select.value = selected
}

function showTask() {
  const task = byId("task")
  setOptions(task, tasksOf(playgroundModels.find(card => card.id === modelSelect.value)).map(name => [name, TASKS[name]]))
  byId("chat").hidden = task.value === "embedding"
  byId("embed").hidden = task.value !== "embedding"
}

function addTurn(role, text) {
  const content = element("span", {}, text)
  conversation.append(element("div", { className: `turn ${role}` }, element("b", {}, role), content))
  conversation.scrollTop = conversation.scrollHeight
  return content
}

// Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html
async function* readEvents(response) {
  let rest = ""
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + chunk).split(/\r?\n/)
    rest = lines.pop()
    for (const line of lines)
      if (line.startsWith("data:") && line.slice(5).trim() !== "[DONE]") yield JSON.parse(line.slice(5))
  }
}

async function streamChat(body) {
  const start = performance.now()
  let firstToken, tokens, text = ""
  const response = await post("v1/chat/completions", body, running.signal)
  if (!response.ok) throw new Error(await errorMessage(response))
  const content = addTurn("assistant", "")
  const showSpeed = () => {
    const seconds = (performance.now() - firstToken) / 1000
    const rate = tokens && seconds ? `, ${tokens} tokens, ${(tokens / seconds).toFixed(1)} tokens/s` : ""
    byId("speed").textContent = `First token after ${((firstToken - start) / 1000).toFixed(2)} s${rate}`
  }
  try {
    for await (const event of readEvents(response)) {
      if (event.error) throw new Error(event.error.message)
      const delta = event.choices?.[0]?.delta?.content ?? ""
      if (delta) firstToken ??= performance.now()
      content.textContent = text += delta
      conversation.scrollTop = conversation.scrollHeight
      tokens = event.usage?.completion_tokens ?? tokens
    }
  } finally {
    if (firstToken) showSpeed()
  }
  return text
}

byId("chat").addEventListener("submit", async event => {
  event.preventDefault()
  const message = byId("message").value.trim()
  if (!message || running) return
  running = new AbortController()
  byId("stop").disabled = false
  addTurn("user", message)
  byId("message").value = ""
  const messages = [...history, { role: "user", content: message }]
  const options = { temperature: Number(byId("temperature").value), max_tokens: Number(byId("max-tokens").value) }
  try {
    const text = await streamChat({ model: modelSelect.value, messages, stream: true, stream_options: { include_usage: true }, ...options })
    history = [...messages, { role: "assistant", content: text }]
  } catch (error) {
    if (error.name !== "AbortError") addTurn("error", error.message)
  } finally {
    running = null
    byId("stop").disabled = true
    byId("message").focus()
  }
})

byId("message").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault()
    byId("chat").requestSubmit()
  }
})
byId("stop").addEventListener("click", () => running?.abort())
byId("clear").addEventListener("click", () => {
  running?.abort()
  history = []
  conversation.replaceChildren()
  byId("speed").textContent = ""
})
modelSelect.addEventListener("change", showTask)
byId("task").addEventListener("change", showTask)

const cosine = (a, b) => a.reduce((sum, value, n) => sum + value * b[n], 0) / (Math.hypot(...a) * Math.hypot(...b))

byId("embed").addEventListener("submit", async event => {
  event.preventDefault()
  const texts = byId("texts").value.split("\n").map(line => line.trim()).filter(Boolean)
  byId("embed-status").textContent = "Computing…"
  const response = await post("v1/embeddings", { model: modelSelect.value, input: texts })
  if (!response.ok) {
    byId("embed-status").textContent = await errorMessage(response)
    return
  }
  const vectors = (await response.json()).data.map(item => item.embedding)
  byId("embed-status").textContent = `${vectors.length} texts, ${vectors[0].length} dimensions`
  showSimilarities(texts, vectors)
})

function showSimilarities(texts, vectors) {
  const table = byId("similarities")
  const head = texts.map((text, n) => element("th", { scope: "col", title: text }, String(n + 1)))
  table.tHead.replaceChildren(element("tr", {}, element("td"), ...head))
  table.tBodies[0].replaceChildren(...texts.map((text, n) => {
    const cells = vectors.map(other => {
      const value = cosine(vectors[n], other)
      const cell = element("td", {}, value.toFixed(2))
      cell.style.setProperty("--share", Math.max(0, value))
      return cell
    })
    return element("tr", {}, element("th", { scope: "row" }, `${n + 1}. ${text}`), ...cells)
  }))
  table.parentElement.hidden = false
}
