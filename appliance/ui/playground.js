// The playground: a chat with streamed responses, and the similarity of texts by their embeddings.

import { byId, element, errorMessage, post } from "./server.js"
import { showSnippet } from "./connect.js"
import { markdown } from "./markdown.js"

const TASKS = { chat_completion: "Chat", embedding: "Similarity" }

const modelSelect = byId("model")
const conversation = byId("turns")
let history = []
let playgroundModels = []
let running = null

const tasksOf = card => Object.keys(TASKS).filter(task => card?.operations?.includes(task))

export function listModels(modelCards) {
  // Without aliases, whose models are listed themselves.
  playgroundModels = modelCards.filter(card => tasksOf(card).length && (card.parent || card.id === card.root))
  setOptions(modelSelect, playgroundModels.map(card => [card.id, card.ready ? card.id : `${card.id} (not ready)`, card.ready]))
  showTask()
  // Predictors and proxies for other operations have no playground.
  for (const part of [byId("playground"), document.querySelector("nav a[href='#playground']")]) part.hidden = !playgroundModels.length
}

// A select that has the options already is not touched, because it may be open.
function setOptions(select, options) {
  if (options.map(([, text]) => text).join() === [...select.options].map(option => option.text).join()) return
  const selected = select.value
  select.replaceChildren(...options.map(([value, text, isReady = true]) => element("option", { value, disabled: !isReady }, text)))
  if (options.some(([value]) => value === selected)) select.value = selected
}

function showTask() {
  const task = byId("task")
  setOptions(task, tasksOf(playgroundModels.find(card => card.id === modelSelect.value)).map(name => [name, TASKS[name]]))
  byId("chat").hidden = task.value === "embedding"
  byId("embed").hidden = task.value !== "embedding"
  showSnippet()
}

function addTurn(role, ...content) {
  conversation.append(element("div", { className: `turn ${role}` }, element("b", {}, role), ...content))
  conversation.scrollTop = conversation.scrollHeight
}

// An answer that is still written, with the reasoning before it.
function addAnswer() {
  const thoughts = element("div", { className: "plain" })
  const reasoning = element("details", { hidden: true, open: true }, element("summary", {}, "Reasoning"), thoughts)
  const content = element("div", { className: "text" })
  addTurn("assistant", reasoning, content)
  return ({ text, thought }) => {
    reasoning.hidden = !thought
    // It folds up when the answer begins.
    if (text && !content.hasChildNodes()) reasoning.open = false
    thoughts.textContent = thought
    content.replaceChildren(...markdown(text))
    conversation.scrollTop = conversation.scrollHeight
  }
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

// Fills `answer` with the text that came, also of a stream that fails or is stopped.
async function streamChat(body, answer) {
  const start = performance.now()
  let firstToken, tokens
  const response = await post("v1/chat/completions", body, running.signal)
  if (!response.ok) throw new Error(await errorMessage(response))
  const show = addAnswer()
  const showSpeed = () => {
    const seconds = (performance.now() - firstToken) / 1000
    const rate = tokens && seconds ? `, ${tokens} tokens, ${(tokens / seconds).toFixed(1)} tokens/s` : ""
    byId("speed").textContent = `First token after ${((firstToken - start) / 1000).toFixed(2)} s${rate}`
  }
  try {
    for await (const event of readEvents(response)) {
      if (event.error) throw new Error(event.error.message)
      const { content, reasoning_content: thought, reasoning } = event.choices?.[0]?.delta ?? {}
      answer.text += content ?? ""
      answer.thought += thought ?? reasoning ?? ""
      if (answer.text || answer.thought) firstToken ??= performance.now()
      show(answer)
      tokens = event.usage?.completion_tokens ?? tokens
    }
  } finally {
    if (firstToken) showSpeed()
  }
}

byId("chat").addEventListener("submit", async event => {
  event.preventDefault()
  const message = byId("message").value.trim()
  if (!message || running) return
  const turn = (running = new AbortController())
  byId("stop").disabled = false
  addTurn("user", element("div", { className: "plain" }, message))
  byId("message").value = ""
  const system = byId("system").value.trim()
  const asked = [...history, { role: "user", content: message }]
  const messages = system ? [{ role: "system", content: system }, ...asked] : asked
  const answer = { text: "", thought: "" }
  const options = { temperature: Number(byId("temperature").value), max_tokens: Number(byId("max-tokens").value) }
  try {
    await streamChat({ model: modelSelect.value, messages, stream: true, stream_options: { include_usage: true }, ...options }, answer)
  } catch (error) {
    if (error.name !== "AbortError") addTurn("error", error instanceof TypeError ? "The server does not respond." : error.message)
  }
  // The conversation was not cleared meanwhile.
  if (running === turn) {
    if (answer.text) history = [...asked, { role: "assistant", content: answer.text }]
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
  running = null
  byId("stop").disabled = true
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
